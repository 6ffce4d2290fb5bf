"""Recipes of observations, of the methods that guide by them, and of posteriors in closed form."""

from __future__ import annotations

from typing import Any

import torch
from recipe_parts import CLASSES, MODEL, the

from sde_toolkit import guidance

SEEN = guidance.LinearObservation([[1.0, 0.5]], 0.5)
Y = torch.tensor([0.3], dtype=torch.float64)


def posteriors() -> dict[str, tuple[Any, Any]]:
    """Name -> call and its arguments."""
    methods = {
        "DPS": {"zeta": 0.5, "num_steps": 10}, "MMPS": {"iterations": 2}, "TMPD": {"covariance": "full"},
        "PiGDM": {"covariance": "moments"}, "ScoreALD": {"gamma": 1.0}, "DiffPIR": {"weight": 1.0},
        "RePaint": {"resamplings": 2}, "DDRM": {"eta": 0.5},
    }  # fmt: skip
    made = {
        f"guidance.{name}": (getattr(guidance, name), the(**options)) for name, options in methods.items()
    }
    return made | {
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        ""
        "guidance.LinearObservation": (
            guidance.LinearObservation, the(A=[[1.0, 0.5]], std=0.5, event_shape=(2,)),
        ),
        "guidance.NonlinearObservation": (
            guidance.NonlinearObservation, the(function=torch.sin, std=0.5, event_shape=(2,)),
        ),
        "guidance.Observed": (guidance.Observed, the(observation=SEEN, y=Y, method=guidance.MMPS())),
        "guidance.PosteriorModel": (
            guidance.PosteriorModel, the(model=MODEL, observation=SEEN, method=guidance.MMPS(), y=Y),
        ),
        "guidance.default_method": (guidance.default_method, the(model=MODEL, observation=SEEN)),
        "guidance.blur": (guidance.blur, the(event_shape=(4,), kernel=[0.2, 0.6, 0.2])),
        "guidance.gaussian_blur": (guidance.gaussian_blur, the(event_shape=(4,), width=0.5)),
        "guidance.downsampling": (guidance.downsampling, the(event_shape=(4,), factor=2)),
        "guidance.colour_mixing": (guidance.colour_mixing, the(event_shape=(2, 2, 2), weights=[0.5, 0.5])),
        "guidance.fourier_mask": (guidance.fourier_mask, the(event_shape=(4,), mask=[True, False] * 2)),
        "guidance.projection": (guidance.projection, the(event_shape=(4,), count=2, seed=1)),
        "guidance.entries": (guidance.entries, the(event_shape=(4,))),
        "ExactModel.posterior": (CLASSES.posterior, the(observed=guidance.Observed(SEEN, Y))),
        "LinearObservation.draw": (SEEN.draw, the(x0=torch.zeros(2, 2).double(), seed=1, first_sample=0)),
        "LinearObservation.rows": (SEEN.rows, the(y=Y, count=2, like=torch.zeros(1).double())),
    }  # fmt: skip
