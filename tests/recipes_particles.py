"""Small valid calls of what samples with particles, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recipe_parts import CLASSES, the

from sde_toolkit import guidance

SEEN = guidance.Observed(guidance.LinearObservation([[1.0, 0.5]], 0.5), [0.3])
"""Of mixtures in two dimensions."""


def particles() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Name -> the call and its arguments."""
    smc = guidance.TwistedSMC(3, particles=2)
    return {
        "guidance.TwistedSMC": (guidance.TwistedSMC, the(num_steps=3, particles=2)),
        "TwistedSMC.sample": (smc.sample, the(model=CLASSES, num_samples=4, observation=SEEN)),
    }
