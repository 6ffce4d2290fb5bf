"""Time grids: exact ends, the promised spacing, and sentences for what cannot be."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import SDES

from sde_toolkit.samplers import grids
from sde_toolkit.sdes import VESDE, VPSDE

GRIDS = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "arctan": grids.arctan,
    "arcsinh": grids.arcsinh,
    "rectified": grids.rectified,
    "cosine": grids.cosine,
}
CLOCKS = {
    "uniform": lambda sde, t: t,
    "quadratic": lambda sde, t: t.sqrt(),
    "log_snr": lambda sde, t: sde.lam(t),
    "karras": lambda sde, t: sde.nsr(t) ** (1 / 7),
    "arctan": lambda sde, t: torch.atan(sde.nsr(t) / 0.5),
    "arcsinh": lambda sde, t: torch.asinh(sde.nsr(t) / 0.05),
    "rectified": lambda sde, t: sde.sigma(t) / (sde.alpha(t) + sde.sigma(t)),
    # arccos of cos(w (t + s)), whose multiple by cos(w s) is the cosine schedule's alpha
    "cosine": lambda sde, t: torch.acos((1 + sde.nsr(t) ** 2) ** -0.5 * math.cos(math.pi * 0.004 / 1.008)),
}


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_evenly_spaced_in_their_clock_and_end_exactly(name, sde):
    ts = GRIDS[name](sde, 20, 1e-3)
    assert ts.dtype == torch.float64
    assert len(ts) == 21
    assert float(ts[0]) == sde.T
    assert float(ts[-1]) == 1e-3
    assert bool((ts.diff() < 0).all())
    steps = CLOCKS[name](sde, ts).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-6)


def test_grids_may_end_at_zero_unless_their_clock_is_infinite_there():
    assert float(grids.quadratic(VPSDE(), 5, 0.0)[-1]) == 0
    assert float(grids.karras(VPSDE(), 5, 0.0)[-1]) == 0
    assert float(grids.log_snr(VESDE(), 5, 0.0)[-1]) == 0
    with pytest.raises(ValueError, match="raise t_min"):
        grids.log_snr(VPSDE(), 5, 0.0)


INDICES = {
    # diffusers' "timestep_spacing" for 10 of 1000 indices, counted from 1
    "trailing": (grids.trailing, [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
    "leading": (grids.leading, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
    "linspace": (grids.linspace, [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_are_those_of_discrete_time_code(name):
    grid, expected = INDICES[name]
    ts = grid(VPSDE(), 10, 1e-5)
    assert torch.allclose(ts[:-1] * 1000, torch.tensor(expected, dtype=torch.float64))
    assert float(ts[-1]) == 1e-5
    assert len(grid(VPSDE(), 1, 0.0)) == 2
    assert bool((grid(VPSDE(), 1000, 0.0).diff() < 0).all())
    with pytest.raises(ValueError, match="num_steps must lie in 1 to the 1000 indices, got 1001"):
        grid(VPSDE(), 1001, 0.0)
    with pytest.raises(ValueError, match="lower t_min"):
        grid(VPSDE(), 1000, 1e-3)


def test_constants_of_grids_are_checked():
    with pytest.raises(ValueError, match=r"scale must be a (finite positive )?number"):
        grids.Arctan(0.0)
    with pytest.raises(ValueError, match=r"scale must be a (finite positive )?number"):
        grids.Arcsinh(float("nan"))
    with pytest.raises(ValueError, match="offset must keep the indices at or below 1000"):
        grids.Leading(1000, offset=200)(VPSDE(), 10, 0.0)
    assert float(grids.Leading(1000, offset=1)(VPSDE(), 10, 0.0)[0]) == pytest.approx(0.902)


def test_explicit_times_are_kept_and_checked():
    grid = grids.Explicit([1.0, 0.3, 0.1])
    assert grid(VPSDE(), 2, 1e-3).tolist() == [1.0, 0.3, 0.1]
    with pytest.raises(ValueError, match="num_steps"):
        grid(VPSDE(), 3, 1e-3)
    with pytest.raises(ValueError, match="must decrease"):
        grids.Explicit([0.1, 0.3])
    with pytest.raises(ValueError, match=r"\[0, 1.0\]"):
        grids.Explicit([2.0, 0.3])(VPSDE(), 1, 1e-3)
    with pytest.raises(ValueError, match="rho"):
        grids.Karras(0.0)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6))
def test_any_list_of_times_is_a_decreasing_grid_or_a_sentence(times):
    falling = len(times) >= 2 and all(abs(t) < float("inf") for t in times)
    falling = falling and all(a > b for a, b in itertools.pairwise(times))
    if falling:
        assert grids.Explicit(times).ts.tolist() == times
    else:
        with pytest.raises(ValueError, match="times"):
            grids.Explicit(times)
