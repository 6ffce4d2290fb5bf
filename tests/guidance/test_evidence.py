"""Evidence by particles beside the closed form, and log p(x0 | y) by Bayes' rule."""

from __future__ import annotations

import pytest
import torch

import sde_toolkit as sde
from sde_toolkit.guidance import (
    LinearObservation,
    Observed,
    TwistedSMC,
    conditional_log_prob,
    log_evidence,
)

NORMAL_QUANTILE = 4.42
"""Of the false-alarm rate 1e-5, two-sided."""


def seen() -> Observed:
    return Observed(LinearObservation([[1.0, 0.5]], 0.5), torch.tensor([0.3], dtype=torch.float64))


def test_gaussian_data_have_the_exact_conditional_density() -> None:
    law = sde.Gaussian([0.5, -1.0], [[1.0, 0.3], [0.3, 0.5]])
    model, x0 = sde.ExactModel(law, sde.VPSDE()), law.sample(5, 0)
    posterior = model.posterior(seen())
    evidence = log_evidence(model, seen(), TwistedSMC(4, particles=4), groups=3)
    assert abs(evidence.value - posterior.log_evidence) < 1e-8
    assert evidence.standard_error < 1e-8
    found = conditional_log_prob(law.log_prob(x0), x0, seen(), evidence, 0.3)
    torch.testing.assert_close(found.value, posterior.data.log_prob(x0), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.standard_error, torch.full((5,), 0.3, dtype=torch.float64))


def test_mixtures_have_the_evidence_within_its_error_bar() -> None:
    law = sde.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])
    model = sde.ExactModel(law, sde.VPSDE())
    found = log_evidence(model, seen(), TwistedSMC(30, particles=64), groups=32)
    assert found.standard_error < 0.05
    exact = model.posterior(seen()).log_evidence
    assert abs(found.value - exact) < NORMAL_QUANTILE * found.standard_error + 0.02  # of 30 steps


def test_several_observations_are_refused() -> None:
    model = sde.ExactModel(sde.Gaussian([0.0, 0.0], 1.0), sde.VPSDE())
    with pytest.raises(ValueError, match="one by one"):
        log_evidence(model, Observed(seen().observation, torch.zeros(4, 1)))
    with pytest.raises(ValueError, match="log_prob must have shape"):
        conditional_log_prob(
            torch.zeros(2), torch.zeros(3, 2), seen(), log_evidence(model, seen(), TwistedSMC(2, particles=2))
        )
