"""The exact Wasserstein distance beside brute force, sorting and POT."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from sde_toolkit.metrics import Wasserstein, bootstrap, difference, sliced_wasserstein


@pytest.fixture(scope="module")
def ot():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT looks for other array libraries, some of which warn
        import ot as found
    return found


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_the_best_of_all_permutations(order):
    x, y = normal(6, 3), normal(6, 3, seed=1) + 1
    cost = torch.cdist(x, y) ** order
    best = min(
        float(cost[range(6), list(permutation)].mean()) for permutation in itertools.permutations(range(6))
    )
    assert Wasserstein(order)(x, y) == pytest.approx(best ** (1 / order), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_that_of_pot(ot, order):
    x, y = normal(60, 2), normal(60, 2, seed=1) + 0.5
    weights = np.full(60, 1 / 60)
    cost = ot.dist(x.numpy(), y.numpy(), metric="euclidean") ** order
    expected = float(ot.emd2(weights, weights, cost)) ** (1 / order)
    assert Wasserstein(order)(x, y) == pytest.approx(expected, rel=1e-9)


def test_in_one_dimension_it_is_sorting():
    x, y = normal(50, 1), 2 * normal(50, 1, seed=1)
    assert Wasserstein(1)(x, y) == pytest.approx(sliced_wasserstein(x, y, 2), rel=1e-12)
    assert Wasserstein(2)(x, y) == pytest.approx(sliced_wasserstein(x, y, 2, order=2), rel=1e-12)


def test_a_shift_is_its_length_and_order_does_not_matter():
    x, shift = normal(40, 2, 2), normal(2, 2, seed=1)
    for order in (1, 2):
        assert Wasserstein(order)(x, (x + shift).flip(0)) == pytest.approx(float(shift.norm()), rel=1e-12)


def test_subsets_are_solved_anew():
    x, y = normal(40, 2), normal(40, 2, seed=1) + 1
    keep = torch.ones(3, 40, dtype=torch.bool)
    keep[1, 20:] = keep[2, :20] = False
    found = Wasserstein(2).on_subsets(x, y, keep, keep.flip(1))
    truth = [Wasserstein(2)(x[a], y[b]) for a, b in zip(keep, keep.flip(1), strict=True)]
    assert found.tolist() == pytest.approx(truth, rel=1e-12)
    assert bootstrap(Wasserstein(2), x, y).value == pytest.approx(truth[0], rel=1e-12)


def test_a_kink_has_an_honest_interval():
    """Two points, 0 and 1: W_1 = |p - q|, and for equal laws an interval by the derivative, +-1, was too wide
    for the value, and one of the difference of two such distances, signs that agree or not, too narrow."""
    held = held_differences = 0
    for seed in range(60):
        x, other, y = (normal(60, 1, seed=3 * seed + k).gt(0).double() for k in range(3))
        one, two = (bootstrap(Wasserstein(), s, y, num_resamples=40) for s in (x, other))
        low, high = one.interval()
        held += low <= math.sqrt(2 * 0.25 / 60) * math.sqrt(2 / math.pi) <= high
        low, high = difference(one, two).interval()
        held_differences += low <= 0 <= high
    assert held >= 47  # less by chance once in 100,000 for 95%
    assert held_differences >= 47


def test_what_it_refuses():
    with pytest.raises(
        ValueError, match="y must hold as many samples as x for the Wasserstein distance, 5, got 6"
    ):
        Wasserstein()(normal(5, 2), normal(6, 2))
    with pytest.raises(ValueError, match="x must hold at most 3000 samples for the Wasserstein distance"):
        Wasserstein()(torch.zeros(3001, 1), torch.zeros(3001, 1))
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        Wasserstein(3)
