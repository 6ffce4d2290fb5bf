"""Small valid calls of what guides a sampler, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recipe_parts import CLASSES, MODEL, X, the

from sde_toolkit import guidance, samplers


def guides() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Name -> the call and its arguments."""
    given = samplers.ddim(2)
    return {
        "guidance.ClassifierFree": (guidance.ClassifierFree, the(model=CLASSES, scale=2.0)),
        "guidance.AutoGuided": (guidance.AutoGuided, the(model=MODEL, weak=MODEL, scale=2.0)),
        "guidance.guided": (guidance.guided, the(sampler=given, scale=2.0, rescale=0.5)),
        "Sampler.sample from states": (given.sample, the(model=MODEL, num_samples=6, x_start=X, t_start=0.5)),
        "Sampler.prepare from states": (given.prepare, the(model=MODEL, t_start=0.5)),
    }
