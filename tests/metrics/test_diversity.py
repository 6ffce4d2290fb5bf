"""Diversity against closed forms."""

import math

import pytest
import torch

from sde_toolkit.metrics import RelativeDiversity, VendiScore, bootstrap


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_relative_diversity_is_the_ratio_of_mean_distances():
    x, y = normal(30, 2, 2), normal(25, 2, 2, seed=1)
    spread = torch.nn.functional.pdist(x.flatten(1)).mean() / torch.nn.functional.pdist(y.flatten(1)).mean()
    assert RelativeDiversity()(x, y) == pytest.approx(float(spread), rel=1e-12)
    assert RelativeDiversity()(1.7 * y + 3, y) == pytest.approx(1.7, rel=1e-9)
    with pytest.raises(ValueError, match="y must hold distinct points"):
        RelativeDiversity()(x, torch.ones(25, 2, 2))


def test_vendi_counts_groups_of_copies():
    """K groups of copies with weights p and no likeness between them: exp of the entropy of p."""
    counts = [8, 4, 4]
    x = torch.repeat_interleave(100 * torch.eye(3, dtype=torch.float64), torch.tensor(counts), dim=0)
    p = torch.tensor(counts, dtype=torch.float64) / 16
    expected = math.exp(-float((p * p.log()).sum()))
    assert VendiScore()(x) == pytest.approx(expected, rel=1e-9)
    assert VendiScore("cosine")(x) == pytest.approx(expected, rel=1e-9)
    assert VendiScore()(100 * torch.eye(12)) == pytest.approx(12, rel=1e-9)
    assert VendiScore()(torch.ones(12, 2)) == pytest.approx(1, rel=1e-9)


def test_vendi_of_two_points_is_the_closed_form():
    """K / 2 has the eigenvalues (1 +- k) / 2."""
    x, h = torch.tensor([[0.0], [1.3]], dtype=torch.float64), 0.9
    k = math.exp(-(1.3**2) / (2 * h**2))
    expected = math.exp(-sum(v * math.log(v) for v in ((1 + k) / 2, (1 - k) / 2)))
    assert VendiScore(bandwidth=h)(x) == pytest.approx(expected, rel=1e-9)


def test_vendi_by_the_covariance_of_directions():
    """For the cosine kernel the eigenvalues are those of the second moment of the directions, F x F."""
    x = normal(60, 4)
    u = x / x.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(u.T @ u / 60)
    expected = math.exp(-float((values * values.log()).sum()))
    assert VendiScore("cosine")(x) == pytest.approx(expected, rel=1e-9)
    assert VendiScore("cosine")(x.flip(0)) == pytest.approx(expected, rel=1e-9)


def test_subsets_have_the_score_of_the_subset():
    x, keep = normal(30, 2), torch.rand(4, 30, generator=torch.Generator().manual_seed(0)) < 0.6
    expected = [VendiScore()(x[one]) for one in keep]
    assert VendiScore().on_subsets(x, keep).tolist() == pytest.approx(expected, rel=1e-9)
    found = bootstrap(VendiScore(), x)
    assert found.value == pytest.approx(VendiScore()(x), rel=1e-9)
    assert 0 < found.standard_error < 1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        VendiScore(bandwidth=0.0)
    with pytest.raises(ValueError, match="zero vectors for the cosine kernel"):
        VendiScore("cosine")(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="x must hold at most 1000 samples for the Vendi score"):
        VendiScore()(torch.zeros(1001, 1))
