"""Small valid calls of inverse problems ready to use: the form is that of ``recipes``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from recipe_parts import MODEL, X

from sde_toolkit import guidance, metrics, samplers
from sde_toolkit.data import Scaling

MASK = torch.tensor([True, False])
SEEN = guidance.LinearObservation(MASK, 0.1)
ROWS = torch.where(MASK, X, math.nan)
DRAWS = torch.stack([X, X + 1, X - 1])


def tasks() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Calls, and the makers of their arguments, by name."""
    quick = {"num_draws": 2, "sampler": samplers.ddim(2)}
    return {
        "guidance.restore": (
            guidance.restore, lambda: {"model": MODEL, "observation": SEEN, "y": ROWS, **quick},
        ),
        "guidance.inpaint": (guidance.inpaint, lambda: {"model": MODEL, "images": X, "mask": MASK, **quick}),
        "guidance.impute": (guidance.impute, lambda: {"model": MODEL, "rows": ROWS, **quick}),
        "guidance.calibrate": (
            guidance.calibrate,
            lambda: {"model": MODEL, "observation": SEEN, "num_pairs": 40, "level": 0.3, **quick},
        ),
        "guidance.in_model_scale": (
            guidance.in_model_scale, lambda: {"observation": SEEN, "y": ROWS, "scaling": Scaling.identity()},
        ),
        "metrics.interval": (metrics.interval, lambda: {"draws": DRAWS}),
        "metrics.coverage": (metrics.coverage, lambda: {"draws": DRAWS, "truth": X}),
        "metrics.psnr": (metrics.psnr, lambda: {"x": X, "truth": X + 1, "peak": 1.0}),
        "metrics.mean_psnr": (metrics.mean_psnr, lambda: {"x": X, "truth": X + 1, "peak": 1.0}),
    }  # fmt: skip
