"""The comparison as a text table.

A number with an error is written to the second significant digit of its error, as in 3.21 ± 0.13; the error
is one standard error.  The best value of each metric carries an asterisk, among records that may be
compared: of one problem, condition, model, number of samples and seeds.  A setting that tells two rows of one
sampler and step count apart has a column of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sde_toolkit.lab.records import Record, Reference, better_of, comparison_group


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
    """One line of the comparison: a candidate and the value of every metric.

    Attributes:
        sampler, setting: its name, and its step count or tolerance.
        nfe, seconds: its cost.
        cells: a record for each metric, None where there is none.
        more: what tells it from other rows of this sampler and setting.
    """

    sampler: str
    setting: str
    nfe: float
    seconds: float
    cells: tuple[Record | None, ...]
    more: tuple[str, ...] = ()

    @property
    def record(self) -> Record:
        """The first record of the row."""
        return next(cell for cell in self.cells if cell is not None)


def pivot(records: Sequence[Record]) -> tuple[list[str], list[Row]]:
    """Metrics in order of appearance, and one row for each sampler, setting and what else differs."""
    metrics = list(dict.fromkeys(record.metric for record in records))
    names = distinguishing(records)
    groups: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        parts = _parts(record)
        key = (json.dumps(parts.get(name), default=dict) for name in names)
        groups.setdefault((record.sampler, setting_of(record), *key), {})[record.metric] = record
    rows = []
    for (sampler, setting, *_), cells in groups.items():
        first = next(iter(cells.values()))
        values, parts = tuple(cells.get(m) for m in metrics), _parts(first)
        more = tuple(short(parts.get(name)) for name in names)
        rows.append(Row(sampler, setting, first.nfe, first.seconds, values, more))
    return metrics, rows


def _parts(record: Record) -> Mapping[str, Any]:
    """What may tell records of one sampler, setting and metric apart."""
    own = {
        key: value
        for key, value in sorted(record.settings.items())
        if key not in ("sampler", "num_steps", "condition") and not key.startswith("metric.")
    }
    return {"problem": problem_of(record), "num_samples": record.num_samples, **own}


def problem_of(record: Record) -> str:
    """The problem of a record and its class, as in "ring" and "digits, class 3"."""
    return with_condition(record.problem, record.settings.get("condition"))


def with_condition(problem: str, condition: Any) -> str:
    """A problem's name with its class or condition, if there is one."""
    if condition is None:
        return problem
    others = condition if isinstance(condition, str) else "given conditions"
    shown = f"class {condition}" if isinstance(condition, int) else others
    return f"{problem}, {shown}" if problem else shown


def distinguishing(records: Sequence[Record]) -> list[str]:
    """Names of what tells records of one sampler, setting and metric apart: "problem", "grid", ..."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        key = json.dumps([record.sampler, setting_of(record), record.metric])
        seen.setdefault(key, []).append(_parts(record))
    first, last = ("problem", "num_samples"), ("model",)
    every = dict.fromkeys(key for parts in map(_parts, records) for key in parts)
    between = [name for name in every if name not in (*first, *last)]
    names, groups = [], list(seen.values())
    for name in (*first, *between, *last):
        split: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
        for number, group in enumerate(groups):
            for parts in group:
                split.setdefault((number, json.dumps(parts.get(name), default=dict)), []).append(parts)
        if len(split) > len(groups):
            names.append(name)
            groups = list(split.values())
    return names


def candidate_captions(records: Sequence[Record]) -> list[str]:
    """What is told of each record's candidate beside its sampler: steps, evaluations, what else differs."""
    names, captions = [name for name in distinguishing(records) if name != "problem"], []
    for record in records:
        parts = _parts(record)
        more = [f"{name} {short(parts[name])}" for name in names if short(parts.get(name))]
        steps = f"{setting_of(record)}{' steps' if record.num_steps else ''}"
        captions.append(", ".join([steps, f"NFE {record.nfe:.4g}", *more]))
    return captions


def short(value: Any) -> str:
    """A setting in a few characters: text as it is, other values as JSON; long ones are cut."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=dict)
    return text if len(text) <= 32 else text[:29] + "..."


def best_records(records: Sequence[Record]) -> set[int]:
    """The ``id`` of each record that is the best of those that it may be compared with; none where values
    are to be close to those of real data."""
    best: dict[str, float] = {}
    signs = {"lower": 1, "higher": -1}
    for record in records:
        if math.isfinite(record.value) and better_of(record) in signs:
            group, amount = comparison_group(record), signs[better_of(record)] * record.value
            best[group] = min(amount, best.get(group, math.inf))
    return {
        id(record)
        for record in records
        if best.get(comparison_group(record)) == signs.get(better_of(record), 1) * record.value
    }


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
    more, best = distinguishing(records), best_records(records)
    body = []
    for row in rows:
        cells = ["" if cell is None else _amount(cell, id(cell) in best) for cell in row.cells]
        body.append(
            [short_name(row.sampler), row.setting, *row.more, f"{row.nfe:.4g}", *cells, f"{row.seconds:.2f}"]
        )
    for label, told, found in reference_rows(references, metrics, more):
        cells = ["" if reference is None else _amount(reference, False) for reference in found]
        body.append([label, "", *told, "", *cells, ""])
    return ["sampler", "steps", *more, "NFE", *(f"{m}  " for m in metrics), "seconds"], body


def reference_rows(
    references: Sequence[Reference], metrics: Sequence[str], more: Sequence[str]
) -> list[tuple[str, list[str], list[Reference | None]]]:
    """What real data score by label and problem: the label, the columns ``more``, a value for each metric."""
    groups: dict[tuple[str, str], dict[str, Reference]] = {}
    for reference in references:
        settings = reference.settings
        problem = with_condition(
            str(settings.get("problem", "")), settings.get("class", settings.get("condition"))
        )
        problem = problem if "problem" in more else ""
        groups.setdefault((reference.label, problem), {})[reference.metric] = reference
    return [
        (label, [problem if name == "problem" else "" for name in more], [found.get(m) for m in metrics])
        for (label, problem), found in groups.items()
    ]


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
