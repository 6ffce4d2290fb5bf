"""Power-function profiles: against quadrature, recursions and the dense least squares."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from sde_toolkit.training.averages.power import (
    LONGEST,
    PowerProfile,
    combine,
    gamma_of,
    length_of,
    power_decay,
)

TRACES = (0.05, 0.10)
GAMMAS = [gamma_of(length) for length in TRACES]


def density(profile, tau):
    return (profile.gamma + 1) * (tau / profile.time) ** profile.gamma / profile.time * (tau <= profile.time)


@pytest.mark.parametrize("length", [0.01, 0.04, 0.05, 0.10, 0.15, 0.25, LONGEST])
def test_the_length_is_the_standard_deviation_of_the_profile(length):
    profile = PowerProfile(gamma_of(length), 1.0)
    mean, square = (
        quad(lambda u, k=k: u**k * density(profile, u), 0, 1, epsabs=1e-14, epsrel=1e-13)[0] for k in (1, 2)
    )
    assert math.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)
    assert length_of(profile.gamma) == pytest.approx(length, rel=1e-12)


def test_published_exponents():
    """2312.02696, section 3.1: sigma_rel = .05 and .10 are gamma = 16.97 and 6.94."""
    assert pytest.approx([16.97, 6.94], abs=5e-3) == GAMMAS


@pytest.mark.parametrize("length", [0.0, -1.0, 0.3, math.nan])
def test_a_length_without_a_profile_is_refused(length):
    with pytest.raises(ValueError, match=r"sigma_rel must be between 0.0001 and 0.2887"):
        gamma_of(length)


@pytest.mark.parametrize("one", [(0.05, 100), (0.10, 60), (0.2, 100)])
@pytest.mark.parametrize("other", [(0.05, 100), (0.10, 100), (0.03, 37)])
def test_inner_products_are_those_of_quadrature(one, other):
    a, b = (PowerProfile(gamma_of(length), float(time)) for length, time in (one, other))
    end = min(a.time, b.time)
    value, _ = quad(lambda tau: density(a, tau) * density(b, tau), 0, end, epsabs=1e-15, epsrel=1e-13)
    assert a.inner(b) == pytest.approx(value, rel=1e-11)
    assert a.inner(b) == b.inner(a)


def test_the_recursion_weighs_every_update_by_the_mass_of_its_interval():
    for gamma in (0.0, *GAMMAS):
        weights = np.zeros(50)
        for step in range(50):
            weights *= power_decay(step, gamma)
            weights[step] += 1 - power_decay(step, gamma)
        ends = (np.arange(51) / 50) ** (gamma + 1)
        np.testing.assert_allclose(weights, np.diff(ends), rtol=1e-11, atol=1e-16)


def test_the_combination_is_that_of_the_dense_least_squares():
    """The normal equations of all profiles at once, few enough that float64 solves them."""
    times, wanted = [10, 20, 35, 40], PowerProfile(gamma_of(0.07), 40.0)
    profiles = [PowerProfile(gamma, float(time)) for time in times for gamma in GAMMAS]
    gram = np.array([[a.inner(b) for b in profiles] for a in profiles])
    dense = np.linalg.solve(gram, [p.inner(wanted) for p in profiles])
    found = combine(times, GAMMAS, wanted)
    np.testing.assert_allclose(found.coefficients.ravel(), dense / dense.sum(), rtol=1e-6, atol=1e-9)
    c = found.coefficients.ravel()
    norm = wanted.inner(wanted)
    cross = sum(x * p.inner(wanted) for x, p in zip(c, profiles, strict=True))
    assert found.residual == pytest.approx(math.sqrt((norm - 2 * cross + c @ gram @ c) / norm), rel=1e-4)


def test_the_residual_is_that_of_quadrature():
    times, wanted = [10, 20, 30], PowerProfile(gamma_of(0.15), 30.0)
    found = combine(times, GAMMAS, wanted)

    def off(tau):
        parts = (
            c * density(PowerProfile(gamma, time), tau)
            for row, time in zip(found.coefficients, times, strict=True)
            for c, gamma in zip(row, GAMMAS, strict=True)
        )
        return (density(wanted, tau) - sum(parts)) ** 2

    square = quad(off, 0, 30, points=[10, 20], limit=200, epsabs=1e-14)[0]
    assert found.residual == pytest.approx(math.sqrt(square / wanted.inner(wanted)), rel=1e-5)
    assert found.coefficients.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("length", TRACES)
@pytest.mark.parametrize("step", [30, 60])
def test_a_stored_profile_is_itself(length, step):
    times = list(range(10, 61, 10))
    found = combine(times, GAMMAS, PowerProfile(gamma_of(length), step))
    expected = np.zeros((6, 2))
    expected[times.index(step), TRACES.index(length)] = 1
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-9)
    assert found.residual < 1e-7


@pytest.mark.slow
def test_twenty_snapshots_hold_lengths_near_the_traces():
    """Within .7% from .04 to .15; a hundredth of it with ten times the snapshots, well conditioned always."""
    for count, most in ((20, 7e-3), (200, 8e-5), (5000, 3e-7)):
        for length in (0.04, 0.05, 0.06, 0.075, 0.1, 0.12, 0.15):
            times = list(range(10, 10 * count + 1, 10))
            found = combine(times, GAMMAS, PowerProfile(gamma_of(length), times[-1]))
            assert found.residual < most
            assert np.abs(found.coefficients).sum() < 6


def test_what_cannot_be_represented_says_so():
    times = list(range(100, 2001, 100))
    short = combine(times, GAMMAS, PowerProfile(gamma_of(0.01), 2000.0))
    between = combine(times, GAMMAS, PowerProfile(gamma_of(0.07), 1050.0))
    assert short.residual > 0.2
    assert between.residual > 0.2
    with pytest.raises(ValueError, match="must end at the last stored time or before, got 2001"):
        combine(times, GAMMAS, PowerProfile(gamma_of(0.07), 2001))
