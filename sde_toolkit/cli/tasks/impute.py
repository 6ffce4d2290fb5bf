"""``sde-toolkit impute``: the missing entries of a table, drawn by a model of such tables.

The output is a CSV file with the columns of the model, its gaps filled with the means of the draws, and
beside it NAME-intervals.csv with a line for each gap: row, column, mean, low, high; or an .npz file with all
draws.
"""

from __future__ import annotations

import argparse
import csv
import io
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import add_verb, say
from sde_toolkit.cli.tasks.shared import add_task, bar_for, open_task, task_arguments, write_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sde_toolkit.guidance import Restored

EXAMPLES = """examples:
  sde-toolkit impute --workdir=runs/table --input=gaps.csv --output=filled.csv
  sde-toolkit impute --workdir=runs/table --input=gaps.csv --output=draws.npz --draws=99 --method=mmps

empty cells, nan, NA and ? are missing; rows are numbered from 0 in the file of intervals"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "impute", impute, "fill the gaps of a table", EXAMPLES)
    add_task(parser, "a table with gaps: .csv, .parquet or .npy", "a .csv or .npz file")
    parser.add_argument(
        "--columns", metavar="A,B,...", help="of the table, in the model's order; else as trained"
    )


def impute(options: argparse.Namespace) -> None:
    """Draw the missing entries; write the table and the intervals."""
    from sde_toolkit import guidance
    from sde_toolkit.data import open_rows
    from sde_toolkit.utils import check_output_file

    output = check_output_file(options.output)
    if output.suffix.lower() not in (".csv", ".npz"):
        raise ValueError(f"output must end in .csv or .npz, got {str(options.output)!r}")
    beside = check_output_file(output.with_name(f"{output.stem}-intervals.csv"))
    task = open_task(options)
    trained = task.source.config.data.get("columns", "") if task.source.run is not None else ""
    rows, columns = open_rows(options.input, options.columns or trained, missing=True)
    rows = rows.double()
    gaps = rows.isnan()
    if not bool(gaps.any()):
        raise ValueError(f"input must have missing entries, got {options.input} without any")
    with bar_for(len(rows) * options.draws) as bar:
        found = guidance.impute(
            task.model, rows, std=options.std, progress=bar.update, **task_arguments(options, task)
        )
    say(f"{int(gaps.sum())} gaps of {len(rows)} rows by {options.draws} draws, {found.nfe:.4g} evaluations "
        f"each, {found.seconds:.1f} s; intervals of level {found.level:.3g}")  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".npz":
        write_arrays(output, found, task, {"observed": rows.numpy()})
    else:
        names = columns or tuple(map(str, range(rows.shape[1])))
        _write_tables(output, beside, found, gaps, names)
        say(f"intervals  {beside}")
    say(f"output     {output}")


def _write_tables(
    output: Path, beside: Path, found: Restored, gaps: Tensor, columns: tuple[str, ...]
) -> None:
    from sde_toolkit.utils import atomic_write

    atomic_write(output, _csv([columns, *found.mean.tolist()]))
    lines: list[Any] = [("row", "column", "mean", "low", "high")]
    for i, k in gaps.nonzero().tolist():
        lines.append((i, columns[k], *(float(part[i, k]) for part in (found.mean, found.low, found.high))))
    atomic_write(beside, _csv(lines))


def _csv(lines: Any) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(lines)
    return stream.getvalue().encode()
