"""Tables: CSV with or without a line of names, and parquet (pyarrow, the extra ``tables``).

Every column is a feature with a unit of its own, but for the one that holds the labels.  Missing entries,
where they are allowed, are cells that hold one of ``MISSING_CELLS``, and nulls of parquet; they become nan.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit.data.sources.raw import Raw, label_numbers

_SEPARATORS = ",;\t|"

MISSING_CELLS = ("", "nan", "na", "n/a", "null", "none", "?")
"""Cells of a missing entry, in any case."""


def read_csv(path: Path, columns: str = "", labels: str = "", missing: bool = False) -> Raw:
    """The numbers of a CSV file.

    Args:
        path: of the file, in UTF-8.
        columns: names (or numbers from 0) of the features, with commas between; all but the labels when "".
        labels: name or number of the column with the labels; "" or "none" for no labels.
        missing: whether features may have missing entries.

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
    chosen = _chosen(path, columns, names, label)
    examples = np.empty((len(rows), len(chosen)))
    for j, k in enumerate(chosen):
        examples[:, j] = [
            _number(path, row[k], i, names[k], missing) for i, row in enumerate(rows, 1 + named)
        ]
    return _raw(path, examples, chosen, names, None if label is None else [row[label] for row in rows], label)


def read_parquet(path: Path, columns: str = "", labels: str = "", missing: bool = False) -> Raw:
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
    chosen = _chosen(path, columns, names, label)
    parts = []
    for k in chosen:
        values = table.column(k)
        if values.null_count and not missing:
            raise ValueError(
                f"column {names[k]!r} of {path} must be complete, got {values.null_count} nulls; "
                "data.missing=mask takes them for missing entries"
            )
        array = values.to_numpy()
        if array.dtype.kind not in "iufb":
            raise ValueError(f"column {names[k]!r} of {path} must hold numbers, got {values.type}")
        parts.append(array.astype(np.float64))
    cells = None if label is None else [str(cell) for cell in table.column(label).to_pylist()]
    return _raw(path, np.stack(parts, 1), chosen, names, cells, label)


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


def _chosen(path: Path, columns: str, names: list[str], label: int | None) -> list[int]:
    if columns:
        chosen = [_column(path, name.strip(), names, "data.columns") for name in columns.split(",")]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"data.columns must name every column once, got {columns}")
    else:
        chosen = [k for k in range(len(names)) if k != label]
    if not chosen:
        raise ValueError(f"{path} must have a column besides that of the labels, got none")
    return chosen
