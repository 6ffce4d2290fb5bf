"""Records as data for the page's scripts: what may be filtered by, groups that may be compared, differences.

    records       one for each candidate and metric, with what the filters ask for
    groups        records that ``lab.paired_difference`` compares: one metric, problem, condition and set of
                  draws; with references, the threshold of the chart's axis, and

        differences   {i: {j: [d, e]}}, i < j: d = value_i - value_j and its paired standard error

Of more than ``MAX_RECORDS`` candidates in a group only differences to the best ``MAX_BASELINES`` are given.

The data are put into a ``<script type="application/json">`` element, with every character escaped that could
end it: no text of a record is ever markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sde_toolkit.lab.drawing import linear_threshold
from sde_toolkit.lab.export import csv_bytes
from sde_toolkit.lab.records import (
    Record,
    Reference,
    better_of,
    comparison_group,
    finite_or_none,
    paired_difference,
)
from sde_toolkit.lab.table import distinguishing, setting_of, short, short_name
from sde_toolkit.lab.table import problem_of as named_problem

MAX_RECORDS = 60
MAX_BASELINES = 12
NO_GRID = "no grid"
"""How the filter names records of samplers without a grid."""

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: it holds neither <, > nor &."""
    text = json.dumps(finite_or_none(value), default=dict, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def page_data(records: Sequence[Record], references: Sequence[Reference]) -> dict[str, Any]:
    """What the scripts of the page work with."""
    names = distinguishing(records)
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(comparison_group(record), []).append(index)
    labels = draw_labels(records)
    return {
        "records": [_entry(record, names, label) for record, label in zip(records, labels, strict=True)],
        "groups": [_group(records, members, references, labels) for members in groups.values()],
        "samplers": list(dict.fromkeys(short_name(record.sampler) for record in records)),
        "grids": list(dict.fromkeys(map(grid_of, records))),
        "csv": csv_bytes(records).decode(),
        "json": {
            "records": [_without_replicates(record) for record in records],
            "references": [asdict(reference) for reference in references],
        },
    }


def grid_of(record: Record) -> str:
    """The grid of a record's steps, as the filters name it."""
    return short(record.settings.get("grid")).partition("(")[0] or NO_GRID


def condition_of(record: Record) -> str:
    """The condition of a record, as the filters name it."""
    condition = record.settings.get("condition")
    return condition if isinstance(condition, str) else short(condition) or "none"


def problem_of(record: Record) -> str:
    """The problem of a record, as the filters name it."""
    return record.problem or "unnamed"


def facets_of(record: Record) -> dict[str, str]:
    """What the filters ask of a record."""
    return {
        "sampler": short_name(record.sampler), "grid": grid_of(record), "problem": problem_of(record),
        "condition": condition_of(record),
    }  # fmt: skip


def draw_labels(records: Sequence[Record]) -> list[str]:
    """What was drawn for each record: samples, seeds, and of the model and the metric what differs."""
    settings = [
        {k: v for k, v in r.settings.items() if k == "model" or k.startswith("metric.")} for r in records
    ]
    seen: dict[tuple[str, str, str], set[str]] = {}
    for record, own in zip(records, settings, strict=True):
        for key, value in own.items():
            seen.setdefault((record.metric, named_problem(record), key), set()).add(short(value))
    labels = []
    for record, own in zip(records, settings, strict=True):
        seeds = ", ".join(map(str, record.seeds))
        more = [
            f"{key.removeprefix('metric.')} {short(value)}"
            for key, value in sorted(own.items())
            if len(seen[record.metric, named_problem(record), key]) > 1
        ]
        labels.append(", ".join([f"{record.num_samples:,} samples of seed {seeds}", *more]))
    return labels


def _entry(record: Record, names: Sequence[str], draws: str) -> dict[str, Any]:
    """A record as the scripts read it; ``series`` names the curve that it is a point of."""
    parts = {"num_samples": record.num_samples, **record.settings}
    told = [f"{name} {short(parts[name])}" for name in names if short(parts.get(name))]
    curve = [part for part in told if not part.startswith("num_samples ")]
    return {
        "setting": setting_of(record),
        "series": ", ".join([short_name(record.sampler), *curve]),
        **facets_of(record),
        "metric": record.metric,
        "draws": draws,
        "nfe": record.nfe,
        "seconds": record.seconds,
        "value": record.value, "error": record.standard_error,
        "settings": {key: short(value) for key, value in sorted(record.settings.items())},
    }  # fmt: skip


def _group(
    records: Sequence[Record], members: list[int], references: Sequence[Reference], labels: Sequence[str]
) -> dict[str, Any]:
    rows = [records[i] for i in members]
    known = [reference for reference in references if refers_to(reference, rows[0])]
    shown: list[Record | Reference] = [*rows, *known]
    differences, complaint = _differences(records, members)
    return {
        "metric": rows[0].metric, "problem": problem_of(rows[0]), "condition": condition_of(rows[0]),
        "draws": labels[members[0]], "better": better_of(rows[0]), "records": members,
        "references": [
            {"label": r.label, "value": r.value, "error": r.standard_error} for r in known
        ],
        "threshold": linear_threshold([r.value for r in shown], [r.standard_error for r in shown]),
        "differences": differences, "complaint": complaint,
    }  # fmt: skip


def refers_to(reference: Reference, record: Record) -> bool:
    """Whether a reference was measured as the record was: its metric with the same settings."""
    told = ("num_examples", "problem")
    settings = {key: value for key, value in reference.settings.items() if key not in told}
    same_problem = reference.settings.get("problem", record.problem) == record.problem
    return (
        same_problem
        and reference.metric == record.metric
        and all(record.settings.get(f"metric.{key}", value) == value for key, value in settings.items())
    )


def _differences(
    records: Sequence[Record], members: Sequence[int]
) -> tuple[dict[int, dict[int, list[float]]], str]:
    """Differences of the pairs of a group, and a sentence where there are none."""
    found: dict[int, dict[int, list[float]]] = {}
    for i, j in _pairs(records, members):
        try:
            estimate = paired_difference(records[i], records[j])
        except ValueError as error:
            return {}, str(error)
        if math.isfinite(estimate.value) and math.isfinite(estimate.standard_error):
            pair = [float(f"{estimate.value:.6g}"), float(f"{estimate.standard_error:.6g}")]
            found.setdefault(i, {})[j] = pair
    return found, ""


def _pairs(records: Sequence[Record], members: Sequence[int]) -> Iterable[tuple[int, int]]:
    if len(members) <= MAX_RECORDS:
        return ((i, j) for n, i in enumerate(members) for j in members[n + 1 :])
    sign = -1 if better_of(records[members[0]]) == "higher" else 1
    best = set(sorted(members, key=lambda index: sign * records[index].value)[:MAX_BASELINES])
    return ((i, j) for n, i in enumerate(members) for j in members[n + 1 :] if i in best or j in best)


def _without_replicates(record: Record) -> Mapping[str, Any]:
    """The fields of a record but those that only a difference takes; ``load_records`` reads them."""
    return {name: value for name, value in asdict(record).items() if name != "estimates"}
