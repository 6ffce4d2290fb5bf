"""Every method at its declared orders and costs, measured without sampling noise; closed forms."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.orders import Case, Fixed, Impulses, cases, diagonal_moments, measure, registered
from solvers import (
    EULER,
    EULER_MARUYAMA,
    HEUN,
    ODE,
    RECURSION,
    RK4,
    SDE,
    EulerMaruyama,
    FixedGrid,
    Interval,
    Method,
    Normals,
    Recursion,
    RungeKutta,
    Step,
    solve,
)

CASES = cases()

LAST_ERRORS = {
    ("euler, logistic", "deterministic"): 2.7e-4,
    ("euler, replicator", "deterministic"): 1.25e-3,
    ("heun, logistic", "deterministic"): 5.2e-7,
    ("heun, replicator", "deterministic"): 2.9e-6,
    ("midpoint, logistic", "deterministic"): 3.8e-7,
    ("midpoint, replicator", "deterministic"): 3.5e-6,
    ("ralston, logistic", "deterministic"): 4.2e-7,
    ("ralston, replicator", "deterministic"): 3.3e-6,
    ("bosh3, logistic", "deterministic"): 1.4e-8,
    ("bosh3, replicator", "deterministic"): 1.0e-7,
    ("rk4, logistic", "deterministic"): 4.1e-12,
    ("rk4, replicator", "deterministic"): 4.5e-11,
    ("tsit5, logistic", "deterministic"): 1.2e-14,
    ("tsit5, replicator", "deterministic"): 1.2e-13,
    ("dop853, logistic", "deterministic"): 8e-14,
    ("dop853, replicator", "deterministic"): 2.5e-12,
    ("dopri5, logistic", "deterministic"): 9e-14,
    ("dopri5, replicator", "deterministic"): 7.2e-13,
    ("euler_maruyama, additive noise", "strong"): 2.1e-3,
    ("euler_maruyama, additive noise", "weak"): 6.8e-4,
    ("euler_maruyama, circle", "weak"): 1.1e-3,
    ("euler_maruyama, diagonal noise", "strong"): 5.7e-2,
    ("euler_maruyama, diagonal noise", "weak"): 9.9e-4,
    ("milstein, additive noise", "strong"): 2.1e-3,
    ("milstein, additive noise", "weak"): 6.9e-4,
    ("milstein, circle", "weak"): 1.1e-3,
    ("milstein, diagonal noise", "strong"): 5.1e-3,
    ("milstein, diagonal noise", "weak"): 9.9e-4,
    ("stochastic_heun, additive noise", "strong"): 4.9e-4,
    ("stochastic_heun, additive noise", "weak"): 3.5e-6,
    ("stochastic_heun, circle", "weak"): 3.5e-6,
    ("sra1, additive noise", "strong"): 4.2e-6,
    ("sra1, additive noise", "weak"): 1.6e-6,
    ("sra1, circle", "weak"): 2.3e-6,
    ("sra1, paths", "strong"): 7.4e-4,
    ("shark, additive noise", "strong"): 4.5e-6,
    ("shark, additive noise", "weak"): 2.3e-6,
    ("shark, circle", "weak"): 2.6e-6,
    ("shark, paths", "strong"): 5.7e-4,
    ("sosra, additive noise", "strong"): 2.9e-6,
    ("sosra, additive noise", "weak"): 9.3e-7,
    ("sosra, circle", "weak"): 1.8e-6,
    ("sosra, paths", "strong"): 7.1e-4,
    ("etd_rk2, split logistic", "deterministic"): 4.6e-08,
    ("etd_rk2, split additive noise", "strong"): 0.00017,
    ("etd_rk2, split additive noise", "weak"): 2.4e-08,
    ("etd_rk3, split logistic", "deterministic"): 2.2e-10,
    ("etd_rk3, split additive noise", "strong"): 9.8e-05,
    ("etd_rk3, split additive noise", "weak"): 9.2e-09,
    ("adams2, logistic", "deterministic"): 1.7e-07,
    ("adams2, replicator", "deterministic"): 2.6e-06,
    ("adams2, split logistic", "deterministic"): 4e-07,
    ("adams2, split additive noise", "strong"): 0.00017,
    ("adams2, split additive noise", "weak"): 2.8e-07,
    ("adams3, logistic", "deterministic"): 2e-08,
    ("adams3, replicator", "deterministic"): 9.9e-08,
    ("adams3, split logistic", "deterministic"): 1.2e-09,
    ("adams3, split additive noise", "strong"): 0.00017,
    ("adams3, split additive noise", "weak"): 2.5e-08,
    ("adams4, logistic", "deterministic"): 5.6e-12,
    ("adams4, replicator", "deterministic"): 4.7e-11,
    ("adams4, split logistic", "deterministic"): 2.6e-12,
    ("adams4, split additive noise", "strong"): 0.00017,
    ("adams4, split additive noise", "weak"): 2.8e-08,
    ("adams4_pece, logistic", "deterministic"): 1.1e-12,
    ("adams4_pece, replicator", "deterministic"): 3.4e-11,
    ("adams4_pece, split logistic", "deterministic"): 6.8e-13,
    ("adams4_pece, split additive noise", "strong"): 0.00017,
    ("adams4_pece, split additive noise", "weak"): 2.8e-08,
    ("adams1, logistic", "deterministic"): 0.00014,
    ("adams1, replicator", "deterministic"): 0.00062,
    ("adams1, split logistic", "deterministic"): 0.00055,
    ("adams1, split additive noise", "strong"): 0.00026,
    ("adams1, split additive noise", "weak"): 0.00012,
    ("adams2_pece, logistic", "deterministic"): 1.3e-07,
    ("adams2_pece, replicator", "deterministic"): 7.3e-07,
    ("adams2_pece, split logistic", "deterministic"): 4.6e-08,
    ("adams2_pece, split additive noise", "strong"): 0.00017,
    ("adams2_pece, split additive noise", "weak"): 2.4e-08,
    ("adams3_pece, logistic", "deterministic"): 5.1e-09,
    ("adams3_pece, replicator", "deterministic"): 3.4e-08,
    ("adams3_pece, split logistic", "deterministic"): 4.2e-10,
    ("adams3_pece, split additive noise", "strong"): 0.00017,
    ("adams3_pece, split additive noise", "weak"): 2.8e-08,
    ("adams2_pec, logistic", "deterministic"): 3e-07,
    ("adams2_pec, replicator", "deterministic"): 2e-06,
    ("adams2_pec, split logistic", "deterministic"): 9e-08,
    ("adams2_pec, split additive noise", "strong"): 0.00017,
    ("adams2_pec, split additive noise", "weak"): 4.4e-08,
    ("adams3_pec, logistic", "deterministic"): 1.6e-08,
    ("adams3_pec, replicator", "deterministic"): 9.5e-08,
    ("adams3_pec, split logistic", "deterministic"): 1.1e-09,
    ("adams3_pec, split additive noise", "strong"): 0.00017,
    ("adams3_pec, split additive noise", "weak"): 2.8e-08,
    ("adams4_pec, logistic", "deterministic"): 3.6e-12,
    ("adams4_pec, replicator", "deterministic"): 9.1e-11,
    ("adams4_pec, split logistic", "deterministic"): 1.1e-12,
    ("adams4_pec, split additive noise", "strong"): 0.00017,
    ("adams4_pec, split additive noise", "weak"): 2.8e-08,
    ("adams4_arctan, logistic", "deterministic"): 3e-11,
    ("adams4_arctan, replicator", "deterministic"): 2.3e-10,
    ("adams4_arctan, split logistic", "deterministic"): 7.8e-12,
    ("adams4_arctan, split additive noise", "strong"): 0.00017,
    ("adams4_arctan, split additive noise", "weak"): 2.8e-08,
    ("adams4_pec_arcsinh, logistic", "deterministic"): 6.7e-12,
    ("adams4_pec_arcsinh, replicator", "deterministic"): 1.2e-10,
    ("adams4_pec_arcsinh, split logistic", "deterministic"): 3.1e-12,
    ("adams4_pec_arcsinh, split additive noise", "strong"): 0.00017,
    ("adams4_pec_arcsinh, split additive noise", "weak"): 2.8e-08,
    ("etd_rk3_arcsinh, split logistic", "deterministic"): 2.2e-10,
    ("etd_rk3_arcsinh, split additive noise", "strong"): 8.9e-05,
    ("etd_rk3_arcsinh, split additive noise", "weak"): 9.2e-09,
    ("recursion, DDIM", "deterministic"): 9.7e-5,
    ("spread, DDIM", "deterministic"): 9.7e-5,
    ("dop853, oscillator", "deterministic"): 1.5e-14,
}
"""Errors that the finest grid must not exceed, about two per cent above those measured."""


def grid(t0: float, t1: float, num_steps: int) -> FixedGrid:
    return FixedGrid(torch.linspace(t0, t1, num_steps + 1, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.label}-{case.kind}")
def test_every_method_has_its_declared_order_and_cost(case: Case) -> None:
    measured = measure(case)
    assert len(measured.errors) >= 6
    assert measured.complaints() == []
    assert 0 < measured.errors[-1] < LAST_ERRORS[case.label, case.kind]


def test_every_exported_method_is_measured() -> None:
    assert {case.method.name for case in CASES} == {method.name for method in registered()}
    assert len(CASES) == len(LAST_ERRORS)


class UnknownTerm:
    pass


class Untestable(Method):
    name, terms, order, nfe_per_step = "untestable", (UnknownTerm,), 1, 1

    def start(self, term: object, t: Tensor, y: Tensor, grid: FixedGrid | None) -> None: ...

    def step(self, term: object, interval: Interval, y: Tensor, carry: object, noise: object) -> Step:
        return Step(y, None, None)


def test_a_method_without_an_exact_problem_is_noticed() -> None:
    with pytest.raises(LookupError, match="no exact problem for the terms of untestable"):
        cases([Untestable()])


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (replace(HEUN, order=1), "deterministic order 1 declared"),
        (replace(HEUN, order=3), "deterministic order 3 declared"),
        (replace(RK4, b=(0.17, 1 / 3, 1 / 3, 0.16)), "deterministic order 4 declared"),
        (EulerMaruyama(strong_order=1.5), "strong order 1.5 declared"),
        (EulerMaruyama(weak_order=2.0), "weak order 2.0 declared"),
        (EulerMaruyama(nfe_per_step=2), "2 evaluations per step declared"),
        (replace(RECURSION, order=2), "deterministic order 2 declared"),
    ],
)
def test_the_harness_notices_a_wrong_declaration(method: Method, complaint: str) -> None:
    found = (line for case in cases([method]) for line in measure(case).complaints())
    assert any(complaint in line for line in found)


def test_the_error_of_euler_maruyama_with_diagonal_noise_has_the_known_leading_terms() -> None:
    """On dy = m y dt + q y dW, at time 1: sqrt(h/2) q^2 exp(m + q^2/2) strong and h m^2 exp(m) / 2 weak."""
    m, q, h = 0.7, 0.8, 1 / 1024
    weak, strong = diagonal_moments(EULER_MARUYAMA, 1024, m, q)
    assert weak == pytest.approx(0.5 * h * m**2 * math.exp(m), rel=0.005)
    assert strong == pytest.approx(math.sqrt(h / 2) * q**2 * math.exp(m + q**2 / 2), rel=0.01)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.5), (1.5, 0.0)])
def test_the_variance_of_euler_maruyama_equals_its_recursion(t0: float, t1: float) -> None:
    rate, noise, times = -1.3, 0.6, grid(t0, t1, 20)
    term = SDE(lambda t, y: rate * (1 + t) * y, lambda t: noise * (2 + t))
    solution = solve(term, torch.zeros(41, 1, dtype=torch.float64), EULER_MARUYAMA, times, noise=Impulses(20))
    variance = 0.0
    for t, h in zip(times.ts[:-1].tolist(), times.ts.diff().tolist(), strict=True):
        variance = (1 + h * rate * (1 + t)) ** 2 * variance + (noise * (2 + t)) ** 2 * abs(h)
    assert float(solution.y.square().sum()) == pytest.approx(variance, rel=1e-13)


def test_euler_maruyama_adds_the_draws_of_its_noise_source() -> None:
    times, y0, noise = grid(1.0, 0.0, 5), torch.ones(3, 2, dtype=torch.float64), Normals(4, 3, (2,))
    additive = SDE(lambda t, y: -y, lambda t: 1 + t)
    diagonal = SDE(lambda t, y: -y, lambda t, y: (1 + t) * y, noise="diagonal")
    for term, g in ((additive, lambda t, y: 1 + t), (diagonal, lambda t, y: (1 + t) * y)):
        y = y0
        for i in range(5):
            t, h = times.ts[i], times.ts.diff()[i]
            y = y - h * y + g(t, y) * h.abs().sqrt() * noise.draw(i)
        solution = solve(term, y0, EULER_MARUYAMA, times, noise=noise)
        torch.testing.assert_close(solution.y, y, rtol=1e-14, atol=0)


def gaussian_noise_prediction(c: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[z | y = x0 + n z] for x0 from N(0, c^2)."""
    return lambda n, y: n / (c**2 + n**2) * y


def in_nsr(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones_like(t), s - t, torch.zeros_like(t)


def test_ddim_on_a_gaussian_shrinks_the_std_as_its_closed_form_says() -> None:
    """On a grid uniform in arctan(n / c) n steps scale the std of the exact flow by cos(range / n)^n."""
    c, n = 0.5, 10
    angles = torch.linspace(math.atan(80 / c), math.atan(0.002 / c), n + 1, dtype=torch.float64)
    term = Recursion(gaussian_noise_prediction(c), in_nsr, noisy=False)
    y = solve(term, torch.tensor([[1.0]], dtype=torch.float64), RECURSION, FixedGrid(c * angles.tan())).y
    ratio = float(y) * math.sqrt((c**2 + 80**2) / (c**2 + 0.002**2))
    assert ratio == pytest.approx(math.cos(float(angles[0] - angles[-1]) / n) ** n, rel=1e-12)
    assert ratio == pytest.approx(0.884916, abs=5e-7)


def test_a_recursion_with_exact_transitions_has_the_exact_variance() -> None:
    """An Ornstein-Uhlenbeck process of unit stationary variance, stepped by its own transition law."""

    def transition(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay = (t - s).exp()
        return decay, torch.zeros_like(t), (1 - decay.square()).sqrt()

    times = FixedGrid([0.0, 0.1, 0.35, 0.5, 1.2])
    y0 = torch.zeros(9, 1, dtype=torch.float64)
    y0[0] = 2.0
    y = solve(Recursion(lambda t, y: y, transition), y0, RECURSION, times, noise=Impulses(4)).y
    assert float(y[0]) == pytest.approx(2 * math.exp(-1.2), rel=1e-14)
    assert float(y[1:].square().sum()) == pytest.approx(1 - math.exp(-2.4), rel=1e-14)


def test_a_recursion_computes_its_coefficients_once_and_draws_only_where_there_is_noise() -> None:
    grids, draws = [], []

    class Source:
        def draw(self, index: int, stream: int = 0) -> Tensor:
            draws.append(index)
            return torch.ones(2, 1)

    def coefficients(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grids.append((t.tolist(), s.tolist()))
        return torch.tensor(1.0), torch.tensor(0.0), s

    times = FixedGrid([3.0, 2.0, 1.0, 0.0])
    y = solve(Recursion(lambda t, y: y, coefficients), torch.zeros(2, 1), RECURSION, times, noise=Source()).y
    assert grids == [([3.0, 2.0, 1.0], [2.0, 1.0, 0.0])]
    assert draws == [0, 1]
    assert y.tolist() == [[3.0], [3.0]]


TABLEAUX = [method for method in registered() if isinstance(method, RungeKutta)]


@pytest.mark.parametrize("method", TABLEAUX, ids=lambda method: method.name)
def test_tableaux_are_consistent(method: RungeKutta) -> None:
    assert sum(method.b) == pytest.approx(1, abs=1e-15)
    for row, node in zip(method.a, method.c, strict=True):
        assert sum(row) == pytest.approx(node, abs=2e-14)
    if method.b_error is not None:
        assert sum(method.b_error) == pytest.approx(0, abs=1e-15)


def test_facts_follow_from_the_tableau() -> None:
    facts = {m.name: (m.order, m.nfe_per_step, m.has_error, m.first_same_as_last) for m in TABLEAUX}
    assert facts["euler"] == (1, 1, False, False)
    assert facts["heun"] == (2, 2, False, False)
    assert facts["rk4"] == (4, 4, False, False)
    assert facts["dopri5"] == (5, 6, True, True)


@pytest.mark.parametrize(("b", "c"), [((1.0,), (1.0,)), ((0.5, 0.5), ())])
def test_a_tableau_of_the_wrong_size_is_refused(b: tuple[float, ...], c: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"wrong: \d weights need \d rows in a"):
        RungeKutta("wrong", 1, a=((1.0,),), b=b, c=c)


@pytest.mark.parametrize("method", TABLEAUX, ids=lambda method: method.name)
def test_the_shape_of_the_state_is_of_no_consequence(method: RungeKutta) -> None:
    y0 = torch.rand(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = ODE(lambda t, y: t * y * (1 - y))
    flat = solve(term, y0, method, grid(0.0, 1.0, 4)).y
    image = solve(term, y0.reshape(3, 2, 2, 2), method, grid(0.0, 1.0, 4)).y
    assert torch.equal(image.flatten(1), flat)
    single = solve(term, y0[:, 0], method, grid(0.0, 1.0, 4)).y
    assert torch.equal(single, flat[:, 0])


def test_float32_states_stay_float32() -> None:
    y0 = torch.full((2, 3), 0.3)
    for method in TABLEAUX:
        assert solve(ODE(lambda t, y: t * y), y0, method, grid(0.0, 1.0, 3)).y.dtype == torch.float32
    noise = Fixed(torch.ones(2, 3))
    sde = SDE(lambda t, y: -t * y, lambda t: t.sqrt())
    assert solve(sde, y0, EULER_MARUYAMA, grid(1.0, 0.0, 3), noise=noise).y.dtype == torch.float32
    recursion = Recursion(lambda t, y: t * y, in_nsr)
    assert solve(recursion, y0, RECURSION, grid(1.0, 0.0, 3), noise=noise).y.dtype == torch.float32


def test_euler_is_its_formula() -> None:
    y0 = torch.ones(1, 1, dtype=torch.float64)
    solution = solve(ODE(lambda t, y: t * y), y0, EULER, FixedGrid([0.0, 0.5, 2.0]))
    assert float(solution.y) == 1 + 1.5 * 0.5
