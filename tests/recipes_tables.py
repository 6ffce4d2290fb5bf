"""Small valid calls of what tables with missing entries add: the form is that of ``recipes``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import sde_toolkit as sde
from sde_toolkit import data, likelihood, models, training

ROWS = torch.tensor([[0.5, math.nan], [-1.0, 0.3], [math.nan, 1.0], [0.2, 0.1]], dtype=torch.float64)
MORE_ROWS = torch.cat([ROWS, 0.7 * ROWS.flip(1), 0.4 - ROWS])
CIRCLE = data.Circles((0,), (360.0,))
SOLVER = sde.FlowSolver(rtol=1e-2, atol=1e-2)


def knowing_model() -> sde.NetworkModel:
    """A small network for vectors that is told which entries are known, in float64."""
    network = sde.MLP((2,), width=4, depth=1, num_frequencies=2, condition_shape=(2,)).double()
    return sde.NetworkModel(network, sde.VPSDE(), "residual", (2,))


def _quick(model: Any, x: Any) -> Any:
    return likelihood.values_only(model, x, solver=SOLVER)


def tables() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Calls, and the makers of their arguments, by name."""
    z = torch.zeros(4, 2, dtype=torch.float64)
    return {
        "training.IncompleteLoss": (training.IncompleteLoss, dict),
        "incomplete loss": (
            training.IncompleteLoss(draw_steps=2),
            lambda: {"model": knowing_model(), "x0": ROWS, "generator": torch.Generator()},
        ),
        "models.draw_missing": (
            models.draw_missing, lambda: {"model": knowing_model(), "x": ROWS, "z": z, "num_steps": 2},
        ),
        "models.missing_log_density": (
            models.missing_log_density,
            lambda: {"model": knowing_model(), "x": ROWS, "z": z, "num_steps": 2},
        ),
        "models.gaussian_moments": (models.gaussian_moments, lambda: {"x": ROWS}),
        "likelihood.observed_log_likelihood": (
            likelihood.observed_log_likelihood,
            lambda: {"model": knowing_model(), "x": ROWS, "log_likelihood": _quick},
        ),
        "data.Circles": (data.Circles, lambda: {"columns": (0,), "periods": (360.0,)}),
        "Circles.embed": (CIRCLE.embed, lambda: {"w": MORE_ROWS.nan_to_num(), "seed": 1}),
        "Circles.angles": (CIRCLE.angles, lambda: {"x": MORE_ROWS.nan_to_num(2.0)}),
        "Circles.log_det": (CIRCLE.log_det, lambda: {"x": MORE_ROWS.nan_to_num(2.0)}),
        "Scaling.whitening": (data.Scaling.whitening, lambda: {"w": MORE_ROWS.nan_to_num()}),
        "from_array with gaps": (data.from_array, lambda: {"x": MORE_ROWS, "missing": "mask"}),
    }  # fmt: skip
