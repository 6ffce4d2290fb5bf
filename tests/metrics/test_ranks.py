"""Ranks of truths among draws: uniform for exact posteriors, far from it for others."""

from __future__ import annotations

import pytest
import torch

import sde_toolkit as sde
from sde_toolkit import guidance, metrics

ALPHA = 1e-5
"""Probability that exact draws are rejected."""


def problem(count: int, draws: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Truths (N, 2), exact posterior means (N, 2), and exact draws (K, N, 2)."""
    law = sde.Gaussian([0.5, -1.0], [[1.0, 0.3], [0.3, 0.5]])
    observation = guidance.LinearObservation([[1.0, 0.5]], 0.5)
    truths = law.sample(count, 0)
    y = observation.draw(truths, 1)
    zero = torch.zeros(1, dtype=torch.float64)
    model = sde.ExactModel(law, sde.VPSDE())
    at = [model.posterior(guidance.Observed(observation, v)).data.mean for v in (zero, zero + 1)]
    spread = model.posterior(guidance.Observed(observation, zero)).data
    means = at[0] + (at[1] - at[0]) * y
    noise = spread.sample(count * draws, 2) - at[0]
    return truths, means, means + noise.reshape(draws, count, 2)


def test_exact_posteriors_pass_and_others_are_rejected() -> None:
    truths, means, draws = problem(2000, 19)
    others = {
        "narrow": means + 0.7 * (draws - means),
        "wide": means + 1.4 * (draws - means),
        "moved": draws + 0.2,
    }
    for ranks in (metrics.truth_ranks, metrics.tarp_ranks):
        assert metrics.rank_test(ranks(truths, draws), 19).p_value > ALPHA
        for name, wrong in others.items():
            if (name, ranks) != ("moved", metrics.tarp_ranks):  # distances hardly see a small shift
                assert metrics.rank_test(ranks(truths, wrong), 19).p_value < ALPHA, (name, ranks)


def test_p_values_are_uniform_for_uniform_ranks() -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(0, 12, (500, 400), generator=generator)
    p = torch.tensor([metrics.rank_test(ranks[:, j], 11).p_value for j in range(400)])
    for level in (0.1, 0.5, 0.9):
        error = abs(float((p < level).double().mean()) - level)
        assert error < 4.42 * (level * (1 - level) / 400) ** 0.5 + 0.01
    found = metrics.rank_test(ranks, 11)
    assert found.p_value > ALPHA
    assert found.counts.shape == (12, 400)
    assert float(found.expected.sum()) == pytest.approx(500)


def test_ranks_by_hand() -> None:
    truths = torch.tensor([[0.0], [1.0]])
    draws = torch.tensor([[[-1.0], [0.5]], [[2.0], [3.0]]])
    assert metrics.truth_ranks(truths, draws).tolist() == [[1], [1]]
    assert metrics.tarp_ranks(truths, draws, torch.tensor([[1.5], [1.0]])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="draws must have shape"):
        metrics.truth_ranks(truths, draws[0])
    with pytest.raises(ValueError, match="at least 40"):
        metrics.rank_test(torch.zeros(3, dtype=torch.int64), 2)
