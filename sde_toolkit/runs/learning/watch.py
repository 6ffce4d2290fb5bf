"""What watches the training of a run, as its configuration says, by the rules of ``training.watching``.

    history.csv, held_out.csv        the log, and held-out losses
    best/                            the best average, opened like a run
    samples/training-<n>.png         samples of the average after n updates
    tensorboard/                     for the tracker of that name

None of it changes a bit of the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sde_toolkit.config import Config, build_sampler
from sde_toolkit.data import Dataset
from sde_toolkit.runs.learning.history import history
from sde_toolkit.runs.pictures import picture_of_samples
from sde_toolkit.training import (
    Evaluation,
    Loss,
    Spikes,
    TrainState,
    UpdateInfo,
    open_trackers,
    together,
)
from sde_toolkit.utils import atomic_write

PICTURED = 16
"""Samples in a picture."""


@dataclass(frozen=True)
class Watch:
    """Callbacks for ``fit``, and whether the run has come to its end before its last step."""

    on_update: Callable[[UpdateInfo], bool]
    on_step: Callable[[UpdateInfo], None]
    finished: bool


@contextlib.contextmanager
def watching(
    workdir: Path, state: TrainState, dataset: Dataset, loss: Loss, config: Config
) -> Iterator[Watch]:
    """Open the log and the trackers of a run for the steps to come; of several processes, in the first."""
    settings = config.training
    if state.parallel.processes.rank:
        yield _taking_part(state, settings.evaluate_every, settings.sample_every)
        return
    names = [name.strip() for name in settings.trackers.split(",") if name.strip()]
    with (
        open_trackers(names, workdir, config.to_dict(), state.step) as tracker,
        history(workdir, state, settings.log_every, tracker) as log,
    ):
        evaluation = spikes = None
        if settings.evaluate_every:
            evaluation = Evaluation(
                state, dataset, loss, settings.evaluate_every, workdir=workdir, keep_best=settings.keep_best,
                patience=settings.patience, num_examples=settings.evaluate_examples,
                num_bins=settings.evaluate_bins, tracker=tracker,
            )  # fmt: skip
        if settings.spike_factor:
            spikes = Spikes(state, settings.spike_factor, len(dataset.train), workdir)

        def on_step(info: UpdateInfo) -> None:
            if settings.sample_every and info.step % settings.sample_every == 0:
                picture_samples(state, config, workdir)

        finished = evaluation is not None and evaluation.finished
        yield Watch(together(log, evaluation, spikes), on_step, finished)


def _taking_part(state: TrainState, evaluate_every: int, sample_every: int) -> Watch:
    """What the other processes do: they give their parts of sharded weights where the first one looks."""

    def on_update(info: UpdateInfo) -> bool:
        if evaluate_every and info.step % evaluate_every == 0:
            state.gather_average()
        return False

    def on_step(info: UpdateInfo) -> None:
        if sample_every and info.step % sample_every == 0:
            state.gather_average()

    return Watch(on_update, on_step, False)


def check_watch(config: Config) -> None:
    """Refuse, with a ValueError, fields without effect."""
    settings = config.training
    for name in ("keep_best", "patience"):
        if settings[name] and not settings.evaluate_every:
            raise ValueError(
                f"config.training.{name} goes by held-out losses, got {settings[name]} without any; add "
                "--config.training.evaluate_every=500"
            )
    if 0 < settings.spike_factor <= 1:
        raise ValueError(f"config.training.spike_factor must be above 1, or 0, got {settings.spike_factor}")


def picture_samples(state: TrainState, config: Config, workdir: Path) -> Path:
    """A picture of samples of the average, by the sampler of the configuration; classes take turns."""
    model = state.gather_average()
    sampler = build_sampler(config, model=model)
    condition = torch.arange(PICTURED) % model.num_classes if model.num_classes else None
    samples = sampler.sample(model, PICTURED, condition=condition, seed=config.sampling.seed)
    path = workdir / "samples" / f"training-{state.step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, picture_of_samples(samples, f"after {state.step:,} updates, {sampler.name}"))
    return path
