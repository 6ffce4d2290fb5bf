"""Saving at requested times: dense output on fixed grids and per sample; memory; gradients; checkpoints."""

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.orders import registered
from solvers import (
    BOSH3,
    DOP853,
    DOPRI5,
    EULER,
    HEUN,
    ODE,
    SDE,
    SRA1,
    TSIT5,
    Adaptive,
    BrownianTree,
    FixedGrid,
    Method,
    Normals,
    RungeKutta,
    SaveAt,
    Status,
    expand_like,
    solve,
)

PAIRS = [method for method in registered() if isinstance(method, RungeKutta) and method.has_error]


def linspace(t0: float, t1: float, num_steps: int) -> FixedGrid:
    return FixedGrid(torch.linspace(t0, t1, num_steps + 1, dtype=torch.float64))


def rates(count: int = 7) -> Tensor:
    return torch.linspace(0.5, 30, count, dtype=torch.float64)[:, None]


def drift(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """y' = rate (cos t - y); only sums and products of the state."""
    return rate * (expand_like(t.cos(), y) - y)


def exact(times: Tensor, y0: Tensor, rate: Tensor, t0: float) -> Tensor:
    def particular(t: Tensor) -> Tensor:
        return rate / (1 + rate**2) * (rate * t.cos() + t.sin())

    start = torch.tensor(t0, dtype=torch.float64)
    return torch.stack([particular(t) + (y0 - particular(start)) * (-rate * (t - t0)).exp() for t in times])


@pytest.mark.parametrize("method", PAIRS, ids=lambda method: method.name)
def test_every_sample_is_interpolated_inside_its_own_steps(method: Method) -> None:
    rate = rates()
    y0 = torch.ones(7, 2, dtype=torch.float64)
    times = torch.linspace(0.0, 3.0, 41, dtype=torch.float64)
    control = Adaptive(0.0, 3.0, rtol=1e-6, atol=1e-6)
    solution = solve(ODE(drift, (rate,)), y0, method, control, save=SaveAt(times=times))
    plain = solve(ODE(drift, (rate,)), y0, method, control)
    assert torch.equal(solution.ts, times)
    assert solution.ys.shape == (41, 7, 2)
    assert torch.equal(solution.ys[0], y0)
    assert torch.equal(solution.y, plain.y)
    assert torch.equal(solution.stats.num_steps, plain.stats.num_steps)
    assert len(set(solution.stats.num_steps.tolist())) > 3
    error = (solution.ys - exact(times, y0, rate, 0.0)).abs()
    assert float(error.max()) < (1e-3 if method is DOP853 else 2e-4)
    extra = solution.stats.nfe - plain.stats.nfe
    assert (extra > 0).all() if method is DOP853 else not extra.any()
    for i in range(7):
        alone = solve(ODE(drift, (rate[i : i + 1],)), y0[:1], method, control, save=SaveAt(times=times))
        assert torch.equal(alone.ys[:, 0], solution.ys[:, i])
        assert int(alone.stats.nfe) == int(solution.stats.nfe[i])


@pytest.mark.parametrize("direction", [1, -1])
def test_dense_output_on_a_fixed_grid_has_the_order_of_the_method(direction: int) -> None:
    y0, end = torch.tensor([[0.3], [0.8]], dtype=torch.float64), 2.0 * direction
    times = torch.linspace(0, end, 31, dtype=torch.float64)
    truth = torch.stack([(y0.logit() + 2 * t.sin()).sigmoid() for t in times])
    term = ODE(lambda t, y: 2 * t.cos() * y * (1 - y))
    for method, sizes in ((BOSH3, (20, 80)), (DOPRI5, (20, 80)), (TSIT5, (20, 80)), (DOP853, (4, 12))):
        errors = [
            float((solve(term, y0, method, linspace(0, end, n), save=SaveAt(times=times)).ys - truth).norm())
            for n in sizes
        ]
        slope = math.log(errors[0] / errors[1]) / math.log(sizes[1] / sizes[0])
        assert abs(slope - method.order) < 0.5
        assert errors[1] < 2e-6


def test_times_on_the_grid_need_no_dense_output_and_take_the_states_as_they_are() -> None:
    grid, y0 = linspace(1.0, 0.0, 8), torch.ones(2, 1, dtype=torch.float64)
    term = ODE(lambda t, y: -t * y)
    everything = solve(term, y0, EULER, grid, save=SaveAt(steps=True))
    some = solve(term, y0, EULER, grid, save=SaveAt(times=grid.ts[[0, 3, 8]]))
    assert torch.equal(some.ys, everything.ys[[0, 3, 8]])
    assert torch.equal(some.ts, grid.ts[[0, 3, 8]])
    hooked = solve(term, y0, EULER, grid, save=SaveAt(times=[0.5]), after_step=lambda interval, y: 2 * y)
    assert torch.equal(hooked.y, 2**4 * everything.ys[4])


def test_a_function_of_the_state_is_kept() -> None:
    rate, y0 = rates(3), torch.ones(3, 2, dtype=torch.float64)
    for control in (linspace(0.0, 1.0, 40), Adaptive(0.0, 1.0)):
        plain = solve(ODE(drift, (rate,)), y0, DOPRI5, control, save=SaveAt(times=[0.3, 0.7]))
        save = SaveAt(times=[0.3, 0.7], function=lambda t, y: t * y.sum(1))
        reduced = solve(ODE(drift, (rate,)), y0, DOPRI5, control, save=save)
        torch.testing.assert_close(reduced.ys, plain.ys.sum(2) * plain.ts[:, None], rtol=0, atol=0)


def test_a_sample_that_never_comes_leaves_nan() -> None:
    wall = torch.tensor([[9.0], [0.5]], dtype=torch.float64)
    term = ODE(lambda t, y, wall: torch.where(t[:, None] > wall, torch.nan, -y), (wall,))
    save = SaveAt(times=[0.25, 0.75])
    solution = solve(
        term, torch.ones(2, 1, dtype=torch.float64), TSIT5, Adaptive(0, 1), save=save, throw=False
    )
    assert solution.status.tolist() == [Status.SUCCESS, Status.NONFINITE]
    assert solution.ys.isnan().flatten(1).tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("save", "match"),
    [
        (lambda: SaveAt(times=[]), "strictly increase or decrease"),
        (lambda: SaveAt(times=[0.1, 0.1]), "strictly increase or decrease"),
        (lambda: SaveAt(times=[0.1, 0.3, 0.2]), "strictly increase or decrease"),
        (lambda: SaveAt(times=[math.nan]), "must be finite"),
        (lambda: SaveAt(steps=True, times=[0.1]), "leave one out"),
    ],
)
def test_bad_times_are_refused(save: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        save()


@pytest.mark.parametrize(
    ("method", "times", "hook", "match"),
    [
        (DOPRI5, [1.5], None, "times must run from 0.0 to 1.0"),
        (DOPRI5, [-0.1], None, "times must run from 0.0 to 1.0"),
        (DOPRI5, [0.8, 0.2], None, "times must run from 0.0 to 1.0"),
        (HEUN, [0.3], None, "no dense output"),
        (DOPRI5, [0.3], lambda interval, y: y, "save times of the grid"),
    ],
)
def test_times_that_do_not_fit_the_run_are_refused(method: Any, times: Any, hook: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solve(
            ODE(lambda t, y: y), torch.ones(1, 1), method, linspace(0, 1, 4), save=SaveAt(times=times),
            after_step=hook,
        )  # fmt: skip


@pytest.mark.parametrize("control", [linspace(0.0, 1.0, 300), Adaptive(0.0, 1.0, rtol=1e-11, atol=1e-11)])
@torch.no_grad()
def test_memory_does_not_grow_with_the_steps_when_the_end_is_saved(control: Any) -> None:
    states: list[weakref.ref[Tensor]] = []
    alive = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        dy = (8 * expand_like(t, y)).cos() * y
        states.extend((weakref.ref(y), weakref.ref(dy)))
        alive.append(sum(ref() is not None for ref in states))
        return dy

    solve(ODE(field), torch.ones(2, 3, dtype=torch.float64), DOPRI5, control)
    assert len(alive) > 300
    assert max(alive[150:]) <= max(alive[:30])


@pytest.mark.parametrize("method", PAIRS, ids=lambda method: method.name)
def test_adaptive_gradients_are_those_of_the_same_steps_on_a_fixed_grid(method: Method) -> None:
    times: list[float] = []
    rate = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[0.3, 0.8]], dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        times.append(float(t))
        return drift(t, y, rate) * (1 + y)

    control = Adaptive(0.0, 1.0, rtol=1e-5, atol=1e-5, first_step=1e-3)
    solution = solve(ODE(field, (rate,)), y0, method, control)
    assert not solution.stats.num_rejected.any()
    steps = [0.0, *times[method.nfe_per_step :: method.nfe_per_step]]
    again = solve(ODE(field, (rate,)), y0, method, FixedGrid(steps)).y
    torch.testing.assert_close(again, solution.y, rtol=1e-12, atol=0)
    found, expected = (torch.autograd.grad(y.square().sum(), (rate, y0)) for y in (solution.y, again))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_rejected_steps_leave_no_trace_in_the_gradients() -> None:
    """Steps into y < 0 give nan; they are rejected, and 0 * nan must not reach the gradients."""
    power = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0], [4.0]], dtype=torch.float64, requires_grad=True)
    term = ODE(lambda t, y: -2 * y.pow(power))
    control = Adaptive(0.0, 0.9, rtol=1e-8, atol=1e-8, first_step=0.9)
    solution = solve(term, y0, DOPRI5, control)
    assert bool(solution.stats.num_rejected.all())
    gradient, of_power = torch.autograd.grad(solution.y.sum(), (y0, power))
    torch.testing.assert_close(gradient, (1 - 0.9 / y0.detach().sqrt()), rtol=1e-6, atol=0)
    assert bool(of_power.isfinite())


def test_gradients_flow_through_interpolated_states() -> None:
    y0 = torch.tensor([[0.3], [0.8]], dtype=torch.float64, requires_grad=True)
    term = ODE(lambda t, y: expand_like(2 * t.cos(), y) * y * (1 - y))
    for control in (Adaptive(0.0, 2.0, rtol=1e-8, atol=1e-8), linspace(0.0, 2.0, 60)):
        ys = solve(term, y0, DOPRI5, control, save=SaveAt(times=[0.0, 0.7, 1.3])).ys
        truth = torch.stack([(y0.logit() + 2 * math.sin(t)).sigmoid() for t in (0.0, 0.7, 1.3)])
        for state, expected in zip(ys, truth, strict=True):
            found, wanted = (
                torch.autograd.grad(y.sum(), y0, retain_graph=True)[0] for y in (state, expected)
            )
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def packed(checkpoint: bool, num_steps: int) -> tuple[int, Tensor]:
    """Tensors that autograd keeps outside checkpoints, and the gradient."""
    count = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x

    y0 = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)[:, None].requires_grad_()
    term = ODE(lambda t, y: ((3 * t * y).sin() * y).tanh())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = solve(term, y0, DOPRI5, linspace(0.0, 1.0, num_steps), checkpoint=checkpoint).y
    return count, torch.autograd.grad(y.sum(), y0)[0]


def test_checkpoints_keep_the_gradients_and_drop_what_the_steps_would_store() -> None:
    (plain, expected), (few, found) = packed(False, 12), packed(True, 12)
    assert torch.equal(found, expected)
    assert plain > 12 * 20
    assert few <= 3 * 12


def test_checkpoints_are_for_fixed_grids() -> None:
    with pytest.raises(ValueError, match="repeats the steps of a FixedGrid"):
        solve(ODE(lambda t, y: y), torch.ones(1, 1), DOPRI5, Adaptive(0, 1), checkpoint=True)


NOISY = SDE(lambda t, y: -expand_like(1 + t, y) * y, lambda t: 0.3 + t)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_every_step_of_an_adaptive_run_is_kept_at_its_own_time(t0: float, t1: float) -> None:
    rate, y0 = rates(5), torch.ones(5, 2, dtype=torch.float64)
    control = Adaptive(t0, t1, rtol=1e-5, atol=1e-5)
    term = ODE(lambda t, y, rate: (t1 - t0) * drift(t, y, rate), (rate,))
    end = solve(term, y0, DOPRI5, control)
    solution = solve(term, y0, DOPRI5, control, save=SaveAt(steps=True))
    count = int(end.stats.num_steps.max()) + 1
    assert solution.ts.shape == (count, 5)
    assert solution.ys.shape == (count, 5, 2)
    assert torch.equal(solution.y, end.y)
    assert torch.equal(solution.ts[0], torch.full((5,), t0, dtype=torch.float64))
    assert torch.equal(solution.ts[-1], torch.full((5,), t1, dtype=torch.float64))
    for i, steps in enumerate(end.stats.num_steps.tolist()):
        alone = solve(
            ODE(term.drift, (rate[i : i + 1],)), y0[i : i + 1], DOPRI5, control, save=SaveAt(steps=True)
        )
        assert torch.equal(alone.ts[:, 0], solution.ts[: steps + 1, i])
        assert torch.equal(alone.ys[:, 0], solution.ys[: steps + 1, i])
        assert ((alone.ts[:, 0].diff() * (t1 - t0)) > 0).all()
        # what comes after a sample's last step repeats it
        assert torch.equal(solution.ts[steps:, i], torch.full((count - steps,), t1, dtype=torch.float64))
        assert torch.equal(solution.ys[steps:, i], solution.y[i].expand(count - steps, 2))
        # and each step is the method's own
        grid = FixedGrid(alone.ts[:, 0])
        again = solve(
            ODE(term.drift, (rate[i : i + 1],)), y0[i : i + 1], DOPRI5, grid, save=SaveAt(steps=True)
        )
        torch.testing.assert_close(again.ys, alone.ys, rtol=1e-12, atol=1e-12)


def test_every_step_of_an_adaptive_sde_run_lies_on_the_path() -> None:
    y0, normals = torch.zeros(4, 3, dtype=torch.float64), Normals(3, 4, (3,))
    walk = SDE(lambda t, y: 0 * y, lambda t: torch.ones_like(t))
    control = Adaptive(0.0, 1.0, rtol=1e-2, atol=1e-2, first_step=0.1)
    solution = solve(walk, y0, SRA1, control, noise=normals, save=SaveAt(steps=True))
    tree = BrownianTree(0.0, 1.0, normals)
    for t, y in list(zip(solution.ts, solution.ys, strict=True))[1:]:
        torch.testing.assert_close(y, tree(torch.zeros_like(t), t)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("ends", [True, False])
def test_steps_end_at_requested_times_without_dense_output(t0: float, t1: float, ends: bool) -> None:
    inner = [0.1, 0.123456789, 0.5, 0.9] if t1 > t0 else [0.9, 0.5, 0.123456789, 0.1]
    times = [t0, *inner, t1] if ends else inner
    y0, normals = torch.ones(6, 2, dtype=torch.float64), Normals(3, 6, (2,))
    control = Adaptive(t0, t1, rtol=1e-3, atol=1e-3)
    solution = solve(NOISY, y0, SRA1, control, noise=normals, save=SaveAt(times=times))
    assert solution.ts.tolist() == times
    assert solution.ys.shape == (len(times), 6, 2)
    assert not solution.status.any()
    fine = FixedGrid(sorted({*times, *torch.linspace(0, 1, 513).tolist()}, reverse=t1 < t0))
    tree = BrownianTree(t0, t1, normals)
    exact = solve(NOISY, y0, SRA1, fine, noise=tree, save=SaveAt(times=times)).ys
    assert float((solution.ys - exact).abs().max()) < 0.02
    alone = solve(NOISY, y0[2:3], SRA1, control, noise=Normals(3, [2], (2,)), save=SaveAt(times=times))
    assert torch.equal(alone.ys[:, 0], solution.ys[:, 2])


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 3.0), (3.0, 0.0)])
def test_a_step_cut_at_a_requested_time_does_not_make_those_after_it_short(t0: float, t1: float) -> None:
    method = replace(DOPRI5, dense=None)
    times = torch.linspace(t0, t1, 4, dtype=torch.float64)[1:-1] + 1e-6
    rate, y0 = rates(3), torch.ones(3, 2, dtype=torch.float64)
    term = ODE(lambda t, y, rate: math.copysign(1, t1 - t0) * drift(t, y, rate), (rate,))
    control = Adaptive(t0, t1, rtol=1e-6, atol=1e-6)
    cut, plain = (solve(term, y0, method, control, save=save) for save in (SaveAt(times=times), SaveAt()))
    assert (cut.stats.num_steps <= plain.stats.num_steps + 2 * len(times)).all()
    dense = solve(term, y0, DOPRI5, control, save=SaveAt(times=times))
    torch.testing.assert_close(cut.ys, dense.ys, rtol=1e-4, atol=1e-4)


def test_a_failed_sample_has_nan_at_times_it_never_came_to() -> None:
    def field(t: Tensor, y: Tensor, last: Tensor) -> Tensor:
        return torch.where((t > last)[:, None], math.nan, -y)

    last, y0 = torch.tensor([2.0, 0.55, 2.0]), torch.ones(3, 1, dtype=torch.float64)
    save = SaveAt(times=[0.25, 0.5, 0.75, 1.0])
    control = Adaptive(0.0, 1.0, first_step=0.01, rtol=1e-6, atol=1e-6)
    solution = solve(ODE(field, (last,)), y0, DOPRI5, control, save=save, throw=False)
    assert solution.status.tolist() == [Status.SUCCESS, Status.NONFINITE, Status.SUCCESS]
    assert solution.ys[:, 1, 0].isfinite().tolist() == [True, True, False, False]
    assert solution.ys[:, [0, 2]].isfinite().all()
