"""The comparison of a run: its samplers at its step counts against real data, kept in a store of records.

    <directory>/records.sqlite             the store (``sde_toolkit.lab.Store``)
    <directory>/records.json, records.csv  all that it holds, for other programs, written at the end

A record is written as soon as it is measured, and reused when the same is asked for again: same weights (by
their fingerprint), same settings, same class.  A directory of an earlier version, which holds records.json
alone, is taken over.  Of a network with classes one class may be compared, with the
real data of this class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sde_toolkit.config import Config, build_candidates, build_metrics, build_sampler
from sde_toolkit.lab import (
    Candidate,
    Metric,
    Record,
    Reference,
    Store,
    compare,
    export_records,
    load_records,
)
from sde_toolkit.runs.classes import class_suffix, examples_of_class, need_classes
from sde_toolkit.runs.samples import samples_stem, save_samples
from sde_toolkit.runs.store import Run
from sde_toolkit.samplers import Samples
from sde_toolkit.utils import turns

MOST_SAMPLES = 2000
"""Limit of the samples drawn for the headline."""


@dataclass(frozen=True)
class Comparison:
    """Records of the asked candidates, what real data score by each metric, and the class (None for all)."""

    records: list[Record]
    references: list[Reference]
    label: int | None = None


def records_path(directory: Path) -> Path:
    """Where the store of a comparison lies."""
    return directory / "records.sqlite"


def open_records(directory: Path, problem: str) -> Store:
    """The store of a directory; records.json of an earlier version is taken over.

    Args:
        directory: of the comparison.
        problem: name of the model and its data, which older records do not say.

    Raises:
        ValueError: a file that is not what its name says.
    """
    store, older = Store(records_path(directory)), directory / "records.json"
    if not store.path.exists() and older.exists():
        records, references = load_records(older)
        store.add([replace(record, problem=record.problem or problem) for record in records], references)
    store.records()
    return store


def export_all(store: Store) -> list[Path]:
    """Write what a store holds beside it, as JSON and as CSV; return the paths."""
    paths = [store.path.with_suffix(suffix) for suffix in (".json", ".csv")]
    with turns(paths[0]):
        records, references = store.records(), store.references()
        for path in paths:
            export_records(path, records, references)
    return paths


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
    problem = run.config.data.name
    store = open_records(directory, problem)
    references = [_reference(metric, settings.num_samples, store.references()) for metric in metrics]
    store.add([], references)

    def write(candidate: Candidate, samples: Samples) -> None:
        place = samples_path(directory, run.config, candidate, samples.seed, label)
        save_samples(place, samples, run.config, run.fingerprint, label)

    records = compare(
        run.model, asked, metrics, num_samples=settings.num_samples, seeds=settings.seeds,
        batch_size=run.config.sampling.batch_size, fingerprint=run.fingerprint, problem=problem, store=store,
        on_records=on_records, on_samples=write, condition=label,
    )  # fmt: skip
    export_all(store)
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
    problem, count = run.config.data.name, min(len(metric.real), MOST_SAMPLES)
    store = open_records(directory, problem)
    (record,) = compare(
        run.model, [candidate], [metric], num_samples=count, seeds=[run.config.sampling.seed],
        batch_size=run.config.sampling.batch_size, fingerprint=run.fingerprint, problem=problem, store=store,
    )  # fmt: skip
    export_all(store)
    return record, metric.halves()


def _reference(metric: Metric, num_samples: int, known: Sequence[Reference]) -> Reference:
    """What as many real examples score against the others; from the file if it is there."""
    settings = {**metric.settings, "num_examples": min(num_samples, len(metric.real) // 2)}
    same = [r for r in known if r.metric == metric.name and r.settings == settings]
    return same[0] if same else metric.real_examples(num_samples)
