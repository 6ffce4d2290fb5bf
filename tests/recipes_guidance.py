"""Small valid calls of what guides a sampler, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recipe_parts import CLASSES, MODEL, VP, X, the

from sde_toolkit import guidance, samplers
from sde_toolkit.networks import ClassifierMLP

EXACT = guidance.ExactClassifier(CLASSES)
NETWORK = ClassifierMLP((2,), 2)
GRID_LAW = guidance.product_on_grid([MODEL.data], [0.5], points=65)


def guides() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Name -> the call and its arguments."""
    given = samplers.ddim(2)
    return {
        "guidance.ClassifierFree": (guidance.ClassifierFree, the(model=CLASSES, scale=2.0)),
        "guidance.AutoGuided": (guidance.AutoGuided, the(model=MODEL, weak=MODEL, scale=2.0)),
        "guidance.guided": (guidance.guided, the(sampler=given, scale=2.0, rescale=0.5)),
        "guidance.Composed": (guidance.Composed, the(model=CLASSES, terms=[0, MODEL], weights=[1.0, -0.5])),
        "guidance.Composed.law": (guidance.Composed(MODEL, [MODEL]).law, dict),
        "guidance.composed": (guidance.composed, the(sampler=given, terms=[0, 1], weights=0.5)),
        "guidance.Composed.grid_law": (guidance.Composed(MODEL, [MODEL]).grid_law, the(points=65)),
        "guidance.product_on_grid": (
            guidance.product_on_grid, the(laws=[MODEL.data], powers=[0.5], points=65),
        ),
        "guidance.GridLaw.log_prob": (GRID_LAW.log_prob, the(x=X.double())),
        "guidance.GridLaw.sample": (GRID_LAW.sample, the(num_samples=3, seed=0)),
        "guidance.default_sampler": (guidance.default_sampler, the(model=MODEL, num_steps=5)),
        "guidance.product_law": (guidance.product_law, the(laws=[MODEL.data], powers=[0.5])),
        "guidance.ExactClassifier": (guidance.ExactClassifier, the(model=CLASSES)),
        "guidance.NetworkClassifier": (
            guidance.NetworkClassifier,
            the(network=NETWORK, sde=VP, event_shape=(2,), num_classes=2, data_std=1.0),
        ),
        "guidance.ClassifierGuided": (
            guidance.ClassifierGuided, the(model=CLASSES, classifier=EXACT, scale=2.0, conditional=False),
        ),
        "guidance.EnergyGuided": (
            guidance.EnergyGuided, the(model=MODEL, energy=torch.sum, scale=2.0, of="data"),
        ),
        "Sampler.sample from states": (given.sample, the(model=MODEL, num_samples=6, x_start=X, t_start=0.5)),
        "Sampler.prepare from states": (given.prepare, the(model=MODEL, t_start=0.5)),
    }  # fmt: skip
