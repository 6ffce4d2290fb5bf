"""A small valid call of the training objectives and of what they need, in the form of ``recipes``."""

from __future__ import annotations

from typing import Any

import torch

import sde_toolkit as sde
import solvers
from sde_toolkit import networks, sdes, training

CHAIN = sde.VPSDE().discretize(10)


def objectives() -> dict[str, tuple[Any, Any]]:
    """Name -> what is called, and what makes its arguments."""
    return {
        "Chain.cosine": (sde.Chain.cosine, lambda: {"num_steps": 5}),
        "Chain.strided": (CHAIN.strided, lambda: {"num_steps": 3}),
        "AdaptiveTimes": (training.AdaptiveTimes, dict),
        "ImportanceIndices": (training.ImportanceIndices, lambda: {"num_steps": 10}),
        "LearnedWeight": (training.LearnedWeight, dict),
        "SelfConditioned": (networks.SelfConditioned, lambda: {"network": sde.MLP((4,), width=4, depth=1)}),
        "Doubled": (networks.Doubled, lambda: {"network": sde.MLP((4,), width=4, depth=1)}),
        "HybridLoss": (training.HybridLoss, lambda: {"chain": CHAIN}),
        "Simulated": (
            training.Simulated,
            lambda: {"drift": lambda x, t: -x, "diffusion": lambda t: 1 + 0 * t},
        ),
        "SlicedScoreLoss": (training.SlicedScoreLoss, lambda: {"states": lambda x0, t, generator: x0}),
        "Spread": (
            solvers.Spread,
            lambda: {"drift": lambda t, y: (y, y), "coefficients": lambda t, s: (t, t, t, t)},
        ),
        "SpreadStep": (solvers.SpreadStep, dict),
        "VariationalTerms": (sdes.VariationalTerms, lambda: {"chain": CHAIN}),
        "VariationalTerms.decoder_std": (
            sdes.VariationalTerms(CHAIN).decoder_std,
            lambda: {"v": torch.zeros(2, 2)},
        ),
    }
