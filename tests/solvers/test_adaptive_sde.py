"""Adaptive SDE runs: the output law after rejections, the same bits alone and in company, named failures."""

import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from problems import ALPHA
from torch import Tensor

from solvers import (
    DOPRI5,
    EULER_MARUYAMA,
    ODE,
    SDE,
    SHARK,
    SOSRA,
    SRA1,
    STOCHASTIC_HEUN,
    Adaptive,
    AdditiveRungeKutta,
    BrownianTree,
    FixedGrid,
    Interval,
    Normals,
    SaveAt,
    SolverError,
    Status,
    solve,
)
from solvers.brownian import AREA, STEPS

FLOAT64 = torch.float64
PAIRS = [STOCHASTIC_HEUN, SRA1, SHARK, SOSRA]
DATA_VARIANCE, T_MIN = 0.25, 1e-3
PRIOR = 1


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=FLOAT64)


def rate(t: Tensor) -> Tensor:
    """beta(t) of the variance-preserving process."""
    return 0.1 + 19.9 * t


def variance(t: Tensor) -> Tensor:
    """Variance of x_t, for x_0 from N(0, DATA_VARIANCE)."""
    decay = (-(0.1 * t + 9.95 * t.square())).exp()
    return 1 + (DATA_VARIANCE - 1) * decay


def across(c: Tensor, x: Tensor) -> Tensor:
    return c if c.ndim == 0 else c.reshape(-1, *[1] * (x.ndim - 1))


REVERSE = SDE(lambda t, x: across(rate(t) / variance(t) - rate(t) / 2, x) * x, lambda t: rate(t).sqrt())
"""Anderson's reverse SDE, run from 1 down to T_MIN."""

CONTROL_STEPS = 128


class Impulses:
    """Unit impulses: row 0 in the start, then one row per draw of W, then one per area."""

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        z = torch.zeros(1 + 2 * CONTROL_STEPS, 1, dtype=FLOAT64)
        z[1 + index + (CONTROL_STEPS if stream == AREA else 0)] = 1
        return z


def output_variance(method: AdditiveRungeKutta, tolerance: float, count: int) -> tuple[float, float, float]:
    """Variance at T_MIN relative to the truth, less 1, its standard error, and rejections per sample.

    A run on a fixed grid on the same paths, whose variance is known exactly from its response to impulses,
    serves as control variate.
    """
    normals = Normals(0, count, (1,))
    x = normals.draw(0, PRIOR) * math.sqrt(variance(tensor(1.0)))
    solution = solve(REVERSE, x, method, Adaptive(1.0, T_MIN, rtol=tolerance, atol=tolerance), noise=normals)
    k = torch.arange(CONTROL_STEPS, -1, -1, dtype=FLOAT64) / CONTROL_STEPS
    grid = FixedGrid(1 + (T_MIN - 1) * (1 - k.square()))
    control = solve(REVERSE, x, SHARK, grid, noise=BrownianTree(1.0, T_MIN, normals)).y
    start = torch.zeros(1 + 2 * CONTROL_STEPS, 1, dtype=FLOAT64)
    start[0] = math.sqrt(variance(tensor(1.0)))
    expected = float(solve(REVERSE, start, SHARK, grid, noise=Impulses()).y.square().sum())
    difference = (solution.y.square() - control.square()).flatten()
    truth = float(variance(tensor(T_MIN)))
    error = float(difference.std()) / math.sqrt(count)
    found = expected + float(difference.mean())
    return found / truth - 1, error / truth, float(solution.stats.num_rejected.double().mean())


def deviates(bias: float, error: float) -> bool:
    """Whether a relative error is beyond one per cent and what sampling explains."""
    return abs(bias) > 0.01 + scipy.stats.norm.isf(ALPHA / 2) * error


@pytest.fixture
def redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt of a step gets new normals: the rule that changes the law."""
    generator = torch.Generator().manual_seed(0)

    def fresh(tree: BrownianTree, interval: Interval) -> tuple[Tensor, Tensor]:
        if interval.t.ndim == 0:  # the control variate keeps its path
            return original(tree, interval)
        shape = (2, tree.normals.samples.numel(), *tree.normals.event_shape)
        w, area = torch.randn(shape, generator=generator, dtype=FLOAT64)
        return w, area

    original = BrownianTree.increment_and_area
    monkeypatch.setattr(BrownianTree, "increment_and_area", fresh)
    monkeypatch.setattr(BrownianTree, "increment", lambda tree, interval: fresh(tree, interval)[0])


CASES = [
    pytest.param(method, tolerance, id=f"{method.name}-{tolerance}", marks=marks)
    for method in PAIRS
    for tolerance in (0.05, 0.01, 0.003)
    for marks in (
        []
        if (method.name, tolerance) in (("stochastic_heun", 0.05), ("shark", 0.01))
        else [pytest.mark.slow],
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "tolerance"), CASES)
def test_rejections_leave_the_output_law_alone(method: AdditiveRungeKutta, tolerance: float) -> None:
    bias, error, rejected = output_variance(method, tolerance, 1500)
    assert rejected > 3
    assert error < 0.005
    assert not deviates(bias, error)


@pytest.mark.usefixtures("redrawn")
@pytest.mark.parametrize(
    "method",
    [STOCHASTIC_HEUN, *(pytest.param(m, marks=pytest.mark.slow) for m in (SRA1, SHARK, SOSRA))],
    ids=lambda method: method.name,
)
def test_redrawing_after_a_rejection_is_noticed(method: AdditiveRungeKutta) -> None:
    bias, error, rejected = output_variance(method, 0.01, 5000 if method is STOCHASTIC_HEUN else 10_000)
    assert rejected > 3
    assert deviates(bias, error)
    assert bias > 0


def stiff(count: int, event_shape: tuple[int, ...] = (2,)) -> tuple[SDE, Tensor]:
    """Relaxation at rates from 1 to 40 towards a moving point, with noise; row by row."""
    rates = torch.logspace(0, 1.6, count, dtype=FLOAT64)[
        torch.randperm(count, generator=torch.Generator().manual_seed(0))
    ]

    def drift(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return -k * (y - across((3 * t).sin(), y)) + 5 * (3 * y).sin()

    k = rates.reshape(-1, *[1] * len(event_shape))
    return SDE(drift, lambda t: 2 - t, args=(k,)), torch.ones(count, *event_shape, dtype=FLOAT64)


@pytest.mark.parametrize("event_shape", [(), (2,), (1, 2, 2)])
@pytest.mark.parametrize("method", [STOCHASTIC_HEUN, SHARK], ids=lambda method: method.name)
def test_a_sample_alone_equals_the_same_in_a_batch_of_mixed_difficulty(
    method: AdditiveRungeKutta, event_shape: tuple[int, ...]
) -> None:
    count = 64
    term, y0 = stiff(count, event_shape)
    control = Adaptive(1.0, 0.0, rtol=0.1, atol=0.1, safety=0.95)  # steps so long that many are rejected
    whole = solve(term, y0, method, control, noise=Normals(3, count, event_shape))
    assert int(whole.stats.num_steps.max()) > 3 * int(whole.stats.num_steps.min())
    assert int((whole.stats.num_rejected > 0).sum()) > count // 5
    some = (0, int(whole.stats.num_steps.argmax()), int(whole.stats.num_rejected.argmax()))
    for i in range(count) if event_shape == (2,) and method is SHARK else some:
        alone_term = SDE(term.drift, term.diffusion, args=(term.args[0][i : i + 1],))
        alone = solve(alone_term, y0[i : i + 1], method, control, noise=Normals(3, [i], event_shape))
        assert torch.equal(alone.y[0], whole.y[i])
        for name in ("nfe", "num_steps", "num_rejected"):
            assert int(getattr(alone.stats, name)) == int(getattr(whole.stats, name)[i])


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("method", PAIRS, ids=lambda method: method.name)
def test_the_error_on_a_path_follows_the_tolerance(method: AdditiveRungeKutta, t0: float, t1: float) -> None:
    term, y0 = (
        SDE(lambda t, y: (t1 - t0) * (y.cos() - y), lambda t: 0.5 + t),
        torch.ones(256, 1, dtype=FLOAT64),
    )
    normals = Normals(2, 256, (1,))
    fine = FixedGrid(torch.linspace(t0, t1, 257, dtype=FLOAT64))
    exact = solve(term, y0, SRA1, fine, noise=BrownianTree(t0, t1, normals)).y
    errors = []
    for tolerance in (1e-1, 1e-2):
        control = Adaptive(t0, t1, rtol=tolerance, atol=tolerance)
        y = solve(term, y0, method, control, noise=normals).y
        errors.append(float((y - exact).square().mean().sqrt()))
    assert errors[0] < (0.1 if method.strong_order == 1.5 else 0.3)
    assert errors[1] < errors[0] * 10 ** (0.3 - method.strong_order / 1.5)


def test_a_path_of_ones_own_gives_the_same_run() -> None:
    term, y0 = stiff(4)
    control, normals = Adaptive(1.0, 0.0, rtol=0.1, atol=0.1), Normals(3, 4, (2,))
    expected = solve(term, y0, SHARK, control, noise=normals).y
    assert torch.equal(solve(term, y0, SHARK, control, noise=BrownianTree(1.0, 0.0, normals)).y, expected)


def test_float32_states_stay_float32() -> None:
    term = SDE(lambda t, y: -y, lambda t: 1 + t)
    normals = Normals(3, 4, (2,), torch.float32)
    y = solve(term, torch.ones(4, 2), SHARK, Adaptive(1.0, 0.0, rtol=0.1, atol=0.1), noise=normals).y
    assert y.dtype == torch.float32
    double = solve(
        term,
        torch.ones(4, 2, dtype=FLOAT64),
        SHARK,
        Adaptive(1.0, 0.0, rtol=0.1, atol=0.1),
        noise=Normals(3, 4, (2,)),
    ).y
    torch.testing.assert_close(y.double(), double, rtol=1e-4, atol=1e-4)


def test_the_field_never_sees_a_time_outside_the_run() -> None:
    seen: list[Tensor] = []

    def drift(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t)
        return -20 * y

    def diffusion(t: Tensor) -> Tensor:
        seen.append(t)
        return 1 + t

    solve(
        SDE(drift, diffusion),
        torch.ones(8, 1, dtype=FLOAT64),
        SOSRA,
        Adaptive(0.9, 0.1, rtol=0.1, atol=0.1),
        noise=Normals(0, 8, (1,)),
    )
    times = torch.cat([t.flatten() for t in seen])
    assert float(times.min()) == 0.1
    assert float(times.max()) == 0.9


def broken(cause: Callable[[Tensor, Tensor], Tensor]) -> tuple[SDE, SDE, Tensor]:
    """The clean equation, the same with a cause of failure in sample 5 of 16, and a start."""
    flag = (torch.arange(16) == 5)[:, None]

    def clean(t: Tensor, y: Tensor, flag: Tensor) -> Tensor:
        return -3 * y + 0 * across(t, y)

    def faulty(t: Tensor, y: Tensor, flag: Tensor) -> Tensor:
        return torch.where(flag, cause(across(t, y), y), clean(t, y, flag))

    terms = (SDE(f, lambda t: 1 + t, args=(flag,)) for f in (clean, faulty))
    return (*terms, torch.ones(16, 2, dtype=FLOAT64))


FAILURES = {
    Status.NONFINITE: lambda t, y: torch.where(t < 0.4, math.nan, -y),
    Status.STEP_UNDERFLOW: lambda t, y: torch.where(t < 0.5, 1e20 * (1e15 * t).sin() * (1 + y.abs()), -y),
    Status.MAX_STEPS: lambda t, y: 1e4 * (t - y),
}


@pytest.mark.parametrize("status", FAILURES, ids=lambda status: status.name)
def test_a_failing_sample_is_named_and_leaves_the_others_alone(status: Status) -> None:
    clean, faulty, y0 = broken(FAILURES[status])
    control = Adaptive(1.0, 0.0, rtol=0.05, atol=0.05, max_steps=150)
    expected = solve(clean, y0, SHARK, control, noise=Normals(0, 16, (2,)))
    found = solve(faulty, y0, SHARK, control, noise=Normals(0, 16, (2,)), throw=False)
    others = torch.arange(16) != 5
    assert found.status.tolist() == [int(status) if i == 5 else 0 for i in range(16)]
    assert torch.equal(found.y[others], expected.y[others])
    assert torch.equal(found.stats.num_steps[others], expected.stats.num_steps[others])
    with pytest.raises(SolverError, match=f"{status.name}: sample 5 of 16 failed at t = ") as caught:
        solve(faulty, y0, SHARK, control, noise=Normals(0, 16, (2,)))
    assert caught.value.samples == (5,)
    if status != Status.MAX_STEPS:
        assert caught.value.t == pytest.approx(0.4 if status == Status.NONFINITE else 0.5, abs=0.05)


class Source:
    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        return torch.zeros(2, 1, dtype=FLOAT64)


def test_what_does_not_fit_together_is_refused() -> None:
    y0, control = torch.ones(2, 1, dtype=FLOAT64), Adaptive(1.0, 0.0)
    additive = SDE(lambda t, y: -y, lambda t: t)
    diagonal = SDE(lambda t, y: -y, lambda t, y: t * y, noise="diagonal")
    normals = Normals(0, 2, (1,))
    with pytest.raises(
        TypeError, match="a path that can be queried again, a BrownianTree or Normals, got Source"
    ):
        solve(additive, y0, SHARK, control, noise=Source())
    with pytest.raises(ValueError, match=r"the path must span the run from 1\.0 to 0\.0, got one from 0\.0"):
        solve(additive, y0, SHARK, control, noise=BrownianTree(0.0, 1.0, normals))
    with pytest.raises(ValueError, match="needs noise="):
        solve(additive, y0, SHARK, control)
    with pytest.raises(ValueError, match="shark takes additive noise, got diagonal"):
        solve(diagonal, y0, SHARK, control, noise=normals)
    with pytest.raises(ValueError, match="euler_maruyama has no error estimate"):
        solve(additive, y0, EULER_MARUYAMA, control, noise=normals)
    plain = solve(ODE(lambda t, y: -y), y0, DOPRI5, control, noise=normals).y
    assert torch.equal(plain, solve(ODE(lambda t, y: -y), y0, DOPRI5, control).y)


def test_gradients_flow_through_the_accepted_steps() -> None:
    """They are near those of the exact solution on the same path, found by differences of a fine run."""
    term = SDE(lambda t, y: y.cos() - y, lambda t: 1 + t)
    normals, y0 = Normals(2, 8, (1,)), torch.linspace(-1, 1, 8, dtype=FLOAT64)[:, None].requires_grad_()
    control = Adaptive(0.0, 1.0, rtol=1e-2, atol=1e-2)
    (found,) = torch.autograd.grad(solve(term, y0, SHARK, control, noise=normals).y.sum(), y0)
    fine = FixedGrid(torch.linspace(0, 1, 257, dtype=FLOAT64))
    low, high = (
        solve(term, y0.detach() + d, SRA1, fine, noise=BrownianTree(0.0, 1.0, normals)).y
        for d in (-1e-5, 1e-5)
    )
    torch.testing.assert_close(found, (high - low) / 2e-5, rtol=0, atol=0.01)


def test_a_rejected_step_that_broke_leaves_the_gradients_finite() -> None:
    def drift(t: Tensor, y: Tensor) -> Tensor:
        return -y + torch.where(y.abs() > 30, torch.inf, 0.0) * y

    term, y0 = SDE(drift, lambda t: 100 * (1 - t)), torch.ones(4, 1, dtype=FLOAT64, requires_grad=True)
    control = Adaptive(0.0, 1.0, rtol=0.1, atol=0.1, first_step=0.9)
    solution = solve(term, y0, STOCHASTIC_HEUN, control, noise=Normals(2, 4, (1,)), throw=False)
    reached = solution.status == int(Status.SUCCESS)
    assert int(solution.stats.num_rejected.min()) > 0
    (found,) = torch.autograd.grad(solution.y[reached].sum(), y0)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("offset", [-0.4, 0.4, 0.6])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_step_that_ends_a_fraction_of_a_tick_from_a_requested_time_reaches_it(
    t0: float, t1: float, offset: float
) -> None:
    normals, step = Normals(3, 4, (2,)), 2.0**-12
    tree = BrownianTree(t0, t1, normals)
    time = t0 + (t1 - t0) * (step + offset * tree.tick)
    walk = SDE(lambda t, y: 0 * y, lambda t: torch.ones_like(t))
    control = Adaptive(t0, t1, rtol=0.1, atol=0.1, first_step=step)
    y0 = torch.zeros(4, 2, dtype=FLOAT64)
    solution = solve(walk, y0, SRA1, control, noise=tree, save=SaveAt(times=[time]))
    expected = tree(tensor(t0).squeeze(), tensor(time).squeeze())[0]
    torch.testing.assert_close(solution.ys[0], expected, rtol=0, atol=1e-9)
