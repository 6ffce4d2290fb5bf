"""Measured orders: exact problems on which every method of ``solvers`` is run with N, 2N, 4N, ... steps.

A method of order p has error e(N) = C N^-p (1 + O(1/N)).  The slope is that of the least-squares line through
(log2 N, -log2 e).  No error here is sampled, so a slope that differs from the declared order by more than
``TOLERANCE`` is a wrong method or a wrong declaration, never bad luck.

Deterministic orders.  The replicator equation with rates that oscillate, and its scalar case of two species,

    y_i' = y_i (c_i - sum_j c_j y_j),   c_i = r cos(w_i t):     y = softmax(log y_0 + r sin(w t) / w)
    y'   = r cos(t) y (1 - y):                                  y = logistic(logit y_0 + r sin t)

are nonlinear, non-autonomous and (the first) coupled, so that all order conditions count.  The error is
the root mean square over a batch of starts at the end time.  A harmonic oscillator over many periods, whose
errors are large at few steps, leaves float64 room for five halvings at order 8.

Strong and weak orders for additive noise.  Anderson's reverse SDE for Gaussian data of variance c^2, in the
clock n (noise-to-signal ratio, running down):

    dy = 2 n / (c^2 + n^2) y dn + sqrt(2 n) dW,       Phi(s, t) = (c^2 + s^2) / (c^2 + t^2).

A method is linear here in its start and in its draws: z_j for W and z'_j for the area H of step j.  Run on a
batch of unit impulses it puts out its own coefficients k_j and k'_j, so that without sampling

    weak error    | k_0^2 Var(y_0) + sum_j (k_j^2 + k'_j^2)  -  (c^2 + n_end^2) |
    strong error  ( (k_0 - Phi)^2 Var(y_0) + sum_j int_j (K_j - Phi(end, u) sqrt(2u))^2 du )^(1/2)

where the integrals run over the steps (Ito's isometry) and K_j = (k_j + k'_j sqrt(12) (1/2 - x)) / sqrt(h_j)
at the fraction x of step j is what W and H make of dW.  Methods of strong order 3/2 converge with order 2 on
linear problems, so theirs is measured on

    dy = sin(3 y) dt + (1 + t / 2) dW,

path by path, against a solution with many steps on the same Brownian tree, with ``PATH_TOLERANCE``.

Weak order on a nonlinear problem.  One step on dy = sin(y) dt + g dW, integrated over its two draws by
Gauss-Hermite quadrature, is a linear map of functions on the circle, a matrix in the values at equidistant
nodes; its N-th power is compared to the exponential of the generator sin(y) d/dy + g^2/2 d^2/dy^2.

Strong and weak orders for diagonal noise.  One step on dy = m y dt + q y dW multiplies y by R(z); fed with
the nodes of Gauss-Hermite quadrature as a batch it gives E[R], E[R^2] and E[R E] with the exact factor
E(z) = exp((m - q^2/2) h + q sqrt(h) z), and N independent steps give the powers:

    weak error    | E[R]^N - exp(m T) |
    strong error  ( E[R^2]^N - 2 E[R E]^N + E[E^2]^N )^(1/2)

Recursions.  DDIM is exponential Euler in n: y_s = y_t + (s - t) z_hat with z_hat = n y / (c^2 + n^2) on the
same data; the exact flow is y_s = y_t sqrt((c^2 + s^2) / (c^2 + t^2)).

Reference: Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", chapters 9 and 10.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

import solvers
from benchmarks.semilinear import split_logistic, split_strong, split_weak
from solvers import (
    ODE,
    SDE,
    Adams,
    BrownianTree,
    ExponentialRungeKutta,
    FixedGrid,
    Method,
    Normals,
    Recursion,
    Semilinear,
    Spread,
    solve,
)
from solvers.brownian import AREA, STEPS

TOLERANCE = 0.15
PATH_TOLERANCE = 0.3
HALVINGS = 5

DATA_STD = 0.5
START, END = 2.0, 0.2
_FIRST = {1: 128, 2: 64, 3: 32, 4: 48, 5: 24, 8: 32}
"""Smallest step count of a deterministic order: coarser grids are not yet in the asymptotic regime."""

_GROWTH = {8: 1.15}
"""Ratio of successive step counts where it is not 2: on these problems float64 has no room for five halvings
at order 8, which are made on the oscillator."""

VARIANTS: list[Method] = [
    Adams(1),
    Adams(2, "PECE"),
    Adams(3, "PECE"),
    Adams(2, "PEC"),
    Adams(3, "PEC"),
    Adams(4, "PEC"),
    Adams(4, variable=torch.arctan),
    Adams(4, "PEC", variable=torch.arcsinh),
    ExponentialRungeKutta(3, torch.arcsinh),
]
"""Methods with options that no exported one has."""

Problem = Callable[[Method, int], tuple[float, float]]


@dataclass(frozen=True)
class Case:
    """A method on a problem: ``run(method, N)`` returns its error with N steps and its drift evaluations.

    Args:
        method: what is measured.
        kind: "deterministic", "strong" or "weak".
        problem: short name of the problem, for tables.
        declared: the order that the method claims for this kind.
        first: the smallest N.
        run: the problem.
        tolerance: of the slope.
        growth: ratio of successive step counts.
    """

    method: Method
    kind: str
    problem: str
    declared: float
    first: int
    run: Problem
    tolerance: float = TOLERANCE
    growth: float = 2

    @property
    def label(self) -> str:
        """Name of the method and the problem, as in "heun, replicator"."""
        return f"{self.method.name}, {self.problem}"


@dataclass(frozen=True)
class Measurement:
    """One case at several step counts: N, drift evaluations and errors; the fitted ``slope``."""

    case: Case
    num_steps: tuple[int, ...]
    nfe: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Observed order: minus the slope of log2(error) against log2(N), by least squares."""
        return -float(np.polyfit(np.log2(self.num_steps), np.log2(self.errors), 1)[0])

    def complaints(self) -> list[str]:
        """What contradicts the declaration: the order, or the number of evaluations."""
        method, found = self.case.method, []
        if not abs(self.slope - self.case.declared) <= self.case.tolerance:
            kind, declared = self.case.kind, self.case.declared
            found.append(f"{self.case.label}: {kind} order {declared} declared, {self.slope:.3f} measured")
        for steps, nfe in zip(self.num_steps, self.nfe, strict=True):
            if nfe != method.nfe_per_step * steps + method.nfe_extra:
                declared = f"{method.nfe_per_step} evaluations per step declared"
                found.append(f"{self.case.label}: {declared}, {nfe:g} in {steps} steps")
        return found


def measure(case: Case, halvings: int = HALVINGS) -> Measurement:
    """Run a case with N, 2N, ..., 2^halvings N steps, or those of the case's own ratio."""
    num_steps = tuple(round(case.first * case.growth**k) for k in range(halvings + 1))
    errors, nfe = zip(*(case.run(case.method, steps) for steps in num_steps), strict=True)
    return Measurement(case, num_steps, nfe, errors)


def registered() -> list[Method]:
    """Every method that the package ``solvers`` exports, and variants of those that take options."""
    return [value for value in vars(solvers).values() if isinstance(value, Method)] + VARIANTS


def cases(methods: Sequence[Method] | None = None) -> list[Case]:
    """The cases of every registered method, or of those given.

    Raises:
        LookupError: a method integrates none of the terms that have an exact problem.
    """
    found: list[Case] = []
    for method in registered() if methods is None else methods:
        here: list[Case] = []
        if ODE in method.terms:
            first = _FIRST.get(method.order, 16) * (2 if isinstance(method, Adams) else 1)
            growth = _GROWTH.get(method.order, 2)
            here += [
                Case(method, "deterministic", "logistic", method.order, first, logistic, growth=growth),
                Case(method, "deterministic", "replicator", method.order, first, replicator, growth=growth),
            ]
            if growth != 2:
                here.append(Case(method, "deterministic", "oscillator", method.order, 85, oscillator))
        if Semilinear in method.terms:
            assert method.strong_order is not None
            assert method.weak_order is not None
            here += [
                Case(method, "deterministic", "split logistic", method.order, 64, split_logistic),
                Case(method, "strong", "split additive noise", method.strong_order, 64, split_strong),
                Case(method, "weak", "split additive noise", method.weak_order, 64, split_weak),
            ]
        if SDE in method.terms:
            here += _stochastic(method)
        if Recursion in method.terms:
            here.append(Case(method, "deterministic", "DDIM", method.order, _FIRST[1], ddim))
        if Spread in method.terms:
            here.append(Case(method, "deterministic", "DDIM", method.order, _FIRST[1], ddim_spread))
        if not here:
            raise LookupError(
                f"no exact problem for the terms of {method.name}: add one to benchmarks/orders.py"
            )
        found += here
    return found


def _stochastic(method: Method) -> list[Case]:
    """The cases of a method for SDEs."""
    strong, weak = method.strong_order, method.weak_order
    assert strong is not None
    assert weak is not None
    linear = 2.0 if strong == 1.5 else strong
    found = [
        Case(method, "strong", "additive noise", linear, 16, additive_strong),
        Case(method, "weak", "additive noise", weak, 16, additive_weak),
        Case(method, "weak", "circle", weak, 4, circle_weak),
    ]
    if strong == 1.5:
        found.append(Case(method, "strong", "paths", strong, 4, paths_strong, PATH_TOLERANCE))
    if method.diagonal_strong_order is not None:
        order = method.diagonal_strong_order
        found += [
            Case(method, "strong", "diagonal noise", order, 16, diagonal_strong),
            Case(method, "weak", "diagonal noise", weak, 16, diagonal_weak),
        ]
    return found


def _uniform(t0: float, t1: float, num_steps: int) -> FixedGrid:
    return FixedGrid(torch.linspace(t0, t1, num_steps + 1, dtype=torch.float64))


def logistic(method: Method, num_steps: int) -> tuple[float, float]:
    """y' = 5 cos(t) y (1 - y) from 0 to 4, states of shape (B,)."""
    rate, end = 5.0, 4.0
    y0 = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    solution = solve(
        ODE(lambda t, y: rate * t.cos() * y * (1 - y)), y0, method, _uniform(0.0, end, num_steps)
    )
    return _rms(solution.y - (y0.logit() + rate * math.sin(end)).sigmoid()), float(solution.stats.nfe[0])


def replicator(method: Method, num_steps: int) -> tuple[float, float]:
    """The replicator equation of three species from 0 to 4, states of shape (B, 3)."""
    rate, end, w = 3.0, 4.0, torch.tensor([1.0, 1.5, 2.5], dtype=torch.float64)
    y0 = torch.tensor([[0.0, 0.5, -0.3], [1.0, -1.0, 0.2], [-0.5, 0.1, 0.9]], dtype=torch.float64).softmax(1)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        c = rate * (w * t).cos()
        return y * (c - (c * y).sum(1, keepdim=True))

    solution = solve(ODE(drift), y0, method, _uniform(0.0, end, num_steps))
    exact = (y0.log() + rate * (w * end).sin() / w).softmax(1)
    return _rms(solution.y - exact), float(solution.stats.nfe[0])


def oscillator(method: Method, num_steps: int) -> tuple[float, float]:
    """x'' = -w^2 x from 0 to 200, eight frequencies w as samples of shape (B, 2)."""
    end, w = 200.0, torch.linspace(0.9, 1.1, 8, dtype=torch.float64)
    y0 = torch.stack([torch.ones_like(w), torch.zeros_like(w)], 1)
    term = ODE(lambda t, y: torch.stack([w * y[:, 1], -w * y[:, 0]], 1))
    solution = solve(term, y0, method, _uniform(0.0, end, num_steps))
    exact = torch.stack([(w * end).cos(), -(w * end).sin()], 1)
    return _rms(solution.y - exact), float(solution.stats.nfe[0])


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


class Impulses:
    """Draws that are unit impulses: with M steps, row 1 + j of the batch has 1 in the draw of W of step j,
    row 1 + M + j in that of its area, and 0 elsewhere; row 0 has none."""

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def rows(self) -> int:
        """Size of the batch."""
        return 2 * self._count + 1

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """One column of the identity, with shape (B, 1)."""
        z = torch.zeros(self.rows, 1, dtype=torch.float64)
        z[1 + index + (self._count if stream == AREA else 0)] = 1.0
        return z


def _coefficients(method: Method, grid: FixedGrid) -> tuple[float, Tensor, Tensor, float]:
    """Coefficients of the start and of every draw of W and H in the method's result, and its evaluations."""
    term = SDE(lambda n, y: 2 * n / (DATA_STD**2 + n**2) * y, lambda n: (2 * n).sqrt())
    noise = Impulses(grid.num_steps)
    y0 = torch.zeros(noise.rows, 1, dtype=torch.float64)
    y0[0] = 1.0
    solution = solve(term, y0, method, grid, noise=noise)
    k = solution.y[:, 0]
    w, area = k[1:].reshape(2, -1)
    return float(k[0]), w, area, float(solution.stats.nfe[0])


def additive_weak(method: Method, num_steps: int) -> tuple[float, float]:
    """Error of the variance at the end, from the exact variance at the start."""
    start, w, area, nfe = _coefficients(method, _uniform(START, END, num_steps))
    variance = start**2 * (DATA_STD**2 + START**2) + float(w.square().sum() + area.square().sum())
    return abs(variance - (DATA_STD**2 + END**2)), nfe


def additive_strong(method: Method, num_steps: int) -> tuple[float, float]:
    """Root mean square distance to the exact solution driven by the same Brownian motion."""
    grid = _uniform(START, END, num_steps)
    start, w, area, nfe = _coefficients(method, grid)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    h, x = grid.ts.diff().abs()[:, None], (nodes + 1) / 2
    u = grid.ts[:-1, None] - h * x
    kernel = _transition(u) * (2 * u).sqrt()
    own = w[:, None] + area[:, None] * math.sqrt(12) * (0.5 - x)
    noise = (weights / 2 * (own - h.sqrt() * kernel).square()).sum()
    exact = float(_transition(grid.ts[0]))
    return math.sqrt((start - exact) ** 2 * (DATA_STD**2 + START**2) + float(noise)), nfe


def _transition(u: Tensor) -> Tensor:
    """Phi(END, u) of the reverse SDE."""
    return (DATA_STD**2 + END**2) / (DATA_STD**2 + u.square())


class Fixed:
    """The same draw of W at every step, and the same area, or none."""

    def __init__(self, z: Tensor, area: Tensor | None = None) -> None:
        self._z, self._area = z, torch.zeros_like(z) if area is None else area

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """The nodes, with shape (B,)."""
        return self._area if stream == AREA else self._z


_PATHS, _FINE = 128, 1024


def _path(method: Method, num_steps: int) -> tuple[Tensor, float]:
    """Ends of the paths of dy = sin(3 y) dt + (1 + t / 2) dW from 0 to 1, and the evaluations."""
    term = SDE(lambda t, y: (3 * y).sin(), lambda t: 1 + t / 2)
    y0 = torch.linspace(-1, 1, _PATHS, dtype=torch.float64)
    tree = BrownianTree(0.0, 1.0, Normals(0, _PATHS, ()))
    solution = solve(term, y0, method, _uniform(0.0, 1.0, num_steps), noise=tree)
    return solution.y, float(solution.stats.nfe[0])


@functools.cache
def _fine_path() -> Tensor:
    return _path(solvers.SRA1, _FINE)[0]


def paths_strong(method: Method, num_steps: int) -> tuple[float, float]:
    """Root mean square distance, over a set of paths, to a solution with many steps on the same paths."""
    y, nfe = _path(method, num_steps)
    return _rms(y - _fine_path()), nfe


def circle_weak(method: Method, num_steps: int) -> tuple[float, float]:
    """Error of E[cos(y_1)] for dy = sin(y) dt + 0.8 dW, root mean square over starts on the circle."""
    count, noise, h = 48, 0.8, 1.0 / num_steps
    modes = np.fft.fftfreq(count, 1 / count)
    x = 2 * np.pi * np.arange(count) / count
    to_modes = np.exp(-1j * np.outer(modes, x)) / count
    z, weights = np.polynomial.hermite_e.hermegauss(16)
    weights = weights / weights.sum()
    start, w, area = (torch.from_numpy(v.ravel()) for v in np.meshgrid(x, z, z, indexing="ij"))
    term = SDE(lambda t, y: y.sin(), lambda t: torch.tensor(noise, dtype=torch.float64))
    solution = solve(term, start, method, _uniform(0.0, h, 1), noise=Fixed(w, area))
    values = np.exp(1j * np.multiply.outer(solution.y.numpy().reshape(count, -1), modes))
    one_step = np.einsum("iqm,q->im", values, np.outer(weights, weights).ravel()) @ to_modes
    found = np.linalg.matrix_power(one_step, num_steps) @ np.cos(x)
    derivative = np.exp(1j * np.outer(x, modes)) @ np.diag(1j * modes) @ to_modes
    generator = np.diag(np.sin(x)) @ derivative + noise**2 / 2 * derivative @ derivative
    exact = scipy.linalg.expm(generator) @ np.cos(x)
    error = float(np.sqrt(np.mean(np.abs(found - exact) ** 2)))
    return error, float(solution.stats.nfe[0]) * num_steps


def diagonal_moments(method: Method, num_steps: int, rate: float, noise: float) -> tuple[float, float]:
    """(weak, strong) error on dy = rate y dt + noise y dW from y = 1 over one unit of time."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(40))
    weights = weights / weights.sum()
    h = 1.0 / num_steps
    term = SDE(lambda t, y: rate * y, lambda t, y: noise * y, noise="diagonal")
    ones = torch.ones_like(nodes)
    factor = solve(term, ones, method, _uniform(0.0, h, 1), noise=Fixed(nodes)).y
    exact = ((rate - noise**2 / 2) * h + noise * math.sqrt(h) * nodes).exp()

    def after_all_steps(x: Tensor) -> float:
        return float((weights * x).sum()) ** num_steps

    weak = abs(after_all_steps(factor) - math.exp(rate))
    square = after_all_steps(factor**2) - 2 * after_all_steps(factor * exact) + after_all_steps(exact**2)
    return weak, math.sqrt(square)


def diagonal_weak(method: Method, num_steps: int) -> tuple[float, float]:
    """Error of the mean of geometric Brownian motion, dy = 0.7 y dt + 0.8 y dW."""
    return diagonal_moments(method, num_steps, 0.7, 0.8)[0], method.nfe_per_step * num_steps


def diagonal_strong(method: Method, num_steps: int) -> tuple[float, float]:
    """Root mean square error of the same."""
    return diagonal_moments(method, num_steps, 0.7, 0.8)[1], method.nfe_per_step * num_steps


def ddim(method: Method, num_steps: int) -> tuple[float, float]:
    """DDIM on Gaussian data against the probability flow."""
    return _ddim_error(Recursion(_noise_of_gaussian, _ddim_step, noisy=False), method, num_steps)


def ddim_spread(method: Method, num_steps: int) -> tuple[float, float]:
    """The same with the draw left out by its own coefficient."""
    term = Spread(
        lambda n, y: (_noise_of_gaussian(n, y), y), lambda t, s: (*_ddim_step(t, s), torch.zeros_like(t))
    )
    return _ddim_error(term, method, num_steps)


def _ddim_step(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones_like(t), s - t, torch.zeros_like(t)


def _noise_of_gaussian(n: Tensor, y: Tensor) -> Tensor:
    return n / (DATA_STD**2 + n**2) * y


def _ddim_error(term: Recursion | Spread, method: Method, num_steps: int) -> tuple[float, float]:
    y0 = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    noise = Normals(0, 2, (1,), torch.float64) if isinstance(term, Spread) else None
    solution = solve(term, y0, method, _uniform(START, END, num_steps), noise=noise)
    exact = y0 * math.sqrt((DATA_STD**2 + END**2) / (DATA_STD**2 + START**2))
    return float((solution.y - exact).abs().max()), float(solution.stats.nfe[0])
