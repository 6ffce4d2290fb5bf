"""Fixed grids, the controller's refusals, its powers and its limits."""

import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solvers import DOPRI5, ODE, Adaptive, FixedGrid, solve
from solvers.control import BLOCK_STEPS, Powers, mean_square


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(st.floats(), max_size=6))
def test_a_grid_takes_strictly_monotone_finite_times_and_nothing_else(times: list[float]) -> None:
    up = all(a < b for a, b in pairwise(times))
    down = all(a > b for a, b in pairwise(times))
    if len(times) >= 2 and all(map(math.isfinite, times)) and (up or down):
        grid = FixedGrid(times)
        assert grid.ts.tolist() == times
        assert grid.num_steps == len(times) - 1
    else:
        with pytest.raises(ValueError, match=r"a grid needs|the times of a grid must"):
            FixedGrid(times)


@pytest.mark.parametrize("ts", [tensor(0.0, 1.0).reshape(1, 2), torch.tensor(1.0), torch.zeros(0, 2)])
def test_a_grid_of_another_shape_is_refused(ts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least two times in one dimension"):
        FixedGrid(ts)


@pytest.mark.parametrize("ts", [[0.1, 0.3], (0.1, 0.3), np.array([0.1, 0.3]), tensor(0.1, 0.3)])
def test_a_grid_keeps_all_digits_of_its_times(ts: Any) -> None:
    assert FixedGrid(ts).ts.dtype == torch.float64
    assert FixedGrid(ts).ts.tolist() == [0.1, 0.3]


def test_a_grid_is_a_copy_without_a_graph() -> None:
    ts = torch.tensor([1.0, 0.5], requires_grad=True)
    grid = FixedGrid(ts)
    with torch.no_grad():
        ts[0] = 2.0
    assert grid.ts.tolist() == [1.0, 0.5]
    assert not grid.ts.requires_grad


NOT_POSITIVE = st.floats(max_value=0) | st.just(math.nan) | st.just(math.inf)


@given(st.floats(), st.floats())
def test_the_interval_must_be_finite_and_not_empty(t0: float, t1: float) -> None:
    if math.isfinite(t0) and math.isfinite(t1) and t0 != t1:
        assert Adaptive(t0, t1).direction == (1.0 if t1 > t0 else -1.0)
    else:
        with pytest.raises(
            ValueError, match=r"t0 and t1 must be finite and differ|t[01] must be a number, got nan"
        ):
            Adaptive(t0, t1)


@given(st.floats(), st.floats())
def test_tolerances_must_be_finite_non_negative_and_not_both_zero(rtol: float, atol: float) -> None:
    if math.isfinite(rtol) and math.isfinite(atol) and min(rtol, atol) >= 0 and max(rtol, atol) > 0:
        Adaptive(0.0, 1.0, rtol=rtol, atol=atol)
    else:
        with pytest.raises(ValueError, match=r"rtol and atol must be|[ra]tol must be a number, got nan"):
            Adaptive(0.0, 1.0, rtol=rtol, atol=atol)


@given(NOT_POSITIVE)
def test_the_first_step_must_be_a_positive_length(first_step: float) -> None:
    with pytest.raises(ValueError, match=r"first_step must be a (positive length|number or None, got nan)"):
        Adaptive(0.0, 1.0, first_step=first_step)


@given(st.integers(max_value=0))
def test_at_least_one_step_must_be_allowed(max_steps: int) -> None:
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        Adaptive(0.0, 1.0, max_steps=max_steps)


@pytest.mark.parametrize("name", ["safety", "min_factor", "max_factor", "k_i"])
@given(value=NOT_POSITIVE)
def test_the_controllers_constants_must_lie_in_their_ranges(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"safety must lie in|k_i must lie in|must be a number, got nan"):
        Adaptive(0.0, 1.0, **{name: value})


@pytest.mark.parametrize(
    "bad", [{"safety": 1.1}, {"min_factor": 1.0}, {"max_factor": 1.0}, {"k_p": -0.1}, {"k_i": 1}]
)
def test_constants_just_outside_their_ranges_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        Adaptive(0.0, 1.0, **bad)


@pytest.mark.parametrize("order", [1.5, 3, 5, 8])
def test_powers_of_the_error_are_those_of_the_pi_formula(order: float) -> None:
    control = Adaptive(0.0, 1.0)
    error = torch.logspace(-9, 9, 1001, dtype=torch.float64)
    grow, gain = map(torch.from_numpy, Powers(control, order)(error.square().numpy()))
    safety = 0.9 ** max(1, 3 / order)
    torch.testing.assert_close(grow, safety * error ** (-0.7 / order), rtol=0.025, atol=0)
    torch.testing.assert_close(gain, error.clamp(1e-4, 1) ** (0.4 / order), rtol=0.025, atol=0)
    start = torch.from_numpy(Powers(control, order).start((1e6 * error).square().numpy()))
    torch.testing.assert_close(start, (1e-8 / error).clamp(max=1) ** (1 / (order + 1)), rtol=0.025, atol=0)


def test_powers_of_no_error_and_of_broken_ones_stay_finite() -> None:
    grow, gain = Powers(Adaptive(0.0, 1.0), 5)(np.array([0.0, 1e300, math.inf, math.nan]))
    assert grow[0] > 5
    assert grow[1:].tolist() == [0.0, 0.0, 0.0]
    assert np.isfinite(gain).all()


def test_the_power_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    x = np.random.default_rng(0).random(67) * 10
    powers = Powers(Adaptive(0.0, 1.0), 5)
    whole = np.stack(powers(x))
    for i in range(67):
        assert (np.stack(powers(x[i : i + 1]))[:, 0] == whole[:, i]).all()


@pytest.mark.parametrize("event_shape", [(), (1,), (3,), (2, 3), (3, 8, 8)])
def test_the_norm_of_a_sample_does_not_depend_on_its_neighbours(event_shape: tuple[int, ...]) -> None:
    x = torch.randn(64, *event_shape, generator=torch.Generator().manual_seed(0))
    whole = mean_square(x)
    assert whole.dtype == torch.float64
    assert whole.shape == (64,)
    for i in range(64):
        assert torch.equal(mean_square(x[i : i + 1])[0], whole[i])
        torch.testing.assert_close(whole[i], x[i].double().pow(2).mean())


def test_the_error_is_in_units_of_the_tolerance_and_sees_a_state_that_is_not_finite() -> None:
    control = Adaptive(0.0, 1.0, rtol=0.5, atol=1.0)
    error, y = torch.tensor([[2.0, 4.0]]).double(), torch.tensor([[2.0, -2.0]]).double()
    y_next = torch.tensor([[1.0, -6.0]]).double()
    assert control.squared_error(error, y, y_next).tolist() == [1.0]
    for bad in (math.nan, math.inf, -math.inf):
        broken = torch.tensor([[1.0, bad]]).double()
        assert not control.squared_error(error, y, broken).isfinite().any()
        assert not control.squared_error(broken, y, y_next).isfinite().any()


def test_the_tolerance_mixes_both_parts_and_is_never_below_the_resolution_of_the_type() -> None:
    y, y_next = torch.tensor([[1.0, -4.0]]), torch.tensor([[-2.0, 3.0]])
    assert Adaptive(0.0, 1.0, rtol=0.25, atol=0.5).tolerance(y, y_next).tolist() == [[1.0, 1.5]]
    floor = 10 * torch.finfo(torch.float32).eps
    assert Adaptive(0.0, 1.0, rtol=0.0, atol=2**-60).tolerance(y, y_next)[0, 0] == 2 * floor
    nothing = torch.zeros(1, 2)
    assert (Adaptive(0.0, 1.0, rtol=1e-3, atol=0.0).tolerance(nothing, nothing) > 0).all()


def test_the_step_grows_but_not_right_after_a_rejection() -> None:
    times: list[float] = []

    def drift(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        times.append(float(t))
        return (1e3 * (t - 0.3).clamp(min=0) ** 0.5)[:, None] * torch.ones_like(y)

    control = Adaptive(0.0, 1.0, rtol=1e-6, atol=1e-6, first_step=0.01)
    solution = solve(ODE(drift), torch.zeros(1, 1, dtype=torch.float64), DOPRI5, control)
    attempts = np.array(times[1:]).reshape(-1, 6)
    h = (attempts[:, -1] - attempts[:, 0]) / 0.8
    rejected = np.abs(np.diff(attempts[:, -1] - h)) < 1e-12
    assert rejected.sum() == int(solution.stats.num_rejected) > 0
    grows = h[1:] > 1.001 * h[:-1]
    assert grows.any()
    assert not grows[rejected].any()
    assert not grows[1:][rejected[:-1]].any()


def test_a_long_grid_is_made_in_blocks_with_the_same_steps():
    ts = torch.linspace(1, 0, 3 * BLOCK_STEPS + 7, dtype=torch.float64).square()
    grid, times = FixedGrid(ts), ts.tolist()
    found = list(grid.intervals)
    assert [float(t) for t in grid.times] == times
    assert grid.ends == (times[0], times[-1])
    assert [i.number for i in found] == list(range(len(ts) - 1))
    assert [float(i.t) for i in found] == times[:-1]
    assert [float(i.s) for i in found] == times[1:]
    assert torch.equal(torch.tensor([i.h for i in found], dtype=torch.float64), ts.diff())


MEMORY = """
import resource, sys, torch
from solvers import EULER_MARUYAMA, SDE, FixedGrid, Normals, solve
torch.set_num_threads(1)
term = SDE(lambda t, y: -y, lambda t: torch.ones_like(t))
for steps in (1_000, 200_000):
    solve(term, torch.ones(4, 2), EULER_MARUYAMA, FixedGrid(torch.linspace(0, 1, steps + 1)),
          noise=Normals(0, 4, (2,), torch.float32))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_steps():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    few, many = (int(line) for line in run.stdout.split())
    assert many - few < 40 * 1024  # KiB; 300 MiB with an object for every step
