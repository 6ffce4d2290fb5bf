"""Adams and exponential methods: weights against closed forms, orders, starts, noise, and known samplers."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from problems import MIXTURE, SDES
from torch import Tensor

from benchmarks.orders import TOLERANCE
from benchmarks.semilinear import PairedImpulses, split_logistic
from sde_toolkit import samplers
from sde_toolkit.models.exact import ExactModel
from solvers import (
    AB2,
    AB3,
    AB4,
    ABM4,
    ETD_RK2,
    ETD_RK3,
    ODE,
    Adams,
    Adaptive,
    ExponentialRungeKutta,
    FixedGrid,
    Method,
    Normals,
    SaveAt,
    Semilinear,
    expand_like,
    solve,
)
from solvers.multistep import History
from solvers.weights import Weights, lagrange, middle, update

EVERY = [
    Adams(1), AB2, AB3, AB4, ABM4, Adams(2, "PECE"), Adams(3, "PEC"), Adams(4, "PEC"), Adams(3,
    start_with="euler"), ETD_RK2, ETD_RK3,
]  # fmt: skip


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def nothing(t: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


def weights_of(term: Any, t: float, s: float, nodes: list[float], variable: Any = None) -> Tensor:
    made = Weights(term) if variable is None else Weights(term, variable)
    return made.weights(tensor(t), tensor(s), tensor(*nodes)[None])[0]


@pytest.mark.parametrize(
    ("past", "expected"),
    [([0], [1]), ([0, 1], [3, -1]), ([0, 1, 2], [23, -16, 5]), ([0, 1, 2, 3], [55, -59, 37, -9]),
     ([-1, 0, 1, 2], [9, 19, -5, 1])],
)  # fmt: skip
@pytest.mark.parametrize("h", [0.1, -0.1])
def test_weights_on_a_uniform_grid_are_those_of_adams(past: list[int], expected: list[int], h: float) -> None:
    w = weights_of(ODE(nothing), 2.0, 2.0 + h, [2.0 - k * h for k in past])
    torch.testing.assert_close(w, tensor(*expected) * (h / sum(expected)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("t", "s"), [(1e-3, 0.1), (1.0, 1e-3), (0.1, 0.0), (1e-5, 1.0)])
def test_quadrature_copes_with_a_singularity_at_or_near_an_end(t: float, s: float) -> None:
    w = weights_of(Semilinear(nothing, source=lambda t: t**-0.5), t, s, [t])
    assert float(w) == pytest.approx(2 * (s**0.5 - t**0.5), rel=1e-13)


@pytest.mark.parametrize("given", ["linear", "integral"])
@pytest.mark.parametrize("rate", [-1e-8, -0.3, -30.0, -1e3])
def test_weights_of_a_constant_rate_are_phi_functions(given: str, rate: float) -> None:
    """phi_1 and phi_2, also where their closed formulas cancel."""
    function = (lambda t: rate * t) if given == "integral" else (lambda t: torch.full_like(t, rate))
    term = Semilinear(nothing, **{given: function})
    w = weights_of(term, 0.0, 1.0, [0.0, 1.0])
    phi1, phi2 = math.expm1(rate) / rate, (math.expm1(rate) - rate) / rate**2
    if abs(rate) < 1:
        phi1, phi2 = (sum(rate**k / math.factorial(k + j) for k in range(30)) for j in (1, 2))
    torch.testing.assert_close(w, tensor(phi1 - phi2, phi2), rtol=2e-12, atol=1e-15)
    assert float(Weights(term).factor(tensor(0.0), tensor(1.0))) == pytest.approx(math.exp(rate), rel=1e-12)


def test_polynomials_are_in_the_variable_that_is_given() -> None:
    def antiderivative(n: float) -> float:
        return n * math.log(n) - n

    w = weights_of(ODE(nothing), 80.0, 0.002, [80.0, 100.0], torch.log)
    slope = (antiderivative(0.002) - antiderivative(80.0) - math.log(80.0) * (0.002 - 80.0)) / math.log(1.25)
    torch.testing.assert_close(w, tensor(0.002 - 80 - slope, slope), rtol=1e-12, atol=0)


def test_weights_stay_accurate_on_fine_grids() -> None:
    """Four nodes and 10^4 steps: against the same weights in exact arithmetic on a uniform grid."""
    grid = torch.linspace(1, 2, 10_001, dtype=torch.float64)
    nodes = torch.stack([grid[3 - m : -1 - m] for m in range(4)], 1)
    w = Weights(ODE(nothing)).weights(grid[3:-1], grid[4:], nodes) * 1e4
    assert float((w - tensor(55, -59, 37, -9) / 24).abs().max()) < 1e-9


def test_lagrange_polynomials_are_one_at_one_node() -> None:
    nodes = tensor(0.3, 1.7, 2.0, -1.0)[None]
    torch.testing.assert_close(lagrange(nodes, nodes)[0], torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(lagrange(tensor(0.1, 5.0)[None], nodes).sum(2), torch.ones(1, 2).double())


def test_the_middle_is_half_way_in_the_variable() -> None:
    assert float(middle(torch.log, tensor(80.0), tensor(0.2))) == pytest.approx(4.0, rel=1e-12)
    assert float(middle(lambda t: -t, tensor(1.0), tensor(3.0))) == 2.0


def test_noise_has_the_variance_of_the_stochastic_integral() -> None:
    term = Semilinear(
        nothing, linear=lambda t: torch.full_like(t, -2.0), diffusion=lambda t: torch.full_like(t, 3.0)
    )
    c = Weights(term).noise(tensor(0.0), tensor(0.7))
    assert float(c) == pytest.approx(3 * math.sqrt((1 - math.exp(-2.8)) / 4), rel=1e-13)
    assert Weights(Semilinear(nothing)).noise(tensor(0.0), tensor(1.0)) is None


@pytest.mark.parametrize(
    "method", [*EVERY[:3], ABM4, Adams(4, "PEC"), ETD_RK2, ETD_RK3], ids=lambda m: m.name
)
def test_linear_problems_with_additive_noise_have_their_exact_variance(method: Method) -> None:
    rate, n = 1.3, 6
    term = Semilinear(nothing, integral=lambda t: -rate * t, diffusion=lambda t: torch.ones_like(t))
    y0 = torch.zeros(1 + 2 * n, 1, dtype=torch.float64)
    y0[0] = 2.0
    grid = FixedGrid(torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 2)
    k = solve(term, y0, method, grid, noise=PairedImpulses(n)).y[:, 0]
    assert float(k[0]) == pytest.approx(2 * math.exp(-rate), rel=1e-13)
    assert float(k[1:].square().sum()) == pytest.approx((1 - math.exp(-2 * rate)) / (2 * rate), rel=1e-13)


@pytest.mark.parametrize(
    ("method", "order"),
    [
        (Adams(3, start_with="euler"), 2),
        (Adams(4, start_with="euler"), 2),
        (Adams(4, "PEC", start_with="euler"), 3),
    ],
)
def test_an_euler_start_costs_orders_and_says_so(method: Adams, order: int) -> None:
    steps = [64 * 2**k for k in range(6)]
    errors, nfe = zip(*(split_logistic(method, n) for n in steps), strict=True)
    assert method.order == order
    assert abs(-np.polyfit(np.log2(steps), np.log2(errors), 1)[0] - order) < TOLERANCE
    assert nfe == tuple(n + (method.corrector == "PEC") for n in steps)


@pytest.mark.parametrize(
    "method", [AB3, AB4, ABM4, Adams(4, "PEC", variable=torch.arcsinh)], ids=lambda m: m.name
)
def test_orders_hold_on_grids_of_uneven_steps(method: Adams) -> None:
    y0, errors, steps = tensor(0.1, 0.3, 0.6), [], [80, 160, 320, 640]
    for n in steps:
        u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        grid = FixedGrid(
            3 * (u + 0.12 * (2 * math.pi * u).sin() + 0.1 / n * (-1) ** torch.arange(n + 1)).sort()[0]
        )
        y = solve(ODE(lambda t, y: 2 * t.cos() * y * (1 - y)), y0, method, grid).y
        t0, t1 = grid.ts[0], grid.ts[-1]
        errors.append(float((y - (y0.logit() + 2 * (t1.sin() - t0.sin())).sigmoid()).norm()))
    assert abs(-np.polyfit(np.log2(steps), np.log2(errors), 1)[0] - method.order) < 0.3
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_polynomials_of_their_degree_are_integrated_exactly(method: Method) -> None:
    """N a polynomial in t: no error but rounding.  The start of an Adams method is one order lower."""
    degree = method.order - 1 if isinstance(method, ExponentialRungeKutta) else max(0, method.order - 2)
    grid, y0 = FixedGrid([0.0, 0.3, 0.4, 1.0, 1.2, 2.0]), torch.ones(2, 1, dtype=torch.float64)
    term = Semilinear(lambda t, y: (degree + 1) * t**degree * torch.ones_like(y))
    y = solve(term, y0, method, grid).y
    torch.testing.assert_close(y, y0 + 2.0 ** (degree + 1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_samples_are_independent_bit_for_bit(method: Method, noisy: bool, diagonal: bool) -> None:
    scale = torch.linspace(0.5, 2, 6, dtype=torch.float64).reshape(2, 3)

    def integral(t: Tensor) -> Tensor:
        return -t[:, None, None] * scale if diagonal else -t

    term = Semilinear(
        lambda t, y: t * y * (1 - y), integral=integral, diffusion=(lambda t: 0.1 + 0 * t) if noisy else None
    )
    y0 = torch.rand(64, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = FixedGrid(torch.linspace(1, 0, 8, dtype=torch.float64))
    whole = solve(term, y0, method, grid, noise=Normals(3, 64, (2, 3))).y
    for i in (0, 17, 63):
        alone = solve(term, y0[i : i + 1], method, grid, noise=Normals(3, [i], (2, 3))).y
        assert torch.equal(alone[0], whole[i])
    low = solve(term, y0.float(), method, grid, noise=Normals(3, 64, (2, 3), torch.float32)).y
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
@pytest.mark.parametrize("source", [False, True])
def test_a_diagonal_linear_part_is_one_scalar_part_per_element(method: Method, source: bool) -> None:
    rates = tensor(0.5, 3.0)
    y0 = tensor(0.3, 0.8).expand(4, 2)
    grid = FixedGrid(torch.linspace(0, 1, 9, dtype=torch.float64))

    def field(t: Tensor, y: Tensor) -> Tensor:
        return (1 + t) * y * (1 - y)

    b = (lambda t: 1 + t) if source else None
    closed = Semilinear(field, integral=lambda t: -(t[:, None] ** 2) / 2 * rates, source=b)
    by_rule = Semilinear(field, linear=lambda t: -t[:, None] * rates, source=b)
    y = solve(closed, y0, method, grid).y
    torch.testing.assert_close(solve(by_rule, y0, method, grid).y, y, rtol=1e-12, atol=0)
    for j in range(2):
        alone = Semilinear(field, integral=lambda t, r=float(rates[j]): -(t**2) / 2 * r, source=b)
        torch.testing.assert_close(solve(alone, y0[:, j], method, grid).y, y[:, j], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_gradients_checkpoints_saved_steps_and_short_grids(method: Method) -> None:
    y0 = torch.tensor([[0.3], [0.6]], dtype=torch.float64, requires_grad=True)
    term = Semilinear(lambda t, y: y * (1 - y), integral=lambda t: -t)
    grid = FixedGrid(torch.linspace(0, 1, 7, dtype=torch.float64))
    plain, checked = (solve(term, y0, method, grid, checkpoint=c).y for c in (False, True))
    found, expected = (torch.autograd.grad(y.sum(), y0)[0] for y in (checked, plain))
    assert torch.equal(found, expected)
    h = 1e-6
    up, down = (solve(term, y0.detach() + d, method, grid).y for d in (h, -h))
    torch.testing.assert_close(expected, (up - down) / (2 * h), rtol=1e-7, atol=0)
    saved = solve(term, y0, method, grid, save=SaveAt(times=grid.ts[[2, 6]]))
    assert torch.equal(saved.y, plain)
    for n in (1, 2, 3):
        assert solve(term, y0, method, FixedGrid(grid.ts[: n + 1])).y.shape == y0.shape


def test_the_history_is_never_changed() -> None:
    a, b, c = (torch.ones(1) * k for k in range(3))
    history = History((b, a))
    assert history.push(c, 2).values == (c, b)
    assert history.values == (b, a)


def test_the_update_takes_numbers_and_tensors() -> None:
    y, k = torch.ones(2, 3), torch.full((2, 3), 2.0)
    w = torch.tensor([1.0, 2.0, 3.0])
    for factor in (1.0, 0.5, w):
        expected = factor * y + 3 * k + w * k
        assert torch.equal(update(factor, y, (3.0, w), (k, k, k)), expected)
        assert torch.equal(update(factor, y, (w, 3.0), (k, k)), expected)
    assert torch.equal(y, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Adams(0), "nodes must lie in 1 to 4"),
        (lambda: Adams(5), "nodes must lie in 1 to 4"),
        (lambda: Adams(1, "PEC"), "at least 2 nodes"),
        (lambda: Adams(2, "PEE"), "must be None, 'PECE' or 'PEC'"),
        (lambda: Adams(2, start_with="none"), "'runge_kutta' or 'euler'"),
        (lambda: ExponentialRungeKutta(4), "num_stages must be 2 or 3"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_runs_that_do_not_fit_are_refused() -> None:
    y0, noisy = torch.ones(1, 1), Semilinear(nothing, diffusion=lambda t: t)
    with pytest.raises(ValueError, match="a Semilinear with noise needs noise="):
        solve(noisy, y0, AB2, FixedGrid([0, 1]))
    with pytest.raises(ValueError, match="no error estimate"):
        solve(ODE(nothing), y0, AB2, Adaptive(0, 1))
    with pytest.raises(TypeError, match="etd_rk2 integrates Semilinear"):
        solve(ODE(nothing), y0, ETD_RK2, FixedGrid([0, 1]))


def noise_term(model: Any) -> Semilinear:
    """The probability flow with the noise prediction: x / alpha moves by z_hat d(sigma / alpha)."""
    sde = model.sde
    return Semilinear(
        lambda t, x: model.noise(x, t),
        integral=sde.log_alpha,
        source=lambda t: sde.g_squared(t) / (2 * sde.sigma(t)),
    )


def data_term(model: Any) -> Semilinear:
    """The same with the data prediction: x / sigma moves by x0_hat d(alpha / sigma)."""
    sde = model.sde
    return Semilinear(
        lambda t, x: model.denoise(x, t),
        integral=lambda t: sde.sigma(t).log(),
        source=lambda t: -sde.alpha(t) * sde.g_squared(t) / (2 * sde.sigma(t).square()),
    )


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "ve"])
@pytest.mark.parametrize("term", [noise_term, data_term])
def test_exponential_euler_is_ddim(name: str, term: Any) -> None:
    sde = SDES[name]
    model = ExactModel(MIXTURE, sde)
    t = torch.linspace(0.98 * sde.T, 1e-3, 11, dtype=torch.float64)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sde.sigma(t[0])
    recursion = samplers.ddim(10).equation(model)
    expected = solve(recursion, x, samplers.ddim(10).method, FixedGrid(t)).y
    y = solve(term(model), x, Adams(1), FixedGrid(t)).y
    assert float((y - expected).abs().max()) < 1e-12 * float(x.abs().max())


def test_two_nodes_in_log_snr_are_the_exact_dpm_solver_pp_2m() -> None:
    """With the data prediction (DPM-Solver++, 2211.01095, before its eq. 12): one first-order step, then
    x_s = (sigma_s / sigma_t) x_t - alpha_s [expm1(-h) D_0 + (expm1(-h) / h + 1) h D_1]."""
    sde = SDES["vp-linear"]
    model = ExactModel(MIXTURE, sde)
    ts = torch.linspace(0.9, 0.01, 12, dtype=torch.float64)
    x0 = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, last = x0, None
    for t, s in pairwise(ts):
        h = sde.lam(s) - sde.lam(t)
        d = model.denoise(x, t)
        step = sde.sigma(s) / sde.sigma(t) * x - sde.alpha(s) * torch.expm1(-h) * d
        if last is not None:
            step = step + sde.alpha(s) * (torch.expm1(-h) + h) * (d - last[0]) / (sde.lam(t) - last[1])
        x, last = step, (d, sde.lam(t))
    y = solve(data_term(model), x0, Adams(2, variable=sde.lam), FixedGrid(ts)).y
    torch.testing.assert_close(y, x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("term", [noise_term, data_term])
@pytest.mark.parametrize("method", [Adams(2), Adams(3), Adams(3, "PEC")], ids=lambda method: method.name)
def test_samplers_of_higher_order_converge_on_a_mixture(term: Any, method: Adams) -> None:
    """DEIS (noise) and DPM-Solver++ (data) in log-SNR, over an unsymmetric range that starts at mid noise."""
    sde = SDES["vp-linear"]
    model = ExactModel(MIXTURE, sde)
    method = Adams(method.nodes, method.corrector, sde.lam)
    lam = torch.linspace(float(sde.lam(tensor(0.6))), float(sde.lam(tensor(0.15))), 513, dtype=torch.float64)
    ts = sde.inverse_nsr((-lam).exp())
    x0 = torch.randn(32, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    steps = [32, 64, 128, 256]
    runs = [solve(term(model), x0, method, FixedGrid(ts[:: 512 // n])).y for n in steps]
    exact = solve(noise_term(model), x0, Adams(4, "PEC", sde.lam), FixedGrid(ts)).y
    errors = [float((y - exact).square().mean().sqrt()) for y in runs]
    assert abs(-np.polyfit(np.log2(steps), np.log2(errors), 1)[0] - method.order) < 0.4
    assert errors[-1] < 1e-4


def test_coefficients_reach_the_steps_as_numbers() -> None:
    term = Semilinear(nothing, integral=lambda t: -t, diffusion=lambda t: 1 + t)
    y = torch.ones(2, 3)
    for step in ABM4.prepare(term, FixedGrid(torch.linspace(0, 1, 6)), y):
        assert isinstance(step.factor, float)
        assert isinstance(step.noise, float)
    assert expand_like(tensor(1.0, 2.0), y).shape == (2, 1)
