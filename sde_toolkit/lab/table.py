"""The comparison as a text table.

A number with an error is written to the second significant digit of its error, as in 3.21 ± 0.13; the error
is one standard error.  The best value of each metric on each problem carries an asterisk.
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
    problem: str = ""


def problem_of(record: Record) -> str:
    """The problem of a record and its class, as in "ring" and "digits, class 3"."""
    condition = record.settings.get("condition")
    if condition is None:
        return record.problem
    shown = f"class {condition}" if isinstance(condition, int) else "given conditions"
    return f"{record.problem}, {shown}" if record.problem else shown


def pivot(records: Sequence[Record]) -> tuple[list[str], list[Row]]:
    """Metrics in order of appearance, and one row for each problem, sampler and setting."""
    metrics = list(dict.fromkeys(record.metric for record in records))
    groups: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record in records:
        key = problem_of(record), record.sampler, setting_of(record)
        groups.setdefault(key, {})[record.metric] = record
    rows = []
    for (problem, sampler, setting), cells in groups.items():
        first = next(iter(cells.values()))
        found = tuple(cells.get(metric) for metric in metrics)
        rows.append(Row(sampler, setting, first.nfe, first.seconds, found, problem))
    return metrics, rows


def best_records(records: Sequence[Record]) -> list[Record]:
    """The best record of every problem and metric, as the metric says what is better; none where values are
    to be close to those of real data."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((problem_of(record), record.metric), []).append(record)
    found = []
    for group in groups.values():
        better = group[0].settings.get("metric.better", "lower")
        if better != "closer":
            sign = -1 if better == "higher" else 1
            found.append(min(group, key=lambda record: sign * record.value))
    return found


def short_name(sampler: str) -> str:
    """The name of a sampler without the directories of a path."""
    return sampler.rpartition("/")[2]


def setting_of(record: Record) -> str:
    """Step count of a record, or the tolerance of an adaptive sampler: "20" or "rtol 0.001"."""
    return str(record.num_steps) if record.num_steps else f"rtol {record.settings.get('rtol', '?')}"


def table_lines(
    records: Sequence[Record], references: Sequence[Reference]
) -> tuple[list[str], list[list[str]]]:
    """Head and body of the table as strings; the best value of each metric carries an asterisk."""
    metrics, rows = pivot(records)
    best, several = best_records(records), len({row.problem for row in rows}) > 1
    body = []
    for row in rows:
        cells = ["" if cell is None else _amount(cell, any(cell is b for b in best)) for cell in row.cells]
        body.append([short_name(row.sampler), row.setting, f"{row.nfe:.4g}", *cells, f"{row.seconds:.2f}"])
        if several:
            body[-1].insert(0, row.problem)
    for label in dict.fromkeys(reference.label for reference in references):
        found: dict[str, list[Reference]] = {}
        for r in references:
            if r.label == label:
                found.setdefault(r.metric, []).append(r)
        for number in range(max(map(len, found.values()))):
            every = [found.get(metric, [])[number : number + 1] for metric in metrics]
            cells = [_amount(one[0], False) if one else "" for one in every]
            name = next((str(one[0].settings.get("problem", "")) for one in every if one), "")
            body.append([*([name] if several else []), label, "", "", *cells, ""])
    head = ["sampler", "steps", "NFE", *(f"{m}  " for m in metrics), "seconds"]
    return ["problem", *head] if several else head, body


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
