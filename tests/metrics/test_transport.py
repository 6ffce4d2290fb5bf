"""The exact Wasserstein distance beside brute force, sorting and POT."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from sde_toolkit.metrics import Wasserstein, bootstrap, sliced_wasserstein
from sde_toolkit.metrics.transport import potentials


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


@pytest.mark.parametrize("order", [1, 2])
def test_potentials_are_feasible_and_have_no_gap(order):
    x, y = normal(80, 3), normal(80, 3, seed=1)
    cost = (torch.cdist(x, y) ** order).numpy()
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost)
    f, g = potentials(cost, columns)
    assert (cost - f[:, None] - g).min() > -1e-9
    assert f.mean() + g.mean() == pytest.approx(cost[rows, columns].mean(), rel=1e-9)


def test_subsets_are_bounds_from_below_close_to_the_truth():
    x, y = normal(100, 2), normal(100, 2, seed=1) + 1
    keep = torch.ones(11, 100, dtype=torch.bool)
    for group in range(10):
        keep[group + 1, 10 * group : 10 * group + 10] = False
    found = Wasserstein(2).on_subsets(x, y, keep, keep)
    truth = torch.tensor([Wasserstein(2)(x[one], y[one]) for one in keep], dtype=torch.float64)
    assert float(found[0]) == pytest.approx(float(truth[0]), rel=1e-12)
    assert bool((found <= truth + 1e-9).all())
    assert float(torch.corrcoef(torch.stack([found[1:], truth[1:]]))[0, 1]) > 0.9
    assert bootstrap(Wasserstein(2), x, y).value == pytest.approx(float(truth[0]), rel=1e-12)


def test_what_it_refuses():
    with pytest.raises(
        ValueError, match="y must hold as many samples as x for the Wasserstein distance, 5, got 6"
    ):
        Wasserstein()(normal(5, 2), normal(6, 2))
    with pytest.raises(ValueError, match="x must hold at most 3000 samples for the Wasserstein distance"):
        Wasserstein()(torch.zeros(3001, 1), torch.zeros(3001, 1))
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        Wasserstein(3)
