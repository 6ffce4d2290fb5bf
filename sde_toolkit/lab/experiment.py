"""The experiment: samplers x step counts x seeds -> records of quality, cost and error.

For each candidate (a sampler with its step count, or with its tolerances) and each seed, ``num_samples``
samples are drawn, and every metric measures them against real data; ``sde_toolkit.lab.records`` says what
becomes of the values of several seeds.

Not promised: distances of finite sets may be biased upwards (the Frechet distance is, by about 1/n + 1/m
times a constant): compare records of equal ``num_samples`` only, and with ``Metric.real_examples`` of that
number.

A record is reused, not recomputed, if candidate, metric, seeds, number of samples and settings are the same;
the settings name the model by a fingerprint of its weights, so training on makes the records stale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from sde_toolkit.lab.cost import PeakMemory, Timed, environment
from sde_toolkit.lab.problems import NamedCondition, condition_rows
from sde_toolkit.lab.records import Record, Reference, identity, over_all_seeds
from sde_toolkit.lab.store import Store
from sde_toolkit.metrics import Distance, Estimate, Statistic, bootstrap
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.samplers import Sampler, Samples
from sde_toolkit.utils import Stream, check_fields, checked, integer, permutation, require

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


@dataclass(frozen=True, eq=False)
class Metric:
    """What samples are judged by.

    Args:
        name: for tables.
        distance: (x, y) with shapes (n, *) and (m, *) -> number; or a metric of ``sde_toolkit.metrics``,
            which may be one of the samples alone.
        real: the real data in model scale with shape (m, *); None for a metric of the samples alone.
        settings: JSON-able description.
        better: "lower", "higher" or "closer" to what real data score.
    """

    name: str
    distance: Callable[..., float] | Distance | Statistic
    real: Tensor | None = field(default=None, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    better: str = "lower"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.real is None and not isinstance(self.distance, Statistic):
            raise ValueError(f"metric {self.name!r} must have real data, got real=None")

    def measure(self, x: Tensor) -> Estimate:
        """The value of the samples x with shape (n, *), with its standard error by resampling."""
        return bootstrap(self.distance, x, None if isinstance(self.distance, Statistic) else self.real)

    def of(self, samples: Samples, sampler: Sampler) -> Estimate:
        """The value of samples that a sampler has drawn: ``measure`` of them here."""
        return self.measure(samples.x)

    def real_examples(self, num_samples: int, num_splits: int = 10, seed: int = 0) -> Reference | None:
        """The value of ``num_samples`` random real examples (at most half) against the others: mean, spread.

        It has about the bias of that many perfect samples, and is what samplers are to be compared with.
        None for a metric without real data.
        """
        if self.real is None:
            return None
        size, values = min(num_samples, len(self.real) // 2), []
        for split in range(integer("num_splits", num_splits, 2)):
            order = permutation(len(self.real), seed, split, Stream.SPLIT)
            one, other = self.real[order[:size]], self.real[order[size:]]
            if isinstance(self.distance, Statistic):
                values.append(self.distance(one))
            else:
                values.append(self.distance(one, other[:size] if self._equal_sizes else other))
        value, spread = float(np.mean(values)), float(np.std(values, ddof=1))
        settings = {**self.settings, "num_examples": size}
        return Reference(self.name, f"{size} real examples", value, spread, settings)

    @property
    def _equal_sizes(self) -> bool:
        return isinstance(self.distance, Distance) and self.distance.facts.cost == "assignment"

    def halves(self, num_splits: int = 10, seed: int = 0) -> Reference | None:
        """The same for two random halves of the real data."""
        if self.real is None:
            return None
        half = self.real_examples(len(self.real), num_splits, seed)
        return None if half is None else replace(half, label="two halves of real data")


@checked
def compare(
    model: ScoreModel,
    candidates: Sequence[Candidate],
    metrics: Sequence[Metric],
    *,
    num_samples: int,
    seeds: Sequence[int] = (0,),
    batch_size: int | None = None,
    condition: Condition | NamedCondition | None = None,
    fingerprint: str = "",
    problem: str = "",
    previous: Iterable[Record] = (),
    store: Store | None = None,
    on_records: Callable[[Candidate, list[Record], bool], None] | None = None,
    on_samples: Callable[[Candidate, Samples], None] | None = None,
) -> list[Record]:
    """Run every candidate, seed and metric that has no record yet; return one record for each candidate and
    metric, the mean over the seeds, in the candidates' order.

    Args:
        model: what is sampled from.
        candidates: samplers with their step counts.
        metrics: distances to be measured.
        num_samples: drawn for each candidate and seed.
        seeds: of the draws; sample i of a seed starts from the same noise under every candidate.
        batch_size: samples computed at once; None for all.
        condition: of the samples: a class for all, a named vector or tensor for all, or a tensor with one
            row per sample; recorded in the settings.  The metrics' real data should be of the same condition.
        fingerprint: identifies the model's weights in the settings.
        problem: name of the model and its data.
        previous: records of an earlier run.
        store: where records of an earlier run are, and where new ones are written, each as soon as it is
            measured.
        on_records: called after each candidate with its records and whether they were reused.
        on_samples: called with every set of samples drawn.

    Raises:
        ValueError: no candidate, metric or seed; repeated seeds; ``num_samples`` below 10.
    """
    _check(candidates, metrics, seeds, num_samples)
    model.conditions(condition_rows(condition, num_samples), num_samples)
    if isinstance(previous, Tensor):
        require("previous", previous, Record)
    before = list(previous)
    for record in before:
        require("previous", record, Record)
    known = {identity(record): record for record in before}
    records: list[Record] = []

    def measure(candidate: Candidate, blanks: Sequence[Record]) -> tuple[list[Record], bool]:
        """The records of one seed, and whether all were known."""
        found = known_records(blanks, known, store)
        if len(found) == len(blanks):
            return found, True
        found = _run(model, candidate, metrics, blanks, batch_size, condition, on_samples)
        if store is not None:
            store.add(found)
        return found, False

    for candidate in candidates:
        blanks = blank_records(candidate, metrics, num_samples, tuple(seeds), fingerprint, problem, condition)
        rows = known_records(blanks, known, store)  # one seed, or means of an older file
        reused = len(rows) == len(blanks)
        if not reused:
            single = [measure(candidate, [replace(b, seeds=(seed,)) for b in blanks]) for seed in seeds]
            rows = [over_all_seeds(column) for column in zip(*(found for found, _ in single), strict=True)]
            reused = all(old for _, old in single)
        records.extend(rows)
        if on_records is not None:
            on_records(candidate, rows, reused)
    return records


def known_records(blanks: Sequence[Record], known: Mapping[str, Record], store: Store | None) -> list[Record]:
    """The records that there are of what the blanks are records of."""
    found = {**(store.find(blanks) if store is not None else {}), **known}
    return [found[identity(blank)] for blank in blanks if identity(blank) in found]


def _check(
    candidates: Sequence[Candidate], metrics: Sequence[Metric], seeds: Sequence[int], num_samples: int
) -> None:
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


def blank_records(
    candidate: Candidate,
    metrics: Sequence[Metric],
    num_samples: int,
    seeds: tuple[int, ...],
    fingerprint: str,
    problem: str,
    condition: Condition | NamedCondition | None,
) -> list[Record]:
    """The records of a candidate before its run, one for each metric: what identifies them, no figures."""
    of_model: dict[str, Any] = {"model": fingerprint}
    if condition is not None:
        of_model["condition"] = plain_condition(condition)
    name, steps, nan, blanks = candidate.name, candidate.num_steps, math.nan, []
    for metric in metrics:
        of_metric = {f"metric.{key}": value for key, value in metric.settings.items()}
        of_metric |= {} if metric.better == "lower" else {"metric.better": metric.better}
        settings = {**candidate.settings, **of_metric, **of_model}
        blanks.append(
            Record(name, steps, nan, metric.name, nan, nan, nan, num_samples, seeds, settings, problem)
        )
    return blanks


def plain_condition(
    condition: Condition | NamedCondition | str | Sequence[str] | None,
) -> int | str | list[Any] | None:
    """A condition as JSON holds it: a number, a name with its digest, (nested) lists, or None."""
    if condition is None or isinstance(condition, (int, str)):
        return condition
    if isinstance(condition, NamedCondition):
        return str(condition)
    return condition.tolist() if isinstance(condition, (Tensor, np.ndarray)) else list(condition)


def _run(
    model: ScoreModel,
    candidate: Candidate,
    metrics: Sequence[Metric],
    blanks: Sequence[Record],
    batch_size: int | None,
    condition: Condition | NamedCondition | None,
    on_samples: Callable[[Candidate, Samples], None] | None,
) -> list[Record]:
    """The records of one seed, for every metric."""
    timed, memory = Timed(model), PeakMemory(model.device)
    count = blanks[0].num_samples
    samples = candidate.sampler.sample(
        timed, count, condition=condition_rows(condition, count), seed=blanks[0].seeds[0],
        batch_size=batch_size,
    )  # fmt: skip
    peak = memory.read()
    if on_samples is not None:
        on_samples(candidate, samples)
    measured = [
        (blank, metric.of(samples, candidate.sampler)) for blank, metric in zip(blanks, metrics, strict=True)
    ]
    return [
        replace(
            blank, nfe=float(samples.nfe), value=found.value, standard_error=found.standard_error,
            seconds=samples.seconds, network_seconds=min(timed.seconds, samples.seconds), peak_memory=peak,
            estimates=(found,), made_by=environment(str(model.device)),
        )
        for blank, found in measured
    ]  # fmt: skip
