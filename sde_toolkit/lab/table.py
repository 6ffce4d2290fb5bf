"""The comparison as a text table.

A number with an error is written to the second significant digit of its error, as in 3.21 ± 0.13; the error
is one standard error.  The best value of each metric carries an asterisk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sde_toolkit.lab.records import Record, Reference


def plus_minus(value: float, error: float) -> str:
    """The value to the second significant digit of its error, "3.21 ± 0.13"; without one, four digits."""
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.4g}"
    if error <= 0:
        return f"{value:.4g}"
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 8)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a candidate and the value of every metric."""

    sampler: str
    setting: str
    nfe: float
    seconds: float
    cells: tuple[Record | None, ...]


def pivot(records: Sequence[Record]) -> tuple[list[str], list[Row]]:
    """Metrics in order of appearance, and one row for each sampler and setting."""
    metrics = list(dict.fromkeys(record.metric for record in records))
    groups: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        groups.setdefault((record.sampler, setting_of(record)), {})[record.metric] = record
    rows = []
    for (sampler, setting), cells in groups.items():
        first = next(iter(cells.values()))
        rows.append(Row(sampler, setting, first.nfe, first.seconds, tuple(cells.get(m) for m in metrics)))
    return metrics, rows


def setting_of(record: Record) -> str:
    """Step count of a record, or the tolerance of an adaptive sampler: "20" or "rtol 0.001"."""
    return str(record.num_steps) if record.num_steps else f"rtol {record.settings.get('rtol', '?')}"


def table_lines(
    records: Sequence[Record], references: Sequence[Reference]
) -> tuple[list[str], list[list[str]]]:
    """Head and body of the table as strings; the best value of each metric carries an asterisk."""
    metrics, rows = pivot(records)
    best = {metric: min(r.value for r in records if r.metric == metric) for metric in metrics}
    body = []
    for row in rows:
        cells = ["" if cell is None else _amount(cell, cell.value == best[cell.metric]) for cell in row.cells]
        body.append([row.sampler, row.setting, f"{row.nfe:.4g}", *cells, f"{row.seconds:.2f}"])
    for label in dict.fromkeys(reference.label for reference in references):
        found = {r.metric: r for r in references if r.label == label}
        cells = [_amount(found[metric], False) if metric in found else "" for metric in metrics]
        body.append([label, "", "", *cells, ""])
    return ["sampler", "steps", "NFE", *(f"{m}  " for m in metrics), "seconds"], body


def _amount(cell: Record | Reference, best: bool) -> str:
    return plus_minus(cell.value, cell.standard_error) + (" *" if best else "  ")


def format_table(records: Sequence[Record], references: Sequence[Reference] = ()) -> str:
    """The comparison as text: sampler, steps, network evaluations, metrics with standard errors, seconds."""
    head, body = table_lines(records, references)
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(head), rule, *map(line, body)])
