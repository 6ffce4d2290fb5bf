import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.metrics.distances import (
    MMD,
    EnergyDistance,
    FrechetDistance,
    OnFeatures,
    SlicedWasserstein,
    energy_distance,
    frechet_distance,
    gaussian_w2,
    median_distance,
    mmd,
    sliced_wasserstein,
)
from sde_toolkit.metrics.errors import bootstrap, over_seeds

# False-alarm rate of every statistical test in this file.
ALPHA = 1e-5

FUNCTIONS = [sliced_wasserstein, energy_distance, mmd, frechet_distance]
DISTANCES = [
    SlicedWasserstein(16),
    SlicedWasserstein(16, order=2),
    EnergyDistance(),
    MMD(),
    FrechetDistance(),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(dim, seed):
    a = normal(dim, dim + 2, seed=seed)
    return a @ a.T / dim


def mean_within(kernel, x):
    return np.mean([kernel(a, b) for a, b in itertools.permutations(x, 2)])


def mean_between(kernel, x, y):
    return np.mean([kernel(a, b) for a, b in itertools.product(x, y)])


def length(a, b):
    return float((a - b).norm())


# Values: Wasserstein


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 30), (31, 60), (2, 7)])
def test_sliced_wasserstein_in_one_dimension_is_scipys(n, m):
    x, y = normal(n, 1), 2 * normal(m, 1, seed=1) + 1
    expected = scipy.stats.wasserstein_distance(x.flatten(), y.flatten())
    assert sliced_wasserstein(x, y, num_projections=3, seed=1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(24, 12), (12, 18)])
def test_order_two_in_one_dimension_is_that_of_repeated_points(n, m):
    x, y = normal(n, 1), normal(m, 1, seed=1) + 1
    common = math.lcm(n, m)
    a, b = (s.flatten().repeat_interleave(common // len(s)).sort().values for s in (x, y))
    expected = float((a - b).square().mean().sqrt())
    assert sliced_wasserstein(x, y, num_projections=2, order=2) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shifted_set_is_the_mean_projection_of_the_shift():
    # W_p(theta.x, theta.x + theta.d) = |theta.d|: in 2-D of mean 2 |d| / pi and mean square |d|^2 / 2.
    x, shift = normal(20, 2), torch.tensor([3.0, -4.0], dtype=torch.float64)
    z = scipy.stats.norm.isf(ALPHA / 2) / math.sqrt(4000)
    first = sliced_wasserstein(x, x + shift, num_projections=4000, seed=2)
    second = sliced_wasserstein(x, x + shift, num_projections=4000, seed=2, order=2)
    assert abs(first - 10 / math.pi) < z * 5 * math.sqrt(1 / 2 - 4 / math.pi**2)
    assert abs(second**2 - 25 / 2) < z * 25 * math.sqrt(3 / 8 - 1 / 4)


def test_projections_are_keyed_by_the_seed():
    x, y = normal(20, 3), normal(20, 3, seed=1)
    assert (
        sliced_wasserstein(x, y, seed=1)
        == sliced_wasserstein(x, y, seed=1)
        != sliced_wasserstein(x, y, seed=2)
    )


# Values: energy distance and MMD


@pytest.mark.parametrize(("n", "m"), [(9, 9), (6, 11)])
def test_energy_distance_and_mmd_are_the_unbiased_means_over_pairs(n, m):
    x, y = normal(n, 3), normal(m, 3, seed=1) + 0.5
    expected = 2 * mean_between(length, x, y) - mean_within(length, x) - mean_within(length, y)
    assert energy_distance(x, y) == pytest.approx(expected, abs=1e-12)

    def kernel(a, b):
        return (math.exp(-(length(a, b) ** 2) / 2) + math.exp(-(length(a, b) ** 2) / 18)) / 2

    expected = mean_within(kernel, x) + mean_within(kernel, y) - 2 * mean_between(kernel, x, y)
    assert mmd(x, y, bandwidths=[1.0, 3.0]) == pytest.approx(expected, abs=1e-12)


def test_median_bandwidth():
    x, y = normal(30, 2), normal(20, 2, seed=1) + 1
    pooled = torch.cat([x, y])
    expected = float(torch.tensor([length(a, b) for a, b in itertools.combinations(pooled, 2)]).median())
    assert median_distance(x, y) == pytest.approx(expected)
    assert mmd(x, y) == mmd(x, y, bandwidths=[median_distance(x, y)])
    many = median_distance(normal(3000, 2), normal(5000, 2, seed=1))
    assert many == pytest.approx(math.sqrt(2 * math.log(4)), rel=0.1)


def test_pairs_in_chunks_give_the_same_sums(monkeypatch):
    x, y = normal(40, 2), normal(30, 2, seed=1)
    whole = energy_distance(x, y), mmd(x, y)
    monkeypatch.setattr("sde_toolkit.metrics.distances.CHUNK", 100)
    assert (energy_distance(x, y), mmd(x, y)) == pytest.approx(whole, rel=1e-12)


def test_a_common_shift_changes_nothing():
    x, y = normal(40, 2), normal(30, 2, seed=1)
    for distance in DISTANCES:
        assert distance(x + 1e6, y + 1e6) == pytest.approx(distance(x, y), rel=1e-6, abs=1e-8)


MEAN, STD = 0.7, 1.6


def mean_length(mean, variance):
    """E|X| for X ~ N(mean, variance)."""
    std = math.sqrt(variance)
    return std * math.sqrt(2 / math.pi) * math.exp(-0.5 * (mean / std) ** 2) + mean * math.erf(
        mean / std / math.sqrt(2)
    )


def mean_kernel(mean, variance):
    """E exp(-X^2 / 2) for X ~ N(mean, variance)."""
    return math.exp(-0.5 * mean**2 / (1 + variance)) / math.sqrt(1 + variance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (
            EnergyDistance(),
            2 * mean_length(MEAN, 1 + STD**2) - mean_length(0, 2) - mean_length(0, 2 * STD**2),
        ),
        (MMD((1.0,)), mean_kernel(0, 2) + mean_kernel(0, 2 * STD**2) - 2 * mean_kernel(MEAN, 1 + STD**2)),
    ],
)
def test_unbiased_for_the_closed_form_between_two_gaussians(distance, expected):
    x, y = normal(2000, 20, 1), MEAN + STD * normal(2000, 15, 1, seed=1)
    values = np.array([distance(a, b) for a, b in zip(x, y, strict=True)])
    error = (values.mean() - expected) / (values.std(ddof=1) / math.sqrt(len(values)))
    assert abs(error) < scipy.stats.norm.isf(ALPHA / 2)


# Values: Gaussians and Frechet


def test_gaussian_w2_closed_forms():
    one = torch.ones(1)
    assert gaussian_w2(one * 3, one[None] * 4, -one, one[None] * 25) == pytest.approx(5)
    mean0, mean1 = normal(5), normal(5, seed=1)
    std0, std1 = (normal(5, seed=seed).abs() for seed in (2, 3))
    rotation = torch.linalg.qr(normal(5, 5)).Q
    cov0, cov1 = (rotation @ torch.diag(std**2) @ rotation.T for std in (std0, std1))
    expected = float(((mean0 - mean1).square() + (std0 - std1).square()).sum().sqrt())
    assert gaussian_w2(mean0, cov0, mean1, cov1) == pytest.approx(expected, rel=1e-12)


def test_gaussian_w2_without_common_eigenvectors():
    cov0, cov1, zero = covariance(6, 0), covariance(6, 1), torch.zeros(6)
    root = scipy.linalg.sqrtm(cov0.numpy())
    cross = scipy.linalg.sqrtm(root @ cov1.numpy() @ root)
    expected = math.sqrt(float(cov0.trace() + cov1.trace()) - 2 * np.trace(cross).real)
    assert gaussian_w2(zero, cov0, zero, cov1) == pytest.approx(expected, rel=1e-9)
    assert gaussian_w2(zero, cov1, zero, cov0) == pytest.approx(expected, rel=1e-9)


def test_gaussian_w2_keeps_its_digits_for_nearly_equal_and_for_singular_gaussians():
    cov, zero = covariance(6, 0), torch.zeros(6)
    assert gaussian_w2(zero, cov, zero, cov) < 1e-14
    step = 1e-9  # cov (1 + step)^2 is the law of (1 + step) X, at distance step |X|_2
    expected = step * math.sqrt(float(cov.trace()))
    assert gaussian_w2(zero, cov, zero, cov * (1 + step) ** 2) == pytest.approx(expected, rel=1e-5)
    a = normal(6, 2)
    assert gaussian_w2(zero, a @ a.T, zero, a @ a.T * 4) == pytest.approx(float(a.norm()), rel=1e-7)
    assert gaussian_w2(zero, a @ a.T, zero, torch.zeros(6, 6)) == pytest.approx(float(a.norm()), rel=1e-7)


def test_frechet_distance_is_the_squared_w2_of_the_fitted_gaussians():
    x, y = normal(50, 5), normal(40, 5, seed=1) @ normal(5, 5, seed=2) + 1
    moments = x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T)
    assert frechet_distance(x, y) == pytest.approx(gaussian_w2(*moments) ** 2, rel=1e-10)


def test_frechet_distance_of_sets_with_exact_moments():
    def exact(n, seed, mean, std):
        z = normal(n, 4, seed=seed)
        z = z - z.mean(0)
        return mean + z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T * std

    mean, std = normal(4, seed=5), torch.tensor([0.5, 1.0, 2.0, 3.0])
    expected = float(mean.square().sum() + (std - 1).square().sum())
    assert frechet_distance(exact(30, 0, 0.0, 1.0), exact(20, 1, mean, std)) == pytest.approx(
        expected, rel=1e-9
    )


def test_frechet_distance_with_fewer_samples_than_features():
    x = normal(5, 9)
    assert frechet_distance(x, x.clone()) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, 2 * x) == pytest.approx(
        float(x.mean(0).square().sum() + torch.cov(x.T).trace()), rel=1e-6
    )


def test_on_features():
    x, y = normal(30, 2, 2), normal(20, 2, 2, seed=1)

    def features(x):
        return torch.tanh(x.flatten(1)[:, :3]).float()

    expected = frechet_distance(features(x), features(y))
    assert OnFeatures(features, FrechetDistance())(x, y) == pytest.approx(expected, rel=1e-12)
    estimate = bootstrap(OnFeatures(features, FrechetDistance()), x, y)
    assert estimate.replicates == bootstrap(FrechetDistance(), features(x), features(y)).replicates


# All distances


@pytest.mark.parametrize("distance", DISTANCES)
def test_symmetry_shapes_dtypes_and_order_of_samples(distance):
    x, y = normal(30, 2, 3), normal(25, 2, 3, seed=1) + 0.3
    value = distance(x, y)
    assert isinstance(value, float)
    assert distance(y, x) == pytest.approx(value, rel=1e-9)
    assert distance(x.flatten(1), y.flatten(1)) == pytest.approx(value, rel=1e-12)
    assert distance(x.flip(0), y) == pytest.approx(value, rel=1e-9)
    assert distance(x.float(), y.float()) == pytest.approx(value, rel=1e-4)
    assert distance(x.numpy(), y.requires_grad_()) == pytest.approx(value, rel=1e-12)
    assert distance(x[:, 0, 0], y[:, 0, 0].detach()) == distance(x[:, :1, 0], y[:, :1, 0].detach())


@pytest.mark.parametrize("distance", DISTANCES)
def test_subsets_get_the_value_of_the_subset(distance):
    x, y = normal(30, 2), normal(25, 2, seed=1) + 0.3
    generator = torch.Generator().manual_seed(0)
    keep_x, keep_y = (torch.rand(3, n, generator=generator) < 0.6 for n in (30, 25))
    # The bandwidth is that of the whole sets by definition.
    alone = MMD((median_distance(x, y),)) if isinstance(distance, MMD) else distance
    expected = [alone(x[a], y[b]) for a, b in zip(keep_x, keep_y, strict=True)]
    assert distance.on_subsets(x, y, keep_x, keep_y).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            normal(1, 2),
            normal(5, 2),
            r"x must have shape \(B, \*\) with at least 2 samples, got shape \(1, 2\)",
        ),
        (normal(5, 2), normal(0, 2), "y must have shape .* with at least 2 samples"),
        (normal(5, 0), normal(5, 0), "x must have shape .* with at least 2 samples"),
        (torch.tensor(1.0), normal(5), "x must have shape .* with at least 2 samples"),
        (normal(5, 2), normal(5, 3), r"y must have the event shape of (features_)?x, \(2,\), got \(3,\)"),
        (
            normal(5, 2, 3),
            normal(5, 6),
            r"y must have the event shape of .*x, \(2, 3\), got \(6,\)",
        ),
    ],
)
def test_bad_shapes_are_refused(function, x, y, message):
    with pytest.raises(ValueError, match=message):
        function(x, y)


@settings(deadline=None)
@given(
    function=st.sampled_from(FUNCTIONS),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    which=st.integers(0, 1),
    place=st.tuples(st.integers(0, 3), st.integers(0, 1)),
)
def test_values_that_are_not_finite_are_refused(function, bad, which, place):
    sets = [normal(4, 2), normal(4, 2, seed=1)]
    sets[which][place] = bad
    with pytest.raises(ValueError, match=f"{'xy'[which]} must be finite, got 1 NaN or infinite values"):
        function(*sets)


@pytest.mark.parametrize("bandwidths", [[], [1.0, 0.0], [-1.0], [math.nan], [math.inf]])
def test_bad_bandwidths_are_refused(bandwidths):
    with pytest.raises(ValueError, match="bandwidths must be positive and finite"):
        mmd(normal(4, 2), normal(4, 2), bandwidths)


def test_other_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_projections must be an integer >= 1, got 0"):
        SlicedWasserstein(0)
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
        SlicedWasserstein(seed=-1)
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        SlicedWasserstein(order=3)
    with pytest.raises(ValueError, match="x and y must hold distinct points"):
        mmd(torch.zeros(5, 2), torch.zeros(5, 2))
    eye, zero = torch.eye(2), torch.zeros(2)
    with pytest.raises(
        ValueError,
        match=r"mean1 must be finite with shape \(2,\), for mean0 with shape \(2,\), got shape \(3,\)",
    ):
        gaussian_w2(zero, eye, torch.zeros(3), eye)
    with pytest.raises(ValueError, match=r"cov0 must be finite with shape \(2, 2\)"):
        gaussian_w2(zero, eye * math.nan, zero, eye)
    with pytest.raises(
        ValueError, match="cov1 must be symmetric and positive semidefinite, got an eigenvalue -1"
    ):
        gaussian_w2(zero, eye, zero, -eye)
    with pytest.raises(ValueError, match="cov0 must be symmetric"):
        gaussian_w2(zero, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), zero, eye)


# Error bars


@pytest.mark.parametrize("distance", DISTANCES)
def test_bootstrap_keeps_the_value_and_is_keyed_by_the_seed(distance):
    x, y = normal(60, 2), normal(50, 2, seed=1) + 0.3
    estimate = bootstrap(distance, x, y, num_resamples=40, seed=3)
    assert estimate.value == pytest.approx(distance(x, y), rel=1e-12)
    assert estimate.standard_error > 0
    by_halves = isinstance(distance, SlicedWasserstein)
    words = "10 random halves and their quarters" if by_halves else "delete-group jackknife, 20 groups"
    assert estimate.how == words
    assert bootstrap(distance, x, y, num_resamples=40, seed=3) == estimate
    assert bootstrap(distance, x, y, num_resamples=40, seed=4).standard_error != estimate.standard_error


def test_any_function_of_two_sets_has_an_error_bar():
    x, y = normal(60, 2), normal(50, 2, seed=1)
    a, b = bootstrap(energy_distance, x, y), bootstrap(EnergyDistance(), x, y)
    assert a.value == pytest.approx(b.value, rel=1e-12)
    assert a.standard_error == pytest.approx(b.standard_error, rel=1e-9)


def test_the_error_bar_of_a_difference_of_means_is_the_textbooks():
    # For a linear statistic with one sample per group the jackknife is exact, and the correction vanishes.
    x, y = normal(50), normal(50, seed=1)
    estimate = bootstrap(lambda x, y: float(x.mean() - y.mean()), x, y)
    pairing = math.sqrt(float(x.var() + y.var()) / 50)
    assert estimate.standard_error == pytest.approx(pairing, rel=0.3)
    same = bootstrap(lambda x, y: float(x.mean()), x, y)
    assert same.standard_error == pytest.approx(float(x.std()) / math.sqrt(50), rel=1e-12)


def test_bootstrap_refuses_too_few():
    x = normal(9, 2)
    with pytest.raises(ValueError, match="at least 10 samples for an error bar, got 9 and 20"):
        bootstrap(EnergyDistance(), x, normal(20, 2))
    with pytest.raises(ValueError, match="num_resamples must be an integer >= 20, got 19"):
        bootstrap(EnergyDistance(), normal(20, 2), normal(20, 2), num_resamples=19)


def calibration(distance, shift, std, dim, n, m, repetitions):
    """Root mean square of the standard errors over the true standard deviation, on independent sets."""
    x, y = normal(repetitions, n, dim), shift + std * normal(repetitions, m, dim, seed=1)
    estimates = [bootstrap(distance, a, b, seed=k) for k, (a, b) in enumerate(zip(x, y, strict=True))]
    values, errors = (
        np.array(v) for v in zip(*((e.value, e.standard_error) for e in estimates), strict=True)
    )
    return math.sqrt((errors**2).mean()) / values.std(ddof=1)


@pytest.mark.slow
def test_standard_error_matches_the_spread_over_repetitions():
    # 200 repetitions fix the true spread to 5%; 1.25 and 0.8 are over four of these.
    assert 0.8 < calibration(EnergyDistance(), 1.0, 1.5, 2, 60, 45, 200) < 1.25
    assert 0.8 < calibration(FrechetDistance(), 1.0, 1.5, 2, 60, 45, 200) < 1.25


def test_standard_error_between_equal_laws_counts_the_quadratic_part_once():
    # In many dimensions the estimate of the quadratic part is sharp; the jackknife alone is at 1.4 here.
    assert 0.8 < calibration(EnergyDistance(), 0.0, 1.0, 50, 60, 60, 200) < 1.25


@pytest.mark.slow
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("shift", "std", "dim", "low", "high"),
    [
        (1.0, 1.5, 2, 0.8, 1.25),
        (0.15, 1.0, 2, 0.8, 1.25),
        (0.15, 1.0, 16, 0.8, 1.25),
        (0.0, 1.0, 2, 0.85, 1.5),
    ],
)
def test_standard_error_of_every_distance_matches_the_spread(distance, shift, std, dim, low, high):
    # 300 repetitions fix the true spread to 4%; the bounds leave four of these on either side.
    # Equal laws come last: all that is left of the statistic is quadratic, see the module's text.
    assert low < calibration(distance, shift, std, dim, 200, 150, 300) < high


@pytest.mark.slow
def test_standard_error_of_frechet_between_equal_laws_in_many_dimensions():
    assert 0.75 < calibration(FrechetDistance(), 0.0, 1.0, 24, 300, 300, 150) < 1.4


def test_over_seeds():
    estimate = over_seeds([1.0, 2.0, 6.0])
    assert estimate.value == 3
    assert estimate.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert estimate.how == "3 seeds"
    for values in ([], [1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="values must be at least 2 finite numbers, one per seed"):
            over_seeds(values)
