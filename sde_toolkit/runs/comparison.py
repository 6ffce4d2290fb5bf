"""The comparison of a run: its samplers at its step counts against real data, kept in a store of records.

    <directory>/records.sqlite             the store (``sde_toolkit.lab.Store``)
    <directory>/records.json, records.csv  all that it holds, for other programs, written at the end

A record is written as soon as it is measured, and reused when the same is asked for again: same weights (by
their fingerprint), same settings, same class.  A directory of an earlier version, which holds records.json
alone, is taken over.  Classes of a network are compared each for itself, with the real data of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sde_toolkit.config import Config, build_candidates, build_metrics, build_sampler
from sde_toolkit.lab import (
    Candidate,
    Cell,
    Experiment,
    Group,
    Metric,
    NamedCondition,
    Problem,
    Record,
    Reference,
    Store,
    compare,
    export_records,
    load_records,
    pooled_records,
)
from sde_toolkit.runs.classes import condition_suffix, open_conditions
from sde_toolkit.runs.parts import Shard, ShardFinishedError
from sde_toolkit.runs.problems import prompt_conditions, real_examples, run_problem
from sde_toolkit.runs.samples import samples_stem, save_samples
from sde_toolkit.runs.store import Run
from sde_toolkit.samplers import Samples
from sde_toolkit.utils import Processes, launched, turns

MOST_SAMPLES = 2000
"""Limit of the samples drawn for the headline."""

_NO_TIME = 1e-9
"""A budget in which no cell fits."""


@dataclass(frozen=True)
class Comparison:
    """Records of the asked candidates, what real data score by each metric, the class (None for all), what
    was compared, and the cells that did not fit into the budget of time."""

    records: list[Record]
    references: list[Reference]
    label: int | None = None
    groups: Sequence[Group] = ()
    left_out: Sequence[Cell] = ()


def condition_of(group: Group) -> int | NamedCondition | None:
    """The condition of a group of ``plan_comparison``."""
    assert group.condition is None or isinstance(group.condition, (int, NamedCondition))
    return group.condition


def records_path(directory: Path) -> Path:
    """Where the store of a comparison lies."""
    return directory / "records.sqlite"


def open_records(directory: Path, problem: str) -> Store:
    """The store of a directory; records.json of an earlier version, and the stores of shards, are taken in.

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
    for part in sorted(directory.glob("records-shard*of*.sqlite")):
        store.merge(part)
        part.unlink()
    store.records()
    return store


def shard_path(directory: Path, shard: Shard) -> Path:
    """Where a shard of a comparison keeps its records."""
    return directory / f"records-shard{shard.index}of{shard.count}.sqlite"


def shared_records(directory: Path, problem: str, processes: Processes) -> Store:
    """``open_records`` by the first of several processes, for all."""
    if processes.rank == 0:
        open_records(directory, problem)
    processes.wait()
    return Store(records_path(directory))


def read_records(directory: Path) -> tuple[list[Record], list[Reference]]:
    """What a directory holds of comparisons, the seeds of each candidate pooled; nothing is written.

    Raises:
        ValueError: there are no records, or a file that is not what its name says.
    """
    store, older = Store(records_path(directory)), directory / "records.json"
    if store.path.exists():
        records, references = store.records(), store.references()
    else:
        records, references = load_records(older)
    if not records:
        raise ValueError(
            f"workdir must hold records of a comparison, got {directory}, which has none; make them with "
            f"`sde-toolkit compare --workdir={directory}`"
        )
    return pooled_records(records), references


def export_all(store: Store) -> list[Path]:
    """Write what a store holds beside it, as JSON and as CSV; return the paths."""
    paths = [store.path.with_suffix(suffix) for suffix in (".json", ".csv")]
    with turns(paths[0]):
        records, references = store.records(), store.references()
        for path in paths:
            export_records(path, records, references)
    return paths


def samples_path(
    directory: Path,
    config: Config,
    candidate: Candidate,
    seed: int,
    condition: int | NamedCondition | None = None,
    folder: str = "",
) -> Path:
    """Where the samples of a candidate lie; ``folder`` is that of the problem."""
    stem = samples_stem(candidate, config, condition_suffix(condition), seed)
    return directory / "samples" / folder / f"{stem}.npz"


def comparison_candidates(run: Run) -> list[Candidate]:
    """What the run's configuration asks to be compared."""
    return build_candidates(run.config, run.model)


def plan_comparison(
    config: Config, problems: Sequence[Problem], conditions: Sequence[int | NamedCondition | None]
) -> Experiment:
    """The experiment of ``config.comparison``: all its samplers on these problems, under each of these
    conditions, or of its prompts.

    Raises:
        ValueError: a condition that a model does not take, or what ``build_metrics`` and
            ``build_candidates`` refuse.
    """
    prompts = config.comparison.prompts
    groups = [
        Group(problem, build_candidates(config, problem.model), _metrics(config, problem, given), given)
        for problem in problems
        for given in (prompt_conditions(problem, prompts) if prompts else conditions)
    ]
    section = config.comparison
    return Experiment(
        groups, section.num_samples, section.seeds, config.sampling.batch_size, section.max_nfe,
        section.time_budget,
    )  # fmt: skip


def run_comparison(
    config: Config,
    problems: Sequence[Problem],
    directory: Path,
    on_records: Callable[[Cell, list[Record], bool], None] | None = None,
    label: int | None = None,
    shard: Shard | None = None,
) -> Comparison:
    """Compare what a configuration asks; write samples and records to ``directory`` as they are made, reuse
    those there.

    Under torchrun every process takes a share of the cells; they write to one store.  A shard writes to a
    store of its own, which the next comparison in the directory takes in.

    Args:
        config: says what is compared.
        problems: what is sampled, as ``open_problems`` opens them.
        directory: for the records and the samples.
        on_records: called after each cell with its records and whether they were reused.
        label: the class that all samples are of, and the real data; the conditions of
            ``config.comparison`` if None.
        shard: measure the cells of this shard alone.

    Raises:
        ShardFinishedError: the cells of ``shard`` are measured.
        ValueError: a label for a network without classes; and what ``sde_toolkit.lab.compare`` and
            ``build_metrics`` refuse.
    """
    experiment = plan_comparison(config, problems, comparison_conditions(config, label))

    def write(cell: Cell, samples: Samples) -> None:
        problem, condition = cell.group.problem, condition_of(cell.group)
        place = samples_path(directory, config, cell.candidate, samples.seed, condition, problem.folder)
        save_samples(place, samples, config, problem.fingerprint, condition)

    if shard is not None:
        store = Store(shard_path(directory, shard))
        replace(experiment, share=(shard.index - 1, shard.count)).run(store, on_records, write)
        raise ShardFinishedError
    with launched() as processes:
        store = shared_records(directory, problems[0].name, processes)
        mine = replace(experiment, share=(processes.rank, processes.count)).run(store, on_records, write)
        processes.wait()
    # of several processes the records of all are read; what the budget left out is not begun again
    outcome = mine if processes.count == 1 else replace(experiment, time_budget=_NO_TIME).run(store)
    references = _references(experiment, store) if processes.rank == 0 else []
    return Comparison(outcome.records, references, label, experiment.groups, outcome.left_out)


def _references(experiment: Experiment, store: Store) -> list[Reference]:
    """What real examples score by every metric; those that the store lacks are measured, and all exported."""
    known, references = store.references(), list[Reference]()
    for metric in (metric for group in experiment.groups for metric in group.metrics):
        found = _reference(metric, experiment.num_samples, [*known, *references])
        references += [] if found is None or found in references else [found]
    store.add([], references)
    export_all(store)
    return references


def comparison_conditions(config: Config, label: int | None) -> tuple[int | NamedCondition | None, ...]:
    """The classes or conditions that are compared, each for itself; None alone stands for none.

    Raises:
        ValueError: what ``open_conditions`` refuses, or a label beside conditions or prompts.
    """
    if label is not None:
        if config.comparison.conditions or config.comparison.prompts:
            raise ValueError("give --label, --conditions or --prompts, one of them")
        return (label,)
    if config.comparison.conditions:
        return tuple(open_conditions(config.comparison.conditions))
    return tuple(config.comparison.labels) or (None,)


def _metrics(config: Config, problem: Problem, condition: int | NamedCondition | None) -> list[Metric]:
    return build_metrics(config, problem, real_examples(problem, condition), condition)


def headline(run: Run, directory: Path) -> tuple[Record, Reference]:
    """The run's own sampler by its first metric, as many samples as real examples; and two real halves.

    The record is kept with the others, and reused from there.
    """
    problem = run_problem(run)
    metric = _metrics(run.config, problem, None)[0]
    assert metric.real is not None
    sampler = build_sampler(run.config, model=run.model)
    candidate = Candidate.of(run.config.sampling.sampler, sampler)
    count = min(len(metric.real), MOST_SAMPLES)
    store = open_records(directory, problem.name)
    (record,) = compare(
        run.model, [candidate], [metric], num_samples=count, seeds=[run.config.sampling.seed],
        batch_size=run.config.sampling.batch_size, fingerprint=run.fingerprint, problem=problem.name,
        store=store,
    )  # fmt: skip
    export_all(store)
    halves = metric.halves()
    assert halves is not None
    return record, halves


def _reference(metric: Metric, num_samples: int, known: Sequence[Reference]) -> Reference | None:
    """What as many real examples score against the others; from the store if it is there."""
    if metric.real is None:
        return None
    settings = {**metric.settings, "num_examples": min(num_samples, len(metric.real) // 2)}
    same = [r for r in known if r.metric == metric.name and r.settings == settings]
    return same[0] if same else metric.real_examples(num_samples)
