"""The log of a training run.

    history.csv    step, loss, gradient norm, learning rate, seconds: means over ``log_every`` steps

The sums of the steps since the last row are among the notes of the state, and so in every checkpoint: the
rows are those of a run that was never stopped.  Rows after the checkpoint that a run goes on from are dropped
and written again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sde_toolkit.training import Tracker, TrainState, UpdateInfo
from sde_toolkit.utils import atomic_write

HISTORY = ("step", "loss", "grad_norm", "learning_rate", "seconds")


@contextlib.contextmanager
def history(
    workdir: Path, state: TrainState, every: int, tracker: Tracker
) -> Iterator[Callable[[UpdateInfo], None]]:
    """A log of the steps to come: the means of every ``every`` of them, appended and told to a tracker."""
    path = workdir / "history.csv"
    kept = [row for row in read_history(workdir) if row["step"] <= state.step]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HISTORY)
    writer.writerows(_cells(row) for row in kept)
    atomic_write(path, text.getvalue().encode())
    with open(path, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")

        def log(info: UpdateInfo) -> None:
            sums = _pending(state)
            sums["count"] += 1
            for name in HISTORY[1:]:
                sums[name] += getattr(info, name)
            if info.step % every == 0:
                means = {name: sums[name] / sums["count"] for name in HISTORY[1:]}
                rows.writerow(_cells({"step": info.step, **means}))
                file.flush()
                tracker(info.step, means)
                del state.notes["history"]

        yield log


def _cells(row: Mapping[str, float]) -> list[str]:
    return [str(int(row["step"])), *(f"{row[name]:.6g}" for name in HISTORY[1:])]


def _pending(state: TrainState) -> dict[str, float]:
    """The sums since the last row, which a checkpoint may hold; fresh ones if it holds something else."""
    names = ("count", *HISTORY[1:])
    sums = state.notes.get("history")
    if not isinstance(sums, dict) or any(type(sums.get(name)) not in (int, float) for name in names):
        sums = state.notes["history"] = dict.fromkeys(names, 0)
    return sums


def read_history(workdir: Path) -> list[dict[str, float]]:
    """The training log of a run, by step; lines that a kill cut short, or that are no rows, are left out."""
    path = workdir / "history.csv"
    rows: dict[float, dict[str, float]] = {}
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for text in file:
            line = dict(zip(HISTORY, text.split(","), strict=False))
            with contextlib.suppress(KeyError, ValueError):
                row = {name: float(line[name]) for name in HISTORY}
                if all(map(math.isfinite, row.values())) and row["step"].is_integer():
                    rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]
