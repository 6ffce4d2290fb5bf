"""Tables: CSV with or without a line of names, and parquet (pyarrow, the extra ``tables``).

Every column is a feature with a unit of its own, but for those of labels and conditions.  Missing entries,
where they are allowed, are cells that hold one of ``MISSING_CELLS``, and nulls of parquet; they become nan.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit.data.sources.raw import Raw, label_numbers

_SEPARATORS = ",;\t|"

MISSING_CELLS = ("", "nan", "na", "n/a", "null", "none", "?")
"""Cells of a missing entry, in any case."""


def read_csv(
    path: Path, columns: str = "", labels: str = "", missing: bool = False, conditions: str = ""
) -> Raw:
    """The numbers of a CSV file.

    Args:
        path: of the file, in UTF-8.
        columns: names (or numbers from 0) of the features, with commas between; all but the labels and
            conditions when "".
        labels: name or number of the column with the labels; "" or "none" for no labels.
        missing: whether features may have missing entries.
        conditions: names (or numbers) of the columns of the conditions, with commas between; "" for none.

    Raises:
        ValueError: a cell that is no number (its line and column are named), lines of different lengths, a
            column that is not there, or a file that is no text.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head = file.read(1 << 16)
            separator = _separator(head)
            file.seek(0)
            lines = [line for line in csv.reader(file, delimiter=separator) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}") from None
    if not lines:
        raise ValueError(f"{path} must hold lines of numbers, got an empty file")
    named = any(not _is_number(cell) and not (missing and _is_missing(cell)) for cell in lines[0])
    names = [cell.strip() for cell in lines[0]] if named else [str(k) for k in range(len(lines[0]))]
    rows = lines[named:]
    if not rows:
        raise ValueError(f"{path} must hold lines of numbers, got a line of names alone")
    for number, row in enumerate(rows, 1 + named):
        if len(row) != len(names):
            raise ValueError(f"{path}, line {number}, must have {len(names)} cells, got {len(row)}")
    label = _column(path, labels, names, "data.labels") if labels not in ("", "none") else None
    given = _listed(path, conditions, names, "data.conditions")
    chosen = _chosen(path, columns, names, [label, *given])

    def numbers(which: list[int], gaps: bool) -> np.ndarray:
        found = np.empty((len(rows), len(which)))
        for j, k in enumerate(which):
            found[:, j] = [_number(path, row[k], i, names[k], gaps) for i, row in enumerate(rows, 1 + named)]
        return found

    cells = None if label is None else [row[label] for row in rows]
    made = _raw(path, numbers(chosen, missing), chosen, names, cells, label)
    return replace(made, conditions=numbers(given, False)) if given else made


def read_parquet(
    path: Path, columns: str = "", labels: str = "", missing: bool = False, conditions: str = ""
) -> Raw:
    """The numbers of a parquet file; arguments as for ``read_csv``.

    Raises:
        ValueError: pyarrow is missing, the file is damaged, or a column that is not there or no number.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"{path} needs pyarrow, which is missing; pip install 'sde-toolkit[tables]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path} must be a parquet file: {error}") from None
    names = list(table.column_names)
    label = _column(path, labels, names, "data.labels") if labels not in ("", "none") else None
    given = _listed(path, conditions, names, "data.conditions")
    chosen = _chosen(path, columns, names, [label, *given])

    def numbers(which: list[int], gaps: bool) -> np.ndarray:
        return np.stack([_column_numbers(path, names[k], table.column(k), gaps) for k in which], 1)

    cells = None if label is None else [str(cell) for cell in table.column(label).to_pylist()]
    made = _raw(path, numbers(chosen, missing), chosen, names, cells, label)
    return replace(made, conditions=numbers(given, False)) if given else made


def _column_numbers(path: Path, name: str, values: Any, missing: bool) -> np.ndarray:
    """A column of a parquet file."""
    if values.null_count and not missing:
        raise ValueError(
            f"column {name!r} of {path} must be complete, got {values.null_count} nulls; "
            "data.missing=mask takes them for missing entries"
        )
    array = values.to_numpy()
    if array.dtype.kind not in "iufb":
        raise ValueError(f"column {name!r} of {path} must hold numbers, got {values.type}")
    return array.astype(np.float64)


def _raw(
    path: Path,
    examples: np.ndarray,
    chosen: list[int],
    names: list[str],
    cells: list[str] | None,
    label: int | None,
) -> Raw:
    columns = tuple(names[k] for k in chosen)
    if cells is None or label is None:
        return Raw(examples, columns=columns, table=True)
    numeric = all(_is_number(cell) for cell in cells)
    values: Any = np.array([float(cell) for cell in cells]) if numeric else np.array(cells, dtype=str)
    numbers, classes = label_numbers(values, f"column {names[label]!r} of {path}")
    return Raw(examples, numbers, classes, columns, table=True)


def _separator(head: str) -> str:
    first = head.partition("\n")[0]
    return max(_SEPARATORS, key=first.count)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING_CELLS


def _number(path: Path, cell: str, line: int, name: str, missing: bool) -> float:
    if missing and _is_missing(cell):
        return math.nan
    value = float(cell) if _is_number(cell) else math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"{path}, line {line}, column {name!r}, must be a finite number, got {cell[:40]!r}; repair it, "
            "or leave the column out with data.columns"
            + (
                "; data.missing=mask takes it for a missing entry"
                if _is_missing(cell) and not missing
                else ""
            )
        )
    return value


def _column(path: Path, name: str, names: list[str], field: str) -> int:
    if name in names:
        return names.index(name)
    if name.isascii() and name.isdigit() and int(name) < len(names):
        return int(name)
    raise ValueError(f"{field} {name!r} is no column of {path}; columns: {', '.join(names)}")


def _listed(path: Path, columns: str, names: list[str], field: str) -> list[int]:
    """The columns of a list with commas, each once."""
    found = [_column(path, name.strip(), names, field) for name in columns.split(",")] if columns else []
    if len(set(found)) < len(found):
        raise ValueError(f"{field} must name every column once, got {columns}")
    return found


def _chosen(path: Path, columns: str, names: list[str], others: Sequence[int | None]) -> list[int]:
    """The columns of the features: those listed, or all but the others."""
    chosen = _listed(path, columns, names, "data.columns")
    if not columns:
        chosen = [k for k in range(len(names)) if k not in others]
    if not chosen:
        raise ValueError(f"{path} must have a column besides those of labels and conditions, got none")
    return chosen
