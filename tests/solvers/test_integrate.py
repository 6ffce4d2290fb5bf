"""The loop: independent samples, exact ends, named failures, compaction, saving, hooks and gradients."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.orders import Fixed
from solvers import (
    DOPRI5,
    EULER,
    EULER_MARUYAMA,
    HEUN,
    ODE,
    RECURSION,
    RK4,
    SDE,
    Adaptive,
    FixedGrid,
    Interval,
    Normals,
    Recursion,
    SaveAt,
    Solution,
    SolverError,
    Status,
    expand_like,
    solve,
)

BATCH = 64
BROKEN, EXPLODING, STIFF = 17, 40, 50
"""In the mixed batch: samples whose field turns to nan, that blows up, and that needs too many steps."""


def linspace(t0: float, t1: float, num_steps: int) -> FixedGrid:
    return FixedGrid(torch.linspace(t0, t1, num_steps + 1, dtype=torch.float64))


@dataclass
class Mixed:
    """y' = rate (u^2 - y) + blow y^2 in u = |t - t0|, nan where u > wall; rates from 1 to 150, row by row.

    Only sums and products: their bits do not depend on a row's place in the batch.  The field asserts that it
    is never asked outside the interval, and counts the rows that it works on.
    """

    t0: float
    t1: float
    event_shape: tuple[int, ...] = (3,)
    dtype: torch.dtype = torch.float64
    broken: bool = True
    rows: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y0 = torch.rand(BATCH, *self.event_shape, generator=generator, dtype=torch.float64).to(
            self.dtype
        )
        rate = torch.logspace(0, math.log10(150), BATCH, dtype=torch.float64)
        rate = rate[torch.randperm(BATCH, generator=generator)]
        blow, wall = torch.zeros(BATCH, dtype=torch.float64), torch.full((BATCH,), math.inf)
        if self.broken:
            wall[BROKEN] = 0.4
            blow[EXPLODING], rate[EXPLODING] = 8.0, 0.1
            rate[STIFF] = 1e5
        self.args = rate.to(self.dtype), blow.to(self.dtype), wall

    def field(self, t: Tensor, y: Tensor, rate: Tensor, blow: Tensor, wall: Tensor) -> Tensor:
        self.rows += len(y)
        assert t.shape == (len(y),)
        assert ((t >= min(self.t0, self.t1)) & (t <= max(self.t0, self.t1))).all()
        u = (t - self.t0).abs()
        up = expand_like(rate, y) * (expand_like(u * u, y) - y) + expand_like(blow, y) * (y * y)
        up = torch.where(expand_like(u, y) > expand_like(wall, y), math.nan, up)
        return up if self.t1 > self.t0 else -up

    def solve(self, rows: slice | Tensor = slice(None), **options: Any) -> Solution:
        term = ODE(self.field, tuple(arg[rows] for arg in self.args))
        control = Adaptive(self.t0, self.t1, rtol=1e-3, atol=1e-3, max_steps=250)
        return solve(term, self.y0[rows], DOPRI5, control, **options)


def everything(solution: Solution) -> tuple[Tensor, ...]:
    stats = solution.stats
    return solution.y, stats.nfe, stats.num_steps, stats.num_rejected, solution.status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("t0", "t1", "event_shape", "dtype"),
    [
        (0.0, 1.0, (3,), torch.float64),
        (1.3, 0.3, (), torch.float64),
        (1.3, 0.3, (2, 5, 5), torch.float32),
    ],
)
def test_each_sample_alone_equals_the_same_sample_in_a_batch_bit_for_bit(
    t0: float, t1: float, event_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    mixed = Mixed(t0, t1, event_shape, dtype)
    batch = mixed.solve(throw=False)
    expected = torch.zeros(BATCH, dtype=torch.int64)
    expected[BROKEN], expected[EXPLODING] = Status.NONFINITE, Status.STEP_UNDERFLOW
    expected[STIFF] = Status.MAX_STEPS
    assert torch.equal(batch.status, expected)
    everyone = torch.arange(BATCH)
    alone = range(BATCH) if event_shape == (3,) else (0, 1, BROKEN, EXPLODING, STIFF, 63)
    parts = [everyone[i : i + 1] for i in alone] + [everyone[:7], everyone[14:21], everyone.flip(0)]
    for rows in parts:
        for ours, theirs in zip(everything(mixed.solve(rows, throw=False)), everything(batch), strict=True):
            torch.testing.assert_close(ours, theirs[rows], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", [EULER_MARUYAMA, DOPRI5, RECURSION], ids=lambda method: method.name)
def test_samples_are_independent_on_a_fixed_grid_too(method: Any) -> None:
    y0 = torch.rand(BATCH, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term: Any = {
        "dopri5": ODE(lambda t, y: t * y * (1 - y)),
        "euler_maruyama": SDE(lambda t, y: -t * y * y, lambda t: 1 + t),
        "recursion": Recursion(lambda t, y: y * y, lambda t, s: (s - t, (t - s) * t, t)),
    }[method.name]

    def run(rows: Tensor) -> Tensor:
        noise = Normals(3, rows.tolist(), (5,))
        return solve(term, y0[rows], method, linspace(1.0, 0.0, 8), noise=noise).y

    everyone = torch.arange(BATCH)
    whole = run(everyone)
    for size in (1, 7):
        assert torch.equal(torch.cat([run(rows) for rows in everyone.split(size)]), whole)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.7), (1.0, 1e-5), (1e3, 1e3 + 1e-3)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-9])
def test_adaptive_runs_end_exactly_and_meet_their_tolerance(t0: float, t1: float, tolerance: float) -> None:
    asked: list[Tensor] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        asked.append(t.clone())
        return -(t - t0)[:, None] * y

    y0 = torch.tensor([[1.0, 2.0], [0.3, -4.0]], dtype=torch.float64)
    solution = solve(ODE(field), y0, DOPRI5, Adaptive(t0, t1, rtol=tolerance, atol=tolerance))
    exact = y0 * math.exp(-((t1 - t0) ** 2) / 2)
    torch.testing.assert_close(solution.y, exact, rtol=0, atol=40 * tolerance)
    times = torch.cat(asked)
    assert solution.ts.tolist() == [t1]
    assert {float(times.min()), float(times.max())} == {t0, t1}


def test_the_probe_of_the_first_step_stays_inside_the_interval() -> None:
    """t0 - (t0 - t1) rounds to a time below t1; the field is so weak that the probe goes all the way."""
    t0, t1 = 40.801269138251506, 0.0007639980296062499
    assert t0 - (t0 - t1) < t1

    def field(t: Tensor, y: Tensor) -> Tensor:
        assert ((t >= t1) & (t <= t0)).all()
        return 1e-9 * y

    solve(ODE(field), torch.ones(1, 1, dtype=torch.float64), DOPRI5, Adaptive(t0, t1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_field_that_starts_broken_is_never_asked_at_a_broken_time(bad: float) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        assert ((t >= 0) & (t <= 1)).all()
        return torch.where(torch.arange(len(y)) == 1, bad, -1.0)[:, None] * y if len(y) == 3 else -y

    solution = solve(ODE(field), torch.ones(3, 1), DOPRI5, Adaptive(0.0, 1.0), throw=False)
    assert solution.status.tolist() == [Status.SUCCESS, Status.NONFINITE, Status.SUCCESS]


@pytest.mark.parametrize("num_steps", [1, 3, 7])
def test_a_fixed_grid_evaluates_at_its_own_points(num_steps: int) -> None:
    for t0, t1 in ((0.0, 0.7), (0.7, 0.1)):
        asked: list[float] = []

        def field(t: Tensor, y: Tensor, asked: list[float] = asked) -> Tensor:
            assert t.shape == ()
            assert t.dtype == torch.float64
            asked.append(float(t))
            return -y

        grid = linspace(t0, t1, num_steps)
        for method in (EULER, HEUN, RK4, DOPRI5):
            asked.clear()
            solution = solve(ODE(field), torch.ones(2, 1), method, grid)
            assert set(grid.ts.tolist()[: -1 if method is EULER else None]) <= set(asked)
            assert min(t0, t1) <= min(asked) <= max(asked) <= max(t0, t1)
            assert solution.stats.nfe.tolist() == [len(asked)] * 2
            assert solution.stats.num_steps.tolist() == [num_steps] * 2
            assert solution.ts.tolist() == [t1]


def test_finished_and_failed_samples_cost_nothing() -> None:
    mixed = Mixed(0.0, 1.0)
    stats = mixed.solve(throw=False).stats
    assert mixed.rows == int(stats.nfe.sum())
    assert torch.equal(stats.nfe, 2 + 6 * (stats.num_steps + stats.num_rejected))
    assert int(stats.nfe.min()) < int(stats.nfe.max()) / 3


def test_arguments_follow_their_samples() -> None:
    def field(t: Tensor, y: Tensor, label: Tensor, image: Tensor) -> Tensor:
        assert torch.equal(y[:, 1], label)
        assert torch.equal(image[:, 0, 0], label)
        return torch.stack([-label * (y[:, 0] - t.float()), torch.zeros_like(label)], dim=1)

    labels = torch.arange(1.0, 60.0)[torch.randperm(59, generator=torch.Generator().manual_seed(1))]
    y0 = torch.stack([torch.ones(59), labels], dim=1)
    term = ODE(field, (labels, labels[:, None, None].expand(-1, 2, 2)))
    solution = solve(term, y0, DOPRI5, Adaptive(0.0, 1.0))
    assert torch.equal(solution.y[:, 1], labels)
    assert len(solution.stats.nfe.unique()) > 3
    solve(term, y0, RK4, linspace(0.0, 0.1, 2))
    sde = SDE(field, lambda t, y, label, image: 0 * label[:, None] * y, noise="diagonal", args=term.args)
    solve(sde, y0, EULER_MARUYAMA, linspace(0.0, 0.1, 2), noise=Normals(0, 59, (2,), torch.float32))


def test_the_error_names_status_sample_time_and_step() -> None:
    for t0, t1, at, sign in ((0.0, 1.0, 0.4, 1), (1.0, 0.0, 0.6, -1)):
        mixed = Mixed(t0, t1)
        mixed.args[0][:], mixed.args[1][:] = 1.0, 0.0
        with pytest.raises(
            SolverError, match=r"NONFINITE: sample 17 of 64 failed at t = 0\.[3456]\d*, h = "
        ) as caught:
            mixed.solve()
        error = caught.value
        assert (error.status, error.samples) == (Status.NONFINITE, (BROKEN,))
        assert error.t == pytest.approx(at, abs=1e-6)
        assert 0 < sign * error.h < 1e-3


def test_one_failing_sample_leaves_the_others_as_they_would_be() -> None:
    broken, clean = Mixed(0.0, 1.0), Mixed(0.0, 1.0, broken=False)
    clean.args[0][:], broken.args[0][:] = 2.0, 2.0
    with_failure, without = broken.solve(throw=False), clean.solve()
    others = torch.arange(BATCH)[(torch.arange(BATCH) != BROKEN) & (torch.arange(BATCH) != EXPLODING)]
    for ours, theirs in zip(everything(with_failure), everything(without), strict=True):
        assert torch.equal(ours[others], theirs[others])
    assert with_failure.status[BROKEN] == Status.NONFINITE
    assert with_failure.status[EXPLODING] != Status.SUCCESS
    assert with_failure.y.isfinite().all()


def test_a_solution_that_blows_up_is_a_step_underflow_at_the_time_of_the_pole() -> None:
    y0 = torch.tensor([[0.1], [1.0], [0.2]], dtype=torch.float64)
    control = Adaptive(0.0, 1.5, rtol=1e-8, atol=1e-8)
    with pytest.raises(
        SolverError, match=r"STEP_UNDERFLOW: sample 1 of 3 failed at t = .*loosen rtol and atol"
    ) as caught:
        solve(ODE(lambda t, y: y * y), y0, DOPRI5, control)
    assert caught.value.status == Status.STEP_UNDERFLOW
    assert caught.value.t == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_number_of_attempts_is_limited(t0: float, t1: float) -> None:
    term, y0 = ODE(lambda t, y: -y), torch.ones(2, 1, dtype=torch.float64)
    control = Adaptive(t0, t1, first_step=1e-3, max_steps=1)
    with pytest.raises(
        SolverError, match=r"MAX_STEPS: samples 0, 1 of 2 failed .* raise max_steps"
    ) as caught:
        solve(term, y0, DOPRI5, control)
    error = caught.value
    assert (error.status, error.samples, error.h) == (Status.MAX_STEPS, (0, 1), control.direction * 1e-3)
    stiff = ODE(lambda t, y: -1000 * y)
    stats = solve(stiff, y0, DOPRI5, Adaptive(t0, t1, max_steps=7), throw=False).stats
    assert (stats.num_steps + stats.num_rejected).tolist() == [7, 7]
    needed = solve(term, y0, DOPRI5, Adaptive(t0, t1)).stats
    exactly = int((needed.num_steps + needed.num_rejected)[0])
    assert solve(term, y0, DOPRI5, Adaptive(t0, t1, max_steps=exactly)).status.tolist() == [0, 0]


def test_long_lists_of_failing_samples_are_cut() -> None:
    control = Adaptive(0.0, 1.0, max_steps=1)
    with pytest.raises(SolverError, match=r"samples 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. of 20 failed") as caught:
        solve(ODE(lambda t, y: -1e3 * y), torch.ones(20, 1), DOPRI5, control)
    assert caught.value.samples == tuple(range(20))


def breaking(t: Tensor, y: Tensor, wall: Tensor) -> Tensor:
    """-y, and nan from the time ``wall`` on."""
    return torch.where(expand_like(wall, y) <= t, math.nan, -y)


@pytest.mark.parametrize("method", [EULER, DOPRI5, EULER_MARUYAMA], ids=lambda method: method.name)
def test_a_failure_on_a_fixed_grid_names_the_step_of_the_sample_it_names(method: Any) -> None:
    """Sample 50 breaks earlier than sample 17, which comes first in the message."""
    wall = torch.full((BATCH,), math.inf)
    wall[17], wall[50] = 0.75, 0.25
    kind = SDE if method is EULER_MARUYAMA else ODE
    arguments = {"diffusion": lambda t: t} if kind is SDE else {}
    y0, noise = torch.ones(BATCH, 2), Fixed(torch.ones(BATCH, 2))
    grid = linspace(0.0, 1.0, 16)
    term = kind(breaking, args=(wall,), **arguments)
    with pytest.raises(SolverError, match=r"NONFINITE: samples 17, 50 of 64 failed at t = 0\.") as caught:
        solve(term, y0, method, grid, noise=noise)
    error = caught.value
    assert (error.status, error.samples, error.h) == (Status.NONFINITE, (17, 50), 1 / 16)
    assert error.t == (0.6875 if method is DOPRI5 else 0.75)
    partial = solve(term, y0, method, grid, noise=noise, throw=False)
    clean = solve(
        kind(breaking, args=(torch.full((BATCH,), math.inf),), **arguments), y0, method, grid, noise=noise
    )
    others = partial.status == Status.SUCCESS
    assert others.logical_not().nonzero().flatten().tolist() == [17, 50]
    assert torch.equal(partial.y[others], clean.y[others])


def test_a_sample_at_rest_needs_no_absolute_tolerance() -> None:
    y0 = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    control = Adaptive(0.0, 1.0, rtol=1e-6, atol=0.0)
    solution = solve(ODE(lambda t, y: -y), y0, DOPRI5, control)
    torch.testing.assert_close(solution.y, y0 * math.exp(-1), rtol=1e-5, atol=0)
    moving = solve(ODE(lambda t, y: 1 - y), y0, DOPRI5, control)
    torch.testing.assert_close(moving.y, 1 + (y0 - 1) * math.exp(-1), rtol=1e-5, atol=0)


def test_an_empty_batch_is_solved() -> None:
    for control in (Adaptive(0.0, 1.0), linspace(0.0, 1.0, 3)):
        assert solve(ODE(lambda t, y: -y), torch.ones(0, 3), DOPRI5, control).ys.shape == (1, 0, 3)


def test_the_first_step_may_be_given_and_is_cut_at_the_end() -> None:
    asked: list[float] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        asked.append(float(t))
        return 0 * y

    solution = solve(ODE(field), torch.ones(1, 1), DOPRI5, Adaptive(0.0, 1.0, first_step=0.5))
    assert asked[:2] == [0.0, 0.1]
    assert solution.stats.nfe.tolist() == [1 + 6 * 2]
    assert solve(
        ODE(field), torch.ones(1, 1), DOPRI5, Adaptive(0.0, 1.0, first_step=9.0)
    ).stats.nfe.tolist() == [7]


def test_saving_keeps_every_step_or_a_function_of_it() -> None:
    term, grid = ODE(lambda t, y: expand_like(t, y) * y), linspace(1.0, 0.0, 4)
    y0 = torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    saved = solve(term, y0, HEUN, grid, save=SaveAt(steps=True))
    assert torch.equal(saved.ts, grid.ts)
    assert saved.ys.shape == (5, 3, 2)
    assert torch.equal(saved.ys[0], y0)
    for k in range(1, 5):
        assert torch.equal(solve(term, y0, HEUN, FixedGrid(grid.ts[: k + 1])).y, saved.ys[k])
    assert torch.equal(saved.y, saved.ys[-1])
    function = SaveAt(steps=True, function=lambda t, y: t + y.sum(1))
    sums = solve(term, y0, HEUN, grid, save=function)
    assert torch.equal(sums.ys, grid.ts[:, None] + saved.ys.sum(2))
    end = SaveAt(function=lambda t, y: t + y.sum(1))
    assert torch.equal(solve(term, y0, HEUN, grid, save=end).ys, sums.ys[-1:])
    adaptive = solve(term, y0, DOPRI5, Adaptive(1.0, 0.5), save=end)
    assert torch.equal(adaptive.y, 0.5 + solve(term, y0, DOPRI5, Adaptive(1.0, 0.5)).y.sum(1))


@pytest.mark.parametrize("method", [EULER, HEUN, RK4, DOPRI5], ids=lambda method: method.name)
def test_the_hook_after_each_step_changes_the_state(method: Any) -> None:
    """Above all for DOPRI5, whose carried stage belongs to the state before the change."""
    term, y0, grid = (
        ODE(lambda t, y: (1 + t) * y),
        torch.ones(2, 1, dtype=torch.float64),
        linspace(0.0, 1.0, 5),
    )
    seen: list[tuple[int, float, float, float]] = []

    def halve(interval: Interval, y: Tensor) -> Tensor:
        seen.append((interval.number, float(interval.t), float(interval.s), interval.h))
        return y / 2 + float(interval.s)

    solution = solve(term, y0, method, grid, after_step=halve, save=SaveAt(steps=True))
    times, y = grid.ts.tolist(), y0
    for k in range(5):
        y = solve(term, y, method, FixedGrid(times[k : k + 2])).y / 2 + times[k + 1]
        assert torch.equal(solution.ys[k + 1], y)
    assert seen == [(k, times[k], times[k + 1], times[k + 1] - times[k]) for k in range(5)]


def test_a_hook_that_breaks_the_state_is_found() -> None:
    def spoil(interval: Interval, y: Tensor) -> Tensor:
        return y.log() if interval.number == 2 else y

    y0 = torch.tensor([[1.0], [-1.0]])
    with pytest.raises(SolverError, match=r"sample 1 of 2 failed at t = 0\.5, h = 0\.25"):
        solve(ODE(lambda t, y: 0 * y), y0, EULER, linspace(0.0, 1.0, 4), after_step=spoil)


@pytest.mark.parametrize("method", [EULER, HEUN, RK4, DOPRI5], ids=lambda method: method.name)
def test_gradients_flow_through_a_fixed_grid(method: Any) -> None:
    def end(y0: Tensor, rate: Tensor) -> Tensor:
        term = ODE(lambda t, y, r: r * t * y * (1 - y), (rate,))
        return solve(term, y0, method, linspace(1.0, 0.0, 4)).y

    generator = torch.Generator().manual_seed(0)
    y0, rate = torch.rand(2, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True).unbind()
    assert torch.autograd.gradcheck(end, (y0, rate))


def test_gradients_of_euler_equal_the_derivative_of_its_formula() -> None:
    rate, y0 = (torch.tensor([[v]], dtype=torch.float64, requires_grad=True) for v in (-0.7, 2.0))
    y = solve(ODE(lambda t, y: rate * y), y0, EULER, linspace(0.0, 2.0, 8)).y
    by_rate, by_start = torch.autograd.grad(y, (rate, y0))
    growth = 1 - 0.7 * 0.25
    assert float(by_rate) == pytest.approx(2.0 * 2.0 * growth**7, rel=1e-14)
    assert float(by_start) == pytest.approx(growth**8, rel=1e-14)


def test_gradients_flow_through_noisy_steps_and_saved_steps() -> None:
    noise = Normals(0, 2, (3,))

    def sde(y0: Tensor, scale: Tensor) -> Tensor:
        term = SDE(lambda t, y, s: -s * y * y, lambda t, y, s: s * y, noise="diagonal", args=(scale,))
        grid = linspace(0.0, 1.0, 3)
        return solve(term, y0, EULER_MARUYAMA, grid, noise=noise, save=SaveAt(steps=True)).ys

    def recursion(y0: Tensor, scale: Tensor) -> Tensor:
        term = Recursion(lambda t, y, s: s * y * y, lambda t, s: (s, t, s - t), args=(scale,))
        return solve(term, y0, RECURSION, linspace(1.0, 0.0, 3), noise=noise).y

    generator = torch.Generator().manual_seed(0)
    y0, scale = torch.rand(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True).unbind()
    assert torch.autograd.gradcheck(sde, (y0, scale))
    assert torch.autograd.gradcheck(recursion, (y0, scale))
