"""SciPy's and torchsde's solvers behind ``solve``: closed forms, both directions, failures, refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from problems import ALPHA
from torch import Tensor

from solvers import (
    EULER_MARUYAMA,
    MILSTEIN,
    ODE,
    SDE,
    SRA1,
    Adaptive,
    BrownianTree,
    FixedGrid,
    Normals,
    Recursion,
    SaveAt,
    SolverError,
    Status,
    StepNormals,
    expand_like,
    solve,
)
from solvers.reference import SCIPY_METHODS, TORCHSDE_METHODS, SciPy, TorchSDE


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
        SolverError, match=r"NONFINITE: sample 2 failed at t = 0\.[5-9].*: the field became nan or inf"
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


@pytest.mark.parametrize("name", SCIPY_METHODS)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, -0.5)])
def test_scipy_saves_requested_times_and_every_step(name: str, t0: float, t1: float) -> None:
    y0 = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    term, control = ODE(lambda t, y: -2 * y), Adaptive(t0, t1, rtol=1e-8, atol=1e-8)
    times = torch.linspace(t0, t1, 6, dtype=torch.float64)
    for wanted in (times, times[1:-1]):
        solution = solve(term, y0, SciPy(name), control, save=SaveAt(times=wanted))
        assert torch.equal(solution.ts, wanted)
        exact = torch.stack([y0 * torch.exp(-2 * (t - t0)) for t in wanted])
        torch.testing.assert_close(solution.ys, exact, rtol=0, atol=2e-5)
    steps = solve(term, y0, SciPy(name), control, save=SaveAt(steps=True))
    assert len(steps.ts) == len(steps.ys) == int(steps.stats.num_steps[0]) + 1
    assert (float(steps.ts[0]), float(steps.ts[-1])) == (t0, t1)
    torch.testing.assert_close(steps.y, solve(term, y0, SciPy(name), control).y, rtol=0, atol=0)


def test_scipy_hands_over_what_it_has_when_it_breaks_off() -> None:
    y0, save = torch.ones(2, 1, dtype=torch.float64), SaveAt(times=[0.5, 1.5])
    solution = solve(ODE(lambda t, y: y * y), y0, SciPy(), Adaptive(0.0, 2.0), save=save, throw=False)
    assert solution.status.tolist() == [Status.STEP_UNDERFLOW] * 2
    torch.testing.assert_close(solution.ys[0], 2 * y0, rtol=1e-3, atol=0)
    assert solution.ys[1].isnan().all()
    broken = ODE(lambda t, y: torch.where(t > 0.5, math.nan, -y))
    solution = solve(broken, y0, SciPy(), Adaptive(0.0, 2.0), throw=False)
    assert solution.status.tolist() == [Status.NONFINITE] * 2
    assert solution.y.isfinite().all()
    with pytest.raises(SolverError) as caught:
        solve(broken, y0, SciPy(), Adaptive(0.0, 2.0))
    assert torch.equal(caught.value.solution.y, solution.y)


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


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 2)])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_torchsde_on_our_path_takes_our_steps(shape: tuple[int, ...], t0: float, t1: float) -> None:
    term = SDE(lambda t, y: (t1 - t0) * y.sin(), lambda t, y: 0.3 + 0.1 * y.cos(), noise="diagonal")
    y0, tree = torch.ones(4, *shape, dtype=torch.float64), BrownianTree(t0, t1, Normals(5, 4, shape))
    for name, method in (("euler", EULER_MARUYAMA), ("milstein", MILSTEIN)):
        theirs = solve(term, y0, TorchSDE(name), linspace(t0, t1, 16), noise=tree)
        ours = solve(term, y0, method, linspace(t0, t1, 16), noise=tree)
        torch.testing.assert_close(theirs.y, ours.y, rtol=0, atol=1e-7)
    additive = SDE(term.drift, lambda t: 1 + t)
    theirs = solve(additive, y0, TorchSDE("srk"), linspace(t0, t1, 64), noise=tree)
    ours = solve(additive, y0, SRA1, linspace(t0, t1, 64), noise=tree)
    torch.testing.assert_close(theirs.y, ours.y, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", [n for n, (calculus, _) in TORCHSDE_METHODS.items() if calculus != "ito"])
@pytest.mark.parametrize("noise", ["additive", "diagonal"])
def test_stratonovich_methods_solve_the_same_ito_equation(name: str, noise: str) -> None:
    diffusion = (lambda t: 0.5 + t) if noise == "additive" else (lambda t, y: 0.5 * y)
    term = SDE(lambda t, y: -y, diffusion, noise=noise)  # type: ignore[arg-type]
    y0, tree = torch.ones(64, 2, dtype=torch.float64), BrownianTree(0.0, 1.0, Normals(5, 64, (2,)))
    if name == "log_ode":  # it draws areas of its own: compare the law
        y0 = torch.ones(2000, 2, dtype=torch.float64)
        y = solve(term, y0, TorchSDE(name, seed=3), linspace(0.0, 1.0, 32)).y
        mean = math.exp(-1.0)
        spread = float(y.std()) / math.sqrt(y.numel())
        assert abs(float(y.mean()) - mean) < scipy.stats.norm.isf(ALPHA / 2) * spread + 0.01
        return
    theirs = solve(term, y0, TorchSDE(name), linspace(0.0, 1.0, 256), noise=tree)
    ours = solve(term, y0, MILSTEIN, linspace(0.0, 1.0, 256), noise=tree)
    assert float((theirs.y - ours.y).square().mean().sqrt()) < 5e-3


def test_torchsde_saves_times_of_its_grid() -> None:
    walk, y0 = SDE(lambda t, y: 0 * y, lambda t: torch.ones_like(t)), torch.zeros(3, 2, dtype=torch.float64)
    tree = BrownianTree(0.0, 1.0, Normals(5, 3, (2,)))
    solution = solve(walk, y0, TorchSDE(), linspace(0.0, 1.0, 4), noise=tree, save=SaveAt(times=[0.25, 1.0]))
    assert solution.ts.tolist() == [0.25, 1.0]
    for t, y in zip(solution.ts, solution.ys, strict=True):
        torch.testing.assert_close(y, tree(torch.tensor(0.0), t)[0], rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("make", [lambda: SciPy("RK4"), lambda: SciPy("rk45"), lambda: TorchSDE("rk4")])
def test_unknown_methods_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        make()


def test_a_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError):
        TorchSDE(seed=0.5)  # type: ignore[arg-type]


def never(*_: Tensor) -> Tensor:
    raise AssertionError("a refused problem must not be evaluated")


FLOW, NOISY, CHAIN = ODE(never), SDE(never, never), Recursion(never, never, noisy=False)
GRID, ADAPTIVE = linspace(0.0, 1.0, 4), Adaptive(0.0, 1.0)


@pytest.mark.parametrize(
    ("term", "method", "control", "options", "message"),
    [
        (NOISY, SciPy(), ADAPTIVE, {}, "scipy integrates an ODE, got SDE"),
        (CHAIN, SciPy(), ADAPTIVE, {}, "scipy integrates an ODE, got Recursion"),
        (FLOW, SciPy(), GRID, {}, "scipy chooses its own steps"),
        (FLOW, SciPy(), ADAPTIVE, {"save": SaveAt(times=[0.5, 2.0])}, "times must run from"),
        (NOISY, TorchSDE(), GRID, {"save": SaveAt(times=[0.3])}, "torchsde has no dense output"),
        (NOISY, TorchSDE("log_ode"), GRID, {"noise": Normals(0, 2, (1,))}, "asks for areas between"),
        (NOISY, TorchSDE(), GRID, {"noise": StepNormals(Normals(0, 2, (1,)))}, "BrownianTree or Normals"),
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
