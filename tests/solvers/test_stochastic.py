"""Stochastic Runge-Kutta methods and Milstein: their published formulas, exact integrals, refusals."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.orders import Fixed, Impulses, cases, measure
from solvers import (
    EULER_MARUYAMA,
    MILSTEIN,
    SDE,
    SHARK,
    SOSRA,
    SRA1,
    STOCHASTIC_HEUN,
    AdditiveRungeKutta,
    BrownianTree,
    FixedGrid,
    Interval,
    Method,
    Normals,
    solve,
)
from solvers.brownian import AREA

FLOAT64 = torch.float64
TABLEAUX = [STOCHASTIC_HEUN, SRA1, SHARK, SOSRA]
WITH_AREA = [SRA1, SHARK, SOSRA]


def grid(t0: float, t1: float, num_steps: int) -> FixedGrid:
    return FixedGrid(torch.linspace(t0, t1, num_steps + 1, dtype=FLOAT64))


@pytest.mark.parametrize("method", TABLEAUX, ids=lambda method: method.name)
def test_tableaux_meet_the_order_conditions(method: AdditiveRungeKutta) -> None:
    b, c, w = (np.array(v) for v in (method.b, (0.0, *method.c), method.w))
    area = np.zeros_like(w) if method.area is None else np.array(method.area)
    for row, node in zip(method.a, method.c, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-15)
    assert b.sum() == pytest.approx(1, abs=1e-15)
    assert b @ c == pytest.approx(1 / 2, abs=1e-14)
    assert b @ w == pytest.approx(1 / 2, abs=1e-14)
    assert b @ area == pytest.approx(0 if method.area is None else 1, abs=1e-14)
    assert b @ (w**2 + area**2 / 12) == pytest.approx(1 / 2, abs=1e-14)
    assert method.b_error is not None
    assert sum(method.b_error) == pytest.approx(0, abs=1e-15)
    assert method.nfe_per_step == len(b)


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (replace(SHARK, b=(0.5, 0.5)), "strong order"),
        (replace(SHARK, w=(0.0, 0.8)), "strong order 2.0 declared"),
        (replace(SRA1, area=(0.0, 1.4)), "strong order"),
        (replace(SRA1, area=(-3.0, 3.0)), "weak order 2.0 declared"),
        (replace(STOCHASTIC_HEUN, w=(0.0, 0.0)), "weak order 2.0 declared"),
        (replace(STOCHASTIC_HEUN, weak_order=1.0), "weak order 1.0 declared"),
        (replace(MILSTEIN, diagonal_strong_order=0.5), "strong order 0.5 declared"),
    ],
)
def test_the_harness_notices_a_wrong_coefficient_or_declaration(method: Method, complaint: str) -> None:
    found = (line for case in cases([method]) for line in measure(case).complaints())
    assert any(complaint in line for line in found)


@pytest.mark.parametrize("method", WITH_AREA, ids=lambda method: method.name)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.5), (1.5, 0.0)])
def test_the_integral_of_a_linear_diffusion_is_exact(
    method: AdditiveRungeKutta, t0: float, t1: float
) -> None:
    """Without drift the variance is the integral of g^2; the area enters with the right sign."""
    term = SDE(lambda t, y: 0 * y, lambda t: 2 - 3 * t)
    times, noise = grid(t0, t1, 3), Impulses(3)
    y = solve(term, torch.zeros(noise.rows, 1, dtype=FLOAT64), method, times, noise=noise).y
    exact = (2**3 - (2 - 4.5) ** 3) / 9
    assert float(y.square().sum()) == pytest.approx(exact, rel=1e-13)
    tree = BrownianTree(t0, t1, Normals(0, 5, (1,)))
    ends = [
        solve(term, torch.zeros(5, 1, dtype=FLOAT64), method, grid(t0, t1, n), noise=tree).y
        for n in (1, 2, 8)
    ]
    for a, b in pairwise(ends):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def one_step(method: Method, term: SDE, y: Tensor, t: float, h: float, w: Tensor, area: Tensor) -> Tensor:
    times = FixedGrid([t, t + h])
    return solve(term, y, method, times, noise=Fixed(w, area)).y


def test_sra1_and_shark_are_the_published_formulas() -> None:
    g = torch.Generator().manual_seed(0)
    y, z, area = torch.randn(3, 6, generator=g, dtype=FLOAT64)
    h, sigma = 0.3, 0.7
    f = lambda t, y: (y + t).sin()  # noqa: E731
    term = SDE(f, lambda t: torch.tensor(sigma, dtype=FLOAT64))
    t = torch.tensor(0.2, dtype=FLOAT64)
    w, levy = math.sqrt(h) * z, math.sqrt(h / 12) * area
    i_10 = h * (w / 2 + levy)
    k1 = f(t, y)
    k2 = f(t + 0.75 * h, y + 0.75 * h * k1 + 1.5 * sigma * i_10 / h)
    expected = y + h * (k1 / 3 + 2 / 3 * k2) + sigma * w
    torch.testing.assert_close(one_step(SRA1, term, y, 0.2, h, z, area), expected, rtol=1e-13, atol=1e-14)
    shifted = y + sigma * levy
    k1 = f(t, shifted)
    k2 = f(t + 5 / 6 * h, shifted + 5 / 6 * (h * k1 + sigma * w))
    expected = y + h * (0.4 * k1 + 0.6 * k2) + sigma * w
    torch.testing.assert_close(one_step(SHARK, term, y, 0.2, h, z, area), expected, rtol=1e-13, atol=1e-14)


def test_stochastic_heun_is_its_formula_and_asks_for_no_area() -> None:
    asked = []

    class Source:
        def draw(self, index: int, stream: int = 0) -> Tensor:
            asked.append(stream)
            return z

    y, z = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    h = -0.3
    w = math.sqrt(-h) * z * 0.5 * (0.8 + 0.5)
    f = lambda t, y: (y + t).sin()  # noqa: E731
    k1 = f(0.8, y)
    k2 = f(0.5, y + h * k1 + w)
    found = solve(SDE(f, lambda t: t), y, STOCHASTIC_HEUN, FixedGrid([0.8, 0.5]), noise=Source()).y
    torch.testing.assert_close(found, y + h / 2 * (k1 + k2) + w, rtol=1e-13, atol=1e-14)
    assert AREA not in asked


@pytest.mark.parametrize("method", TABLEAUX, ids=lambda method: method.name)
def test_the_error_estimate_falls_with_its_declared_power(method: AdditiveRungeKutta) -> None:
    term = SDE(lambda t, y: (2 * y).sin(), lambda t: 1 + t)
    nodes = torch.linspace(-3, 3, 40, dtype=FLOAT64)
    y, errors = torch.full((40,), 0.4, dtype=FLOAT64), []
    for k in range(6):
        h = 0.01 * 4.0**-k
        t, s = (torch.tensor(v, dtype=FLOAT64) for v in (0.5, 0.5 + h))

        class Motion:
            def increment(self, interval: Interval) -> Tensor:
                return nodes

            def increment_and_area(self, interval: Interval) -> tuple[Tensor, Tensor]:
                return nodes, nodes.flip(0) / 2 + 0.1

        step = method.step(term, Interval(0, t, s, h), y, None, Motion())  # type: ignore[arg-type]
        assert step.error is not None
        errors.append(float(step.error.square().mean().sqrt()))
    slope = -np.polyfit(range(6), np.log(errors) / math.log(4), 1)[0]
    assert slope == pytest.approx(method.error_order, abs=0.1)


def test_milstein_differentiates_the_diffusion_or_takes_a_given_derivative() -> None:
    y, z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    scale, h = torch.tensor([[1.0], [2.0], [0.5], [1.5]], dtype=FLOAT64), -0.2

    def diffusion(t: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return scale * (1 + t * y.sin())

    def derivative(t: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return scale * t * y.cos()

    g, slope = diffusion(torch.tensor(1.0), y, scale), derivative(torch.tensor(1.0), y, scale)
    w = math.sqrt(0.2) * z
    expected = y + h * -y + g * w + g * slope * (w**2 - 0.2) / 2
    for given in (None, derivative):
        term = SDE(lambda t, y, s: -y, diffusion, "diagonal", (scale,), given)
        with torch.no_grad():
            found = solve(term, y, MILSTEIN, FixedGrid([1.0, 1.0 + h]), noise=Fixed(z)).y
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_milstein_with_additive_noise_is_euler_maruyama() -> None:
    term, y0, noise = (
        SDE(lambda t, y: -y, lambda t: 1 + t),
        torch.ones(3, 2, dtype=FLOAT64),
        Normals(4, 3, (2,)),
    )
    ends = [solve(term, y0, m, grid(1.0, 0.0, 5), noise=noise).y for m in (MILSTEIN, EULER_MARUYAMA)]
    torch.testing.assert_close(*ends, rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", [*TABLEAUX, MILSTEIN], ids=lambda method: method.name)
def test_the_shape_and_the_type_of_the_state_are_of_no_consequence(method: Method) -> None:
    term = SDE(lambda t, y: t * y * (1 - y), lambda t: 1 + t)
    y0 = torch.rand(3, 8, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    flat = solve(term, y0, method, grid(1.0, 0.0, 4), noise=Normals(0, 3, (8,))).y
    image = solve(term, y0.reshape(3, 2, 2, 2), method, grid(1.0, 0.0, 4), noise=Normals(0, 3, (2, 2, 2))).y
    assert torch.equal(image.flatten(1), flat)
    low = solve(term, y0.float(), method, grid(1.0, 0.0, 4), noise=Normals(0, 3, (8,), torch.float32)).y
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), flat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "bad",
    [{"c": ()}, {"a": ()}, {"w": (0.0,)}, {"area": (1.0,)}, {"b": (1.0,)}],
    ids=lambda bad: next(iter(bad)),
)
def test_a_tableau_of_the_wrong_size_is_refused(bad: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=r"shark: \d weights need \d rows in a"):
        replace(SHARK, **bad)
