"""What is made from a trained run: the comparison, held-out likelihoods, figures and the page.

Each result is written when it is there and reused when the same is asked for again: same weights (a
fingerprint), same settings.  The bits per dimension of n held-out examples with code lengths b_i are
mean(b) +- std(b) / sqrt(n); that error bar holds the spread of the examples, of the dequantisation noise
and of the probes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit import figures, runs
from sde_toolkit.compare import Candidate, Metric, Record, Reference, compare, load_records, save_records
from sde_toolkit.config import (
    build_candidates,
    build_dataset,
    build_metrics,
    build_sampler,
    config_json,
    held_out,
    likelihood_options,
)
from sde_toolkit.data import Dataset
from sde_toolkit.files import atomic_write
from sde_toolkit.likelihood import log_likelihood
from sde_toolkit.processes import launched
from sde_toolkit.report import Card, Page, Picture, plus_minus, setting_of, write_page
from sde_toolkit.runs import Run, read_history
from sde_toolkit.samplers import Samples

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


@dataclass(frozen=True)
class HeldOut:
    """Held-out log-likelihoods.

    Attributes:
        split: which examples.
        bits_per_dim: of every example.
        uniform: bits per dimension of the uniform code on the grey levels; None for continuous data.
        nfe: mean number of network evaluations.
        seconds: wall time.
        budget: what a value may be off by, line by line; see ``sde_toolkit.budget``.
        settings: of the likelihood and the model, JSON-able.
    """

    split: str
    bits_per_dim: tuple[float, ...] = field(repr=False)
    uniform: float | None
    nfe: float
    seconds: float
    budget: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """Mean bits per dimension."""
        return float(np.mean(self.bits_per_dim))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; infinite for a single example."""
        n = len(self.bits_per_dim)
        return float(np.std(self.bits_per_dim, ddof=1)) / math.sqrt(n) if n > 1 else math.inf

    @property
    def sentence(self) -> str:
        """The result in one line."""
        against = "" if self.uniform is None else f", uniform levels {self.uniform:.3f}"
        return (
            f"{self.split} data: {plus_minus(self.mean, self.standard_error)} bits/dim "
            f"({len(self.bits_per_dim)} examples{against}; "
            f"{self.nfe:.0f} network evaluations each, {self.seconds:.1f} s)"
        )


def records_path(directory: Path) -> Path:
    """Where the records of a comparison lie."""
    return directory / "records.json"


def likelihood_path(directory: Path, split: str) -> Path:
    """Where the likelihoods of a split lie."""
    return directory / f"likelihood-{split}.json"


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
        runs.save_samples(
            samples_path(directory, candidate, samples.seed), samples, run.config, run.fingerprint
        )

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


def likelihood(run: Run, directory: Path) -> tuple[HeldOut, bool]:
    """Held-out log-likelihoods as the run's configuration asks; and whether they were reused from a file.

    Raises:
        ValueError: an option out of range.
        solvers.SolverError: the flow broke down.
    """
    dataset, split = build_dataset(run.config), run.config.likelihood.split
    options = likelihood_options(run.config, dataset)
    settings = {**run.config.likelihood.to_dict(), "model": run.fingerprint}
    known = load_likelihood(run, directory)
    if known is not None and known.settings == settings:
        return known, True
    x = held_out(run.config, dataset).to(run.model.dtype)
    with launched() as processes:
        found = log_likelihood(run.model, x, **options, processes=processes)
    uniform = None if dataset.levels is None else math.log2(dataset.levels)
    bits = tuple(found.bits_per_dim.tolist())
    budget = () if found.budget is None else tuple(found.budget.lines(x[0].numel()))
    nfe = float(found.nfe.double().mean())
    result = HeldOut(split, bits, uniform, nfe, found.seconds, budget, settings)
    if processes.rank == 0:
        atomic_write(likelihood_path(directory, split), json.dumps(asdict(result), indent=1).encode())
    return result, False


def load_likelihood(run: Run, directory: Path) -> HeldOut | None:
    """The likelihoods in ``directory`` for the run's split and weights, None if there are none."""
    path = likelihood_path(directory, run.config.likelihood.split)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        lists = {name: tuple(content[name]) for name in ("bits_per_dim", "budget")}
        found = HeldOut(**{**content, **lists})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of likelihoods ({error}); remove it and run again") from None
    return found if found.settings.get("model") == run.fingerprint else None


def picture_of_samples(samples: Samples, dataset: Dataset, label: str) -> bytes:
    """A PNG of all samples in one grid, or as a scatter plot."""
    title = f"{label}, seed {samples.seed}: {len(samples.x)} samples, {samples.nfe:.4g} evaluations each"
    return figures.render(figures.grid_figure(runs.displayable(samples.x, dataset), title))


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
    real = runs.displayable(dataset.scaled_test()[:SCATTER_SAMPLES], dataset)
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
        cells[candidate.name, f"{setting}, NFE {nfe:.4g}"] = runs.displayable(x, dataset)
    return cells


def _first_samples(run: Run, directory: Path, candidate: Candidate, count: int) -> tuple[Any, float]:
    seed = run.config.comparison.seeds[0]
    path = samples_path(directory, candidate, seed)
    count = min(count, run.config.comparison.num_samples)
    if path.exists():
        x, note = runs.load_samples(path)
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
