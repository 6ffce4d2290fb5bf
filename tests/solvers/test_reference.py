"""SciPy's and torchsde's solvers behind ``solve``: closed forms, both directions, failures, refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from problems import ALPHA
from torch import Tensor

from solvers import ODE, SDE, Adaptive, FixedGrid, Recursion, SaveAt, SolverError, Status, expand_like, solve
from solvers.reference import SCIPY_METHODS, SciPy, TorchSDE


def linspace(t0: float, t1: float, num_steps: int) -> FixedGrid:
    return FixedGrid(torch.linspace(t0, t1, num_steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("name", SCIPY_METHODS)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.2), (1.2, -0.3)])
def test_scipy_agrees_with_the_closed_form(name: str, t0: float, t1: float) -> None:
    calls: list[float] = []

    def field(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        calls.append(float(t))
        return -expand_like(rate, y) * t * y

    y0 = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(2, 3, 2, 1)
    rate = torch.tensor([0.5, 2.0], dtype=torch.float64)
    solution = solve(ODE(field, (rate,)), y0, SciPy(name), Adaptive(t0, t1, rtol=1e-7, atol=1e-7))
    exact = y0 * expand_like((-rate * (t1**2 - t0**2) / 2).exp(), y0)
    torch.testing.assert_close(solution.y, exact, rtol=0, atol=2e-5)
    assert solution.ts.tolist() == [t1]
    assert solution.stats.nfe.tolist() == [len(calls)] * 2
    assert solution.stats.num_steps[0] > 1
    assert min(t0, t1) <= min(calls) < max(calls) <= max(t0, t1)


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 3, 4)])
def test_scipy_keeps_the_shape_and_the_type_of_the_state(shape: tuple[int, ...]) -> None:
    types = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        types.append((y.dtype, tuple(y.shape), t.shape))
        return -y

    y = solve(ODE(field), torch.ones(shape), SciPy(), Adaptive(0.0, 1.0)).y
    assert set(types) == {(torch.float32, shape, ())}
    torch.testing.assert_close(y, torch.full(shape, math.exp(-1)), rtol=1e-4, atol=0)


def test_states_and_fields_may_carry_gradients_but_results_do_not() -> None:
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            return y * y0

    assert not solve(ODE(field), y0, SciPy(), Adaptive(0.0, 1.0)).y.requires_grad
    for name in ("euler", "milstein", "srk"):
        term = SDE(field, field, noise="diagonal")
        assert not solve(term, y0, TorchSDE(name), linspace(0.0, 1.0, 3)).y.requires_grad


@pytest.mark.parametrize("name", SCIPY_METHODS)
def test_scipy_takes_a_relative_tolerance_of_zero_and_a_first_step_of_any_length(name: str) -> None:
    y0, term = torch.ones(2, 1, dtype=torch.float64), ODE(lambda t, y: -0.1 * y)
    control = Adaptive(0.0, 1.0, rtol=0.0, atol=1e-4, first_step=5.0)
    torch.testing.assert_close(
        solve(term, y0, SciPy(name), control).y, y0 * math.exp(-0.1), rtol=0, atol=1e-2
    )


@pytest.mark.parametrize("name", SCIPY_METHODS)
def test_scipy_names_the_sample_whose_field_breaks(name: str) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where((torch.arange(4) == 2) & (t > 0.5), math.nan, -1.0)[:, None] * y

    with pytest.raises(
        SolverError, match=r"NONFINITE: the field became nan or inf at t = 0\.[5-9]"
    ) as caught:
        solve(ODE(field), torch.ones(4, 2, dtype=torch.float64), SciPy(name), Adaptive(0.0, 1.0))
    error = caught.value
    assert (error.status, error.samples) == (Status.NONFINITE, (2,))
    assert 0.5 < error.t < 1


def test_scipy_stops_at_max_steps_and_where_its_steps_vanish() -> None:
    y0 = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(SolverError, match="MAX_STEPS") as caught:
        solve(ODE(lambda t, y: -1e4 * y), y0, SciPy(), Adaptive(0.0, 1.0, max_steps=5))
    assert (caught.value.status, caught.value.samples) == (Status.MAX_STEPS, (0, 1))
    with pytest.raises(SolverError, match="STEP_UNDERFLOW") as caught:
        solve(ODE(lambda t, y: y * y), y0, SciPy(), Adaptive(0.0, 2.0))
    assert caught.value.t == pytest.approx(1.0, abs=1e-3)


def test_scipy_saves_a_function_of_the_end() -> None:
    save = SaveAt(function=lambda t, y: t + y.sum(1))
    solution = solve(ODE(lambda t, y: 0 * y), torch.ones(2, 3), SciPy(), Adaptive(0.0, 0.5), save=save)
    assert solution.ys.tolist() == [[3.5, 3.5]]


def ornstein_uhlenbeck(direction: float) -> SDE:
    """Reverts at unit rate, noise 1 + |t| / 2, in the direction of the run."""
    return SDE(lambda t, y: -direction * y, lambda t: 1 + t / 2)


def check_moments(x: Tensor, mean: float, variance: float) -> None:
    """Two-sided tests of the mean and the variance of normal samples, each at level ALPHA."""
    count = x.numel()
    z = (float(x.mean()) - mean) * math.sqrt(count / variance)
    assert abs(z) < scipy.stats.norm.isf(ALPHA / 2)
    ratio = float((x - mean).square().sum()) / variance
    assert scipy.stats.chi2.ppf(ALPHA / 2, count) < ratio < scipy.stats.chi2.isf(ALPHA / 2, count)


@pytest.mark.parametrize("name", ["euler", "milstein"])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_torchsde_has_the_moments_of_euler_maruyama(name: str, t0: float, t1: float) -> None:
    grid, direction = linspace(t0, t1, 10), math.copysign(1.0, t1 - t0)
    y0 = torch.full((500, 2, 4), 2.0, dtype=torch.float64)
    solution = solve(ornstein_uhlenbeck(direction), y0, TorchSDE(name, seed=1), grid)
    variance = 0.0
    for t in grid.ts[:-1].tolist():
        variance = 0.9**2 * variance + 0.1 * (1 + t / 2) ** 2
    check_moments(solution.y, 2 * 0.9**10, variance)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_torchsde_srk_has_the_moments_of_the_equation(t0: float, t1: float) -> None:
    y0 = torch.full((500, 2, 4), 2.0, dtype=torch.float64)
    direction = math.copysign(1.0, t1 - t0)
    solution = solve(ornstein_uhlenbeck(direction), y0, TorchSDE("srk", seed=1), linspace(t0, t1, 20))
    u = torch.linspace(0, 1, 20001, dtype=torch.float64)
    kernel = (-2 * (1 - u)).exp() * (1 + (t0 + direction * u) / 2).square()
    check_moments(solution.y, 2 * math.exp(-1), float(torch.trapezoid(kernel, u)))


@pytest.mark.parametrize("name", ["euler", "milstein", "srk"])
def test_torchsde_multiplies_diagonal_noise_and_passes_arguments_on(name: str) -> None:
    scale = torch.full((500,), 0.5, dtype=torch.float64)
    term = SDE(
        lambda t, y, s: 0.3 * y,
        lambda t, y, s: expand_like(s, y) * y,
        noise="diagonal",
        args=(scale,),
    )
    y = solve(term, torch.ones(500, 8, dtype=torch.float64), TorchSDE(name, seed=2), linspace(0.0, 1.0, 50)).y
    growth = 1.006**50 if name != "srk" else math.exp(0.3)
    spread = growth * math.sqrt(math.exp(0.25) - 1) / math.sqrt(y.numel())
    assert abs(float(y.mean()) - growth) < 1.1 * scipy.stats.norm.isf(ALPHA / 2) * spread


@pytest.mark.parametrize(("name", "per_step"), [("euler", 1), ("milstein", 1), ("srk", 10)])
@pytest.mark.parametrize("num_steps", [1, 7, 10, 49])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 1e-3)])
def test_torchsde_takes_the_steps_of_the_grid_and_its_evaluations_are_counted(
    name: str, per_step: int, num_steps: int, t0: float, t1: float
) -> None:
    """One evaluation more than the steps need: torchsde looks at the shapes first."""
    times: list[float] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        times.append(float(t))
        return -y

    term = SDE(field, lambda t: t)
    grid = linspace(t0, t1, num_steps)
    solution = solve(term, torch.ones(2, 3), TorchSDE(name), grid, save=SaveAt(steps=True))
    assert solution.stats.nfe.tolist() == [len(times)] * 2 == [1 + per_step * num_steps] * 2
    assert solution.stats.num_steps.tolist() == [num_steps] * 2
    assert min(t0, t1) <= min(times) <= max(times) <= max(t0, t1)
    assert solution.ys.shape == (num_steps + 1, 2, 3)
    assert solution.ys.dtype == torch.float32
    assert torch.equal(solution.ts, grid.ts)
    assert torch.equal(solution.ys[0], torch.ones(2, 3))


def test_torchsde_is_reproducible_by_its_seed() -> None:
    def run(seed: int) -> Tensor:
        return solve(ornstein_uhlenbeck(1.0), torch.ones(3), TorchSDE(seed=seed), linspace(0.0, 1.0, 3)).y

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_torchsde_reports_samples_that_are_not_finite() -> None:
    term = SDE(lambda t, y: torch.where(torch.arange(3) == 1, math.nan, y), lambda t: t)
    with pytest.raises(SolverError, match="NONFINITE: sample 1 of 3 failed"):
        solve(term, torch.ones(3), TorchSDE(), linspace(0.0, 1.0, 3))
    assert solve(term, torch.ones(3), TorchSDE(), linspace(0.0, 1.0, 3), throw=False).status.tolist() == [
        0,
        1,
        0,
    ]


@pytest.mark.parametrize("make", [lambda: SciPy("RK4"), lambda: SciPy("rk45"), lambda: TorchSDE("heun")])
def test_unknown_methods_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        make()


def test_a_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError):
        TorchSDE(seed=0.5)  # type: ignore[arg-type]


def never(*_: Tensor) -> Tensor:
    raise AssertionError("a refused problem must not be evaluated")


FLOW, NOISY, CHAIN = ODE(never), SDE(never, never), Recursion(never, never, noisy=False)
GRID, ADAPTIVE, STEPS = linspace(0.0, 1.0, 4), Adaptive(0.0, 1.0), SaveAt(steps=True)


@pytest.mark.parametrize(
    ("term", "method", "control", "options", "message"),
    [
        (NOISY, SciPy(), ADAPTIVE, {}, "scipy integrates an ODE, got SDE"),
        (CHAIN, SciPy(), ADAPTIVE, {}, "scipy integrates an ODE, got Recursion"),
        (FLOW, SciPy(), GRID, {}, "scipy chooses its own steps"),
        (FLOW, SciPy(), ADAPTIVE, {"save": STEPS}, "scipy chooses its own steps"),
        (FLOW, SciPy(), ADAPTIVE, {"after_step": never}, "after_step needs one of our own methods, got RK45"),
        (FLOW, TorchSDE(), GRID, {}, "torchsde integrates an SDE, got ODE"),
        (NOISY, TorchSDE(), ADAPTIVE, {}, "torchsde takes equal steps"),
        (NOISY, TorchSDE(), FixedGrid([0.0, 0.1, 1.0]), {}, "torchsde takes equal steps"),
        (
            NOISY,
            TorchSDE(),
            GRID,
            {"after_step": never},
            "after_step needs one of our own methods, got euler",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_first_evaluation(
    term: Any, method: Any, control: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        solve(term, torch.ones(2, 1), method, control, **options)
