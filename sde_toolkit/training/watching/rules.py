"""Rules that watch a run: callbacks of ``fit(on_update=...)``, called with every update.

    Evaluation    the held-out loss of the moving average every so many updates, by noise level too; keeps the
                  best average, and ends the run after so many evaluations without a better one
    Spikes        lists the examples of a batch whose loss is far above the mean of those before

What they remember is in ``state.notes``, and so in every checkpoint: a run that was stopped and goes on
decides as one that was not.  Every evaluation draws the same times and noises, so that what changes is the
model.  Whether a loss is the best is decided by its value, not by its error bar.

    <workdir>/held_out.csv                             step, loss, standard error, error by log-SNR
    <workdir>/best/checkpoints/step-<n>.safetensors    the best average, opened like a run
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sde_toolkit.data import Dataset
from sde_toolkit.models import ModuleModel
from sde_toolkit.training.checkpoint import export_state
from sde_toolkit.training.objective import Loss
from sde_toolkit.training.state import TrainState, UpdateInfo
from sde_toolkit.training.suspects import write_suspects
from sde_toolkit.training.watching.held_out import held_out_loss, loss_by_level
from sde_toolkit.training.watching.trackers import Tracker
from sde_toolkit.utils import atomic_write, checked, integer

_MEMORY = 0.99
"""Decay of the mean loss that spikes are measured by."""
_FIRST = 100
"""Updates before which nothing is called a spike."""
_MOST_FILES = 100
"""Spikes of one run that are written down."""


def together(*rules: Callable[[UpdateInfo], object] | None) -> Callable[[UpdateInfo], bool]:
    """One callback that calls all of them, and returns whether one of them wants the run to end."""
    wanted = [rule for rule in rules if rule is not None]

    def call(info: UpdateInfo) -> bool:
        return any([rule(info) is True for rule in wanted])

    return call


class Evaluation:
    """The held-out loss of ``state.ema`` every so many updates; a callback that returns True to end the run.

    Args:
        state: the run.
        dataset: whose test examples are used.
        loss: that is trained.
        every: number of updates between evaluations.
        workdir: where held_out.csv and the best average go; None for neither.
        keep_best: whether the average with the lowest loss is kept, in ``best`` below ``workdir``.
        patience: evaluations without a lower loss after which the run ends; 0 for never.
        num_examples: the first so many test examples; 0 for all.
        num_bins: of the log-SNR; 0 for the loss alone, as for models of a chain in any case.
        seed: of the times and noises.
        tracker: is told the numbers.

    Raises:
        ValueError: a count out of range, or ``keep_best`` without a workdir.
    """

    @checked
    def __init__(
        self,
        state: TrainState,
        dataset: Dataset,
        loss: Loss,
        every: int,
        *,
        workdir: Path | None = None,
        keep_best: bool = False,
        patience: int = 0,
        num_examples: int = 512,
        num_bins: int = 8,
        seed: int = 0,
        tracker: Tracker | None = None,
    ) -> None:
        self.every, self.patience = integer("every", every, 1), integer("patience", patience, 0)
        integer("num_examples", num_examples, 0)
        integer("num_bins", num_bins, 0)
        if keep_best and workdir is None:
            raise ValueError("keep_best needs a workdir, got None")
        self._state, self._dataset, self._loss = state, dataset, loss
        self._workdir, self._keep, self._tracker = workdir, keep_best, tracker
        self._num_examples, self._seed = num_examples, seed
        self._num_bins = num_bins
        self._rows = [row for row in _read_rows(workdir) if float(row["step"]) <= state.step]
        if keep_best and workdir is not None:
            _drop(workdir / "best", lambda step: step > state.step)

    @property
    def finished(self) -> bool:
        """Whether the run has gone ``patience`` evaluations without a lower loss."""
        return 0 < self.patience <= int(self._notes()["since"])

    def __call__(self, info: UpdateInfo) -> bool:
        """Evaluate where it is time to; return whether the run is to end."""
        if info.step % self.every:
            return False
        model = self._state.gather_average()
        values = self._measure(model)
        notes = self._notes()
        better = math.isfinite(values["loss"]) and (notes["loss"] is None or values["loss"] < notes["loss"])
        notes |= {"loss": values["loss"], "step": info.step, "since": 0} if better else {}
        notes["since"] += 0 if better else 1
        self._state.notes["held_out"] = notes
        self._write(info.step, values)
        if better and self._keep and self._workdir is not None:
            best = self._workdir / "best"
            path = best / "checkpoints" / f"step-{info.step:08d}.safetensors"
            export_state(self._state, path, {"held_out": values["loss"]}, model)
            _drop(best, lambda step: step != info.step)
        if self._tracker is not None:
            self._tracker(info.step, {f"held_out/{name}": value for name, value in values.items()})
        return self.finished

    def _measure(self, model: ModuleModel) -> dict[str, float]:
        found = held_out_loss(model, self._dataset, self._loss, self._seed, num_examples=self._num_examples)
        values = {"loss": found.mean, "standard_error": found.standard_error}
        if self._num_bins:
            t_min = getattr(getattr(self._loss, "complete", self._loss), "t_min", 0.0) or 1e-5
            t_min = max(t_min, model.sde.default_t_min or 0.0)  # the first index of a chain
            for level in loss_by_level(
                model, self._dataset, self._num_bins, t_min, self._seed, num_examples=self._num_examples
            ):
                values[f"log_snr_{0.5 * (level.low + level.high):.2f}"] = level.mean
        return values

    def _notes(self) -> dict[str, Any]:
        """What was best so far; afresh where that was of other examples."""
        notes = self._state.notes.get("held_out")
        about = {"num_examples": self._num_examples, "seed": self._seed}
        fresh = {**about, "loss": None, "step": 0, "since": 0}
        if not isinstance(notes, dict) or set(notes) != set(fresh):
            return fresh
        return dict(notes) if all(notes[name] == value for name, value in about.items()) else fresh

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._workdir is None:
            return
        self._rows.append({"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}})
        text = io.StringIO()
        names = list(dict.fromkeys(name for line in self._rows for name in line))
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        atomic_write(self._workdir / "held_out.csv", text.getvalue().encode())


class Spikes:
    """Lists the examples of batches whose loss is far above the running mean; a callback of every update.

    Args:
        state: the run.
        factor: a loss above so many times the running mean is a spike.
        num_data: number of training examples.
        workdir: where the lists go (``training.suspects``), a hundred at the most.

    Raises:
        ValueError: ``factor`` of 1 or below.
    """

    def __init__(self, state: TrainState, factor: float, num_data: int, workdir: Path) -> None:
        if not factor > 1:
            raise ValueError(
                f"the factor of a spike must be above 1, got {factor}; try 10, or 0 for no lists"
            )
        self._state, self._factor, self._num_data, self._workdir = state, factor, num_data, workdir

    def __call__(self, info: UpdateInfo) -> None:
        """Count one update."""
        notes = self._state.notes.get("spikes")
        if not isinstance(notes, dict) or set(notes) != {"mean", "count", "files"}:
            notes = {"mean": info.loss, "count": 0, "files": 0}
        spike = notes["count"] >= _FIRST and info.loss > self._factor * notes["mean"] > 0
        if spike and notes["files"] < _MOST_FILES:
            write_suspects(
                "spike", self._state, self._num_data, info.batch_size, info.step - 1, self._workdir
            )
            notes["files"] += 1
        weight = max(1 - _MEMORY, 1 / (notes["count"] + 1))
        if not spike:
            notes["mean"] += weight * (info.loss - notes["mean"])
        notes["count"] += 1
        self._state.notes["spikes"] = notes


def _read_rows(workdir: Path | None) -> list[dict[str, str]]:
    path = None if workdir is None else workdir / "held_out.csv"
    if path is None or not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]
    return [row for row in rows if row.get("step", "").isdigit()]


def _drop(best: Path, unwanted: Callable[[int], bool]) -> None:
    """Remove the averages of these steps."""
    for path in (best / "checkpoints").glob("step-*.safetensors"):
        step = path.stem.removeprefix("step-")
        if step.isdigit() and unwanted(int(step)):
            path.unlink()
