"""The report of a run: figures of its comparison, its training and its likelihoods, on one page.

figures/*.png, report.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sde_toolkit.config import Config, build_candidates, config_json
from sde_toolkit.data import Dataset
from sde_toolkit.lab import (
    Candidate,
    Card,
    Page,
    Picture,
    Problem,
    Record,
    Reference,
    Sample,
    extent_of,
    facets_of,
    figures,
    plus_minus,
    problem_of,
    sample_picture,
    setting_of,
    short_name,
    write_page,
)
from sde_toolkit.runs.classes import examples_of_class
from sde_toolkit.runs.comparison import Comparison, comparison_candidates, samples_path
from sde_toolkit.runs.evaluation import Evaluation
from sde_toolkit.runs.pictures import displayable, trajectory_pictures
from sde_toolkit.runs.samples import load_samples
from sde_toolkit.runs.store import Run
from sde_toolkit.runs.training import read_history
from sde_toolkit.utils import atomic_write

CELL_SAMPLES = figures.CELL_SIDE**2
SCATTER_SAMPLES = 1000
FEW_EVALUATIONS = 21
"""Network evaluations of the "few steps" headline: 20 steps and a final denoising."""

Cells = dict[tuple[str, str], np.ndarray]
"""(Sampler, caption) -> samples as ``displayable`` gives them."""


def write_report(
    run: Run,
    directory: Path,
    found: Comparison,
    evaluation: Evaluation | None,
    commands: Sequence[str],
    main: tuple[Record, Reference] | None = None,
) -> list[Path]:
    """Write the figures and the page; return their paths, the page last.

    Args:
        run: the trained model.
        directory: where they are written, and where the comparison's samples lie.
        found: its comparison.
        evaluation: its likelihoods, if there are any.
        commands: shell lines that reproduce the page.
        main: a record and its reference, as the page's first number; the best record when None.
    """
    dataset = examples_of_class(run.dataset(), found.label)
    real = displayable(dataset.scaled_test()[:SCATTER_SAMPLES], dataset.scaling)
    cells = _cells(run, directory, dataset, found.label)
    drawn = _figures(run, cells, real, found, evaluation)
    page = Page(
        title=f"Samplers on {run.config.data.name}{_of_class(found)} under {run.config.sde.name}",
        lead=_lead(run),
        cards=_cards(run, found, evaluation, main),
        samples=_samples(run.config.data.name, cells, real, found.label),
        pictures=_written(directory, drawn),
        records=found.records,
        references=found.references,
        trajectories=trajectory_pictures(directory),
        config=config_json(run.config),
        commands=[command for command in commands if command],
        facts={"checkpoint": f"step {run.step}, weights {run.fingerprint}"},
    )
    write_page(directory / "report.html", page)
    return [*(directory / "figures" / f"{name}.png" for name in drawn), directory / "report.html"]


def write_experiment_page(
    config: Config, directory: Path, found: Comparison, commands: Sequence[str]
) -> list[Path]:
    """Write the figures and the page of a comparison without a run of its own; return their paths.

    Args:
        config: says what was compared.
        directory: where they are written, and where the samples lie.
        found: the comparison.
        commands: shell lines that reproduce the page.
    """
    drawn: dict[str, tuple[Any, str]] = {}
    samples: list[Sample] = []
    for problem in found.problems:
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in found.records:
            if record.problem == problem.name:
                groups.setdefault((record.metric, problem_of(record)), []).append(record)
        for (metric, named), rows in groups.items():
            caption = f"{named}: {metric} against network evaluations per sample"
            figure = figures.quality_figure(rows, metric, f"Step count against quality: {named}")
            label = rows[0].settings.get("condition")
            more = "" if label is None else f"-{_file_name(f'class {label}')}"
            drawn[f"quality-{problem.folder}-{_file_name(metric)}{more}"] = figure, caption
        cells = _problem_cells(config, directory, problem, found.label)
        if cells:
            real = None if problem.real is None else _shown(problem.real[:SCATTER_SAMPLES], problem)
            samples += _samples(problem.name, cells, real, found.label)
            caption = f"{problem.name}: samples of seed {config.comparison.seeds[0]}, not selected"
            drawn[f"samples-{problem.folder}"] = figures.samples_figure(cells, real, caption), caption
    names = ", ".join(problem.name for problem in found.problems)
    page = Page(
        title=f"Samplers on {names}",
        lead=f"Samplers at several step counts on {names}; {config.comparison.num_samples:,} samples each, "
        f"seeds {', '.join(map(str, config.comparison.seeds))}.",
        samples=samples,
        pictures=_written(directory, drawn),
        trajectories=trajectory_pictures(directory),
        records=found.records,
        references=found.references,
        config=config_json(config),
        commands=[command for command in commands if command],
        facts={problem.name: problem.fingerprint for problem in found.problems if problem.fingerprint},
    )
    write_page(directory / "report.html", page)
    return [*(directory / "figures" / f"{name}.png" for name in drawn), directory / "report.html"]


def _problem_cells(config: Config, directory: Path, problem: Problem, label: int | None) -> Cells:
    """The first samples of every candidate of a problem that has a file."""
    count = CELL_SAMPLES if len(problem.model.event_shape) == 3 else SCATTER_SAMPLES
    cells = {}
    for candidate in build_candidates(config, problem.model):
        path = samples_path(directory, config, candidate, config.comparison.seeds[0], label, problem.folder)
        if path.exists():
            x, note = load_samples(path)
            if note["model"] == problem.fingerprint:
                cells[short_name(candidate.name), f"{candidate.label}, NFE {note['nfe']:.4g}"] = _shown(
                    x[:count], problem
                )
    return cells


def _file_name(metric: str) -> str:
    return re.sub(r"[^\w.-]+", "-", metric.lower()).strip("-")


def _shown(x: Tensor, problem: Problem) -> np.ndarray:
    return displayable(x, problem.scaling)


def _samples(problem: str, cells: Cells, real: np.ndarray | None, label: int | None) -> list[Sample]:
    """Small pictures of real data and of every candidate's samples."""
    points = next(iter(cells.values())) if real is None else real
    bound = None if points.ndim == 4 else extent_of(points)
    condition, pictures = "none" if label is None else str(label), []
    if real is not None:
        told = f"Real data of {problem}"
        pictures.append(Sample(sample_picture(real, bound), "real examples", told, problem=problem))
    for (sampler, caption), x in cells.items():
        told = f"Samples of {sampler}, {caption}"
        picture = sample_picture(x, bound)
        pictures.append(Sample(picture, caption, told, sampler, problem, condition))
    return pictures


def _written(directory: Path, drawn: Mapping[str, tuple[Any, str]]) -> list[Picture]:
    """Write figures as PNG and return them as pictures of the page."""
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, (figure, caption) in drawn.items():
        picture = figures.render(figure)
        atomic_write(folder / f"{name}.png", picture)
        if not name.startswith(("quality", "samples")):  # the page has its own
            pictures.append(Picture(picture, caption, caption))
    return pictures


def _figures(
    run: Run, cells: Cells, real: np.ndarray, found: Comparison, evaluation: Evaluation | None
) -> dict[str, tuple[Any, str]]:
    """Name -> figure and caption, the headline first."""
    drawn: dict[str, tuple[Any, str]] = {}
    for number, reference in enumerate(found.references):
        name = "quality" if number == 0 else f"quality-{_file_name(reference.metric)}"
        figure = figures.quality_figure(
            found.records, reference.metric, f"Step count against quality: {run.config.data.name}", reference
        )
        caption = (
            f"{reference.metric} against network evaluations per sample, counted; bars are one standard "
            f"error, the line and band what {reference.label} score against the others, with the spread over "
            "random choices."
        )
        drawn[name] = figure, caption
    drawn["samples"] = (
        figures.samples_figure(
            cells, real, f"Samples of seed {run.config.comparison.seeds[0]}, not selected"
        ),
        "The first samples of each sampler and step count; equal places start from equal noise.",
    )
    history = [] if run.workdir is None else read_history(run.workdir)
    if history:
        steps, loss = [int(row["step"]) for row in history], [row["loss"] for row in history]
        drawn["loss"] = (
            figures.loss_figure(steps, loss, "Training loss"),
            "Denoising score matching, by step.",
        )
    if evaluation is not None:
        drawn["likelihood"] = (
            figures.likelihood_figure(
                np.array(evaluation.bits_per_dim),
                evaluation.standard_error,
                evaluation.uniform,
                f"Code lengths of {evaluation.split} data",
            ),
            f"Bits per dimension by the probability flow. {evaluation.sentence}",
        )
    return drawn


def _cells(run: Run, directory: Path, dataset: Dataset, label: int | None) -> Cells:
    """The first samples of every candidate: from its file, or drawn again where the file does not fit."""
    count = CELL_SAMPLES if len(run.model.event_shape) == 3 else SCATTER_SAMPLES
    cells = {}
    for candidate in comparison_candidates(run):
        x, nfe = _first_samples(run, directory, candidate, count, label)
        setting = (
            f"{candidate.num_steps} steps" if candidate.num_steps else f"rtol {candidate.settings['rtol']:g}"
        )
        cells[candidate.name, f"{setting}, NFE {nfe:.4g}"] = displayable(x, dataset.scaling)
    return cells


def _first_samples(
    run: Run, directory: Path, candidate: Candidate, count: int, label: int | None
) -> tuple[Tensor, float]:
    seed = run.config.comparison.seeds[0]
    path = samples_path(directory, run.config, candidate, seed, label)
    count = min(count, run.config.comparison.num_samples)
    if path.exists():
        x, note = load_samples(path)
        same = note["model"] == run.fingerprint and note["settings"] == dict(candidate.settings)
        if same and note["first_sample"] == 0 and len(x) >= count:
            return x[:count], note["nfe"]
    samples = candidate.sampler.sample(run.model, count, condition=label, seed=seed)
    return samples.x, samples.nfe


def _of_class(found: Comparison) -> str:
    return "" if found.label is None else f", class {found.label},"


def _lead(run: Run) -> str:
    dataset = run.dataset()
    size = sum(parameter.numel() for parameter in run.model.network.parameters())
    network = {"unet": "A U-Net", "mlp": "An MLP"}.get(run.config.model.name, run.config.model.name)
    return (
        f"{network} with {size:,} parameters that predicts {run.config.model.predicts}, trained by "
        f"denoising score matching for {run.step:,} steps of {run.config.training.batch_size} examples on "
        f"{dataset.name} ({len(dataset.train):,} training and {len(dataset.test):,} test examples) under "
        f"the {run.config.sde.name} process, and sampled at several step counts."
    )


def _cards(
    run: Run, found: Comparison, evaluation: Evaluation | None, main: tuple[Record, Reference] | None
) -> list[Card]:
    reference = found.references[0]
    rows = [record for record in found.records if record.metric == reference.metric]
    against = _against(reference)
    if main is None:
        cards = [_best(f"best {reference.metric}", rows, against)]
    else:
        record, halves = main
        note = f"{record.num_samples:,} samples, {_what(record)}; {_against(halves)}"
        cards = [Card(record.metric, plus_minus(record.value, record.standard_error), note)]
    few = [record for record in rows if record.nfe <= FEW_EVALUATIONS]
    if few:
        cards.append(_best(f"best within {FEW_EVALUATIONS} evaluations", few, against))
    if evaluation is not None:
        note = "" if evaluation.uniform is None else f"uniform levels: {evaluation.uniform:.3f}"
        cards.append(
            Card(
                f"bits/dim, {evaluation.split} data",
                plus_minus(evaluation.mean, evaluation.standard_error),
                note,
            )
        )
    seconds = _training_seconds(run)
    if seconds:
        cards.append(Card("training", f"{seconds:.0f} s", f"{run.step:,} steps"))
    return cards


def _best(label: str, rows: Sequence[Record], against: str) -> Card:
    best = min(rows, key=lambda record: record.value)
    return Card(label, plus_minus(best.value, best.standard_error), f"{_what(best)}; {against}")


def _against(reference: Reference) -> str:
    return f"{reference.label}: {plus_minus(reference.value, reference.standard_error)}"


def _what(record: Record) -> str:
    steps = f"{setting_of(record)}{' steps' if record.num_steps else ''}"
    return f"{record.sampler.replace('_', ' ')}, {steps}, NFE {record.nfe:.4g}"


def _training_seconds(run: Run) -> float:
    """Wall time of the updates of a run, from its log; 0 if there is none."""
    history = [] if run.workdir is None else read_history(run.workdir)
    steps = np.array([0.0] + [row["step"] for row in history])
    return float(np.sum(np.diff(steps) * np.array([row["seconds"] for row in history]))) if history else 0.0


def write_stored_page(
    directory: Path, records: Sequence[Record], references: Sequence[Reference],
    samples: Sequence[tuple[Record, np.ndarray]], source: Path, commands: Sequence[str],
) -> Path:  # fmt: skip
    """Write the page of records and samples that are there, without the model; return its path.

    Args:
        directory: where it is written.
        records, references: as the store holds them, seeds pooled.
        samples: as ``stored_samples`` finds them.
        source: the directory of the records.
        commands: shell lines that reproduce the page.
    """
    points = [extent_of(x) for _, x in samples if x.ndim != 4]
    bound = float(np.median(points)) if points else None
    shown = [_stored_picture(record, x, bound) for record, x in samples]
    problems = ", ".join(dict.fromkeys(record.problem or "an unnamed problem" for record in records))
    candidates = len({(r.sampler, setting_of(r), r.problem) for r in records})
    page = Page(
        title=f"Samplers on {problems}",
        lead=f"{len(records)} records of {candidates} samplers and settings in {source}; nothing was "
        "measured for this page.",
        samples=shown, records=records, references=references, commands=commands,
        trajectories=trajectory_pictures(source),
    )  # fmt: skip
    write_page(directory / "report.html", page)
    return directory / "report.html"


def _stored_picture(record: Record, x: np.ndarray, bound: float | None) -> Sample:
    caption = f"{setting_of(record)}{' steps' if record.num_steps else ''}, NFE {record.nfe:.4g}"
    told = f"Samples of {record.sampler}, {caption}"
    facets = facets_of(record)
    return Sample(
        sample_picture(x, bound), caption, told, record.sampler, facets["problem"], facets["condition"],
        facets["grid"],
    )  # fmt: skip
