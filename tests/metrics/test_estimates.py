import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_toolkit.metrics import EnergyDistance, Estimate, bootstrap, difference, over_seeds, pooled

# False-alarm rate of every statistical test in this file.
ALPHA = 1e-5


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mean_gap(x, y):
    """A linear statistic, whose error bar the textbook knows."""
    return float(x.mean() - y.mean())


def estimate(num_groups=10, seed=0, groups="the same"):
    rng = np.random.default_rng(seed)
    return Estimate.from_replicates(rng.normal(size=1 + 2 * num_groups).tolist(), groups)


def test_replicates_alone_make_the_estimate():
    x, y = normal(60, 2), normal(50, 2, seed=1)
    found = bootstrap(EnergyDistance(), x, y, num_resamples=40)
    assert len(found.replicates) == 41
    assert all(type(value) is float for value in found.replicates)
    assert Estimate.from_replicates(found.replicates, found.groups) == found
    assert found.value == found.replicates[0] == pytest.approx(EnergyDistance()(x, y), rel=1e-12)
    assert "60 samples and of 50" in found.groups


def test_the_interval_is_students():
    found = Estimate(2.0, 0.5, "by hand", degrees_of_freedom=9.0)
    low, high = found.interval(0.9)
    assert (low, high) == pytest.approx(
        (2 - 0.5 * scipy.stats.t.ppf(0.95, 9), 2 + 0.5 * scipy.stats.t.ppf(0.95, 9))
    )
    low, high = Estimate(0.0, 1.0, "by hand").interval()
    assert high == -low == pytest.approx(scipy.stats.norm.ppf(0.975))
    assert over_seeds([1.0, 2.0, 6.0]).degrees_of_freedom == 2
    assert estimate(10).degrees_of_freedom == 9


@pytest.mark.parametrize("level", [0, 1, 1.5, math.nan, "a", None, True])
def test_other_levels_are_refused(level):
    with pytest.raises((ValueError, TypeError), match="level must be a number"):
        estimate().interval(level)


def test_the_error_of_a_difference_is_that_of_the_paired_sets():
    # For a linear statistic with one sample per group: std(a_i - b_i) / sqrt(n), the data drop out.
    z, other, y = normal(50), normal(50, seed=1), normal(50, seed=2)
    a, b = bootstrap(mean_gap, z + 0.1 * other, y), bootstrap(mean_gap, z, y)
    found = difference(a, b)
    assert found.value == pytest.approx(a.value - b.value, rel=1e-9)
    assert found.standard_error == pytest.approx(float(0.1 * other.std()) / math.sqrt(50), rel=1e-9)
    assert found.standard_error < 0.1 * a.standard_error
    assert found.how == "paired delete-group jackknife, 50 groups"
    back = difference(b, a)
    assert (back.value, back.standard_error) == pytest.approx((-found.value, found.standard_error))
    assert difference(a, a).value == difference(a, a).standard_error == 0


def test_pooling_keeps_the_share_of_the_data():
    y, count = normal(40, seed=99), 4
    sets = [normal(40, seed=seed) for seed in range(count)]
    found = pooled([bootstrap(mean_gap, x, y) for x in sets])
    whole = bootstrap(mean_gap, torch.stack(sets, 1).mean(1), y)
    assert found.value == pytest.approx(whole.value, rel=1e-9)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-9)
    assert found.how == "delete-group jackknife, 40 groups"


def test_pooled_differences_are_differences_of_the_pooled():
    a, b = ([estimate(seed=seed + s) for seed in range(3)] for s in (0, 10))
    of_pairs = pooled([difference(s, t) for s, t in zip(a, b, strict=True)])
    of_pools = difference(pooled(a), pooled(b))
    assert of_pairs.replicates == pytest.approx(of_pools.replicates)
    assert of_pairs.standard_error == pytest.approx(of_pools.standard_error)


def test_pooling_without_replicates():
    found = pooled([Estimate(1.0, 3.0, "a"), Estimate(2.0, 4.0, "b")])
    assert (found.value, found.standard_error, found.how) == (1.5, 2.5, "mean over 2 seeds")


def test_mismatches_are_refused():
    with pytest.raises(ValueError, match=r"b must carry replicates.* 'by hand'"):
        difference(estimate(), Estimate(0.0, 1.0, "by hand"))
    with pytest.raises(ValueError, match=r"b must come from the same groups .*the same, got another"):
        difference(estimate(), estimate(groups="another"))
    with pytest.raises(ValueError, match=r"estimates\[1\] must come from the same groups"):
        pooled([estimate(10), estimate(12)])
    with pytest.raises(ValueError, match="estimates must hold at least one estimate, got none"):
        pooled([])
    x, y = normal(60, 2), normal(60, 2, seed=1)
    first = bootstrap(EnergyDistance(), x, y)
    for other in (
        bootstrap(EnergyDistance(), x[:59], y),
        bootstrap(EnergyDistance(), x, y + 1),
        bootstrap(EnergyDistance(), x, y, seed=1),
        bootstrap(EnergyDistance(), x, y, num_resamples=40),
    ):
        with pytest.raises(ValueError, match="b must come from the same groups as the first estimate"):
            difference(first, other)


@given(st.lists(st.floats(-1e6, 1e6), max_size=45))
def test_replicates_are_1_plus_2_g_numbers(values):
    if len(values) % 2 and len(values) >= 21:
        found = Estimate.from_replicates(values)
        assert found.value == values[0]
        assert 0 <= found.standard_error < math.inf
    else:
        with pytest.raises(ValueError, match=r"replicates must be 1 \+ 2 G numbers with G >= 10"):
            Estimate.from_replicates(values)


def test_replicates_must_be_finite():
    with pytest.raises(ValueError, match="replicates must be finite, got 1 NaN"):
        Estimate.from_replicates([math.nan] + [0.0] * 20)
