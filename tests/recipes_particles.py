"""Small valid calls of what samples with particles, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recipe_parts import CLASSES, X, the

from sde_toolkit import guidance, metrics

SEEN = guidance.Observed(guidance.LinearObservation([[1.0, 0.5]], 0.5), [0.3])
"""Of mixtures in two dimensions."""

EVIDENCE = guidance.Evidence(-1.0, 0.1, torch.tensor([-1.1, -0.9]))


def particles() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Name -> the call and its arguments."""
    smc = guidance.TwistedSMC(3, particles=2)
    return {
        "guidance.TwistedSMC": (guidance.TwistedSMC, the(num_steps=3, particles=2)),
        "guidance.SplitGibbs": (
            guidance.SplitGibbs, the(num_iterations=2, rho=0.3, rho_start=1.0, annealed=0.5),
        ),
        "SplitGibbs.sample": (
            guidance.SplitGibbs(2).sample, the(model=CLASSES, num_samples=4, observation=SEEN),
        ),
        "guidance.log_evidence": (
            guidance.log_evidence, the(model=CLASSES, observation=SEEN, smc=smc, groups=2),
        ),
        "guidance.conditional_log_prob": (
            guidance.conditional_log_prob,
            the(log_prob=torch.zeros(6), x0=X, observation=SEEN, evidence=EVIDENCE),
        ),
        "metrics.truth_ranks": (metrics.truth_ranks, the(truths=X, draws=X[None])),
        "metrics.tarp_ranks": (metrics.tarp_ranks, the(truths=X, draws=X[None])),
        "metrics.rank_test": (metrics.rank_test, the(ranks=torch.arange(40) % 3, draws=2)),
        "TwistedSMC.sample_given": (
            smc.sample_given,
            the(
                model=CLASSES, observation=SEEN.observation, y=torch.ones(2, 1), condition=None,
                parts=[range(2), range(8, 10)], seed=0, batch_size=4,
            ),
        ),
        "TwistedSMC.sample": (smc.sample, the(model=CLASSES, num_samples=4, observation=SEEN)),
    }  # fmt: skip
