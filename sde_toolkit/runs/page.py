"""The report of a run: figures of its comparison, its training and its likelihoods, on one page.

figures/*.png, report.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sde_toolkit.config import Config, config_json
from sde_toolkit.lab import (
    Card,
    Group,
    Page,
    Picture,
    Record,
    Reference,
    Sample,
    extent_of,
    facets_of,
    figures,
    plus_minus,
    problem_of,
    refers_to,
    sample_picture,
    setting_of,
    write_page,
)
from sde_toolkit.runs.classes import condition_suffix
from sde_toolkit.runs.comparison import Comparison, condition_of
from sde_toolkit.runs.evaluation import Evaluation
from sde_toolkit.runs.learning import HeldOutCurves, least_by_level, read_held_out, read_history
from sde_toolkit.runs.pictures import (
    SCATTER_SAMPLES,
    Cells,
    compared_samples,
    displayable,
    paper_cells,
    trajectory_pictures,
)
from sde_toolkit.runs.problems import real_examples
from sde_toolkit.runs.store import Run
from sde_toolkit.utils import atomic_write

FEW_EVALUATIONS = 21
"""Network evaluations of the "few steps" headline: 20 steps and a final denoising."""

Figures = dict[str, tuple[Any, str]]
"""Name of a file -> figure and caption."""


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
    compared = _compared(run.config, directory, found)
    drawn = compared.drawn | _figures_of_training(run, evaluation)
    page = Page(
        title=f"Samplers on {_names(found)}{_of_class(found)} under {run.config.sde.name}",
        lead=_lead(run),
        cards=_cards(run, found, evaluation, main),
        samples=compared.samples,
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
    compared, names = _compared(config, directory, found), _names(found)
    problems = {group.problem.name: group.problem.fingerprint for group in found.groups}
    page = Page(
        title=f"Samplers on {names}",
        lead=f"Samplers at several step counts on {names}; {config.comparison.num_samples:,} samples each, "
        f"seeds {', '.join(map(str, config.comparison.seeds))}.",
        samples=compared.samples,
        pictures=_written(directory, compared.drawn),
        trajectories=trajectory_pictures(directory),
        records=found.records,
        references=found.references,
        config=config_json(config),
        commands=[command for command in commands if command],
        facts={name: fingerprint for name, fingerprint in problems.items() if fingerprint},
    )
    write_page(directory / "report.html", page)
    return [*(directory / "figures" / f"{name}.png" for name in compared.drawn), directory / "report.html"]


class _Compared(NamedTuple):
    """Figures of a comparison, name -> figure and caption, and pictures of samples for its page."""

    drawn: Figures
    samples: list[Sample]


def _compared(config: Config, directory: Path, found: Comparison) -> _Compared:
    """Quality and samples of every problem and condition, those of one in figures of their own."""
    drawn: Figures = {}
    samples: list[Sample] = []
    everything = compared_samples(config, directory, found)
    for group, (rows, cells) in zip(found.groups, everything, strict=True):
        if not rows:
            continue
        named, metrics = problem_of(rows[0]), list(dict.fromkeys(record.metric for record in rows))
        for metric in metrics:
            of_metric = [record for record in rows if record.metric == metric]
            reference = next((r for r in found.references if refers_to(r, of_metric[0])), None)
            title = f"Step count against quality: {named}"
            figure = figures.quality_figure(of_metric, metric, title, reference)
            words = [] if metric == metrics[0] and not group.problem.folder else [metric]
            drawn[_file_name("quality", group, *words)] = figure, _quality_caption(named, metric, reference)
        if not cells:
            continue
        examples = real_examples(group.problem, condition_of(group))
        real = None if examples is None else displayable(examples[:SCATTER_SAMPLES], group.problem.scaling)
        samples += _pictures(cells, real, len(found.groups) > 1)
        title = f"{named}: samples of seed {config.comparison.seeds[0]}, not selected"
        caption = "The first samples of each sampler and step count; equal places start from equal noise."
        figure = figures.samples_figure(paper_cells(cells), real, title)
        drawn[_file_name("samples", group)] = figure, caption
    return _Compared(drawn, samples)


def _quality_caption(named: str, metric: str, reference: Reference | None) -> str:
    text = f"{named}: {metric} against network evaluations per sample, counted; bars are one standard error"
    if reference is None:
        return f"{text}."
    return (
        f"{text}, the line and band what {reference.label} score against the others, with the spread over "
        "random choices."
    )


def _file_name(kind: str, group: Group, *more: str) -> str:
    """A word for a figure's name: what it is of, the problem, and the class if there is one."""
    words = [kind, group.problem.folder, *more, condition_suffix(condition_of(group))]
    return "-".join(re.sub(r"[^\w.-]+", "-", word.lower()).strip("-") for word in words if word)


def _pictures(cells: Cells, real: np.ndarray | None, several: bool) -> list[Sample]:
    """Small pictures of the samples of one problem and condition, which they name if there are several."""
    points = [x for _, x in cells if x.ndim != 4]
    bound = None
    if points:
        bound = extent_of(real) if real is not None else float(np.median([extent_of(x) for x in points]))
    facets = facets_of(cells[0][0])
    where, named = (facets["problem"], facets["condition"]), problem_of(cells[0][0])
    before, pictures = f"{named}: " if several else "", []
    if real is not None:
        told = f"Real data of {named}"
        pictures.append(Sample(sample_picture(real, bound), f"{before}real examples", told, "", *where))
    for (_, caption), (record, x) in zip(paper_cells(cells), cells, strict=True):
        told = f"Samples of {record.sampler}, {caption}, for {named}"
        facets, text = facets_of(record), before + caption
        picture = sample_picture(x, bound)
        pictures.append(Sample(picture, text, told, facets["sampler"], *where, facets["grid"]))
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


def _figures_of_training(run: Run, evaluation: Evaluation | None) -> Figures:
    """Name -> figure and caption."""
    drawn: Figures = {}
    history = [] if run.workdir is None else read_history(run.workdir)
    curves = None if run.workdir is None else read_held_out(run.workdir)
    if history:
        steps, loss = [int(row["step"]) for row in history], [row["loss"] for row in history]
        held_out = [] if curves is None else curves.losses
        text = "The training loss by step" + (", and the loss on held-out examples." if held_out else ".")
        drawn["loss"] = figures.loss_figure(steps, loss, "Training loss", held_out), text
    if curves is not None and curves.levels:
        drawn["levels"] = _levels(run, curves)
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


def _levels(run: Run, curves: HeldOutCurves) -> tuple[Any, str]:
    """The held-out error by noise level, at the first and the last step, and its caption."""
    least = least_by_level(run, curves.levels)
    lines = {f"step {step:,}": values for step, values in (curves.first, curves.last)}
    text = "Error of the noise on held-out examples by noise level; without any information it is 1."
    if least is not None:
        text += "  The law of the data is known: the dashed line is the exact score's, on the same draws."
    return figures.level_figure(curves.levels, lines, least, "Held-out loss by noise level"), text


def _names(found: Comparison) -> str:
    """The problems of a comparison."""
    return ", ".join(dict.fromkeys(group.problem.name for group in found.groups))


_NETWORKS = {
    "unet": "A U-Net", "mlp": "An MLP", "dit": "A diffusion transformer", "ncsnpp": "An NCSN++",
    "unet1d": "A U-Net for signals",
}  # fmt: skip


def _of_class(found: Comparison) -> str:
    return "" if found.label is None else f", class {found.label},"


def _lead(run: Run) -> str:
    dataset = run.dataset()
    size = sum(parameter.numel() for parameter in run.model.network.parameters())
    network = _NETWORKS.get(run.config.model.name, run.config.model.name)
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
    samples: Cells, source: Path, commands: Sequence[str],
) -> Path:  # fmt: skip
    """Write the page of records and samples that are there, without the model; return its path.

    Args:
        directory: where it is written.
        records, references: as the store holds them, seeds pooled.
        samples: as ``stored_samples`` finds them.
        source: the directory of the records.
        commands: shell lines that reproduce the page.
    """
    groups: dict[str, Cells] = {}
    for record, x in samples:
        groups.setdefault(problem_of(record), []).append((record, x))
    shown = [picture for cells in groups.values() for picture in _pictures(cells, None, len(groups) > 1)]
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
