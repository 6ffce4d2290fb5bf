"""Held-out losses of a run, as the report draws them: by step, and by noise level against the known minimum.

The error of the noise between two noise levels has the minimum E[Var[z | x_t]] / D, at the exact score.
Where the law of the data is known ("ring"), it is measured on the same examples, times and noises as the
run's own error, so that the difference of the two is not that of their draws.

Not promised: that a network's error is above it on few examples.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sde_toolkit.lab import EXACT_PROBLEMS, exact_problem
from sde_toolkit.models import ExactModel, ScoreModel, Wrapper
from sde_toolkit.runs.store import Run
from sde_toolkit.training import loss_by_level

_LEVEL = "log_snr_"
_ALIKE = 0.02
"""Distance of two noise levels that are one, which the file has with two digits."""


@dataclass(frozen=True)
class HeldOutCurves:
    """What ``held_out.csv`` holds.

    Attributes:
        losses: (step, loss).
        levels: log-SNRs, rising; empty where no losses by level were measured.
        first, last: steps, and the errors of the noise at these levels.
    """

    losses: list[tuple[int, float]]
    levels: list[float]
    first: tuple[int, list[float]]
    last: tuple[int, list[float]]


def read_held_out(workdir: Path) -> HeldOutCurves | None:
    """The held-out losses of a run; None where there are none."""
    path = workdir / "held_out.csv"
    if not path.is_file():
        return None
    rows = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({name: float(value) for name, value in row.items() if name and value})
            except (TypeError, ValueError):  # a row that was cut short
                continue
    rows = [row for row in rows if {"step", "loss"} <= set(row)]
    if not rows:
        return None
    names = sorted((n for n in rows[-1] if n.startswith(_LEVEL)), key=lambda n: float(n.removeprefix(_LEVEL)))
    whole = [row for row in rows if set(names) <= set(row)]
    ends = [(int(row["step"]), [row[name] for name in names]) for row in (whole[0], whole[-1])]
    losses = [(int(row["step"]), row["loss"]) for row in rows]
    return HeldOutCurves(losses, [float(name.removeprefix(_LEVEL)) for name in names], ends[0], ends[1])


class _OfAll(Wrapper):
    """The model of all classes together."""

    num_classes = 0

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction of the model inside."""
        return self.model.raw(x_t, t)


def least_by_level(run: Run, levels: list[float]) -> list[float] | None:
    """The error of the exact model at these levels, on the run's held-out examples and draws; None where the
    law of the data is not known, or the levels are not those of the configuration."""
    config, sde = run.config, run.model.sde
    if config.data.name not in EXACT_PROBLEMS or not levels:
        return None
    law = exact_problem(config.data.name, sde).mixture
    if law is None:
        return None
    exact: ScoreModel = ExactModel(law, sde, run.model.dtype)
    exact = exact if run.model.num_classes else _OfAll(exact)
    t_min = max(config.loss.get("t_min", 0.0) or 1e-5, sde.default_t_min or 0.0)
    found = loss_by_level(
        exact, run.dataset(), len(levels), t_min, num_examples=config.training.evaluate_examples
    )
    middles = [0.5 * (level.low + level.high) for level in found]
    apart = max(abs(a - b) for a, b in zip(levels, middles, strict=True))
    return [level.mean for level in found] if apart < _ALIKE else None
