"""What is made from a trained run: the comparison, figures and the page.

Each result is written when it is there and reused when the same is asked for again: same weights (a
fingerprint), same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit.config import build_candidates, build_dataset, build_metrics, build_sampler, config_json
from sde_toolkit.data import Dataset
from sde_toolkit.lab import (
    Candidate,
    Card,
    Metric,
    Page,
    Picture,
    Record,
    Reference,
    compare,
    figures,
    load_records,
    plus_minus,
    save_records,
    setting_of,
    write_page,
)
from sde_toolkit.runs.evaluation import HeldOut
from sde_toolkit.runs.samples import displayable, load_samples, save_samples
from sde_toolkit.runs.store import Run
from sde_toolkit.runs.training import read_history
from sde_toolkit.samplers import Samples
from sde_toolkit.utils import atomic_write

MOST_SAMPLES = 2000
"""Limit of the samples drawn for the headline."""

CELL_SAMPLES = figures.CELL_SIDE**2
SCATTER_SAMPLES = 1000
FEW_EVALUATIONS = 21
"""Network evaluations of the "few steps" headline: 20 steps and a final denoising."""


@dataclass(frozen=True)
class Comparison:
    """Records of the asked candidates, and what real data score by each metric."""

    records: list[Record]
    references: list[Reference]


def records_path(directory: Path) -> Path:
    """Where the records of a comparison lie."""
    return directory / "records.json"


def samples_path(directory: Path, candidate: Candidate, seed: int) -> Path:
    """Where the samples of a candidate lie."""
    return directory / "samples" / f"{candidate.label}-seed{seed}.npz"


def candidates(run: Run) -> list[Candidate]:
    """What the run's configuration asks to be compared."""
    return build_candidates(run.config, run.model)


def run_comparison(
    run: Run,
    directory: Path,
    asked: Sequence[Candidate],
    on_records: Callable[[Candidate, list[Record], bool], None],
) -> Comparison:
    """Compare the candidates; write samples and records to ``directory`` as they are made, reuse those there.

    Raises:
        ValueError: see ``sde_toolkit.compare.compare`` and ``build_metrics``.
    """
    settings, dataset = run.config.comparison, build_dataset(run.config)
    metrics = build_metrics(run.config, dataset)
    path = records_path(directory)
    old, old_references = load_records(path)
    old = [record for record in old if record.settings.get("model") == run.fingerprint]
    references = [_reference(metric, settings.num_samples, old_references) for metric in metrics]
    new: list[Record] = []

    def keep(candidate: Candidate, rows: list[Record], reused: bool) -> None:
        new.extend(rows)
        if not reused:
            save_records(path, new + [record for record in old if record not in new], references)
        on_records(candidate, rows, reused)

    def write(candidate: Candidate, samples: Samples) -> None:
        save_samples(samples_path(directory, candidate, samples.seed), samples, run.config, run.fingerprint)

    directory.mkdir(parents=True, exist_ok=True)
    records = compare(
        run.model, asked, metrics, num_samples=settings.num_samples, seeds=settings.seeds,
        batch_size=run.config.sampling.batch_size, fingerprint=run.fingerprint, previous=old,
        on_records=keep, on_samples=write,
    )  # fmt: skip
    return Comparison(records, references)


def headline(run: Run, directory: Path) -> tuple[Record, Reference]:
    """The run's own sampler by its first metric, as many samples as real examples; and two real halves.

    The record is kept with the others, and reused from there.
    """
    metric = build_metrics(run.config, build_dataset(run.config))[0]
    sampler = build_sampler(run.config, model=run.model)
    candidate = Candidate.of(run.config.sampling.sampler, sampler)
    path, count = records_path(directory), min(len(metric.real), MOST_SAMPLES)
    old, references = load_records(path)
    (record,) = compare(
        run.model, [candidate], [metric], num_samples=count, seeds=[run.config.sampling.seed],
        batch_size=run.config.sampling.batch_size, fingerprint=run.fingerprint, previous=old,
    )  # fmt: skip
    if record not in old:
        save_records(path, [*old, record], references)
    return record, metric.halves()


def _reference(metric: Metric, num_samples: int, known: Sequence[Reference]) -> Reference:
    """What as many real examples score against the others; from the file if it is there."""
    settings = {**metric.settings, "num_examples": min(num_samples, len(metric.real) // 2)}
    same = [r for r in known if r.metric == metric.name and r.settings == settings]
    return same[0] if same else metric.real_examples(num_samples)


def picture_of_samples(samples: Samples, dataset: Dataset, label: str) -> bytes:
    """A PNG of all samples in one grid, or as a scatter plot."""
    title = f"{label}, seed {samples.seed}: {len(samples.x)} samples, {samples.nfe:.4g} evaluations each"
    return figures.render(figures.grid_figure(displayable(samples.x, dataset), title))


def write_report(
    run: Run,
    directory: Path,
    found: Comparison,
    held: HeldOut | None,
    commands: Sequence[str],
    main: tuple[Record, Reference] | None = None,
) -> list[Path]:
    """Write the figures and the page, with ``main`` as its first number; return the paths, the page last."""
    dataset = build_dataset(run.config)
    drawn = _figures(run, directory, dataset, found, held)
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths, pictures = [], []
    for name, (figure, caption) in drawn.items():
        picture = figures.render(figure)
        atomic_write(folder / f"{name}.png", picture)
        paths.append(folder / f"{name}.png")
        pictures.append(Picture(picture, caption, caption))
    page = Page(
        title=f"Samplers on {run.config.data.name} under {run.config.sde.name}",
        lead=_lead(run, dataset),
        cards=_cards(run, found, held, main),
        pictures=pictures,
        records=found.records,
        references=found.references,
        config=config_json(run.config),
        commands=[command for command in commands if command],
        facts={"checkpoint": f"step {run.step}, weights {run.fingerprint}"},
    )
    write_page(directory / "report.html", page)
    return [*paths, directory / "report.html"]


def _figures(
    run: Run, directory: Path, dataset: Dataset, found: Comparison, held: HeldOut | None
) -> dict[str, tuple[Any, str]]:
    """Name -> figure and caption, the headline first."""
    drawn: dict[str, tuple[Any, str]] = {}
    for number, reference in enumerate(found.references):
        name = "quality" if number == 0 else "quality-" + reference.metric.lower().replace(" ", "-")
        figure = figures.quality_figure(
            found.records, reference.metric, f"Step count against quality: {run.config.data.name}", reference
        )
        caption = (
            f"{reference.metric} against network evaluations per sample, counted; bars are one standard "
            f"error, the line and band what {reference.label} score against the others, with the spread over "
            "random choices."
        )
        drawn[name] = figure, caption
    cells = _cells(run, directory, dataset)
    real = displayable(dataset.scaled_test()[:SCATTER_SAMPLES], dataset)
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
    if held is not None:
        drawn["likelihood"] = (
            figures.likelihood_figure(
                np.array(held.bits_per_dim),
                held.standard_error,
                held.uniform,
                f"Code lengths of {held.split} data",
            ),
            f"Bits per dimension by the probability flow. {held.sentence}",
        )
    return drawn


def _cells(run: Run, directory: Path, dataset: Dataset) -> dict[tuple[str, str], np.ndarray]:
    """The first samples of every candidate: from its file, or drawn again where the file is another's."""
    count = CELL_SAMPLES if len(run.model.event_shape) == 3 else SCATTER_SAMPLES
    cells = {}
    for candidate in candidates(run):
        x, nfe = _first_samples(run, directory, candidate, count)
        setting = (
            f"{candidate.num_steps} steps" if candidate.num_steps else f"rtol {candidate.settings['rtol']:g}"
        )
        cells[candidate.name, f"{setting}, NFE {nfe:.4g}"] = displayable(x, dataset)
    return cells


def _first_samples(run: Run, directory: Path, candidate: Candidate, count: int) -> tuple[Any, float]:
    seed = run.config.comparison.seeds[0]
    path = samples_path(directory, candidate, seed)
    count = min(count, run.config.comparison.num_samples)
    if path.exists():
        x, note = load_samples(path)
        same = note["model"] == run.fingerprint and note["settings"] == dict(candidate.settings)
        if same and note["first_sample"] == 0 and len(x) >= count:
            return x[:count], note["nfe"]
    samples = candidate.sampler.sample(run.model, count, seed=seed)
    return samples.x, samples.nfe


def _lead(run: Run, dataset: Dataset) -> str:
    size = sum(parameter.numel() for parameter in run.model.network.parameters())
    network = {"unet": "A U-Net", "mlp": "An MLP"}.get(run.config.model.name, run.config.model.name)
    return (
        f"{network} with {size:,} parameters that predicts {run.config.model.predicts}, trained by "
        f"denoising score matching for {run.step:,} steps of {run.config.training.batch_size} examples on "
        f"{dataset.name} ({len(dataset.train):,} training and {len(dataset.test):,} held-out examples) under "
        f"the {run.config.sde.name} process, and sampled at several step counts."
    )


def _cards(
    run: Run, found: Comparison, held: HeldOut | None, main: tuple[Record, Reference] | None
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
    if held is not None:
        note = "" if held.uniform is None else f"uniform levels: {held.uniform:.3f}"
        cards.append(Card(f"bits/dim, {held.split} data", plus_minus(held.mean, held.standard_error), note))
    seconds = training_seconds(run)
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


def training_seconds(run: Run) -> float:
    """Wall time of the updates of a run, from its log; 0 if there is none."""
    history = [] if run.workdir is None else read_history(run.workdir)
    steps = np.array([0.0] + [row["step"] for row in history])
    return float(np.sum(np.diff(steps) * np.array([row["seconds"] for row in history]))) if history else 0.0
