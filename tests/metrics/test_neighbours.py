"""Precision, recall, density and coverage beside loops over scikit-learn's neighbours."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.metrics import NeighbourMetric, bootstrap, difference
from sde_toolkit.metrics.neighbours import _radii

KINDS = ["precision", "recall", "density", "coverage"]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(kind, x, y, k):
    from sklearn.neighbors import NearestNeighbors

    def radius(points):
        found = NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0]
        return found[:, -1]

    x, y = x.flatten(1).numpy(), y.flatten(1).numpy()
    if kind == "recall":
        x, y = y, x
    inside = np.array([[np.linalg.norm(a - b) <= r for b, r in zip(y, radius(y), strict=True)] for a in x])
    if kind == "density":
        return inside.sum() / (k * len(x))
    return inside.any(0).mean() if kind == "coverage" else inside.any(1).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5])
def test_values_are_those_of_the_definitions(kind, k):
    x, y = 1.3 * normal(40, 2, 2) + 0.3, normal(35, 2, 2, seed=1)
    expected = by_loops(kind, x, y, k)
    assert 0.1 < expected < 1.2
    assert NeighbourMetric(kind, k)(x, y) == pytest.approx(expected, rel=1e-12)
    assert NeighbourMetric(kind, k)(x.flip(0), y.flip(0)) == pytest.approx(expected, rel=1e-12)
    assert bootstrap(NeighbourMetric(kind, k), x, y).value == pytest.approx(expected, rel=1e-12)


def test_sets_far_apart_and_equal_laws():
    x, y = normal(400, 2), normal(400, 2, seed=1)
    for kind in KINDS:
        assert NeighbourMetric(kind)(x + 100, y) == 0
    # one ball holds k of m points of its own law: density 1; it misses all n of the others with 2^-k
    assert NeighbourMetric("density")(x, y) == pytest.approx(1, abs=0.15)
    assert NeighbourMetric("coverage")(x, y) == pytest.approx(1 - 2**-5, abs=0.04)


def test_coverage_of_equal_laws_is_naeems_closed_form():
    """1 - (m - 1) .. (m - k) / ((n + m - 1) .. (n + m - k)), their lemma 3, for any law."""
    n, m, k, expected = 12, 10, 3, 1.0
    for i in range(1, k + 1):
        expected *= (m - i) / (n + m - i)
    found = [
        NeighbourMetric("coverage", k)(normal(n, 2, seed=2 * s), normal(m, 2, seed=2 * s + 1))
        for s in range(800)
    ]
    error = np.std(found) / 800**0.5
    assert abs(np.mean(found) - (1 - expected)) < 4.4 * error


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(8, 30), st.integers(0, 10**6))
def test_radii_of_subsets_are_those_of_the_subset(k, m, seed):
    y = normal(m, 2, seed=seed)
    keep = torch.rand(5, m, generator=torch.Generator().manual_seed(seed)) < 0.7
    keep[:, : k + 1] = True
    found = _radii(y, keep, k)
    for row, one in enumerate(keep):
        within = torch.cdist(y[one], y[one], compute_mode="donot_use_mm_for_euclid_dist")
        expected = within.fill_diagonal_(torch.inf).kthvalue(k).values
        torch.testing.assert_close(found[row, one], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_subsets_have_the_value_of_the_subset(kind):
    x, y = normal(60, 2), normal(50, 2, seed=1)
    keep_x, keep_y = (normal(3, n, seed=n) > 0 for n in (60, 50))
    found = NeighbourMetric(kind, 3).on_subsets(x, y, keep_x, keep_y)
    for value, a, b in zip(found, keep_x, keep_y, strict=True):
        assert float(value) == pytest.approx(by_loops(kind, x[a], y[b], 3), rel=1e-12)


@pytest.mark.slow
def test_error_bars_match_the_spread():
    """Of values, and of differences of nearly equal samplers, which were 1.5 times too wide and more."""
    for kind in KINDS:
        x, y = 1.2 * normal(80, 100, 3) + 0.8, normal(80, 100, 3, seed=1)
        found, closer = (
            [bootstrap(NeighbourMetric(kind), a, b) for a, b in zip(s, y, strict=True)] for s in (x, 0.95 * x)
        )
        moved = [difference(a, b) for a, b in zip(found, closer, strict=True)]
        for estimates, most in ((found, 1.7), (moved, 1.4)):
            errors = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
            assert 0.75 < errors / np.std([e.value for e in estimates]) < most, kind


def test_shares_near_one_have_wilsons_interval():
    x, y = normal(100, 1), normal(100, 1, seed=1)
    inside = bootstrap(NeighbourMetric("precision"), 0.01 * x, y)
    low, high = inside.interval()
    assert (inside.value, high) == (1, 1)
    assert inside.standard_error == 0.01
    t = scipy.stats.t.ppf(0.975, 25)
    assert low == pytest.approx(100 / (100 + t**2))  # Wilson's, near the rule of three; it was 1
    same = difference(inside, inside)
    assert (same.value, same.standard_error) == (0, 0.01)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="num_neighbours must be below the number of points, 5, got 5"):
        NeighbourMetric("precision")(normal(5, 2), normal(5, 2))
    with pytest.raises(ValueError, match="num_neighbours must be an integer >= 1"):
        NeighbourMetric("precision", 0)
    with pytest.raises(ValueError, match="measure must be one of precision, recall"):
        NeighbourMetric("nothing")
