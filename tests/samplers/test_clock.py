"""Clocks that follow a spectrum: closed forms with one scale, shares of thin axes, times that fall."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.models import Moments
from sde_toolkit.samplers.gaussian.clock import arcsinh_density, arctan_density, make_clock, power_mean
from sde_toolkit.samplers.gaussian.grid import (
    CONSTANTS,
    NETWORK_CONSTANTS,
    NOISY_CONSTANTS,
    ResidualGrid,
    evaluation_clock,
    node_clock,
    resolved,
)
from sde_toolkit.sdes import VESDE, VPSDE

NSR = np.geomspace(1e-3, 1e3, 61)


def diagonal(stds: list[float]) -> Moments:
    return Moments(torch.zeros(len(stds)), torch.tensor(stds, dtype=torch.float64).square())


@pytest.mark.parametrize("k", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("num_features", [1, 5])
def test_with_one_scale_the_clocks_are_arctan_and_arcsinh(k: float, num_features: int) -> None:
    variances, length = np.full(num_features, 0.49), 0.5
    arctan = make_clock(power_mean(variances, length, k, arctan_density), 1e-3, 1e3)
    arcsinh = make_clock(power_mean(variances, length, k, arcsinh_density), 1e-3, 1e3)
    scaled = NSR / (0.7 * length)
    # variances that are almost equal are binned: to half of 1/64 of an e-fold
    np.testing.assert_allclose(arctan(NSR), np.arctan(scaled), rtol=4e-3)
    np.testing.assert_allclose(arcsinh(NSR), np.arcsinh(scaled), rtol=4e-3)
    assert arctan.total == pytest.approx(math.pi / 2, rel=1e-6)


def test_a_clock_is_the_integral_of_its_density() -> None:
    density = power_mean(np.array([1.0, 1e-2, 1e-4]), 0.5, 0.2, arctan_density)
    clock = make_clock(density, 1e-3, 1e3)
    x = np.log(NSR)
    slope = (clock(np.exp(x + 1e-4)) - clock(np.exp(x - 1e-4))) / 2e-4
    np.testing.assert_allclose(slope, density(x), rtol=2e-5)
    np.testing.assert_allclose(clock.inverse(clock(NSR)), NSR, rtol=1e-10)


@pytest.mark.parametrize("num_steps", [100_000, 400_000])
def test_times_of_very_many_steps_fall(num_steps: int) -> None:
    ts = ResidualGrid(diagonal([1.0, 0.01]))(VPSDE(), num_steps, 1e-3)
    assert bool((ts.diff() < 0).all())


@pytest.mark.parametrize("k", [0.1, 0.2])
def test_a_thin_axis_gets_its_share_to_the_power_k(k: float) -> None:
    density = power_mean(np.array([1.0, 1e-6]), 1.0, k, arctan_density)
    at_wide, at_thin = density(np.array([0.0, math.log(1e-3)]))
    assert at_thin / at_wide == pytest.approx((1e-6) ** k, rel=1e-2)


stds_lists = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    stds_lists,
    st.integers(2, 200),
    st.sampled_from([CONSTANTS, NETWORK_CONSTANTS, NOISY_CONSTANTS]),
    st.floats(1e-5, 0.05),
)
def test_times_fall_between_the_ends_for_any_spectrum(stds, num_steps, constants, t_min) -> None:
    for sde in (VPSDE(), VESDE(0.001, 1e4)):
        ts = ResidualGrid(diagonal(stds), constants)(sde, num_steps, t_min)
        assert ts.shape == (num_steps + 1,)
        assert (float(ts[0]), float(ts[-1])) == (sde.T, t_min)
        assert bool((ts.diff() < 0).all())
        nsr = sde.nsr(ts).numpy()
        v = node_clock(diagonal(stds), constants, nsr[0], nsr[-1])
        assert bool((np.diff(v(nsr)) < 0).all())
        assert v(nsr[:1])[0] < v.total < math.inf


def test_axes_without_variance_count_as_thin_as_the_end() -> None:
    flat = diagonal([1.0, 0.0])
    assert resolved(flat, 1e-3).tolist() == [1.0, 1e-6]
    thin = diagonal([1.0, 1e-3])
    for found, expected in (
        (node_clock(flat, CONSTANTS, 100.0, 1e-3), node_clock(thin, CONSTANTS, 100.0, 1e-3)),
        (
            evaluation_clock(flat, CONSTANTS, 100.0, 1e-3, 9),
            evaluation_clock(thin, CONSTANTS, 100.0, 1e-3, 9),
        ),
    ):
        np.testing.assert_allclose(found(NSR), expected(NSR), rtol=1e-6)
