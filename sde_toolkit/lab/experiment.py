"""The experiment: samplers x step counts x seeds -> records of quality, cost and error.

For each candidate (a sampler with its step count, or with its tolerances) and each seed, ``num_samples``
samples are drawn, and every metric measures them against real data.  With values d_1 .. d_K over K seeds and
their standard errors s_k by resampling, a record says

    value = (1/K) sum_k d_k,      standard_error = max( sqrt(sum_k s_k^2) / K,  std(d_1 .. d_K) / sqrt(K) )

Not promised: the real data are the same for all seeds, so their share of the error does not shrink with K.
Distances of finite sets may be biased upwards (the Frechet distance is, by about 1/n + 1/m times a constant):
compare records of equal ``num_samples`` only, and with ``Metric.real_examples`` of that number.

A record is reused, not recomputed, if candidate, metric, seeds, number of samples and settings are the same;
the settings name the model by a fingerprint of its weights, so training on makes the records stale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sde_toolkit.metrics import Estimate, bootstrap, over_seeds
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.samplers import Sampler, Samples
from sde_toolkit.utils import (
    Stream,
    atomic_write,
    checked,
    integer,
    permutation,
    read_document,
    reading,
    require,
    turns,
)

FEWEST_SAMPLES = 10
"""That a distance can have an error bar of; see ``sde_toolkit.metrics.bootstrap``."""


@dataclass(frozen=True)
class Candidate:
    """A sampler to be compared: its name, step count (None for adaptive ones) and JSON-able settings."""

    name: str
    num_steps: int | None
    sampler: Sampler
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, sampler: Sampler) -> Candidate:
        """The candidate with the step count and the settings that the sampler states."""
        return cls(name, sampler.settings.get("num_steps"), sampler, sampler.settings)

    @property
    def label(self) -> str:
        """Name and step count or tolerance, as in "ddim-20" or "dopri5-rtol0.001"; fit for a file name."""
        setting = self.num_steps if self.num_steps else f"rtol{self.settings.get('rtol')}"
        return f"{self.name}-{setting}"


@dataclass(frozen=True)
class Reference:
    """What real data score by a metric; the standard error is the spread of one such comparison."""

    metric: str
    label: str
    value: float
    standard_error: float
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Metric:
    """A distance to real data, lower is better.

    Args:
        name: for tables.
        distance: (x, y) with shapes (n, *) and (m, *) -> number.
        real: the real data in model scale with shape (m, *).
        settings: JSON-able description.
    """

    name: str
    distance: Callable[[Tensor, Tensor], float]
    real: Tensor = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, x: Tensor) -> Estimate:
        """The distance of the samples x with shape (n, *), with its standard error by resampling."""
        return bootstrap(self.distance, x, self.real)

    def real_examples(self, num_samples: int, num_splits: int = 10, seed: int = 0) -> Reference:
        """The distance of ``num_samples`` random real examples (at most half) to the others: mean and spread.

        It has about the bias of that many perfect samples, and is what samplers are to be compared with.
        """
        size, values = min(num_samples, len(self.real) // 2), []
        for split in range(integer("num_splits", num_splits, 2)):
            order = permutation(len(self.real), seed, split, Stream.SPLIT)
            values.append(self.distance(self.real[order[:size]], self.real[order[size:]]))
        value, spread = float(np.mean(values)), float(np.std(values, ddof=1))
        settings = {**self.settings, "num_examples": size}
        return Reference(self.name, f"{size} real examples", value, spread, settings)

    def halves(self, num_splits: int = 10, seed: int = 0) -> Reference:
        """The same for two random halves of the real data."""
        half = self.real_examples(len(self.real), num_splits, seed)
        return replace(half, label="two halves of real data")


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


@checked
def compare(
    model: ScoreModel,
    candidates: Sequence[Candidate],
    metrics: Sequence[Metric],
    *,
    num_samples: int,
    seeds: Sequence[int] = (0,),
    batch_size: int | None = None,
    condition: Condition | None = None,
    fingerprint: str = "",
    previous: Iterable[Record] = (),
    on_records: Callable[[Candidate, list[Record], bool], None] | None = None,
    on_samples: Callable[[Candidate, Samples], None] | None = None,
) -> list[Record]:
    """Run every candidate that has no record yet, and return the records of all, in the candidates' order.

    Args:
        model: what is sampled from.
        candidates: samplers with their step counts.
        metrics: distances to be measured.
        num_samples: drawn for each candidate and seed.
        seeds: of the draws; sample i of a seed starts from the same noise under every candidate.
        batch_size: samples computed at once; None for all.
        condition: of the samples: a class for all, or a tensor with one row per sample; recorded in the
            settings.  The metrics' real data should be of the same condition.
        fingerprint: identifies the model's weights in the settings.
        previous: records of an earlier run.
        on_records: called after each candidate with its records and whether they were reused.
        on_samples: called with every set of samples drawn.

    Raises:
        ValueError: no candidate, metric or seed; repeated seeds; ``num_samples`` below 10.
    """
    for name, given in (("candidates", candidates), ("metrics", metrics), ("seeds", seeds)):
        if not given:
            raise ValueError(f"{name} must hold at least one entry, got none")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from each other, got {list(seeds)}")
    if num_samples < FEWEST_SAMPLES:
        raise ValueError(
            f"num_samples must be at least {FEWEST_SAMPLES} for a distance with an error bar, "
            f"got {num_samples}"
        )
    for seed in seeds:
        integer("every one of the seeds", seed, 0)
    model.conditions(condition, num_samples)
    if isinstance(previous, Tensor):
        require("previous", previous, Record)
    before = list(previous)
    for record in before:
        require("previous", record, Record)
    known = {_key(record): record for record in before}
    of_model: dict[str, Any] = {"model": fingerprint}
    if condition is not None:
        of_model["condition"] = plain_condition(condition)
    records: list[Record] = []
    for candidate in candidates:
        blanks = [_blank(candidate, metric, num_samples, tuple(seeds), of_model) for metric in metrics]
        rows = [known[_key(blank)] for blank in blanks if _key(blank) in known]
        reused = len(rows) == len(blanks)
        if not reused:
            rows = _run(model, candidate, metrics, blanks, batch_size, condition, on_samples)
        records.extend(rows)
        if on_records is not None:
            on_records(candidate, rows, reused)
    return records


def _blank(
    candidate: Candidate,
    metric: Metric,
    num_samples: int,
    seeds: tuple[int, ...],
    of_model: Mapping[str, Any],
) -> Record:
    """The record of a candidate before its run: what identifies it, and no figures."""
    of_metric = {f"metric.{name}": value for name, value in metric.settings.items()}
    settings = {**candidate.settings, **of_metric, **of_model}
    name, steps, nan = candidate.name, candidate.num_steps, math.nan
    return Record(name, steps, nan, metric.name, nan, nan, nan, num_samples, seeds, settings)


def plain_condition(condition: Condition | None) -> int | list[Any] | None:
    """A condition as JSON holds it: a number, nested lists, or None."""
    if condition is None or isinstance(condition, int):
        return condition
    return condition.tolist() if isinstance(condition, (Tensor, np.ndarray)) else list(condition)


def _key(record: Record) -> str:
    figures = ("nfe", "value", "standard_error", "seconds")
    identity = {name: value for name, value in asdict(record).items() if name not in figures}
    return json.dumps(identity, sort_keys=True)


def _run(
    model: ScoreModel,
    candidate: Candidate,
    metrics: Sequence[Metric],
    blanks: Sequence[Record],
    batch_size: int | None,
    condition: Condition | None,
    on_samples: Callable[[Candidate, Samples], None] | None,
) -> list[Record]:
    estimates: list[list[Estimate]] = [[] for _ in metrics]
    nfe, seconds = [], []
    for seed in blanks[0].seeds:
        samples = candidate.sampler.sample(
            model, blanks[0].num_samples, condition=condition, seed=seed, batch_size=batch_size
        )
        if on_samples is not None:
            on_samples(candidate, samples)
        nfe.append(float(samples.nfe))
        seconds.append(samples.seconds)
        for collected, metric in zip(estimates, metrics, strict=True):
            collected.append(metric.measure(samples.x))
    return [
        Record(blank.sampler, blank.num_steps, float(np.mean(nfe)), blank.metric, *_pool(collected),
               float(np.mean(seconds)), blank.num_samples, blank.seeds, blank.settings)
        for blank, collected in zip(blanks, estimates, strict=True)
    ]  # fmt: skip


def _pool(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Mean over the seeds and its standard error, by the formula at the head of this module."""
    values = [estimate.value for estimate in estimates]
    error = math.hypot(*(estimate.standard_error for estimate in estimates)) / len(values)
    if len(values) > 1:
        error = max(error, over_seeds(values).standard_error)
    return float(np.mean(values)), error


def save_records(path: Path, records: Iterable[Record], references: Iterable[Reference] = ()) -> None:
    """Write records and references as JSON, atomically."""
    content = {"records": [asdict(r) for r in records], "references": [asdict(r) for r in references]}
    atomic_write(path, json.dumps(content, indent=1, default=dict).encode())


def merge_records(
    path: Path, records: Iterable[Record], references: Iterable[Reference] = ()
) -> tuple[list[Record], list[Reference]]:
    """Add records and references to those in a file, which other processes may write to at the same time.

    Those given come first, then what else the file holds; a record of the same identity is replaced.

    Returns:
        What the file holds now.

    Raises:
        ValueError: the file is not a record file.
        OSError: it cannot be written.
    """
    first, ahead = list(records), list(references)
    with turns(path):
        old, old_references = load_records(path)
        keys = {_key(record) for record in first}
        known = [(r.metric, r.label, r.settings) for r in ahead]
        first += [record for record in old if _key(record) not in keys]
        ahead += [r for r in old_references if (r.metric, r.label, r.settings) not in known]
        save_records(path, first, ahead)
    return first, ahead


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
        for kind, listed in ((Record, rows), (Reference, others)):
            for i, row in enumerate(listed):
                _check_row(f"{kind.__name__.lower()} {i}", row, kind)
        return [Record(**{**r, "seeds": tuple(r["seeds"])}) for r in rows], [Reference(**r) for r in others]


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "float": (float, int), "int": (int,), "int | None": (int, type(None)),
    "tuple[int, ...]": (list,), "Mapping[str, Any]": (dict,),
}  # fmt: skip
"""Annotation of a field of a record -> the types that JSON has for it."""


def _check_row(name: str, row: Any, kind: type[Record] | type[Reference]) -> None:
    """Refuse a row of a file that lacks a field, or holds something else than the field's type."""
    wanted = {part.name: str(part.type) for part in dataclass_fields(kind)}
    if not isinstance(row, dict) or set(row) != set(wanted):
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{name} must have the fields {', '.join(wanted)}, got {got}")
    for key, annotation in wanted.items():
        value = row[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = isinstance(value, _KINDS[annotation]) and not isinstance(value, bool)
        right = right and not (number and not math.isfinite(value))
        if annotation == "tuple[int, ...]" and right:
            right = len(value) > 0 and all(type(seed) is int for seed in value)
        if not right:
            raise ValueError(f"{name}: {key} must be {annotation}, got {str(value)[:60]!r}")
