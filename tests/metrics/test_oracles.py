"""The distances beside scipy, POT and double loops written from the definitions."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch

from sde_toolkit.metrics.distances import (
    MMD,
    EnergyDistance,
    SlicedWasserstein,
    energy_distance,
    gaussian_w2,
    sliced_wasserstein,
)
from sde_toolkit.utils.random import Stream, step_generator


@pytest.fixture(scope="module")
def ot():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT looks for other array libraries, some of which warn
        import ot as found
    return found


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def directions(dim, count, seed):
    """The directions of ``SlicedWasserstein(count, seed)``, with shape (dim, count)."""
    theta = torch.randn(
        dim, count, dtype=torch.float64, generator=step_generator(seed, 0, Stream.PROJECTIONS)
    )
    return theta / theta.norm(dim=0)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25)])
def test_sliced_wasserstein_is_the_mean_of_scipys_distances_of_the_projections(n, m):
    x, y = normal(n, 3), 1.5 * normal(m, 3, seed=1) + 0.5
    each = [
        scipy.stats.wasserstein_distance((x @ theta).numpy(), (y @ theta).numpy())
        for theta in directions(3, 20, seed=4).T
    ]
    assert sliced_wasserstein(x, y, 20, seed=4) == pytest.approx(np.mean(each), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25)])
def test_sliced_wasserstein_is_that_of_pot(ot, order, n, m):
    x, y = normal(n, 3), 1.5 * normal(m, 3, seed=1) + 0.5
    theta = directions(3, 20, seed=4).numpy()
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=theta, p=order)
    assert SlicedWasserstein(20, 4, order)(x, y) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (9, 15)])
def test_energy_distance_in_one_dimension_is_the_square_of_scipys(n, m):
    """scipy keeps the pairs of a point with itself, and takes the root."""
    x, y = normal(n), 1.5 * normal(m, seed=1) + 0.5

    def within(a):
        return float((a[:, None] - a).abs().sum())

    plugged = scipy.stats.energy_distance(x.numpy(), y.numpy()) ** 2
    left_out = within(x) * (1 / (n * n) - 1 / (n * (n - 1))) + within(y) * (1 / (m * m) - 1 / (m * (m - 1)))
    assert energy_distance(x, y) == pytest.approx(plugged + left_out, rel=1e-10)


def test_energy_distance_is_unbiased_where_scipys_is_not():
    x, y = normal(400, 10), normal(400, 10, seed=1)
    ours = np.array([energy_distance(a, b) for a, b in zip(x, y, strict=True)])
    scipys = [scipy.stats.energy_distance(a, b) ** 2 for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    error = ours.std(ddof=1) / math.sqrt(len(ours))
    assert abs(ours.mean()) < scipy.stats.norm.isf(1e-5 / 2) * error
    # E|x - x'| = 2 / sqrt(pi) for standard normals: twice that over n is the bias
    assert np.mean(scipys) == pytest.approx(2 * 2 / math.sqrt(math.pi) / 10, rel=0.1)


@pytest.mark.parametrize("dim", [1, 4])
def test_w2_of_gaussians_is_that_of_pot(ot, dim):
    roots = [normal(dim, dim + 1, seed=seed) for seed in (0, 1)]
    covariances = [root @ root.T for root in roots]
    means = normal(2, dim, seed=2)
    expected = ot.gaussian.bures_wasserstein_distance(
        means[0].numpy(), means[1].numpy(), covariances[0].numpy(), covariances[1].numpy()
    )
    assert gaussian_w2(means[0], covariances[0], means[1], covariances[1]) == pytest.approx(
        float(np.squeeze(expected)), rel=1e-8
    )


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 9)])
def test_mmd_is_the_double_loop(n, m):
    x, y, bandwidths = normal(n, 2), normal(m, 2, seed=1) + 0.5, (0.7, 2.0)

    def kernel(a, b):
        square = sum(float(u - v) ** 2 for u, v in zip(a, b, strict=True))
        return sum(math.exp(-square / (2 * h**2)) for h in bandwidths) / len(bandwidths)

    total = 0.0
    for i in range(n):
        for j in range(n):
            total += kernel(x[i], x[j]) / (n * (n - 1)) if i != j else 0.0
    for i in range(m):
        for j in range(m):
            total += kernel(y[i], y[j]) / (m * (m - 1)) if i != j else 0.0
    for i in range(n):
        for j in range(m):
            total -= 2 * kernel(x[i], y[j]) / (n * m)
    assert MMD(bandwidths)(x, y) == pytest.approx(total, rel=1e-10)


def test_energy_distance_of_points_in_space_is_the_mean_over_directions():
    """|x| is proportional to the mean of |theta.x|, so the distance is that of the projections, averaged."""
    x, y, count = normal(30, 2), normal(25, 2, seed=1) + 1, 4000
    theta = directions(2, count, seed=0)
    each = [energy_distance(x @ u, y @ u) for u in theta.T[:: count // 400]]
    scale = math.pi / 2  # 1 / E|theta_1| in the plane
    spread = scale * np.std(each, ddof=1) / math.sqrt(len(each))
    found = EnergyDistance()(x, y)
    assert abs(found - scale * np.mean(each)) < scipy.stats.norm.isf(1e-5 / 2) * spread
