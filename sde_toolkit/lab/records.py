"""Records of an experiment: one for each sampler, step count, seed and metric; means over seeds, differences.

A record of one seed has an estimate d_k of a metric.  Over the seeds 1 .. K

    value = (1/K) sum_k d_k,       standard error by ``sde_toolkit.metrics.pooled``

and for two samplers A and B that were measured on the same seeds, numbers of samples and real data,

    A - B = (1/K) sum_k (d_k^A - d_k^B),    with the error bar of the paired difference

Sample i of a seed starts from the same noise under every sampler, and the real data are the same, so the
error of a difference is far smaller than those of the values.  ``Record.estimates`` keeps what it takes.

What identifies a record and what was measured are told apart: ``FIGURES`` are all fields that a repetition
may change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from sde_toolkit.metrics import Estimate, difference, over_seeds, pooled
from sde_toolkit.utils import atomic_write, checked, read_document, reading


@dataclass(frozen=True)
class Reference:
    """What real data score by a metric; the standard error is the spread of one such comparison."""

    metric: str
    label: str
    value: float
    standard_error: float
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One row of the experiment.

    Attributes:
        sampler: its name.
        num_steps: of the fixed grid; None for adaptive samplers.
        nfe: mean number of network evaluations per sample.
        metric: name of the distance, lower is better.
        value, standard_error: over all seeds.
        seconds: mean wall time to draw ``num_samples`` samples.
        num_samples: drawn per seed.
        seeds: of the draws.
        settings: of the sampler, the metric and the model, JSON-able.
        problem: name of the model and its data.
        network_seconds: the part of ``seconds`` that the model took; None where it was not measured.
        peak_memory: the largest memory that the process held while it sampled, in bytes (on a CUDA device the
            memory of its tensors); None where it was not measured.
        estimates: of every seed, with all that the error of a difference takes.
        made_by: versions and hardware.
    """

    sampler: str
    num_steps: int | None
    nfe: float
    metric: str
    value: float
    standard_error: float
    seconds: float
    num_samples: int
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    problem: str = ""
    network_seconds: float | None = None
    peak_memory: int | None = None
    estimates: tuple[Estimate, ...] = field(default=(), repr=False)
    made_by: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def solver_seconds(self) -> float | None:
        """The part of ``seconds`` that the model did not take; None where it was not measured."""
        return None if self.network_seconds is None else self.seconds - self.network_seconds


FIGURES = (
    "nfe", "value", "standard_error", "seconds", "network_seconds", "peak_memory", "estimates", "made_by",
)  # fmt: skip
"""The fields of a record that are measured; the others say what is measured."""


def identity(record: Record, *without: str) -> str:
    """What a record is a record of, as JSON: every field but the figures, and but those named."""
    wanted = {part.name: getattr(record, part.name) for part in dataclass_fields(Record)}
    left = {name: value for name, value in wanted.items() if name not in (*FIGURES, *without)}
    return json.dumps(left, sort_keys=True, default=dict)


def over_all_seeds(records: Sequence[Record]) -> Record:
    """The mean over records that differ in their seeds alone.

    Raises:
        ValueError: none, records of different things, or a seed twice.
    """
    if not records:
        raise ValueError("records must hold at least one record, got none")
    first = records[0]
    if any(identity(r, "seeds") != identity(first, "seeds") for r in records):
        raise ValueError("records must differ in their seeds alone, got records of different things")
    seeds = tuple(seed for record in records for seed in record.seeds)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"records must have different seeds, got {seeds}")
    if len(records) == 1:
        return first
    estimates = tuple(estimate for record in records for estimate in record.estimates)
    if len(estimates) < len(seeds):  # some row is a mean of an older file
        estimates = ()
    found = mean_estimate(estimates or [Estimate(r.value, r.standard_error, "") for r in records])
    measured = [r.network_seconds for r in records if r.network_seconds is not None]
    memory = [r.peak_memory for r in records if r.peak_memory is not None]
    return replace(
        first, seeds=seeds, estimates=estimates, value=found.value, standard_error=found.standard_error,
        nfe=_mean(r.nfe for r in records), seconds=_mean(r.seconds for r in records),
        network_seconds=_mean(measured) if len(measured) == len(records) else None,
        peak_memory=max(memory, default=None),
    )  # fmt: skip


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds; without replicates its error is at least the spread over the seeds."""
    found = pooled(estimates)
    if found.replicates or len(estimates) == 1:
        return found
    spread = over_seeds([estimate.value for estimate in estimates])
    return spread if spread.standard_error > found.standard_error else found


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def pooled_records(records: Iterable[Record]) -> list[Record]:
    """Records of single seeds as one record for each thing measured, in the order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        group = groups.setdefault(identity(record, "seeds"), [])
        taken = {seed for other in group for seed in other.seeds}
        if not taken & set(record.seeds):
            group.append(record)
    return [over_all_seeds(group) for group in groups.values()]


def better_of(record: Record) -> str:
    """Whether "lower" or "higher" values of a record's metric are better, or "closer" to real data's."""
    return str(record.settings.get("metric.better", "lower"))


def comparison_group(record: Record) -> str:
    """What two records must have in common to be compared by ``paired_difference``, as JSON."""
    common = {name: getattr(record, name) for name in ("metric", "problem", "num_samples", "seeds")}
    return json.dumps([common, _compared_settings(record)], sort_keys=True, default=dict)


def _compared_settings(record: Record) -> dict[str, Any]:
    return {
        key: value
        for key, value in record.settings.items()
        if key in ("model", "condition") or key.startswith("metric.")
    }


@checked
def paired_difference(a: Record, b: Record) -> Estimate:
    """By how much a lies above b, and the error bar of this difference: "a beats b by d +- e" for d < 0.

    Args:
        a, b: of the same metric, problem, condition, number of samples and seeds.

    Raises:
        ValueError: they differ in any of these, or one is of an older file that keeps too little.
    """
    for name in ("metric", "problem", "num_samples", "seeds"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(
                f"b must have the {name} of a, {getattr(a, name)!r}, got {getattr(b, name)!r}; "
                "measure both in the same experiment"
            )
    ours, theirs = _compared_settings(a), _compared_settings(b)
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"b must have the setting {key} of a, {ours.get(key)!r}, got {theirs.get(key)!r}"
            )
    for name, record in (("a", a), ("b", b)):
        if len(record.estimates) < len(record.seeds):
            raise ValueError(
                f"{name} must keep the estimate of every seed, got a record of an older file "
                f"({record.sampler}, {record.metric}); run the comparison again in a fresh directory"
            )
    pairs = zip(a.estimates, b.estimates, strict=True)
    if all(estimate.replicates for estimate in (*a.estimates, *b.estimates)):
        return mean_estimate([difference(one, other) for one, other in pairs])
    return _unpaired(a, b)


def _unpaired(a: Record, b: Record) -> Estimate:
    """The difference where the metric keeps no replicates: over seeds if there are several, else as if
    independent."""
    values = [one.value - other.value for one, other in zip(a.estimates, b.estimates, strict=True)]
    error = math.hypot(a.standard_error, b.standard_error)
    if len(values) > 1:
        return over_seeds(values)
    return Estimate(values[0], error, "difference of independent values")


def save_records(path: Path, records: Iterable[Record], references: Iterable[Reference] = ()) -> None:
    """Write records and references as JSON, atomically."""
    content = {"records": [asdict(r) for r in records], "references": [asdict(r) for r in references]}
    atomic_write(path, json.dumps(finite_or_none(content), indent=1, default=dict).encode())


def finite_or_none(value: Any) -> Any:
    """JSON has no infinity: it is null."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_records(path: Path) -> tuple[list[Record], list[Reference]]:
    """Read what ``save_records`` wrote; two empty lists if there is no file.

    Raises:
        ValueError: the file is not a record file.
    """
    if not path.exists():
        return [], []
    with reading(path, "a file of records", "move it away to start afresh"):
        content: Any = read_document(path)
        rows, others = content["records"], content["references"]
        return (
            [record_of(row, f"record {i}") for i, row in enumerate(rows)],
            [reference_of(row, f"reference {i}") for i, row in enumerate(others)],
        )


def record_of(row: Any, name: str = "record") -> Record:
    """A record from its fields as JSON holds them.

    Raises:
        ValueError: a field that is missing, unknown or of another type.
    """
    _check_row(name, row, Record)
    estimates = tuple(_estimate_of(entry, name) for entry in row.get("estimates", ()))
    return Record(**{**row, "seeds": tuple(row["seeds"]), "estimates": estimates})


def reference_of(row: Any, name: str = "reference") -> Reference:
    """A reference from its fields as JSON holds them; ValueError as for ``record_of``."""
    _check_row(name, row, Reference)
    return Reference(**row)


def _estimate_of(entry: Any, name: str) -> Estimate:
    wanted = {part.name for part in dataclass_fields(Estimate)}
    numbers = ("value", "standard_error", "count", "step")
    if isinstance(entry, dict):
        entry = {**_OF_EARLIER_ESTIMATES, **entry}
    if not isinstance(entry, dict) or set(entry) != wanted or not all(_is_number(entry[k]) for k in numbers):
        raise ValueError(f"{name}: estimates must hold entries with {', '.join(sorted(wanted))}")
    replicates, degrees = entry["replicates"], entry["degrees_of_freedom"]
    if not isinstance(replicates, list) or not all(map(_is_number, replicates)):
        raise ValueError(f"{name}: replicates must be a list of finite numbers")
    if degrees is not None and not _is_number(degrees):
        raise ValueError(f"{name}: degrees_of_freedom must be a number or null, got {str(degrees)[:60]!r}")
    degrees = math.inf if degrees is None else degrees
    return Estimate(**{**entry, "replicates": tuple(replicates), "degrees_of_freedom": degrees})


_OF_EARLIER_ESTIMATES = {"scheme": "groups", "count": 0.0, "step": 0.0}
"""Fields of estimates that older files lack."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "float": (float, int), "int": (int,), "int | None": (int, type(None)),
    "float | None": (float, int, type(None)), "tuple[int, ...]": (list,), "Mapping[str, Any]": (dict,),
    "tuple[Estimate, ...]": (list,),
}  # fmt: skip
"""Annotation of a field of a record -> the types that JSON has for it."""

_LATER = ("problem", "network_seconds", "peak_memory", "estimates", "made_by")
"""Fields that older files lack."""


def _check_row(name: str, row: Any, kind: type[Record] | type[Reference]) -> None:
    """Refuse a row of a file that lacks a field, or holds something else than the field's type."""
    wanted = {part.name: str(part.type) for part in dataclass_fields(kind)}
    needed = set(wanted).difference(_LATER)
    if not isinstance(row, dict) or not needed <= set(row) <= set(wanted):
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{name} must have the fields {', '.join(wanted)}, got {got}")
    for key, value in row.items():
        annotation = wanted[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = isinstance(value, _KINDS[annotation]) and not isinstance(value, bool)
        right = right and not (number and not math.isfinite(value))
        if annotation == "tuple[int, ...]" and right:
            right = len(value) > 0 and all(type(seed) is int for seed in value)
        if not right:
            raise ValueError(f"{name}: {key} must be {annotation}, got {str(value)[:60]!r}")
