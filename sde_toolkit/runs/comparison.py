"""The comparison of a run: its samplers at its step counts against real data, kept in a file of records.

A record is written as soon as it is measured, and reused when the same is asked for again: same weights (by
their fingerprint), same settings, same class.  Of a network with classes one class may be compared, with the
real data of this class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sde_toolkit.config import Config, build_candidates, build_metrics, build_sampler
from sde_toolkit.lab import Candidate, Metric, Record, Reference, compare, load_records, merge_records
from sde_toolkit.runs.classes import class_suffix, examples_of_class, need_classes
from sde_toolkit.runs.samples import samples_stem, save_samples
from sde_toolkit.runs.store import Run
from sde_toolkit.samplers import Samples

MOST_SAMPLES = 2000
"""Limit of the samples drawn for the headline."""


@dataclass(frozen=True)
class Comparison:
    """Records of the asked candidates, what real data score by each metric, and the class (None for all)."""

    records: list[Record]
    references: list[Reference]
    label: int | None = None


def records_path(directory: Path) -> Path:
    """Where the records of a comparison lie."""
    return directory / "records.json"


def samples_path(
    directory: Path, config: Config, candidate: Candidate, seed: int, label: int | None = None
) -> Path:
    """Where the samples of a candidate lie."""
    return directory / "samples" / f"{samples_stem(candidate, config, class_suffix(label), seed)}.npz"


def comparison_candidates(run: Run) -> list[Candidate]:
    """What the run's configuration asks to be compared."""
    return build_candidates(run.config, run.model)


def run_comparison(
    run: Run,
    directory: Path,
    asked: Sequence[Candidate],
    on_records: Callable[[Candidate, list[Record], bool], None],
    label: int | None = None,
) -> Comparison:
    """Compare the candidates; write samples and records to ``directory`` as they are made, reuse those there.

    Args:
        run: what is sampled from.
        directory: for the records and the samples.
        asked: the candidates.
        on_records: called after each candidate with its records and whether they were reused.
        label: the class that all samples are of, and the real data; None for no class.

    Raises:
        ValueError: a label for a network without classes; and what ``sde_toolkit.lab.compare`` and
            ``build_metrics`` refuse.
    """
    settings, metrics = run.config.comparison, _metrics(run, label)
    path = records_path(directory)
    old, old_references = load_records(path)
    old = [record for record in old if record.settings.get("model") == run.fingerprint]
    references = [_reference(metric, settings.num_samples, old_references) for metric in metrics]
    new: list[Record] = []

    def keep(candidate: Candidate, rows: list[Record], reused: bool) -> None:
        new.extend(rows)
        if not reused:
            merge_records(path, new, references)
        on_records(candidate, rows, reused)

    def write(candidate: Candidate, samples: Samples) -> None:
        place = samples_path(directory, run.config, candidate, samples.seed, label)
        save_samples(place, samples, run.config, run.fingerprint, label)

    directory.mkdir(parents=True, exist_ok=True)
    records = compare(
        run.model, asked, metrics, num_samples=settings.num_samples, seeds=settings.seeds,
        batch_size=run.config.sampling.batch_size, fingerprint=run.fingerprint, previous=old,
        on_records=keep, on_samples=write, condition=label,
    )  # fmt: skip
    return Comparison(records, references, label)


def _metrics(run: Run, label: int | None) -> list[Metric]:
    if label is None:
        return build_metrics(run.config, run.dataset())
    need_classes(run.model)
    metrics = build_metrics(run.config, examples_of_class(run.dataset(), label))
    return [replace(metric, settings={**metric.settings, "class": label}) for metric in metrics]


def headline(run: Run, directory: Path) -> tuple[Record, Reference]:
    """The run's own sampler by its first metric, as many samples as real examples; and two real halves.

    The record is kept with the others, and reused from there.
    """
    metric = _metrics(run, None)[0]
    sampler = build_sampler(run.config, model=run.model)
    candidate = Candidate.of(run.config.sampling.sampler, sampler)
    path, count = records_path(directory), min(len(metric.real), MOST_SAMPLES)
    old, _ = load_records(path)
    (record,) = compare(
        run.model, [candidate], [metric], num_samples=count, seeds=[run.config.sampling.seed],
        batch_size=run.config.sampling.batch_size, fingerprint=run.fingerprint, previous=old,
    )  # fmt: skip
    if record not in old:
        merge_records(path, [record])
    return record, metric.halves()


def _reference(metric: Metric, num_samples: int, known: Sequence[Reference]) -> Reference:
    """What as many real examples score against the others; from the file if it is there."""
    settings = {**metric.settings, "num_examples": min(num_samples, len(metric.real) // 2)}
    same = [r for r in known if r.metric == metric.name and r.settings == settings]
    return same[0] if same else metric.real_examples(num_samples)
