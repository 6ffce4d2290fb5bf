"""Exact problems for semilinear terms, with and without noise, for the harness of ``benchmarks.orders``.

Deterministic.  The logistic equation y' = r cos(t) y (1 - y), a part of its linear part solved exactly:

    A = 0.3 r cos(t),    B = r cos(t),    N = y (0.7 - y).

Strong and weak orders.  Anderson's reverse SDE for Gaussian data of variance c^2 in the clock n (see
``benchmarks.orders``), dy = 2 q y dn + sqrt(2 n) dW with q = n / (c^2 + n^2), a part of the drift solved
exactly: A = 0.6 q, B = sqrt(n), N = 1.4 q y / sqrt(n).  (With N = y exponential Euler has weak order 2 here.)
Run on unit impulses a method puts out its coefficients k_j.  Draw j drives the exact integral of the noise
over its piece of the step, z_j = int Phi_A(b_j, u) C(u) dW / c_j, so that

    weak error        | k_0^2 Var(y_0) + sum_j k_j^2 - (c^2 + n_end^2) |
    strong error^2    (k_0 - Phi)^2 Var(y_0) + sum_j int_j (k_j Phi_A(b_j, u) / c_j - Phi(end, u))^2 C(u)^2 du
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from solvers import FixedGrid, Method, Semilinear, solve
from solvers.weights import Weights, identity, middle

DATA_STD = 0.5
START, END = 2.0, 0.2


def _uniform(t0: float, t1: float, num_steps: int) -> FixedGrid:
    return FixedGrid(torch.linspace(t0, t1, num_steps + 1, dtype=torch.float64))


def split_logistic(method: Method, num_steps: int) -> tuple[float, float]:
    """The split logistic equation from 0 to 3, states of shape (B, 2)."""
    rate, end = 2.0, 3.0
    y0 = torch.tensor([[0.1, 0.6], [0.3, 0.8]], dtype=torch.float64)
    term = Semilinear(
        lambda t, y: y * (0.7 - y), integral=lambda t: 0.3 * rate * t.sin(), source=lambda t: rate * t.cos()
    )
    solution = solve(term, y0, method, _uniform(0.0, end, num_steps))
    error = solution.y - (y0.logit() + rate * math.sin(end)).sigmoid()
    return float(error.square().mean().sqrt()), float(solution.stats.nfe[0])


class PairedImpulses:
    """Unit impulses: sample 1 + i has 1 in draw i of stream 0, sample 1 + N + i in draw i of any other
    stream."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def draw(self, index: int, stream: int = 0) -> Tensor:
        """One column of the identity, with shape (1 + 2 N, 1)."""
        z = torch.zeros(1 + 2 * self._num_steps, 1, dtype=torch.float64)
        z[1 + index + (self._num_steps if stream else 0)] = 1.0
        return z


def reverse_term() -> Semilinear:
    """The reverse SDE of Gaussian data in the clock n, a part of its drift in the linear part."""
    return Semilinear(
        lambda n, y: 1.4 * n.sqrt() / (DATA_STD**2 + n.square()) * y,
        integral=lambda n: 0.3 * (DATA_STD**2 + n.square()).log(),
        source=lambda n: n.sqrt(),
        diffusion=lambda n: (2 * n).sqrt(),
    )


def _coefficients(method: Method, grid: FixedGrid) -> tuple[float, Tensor, Tensor, float]:
    """Coefficients of the start, of the draws, of the second draws of the steps; evaluations."""
    n = grid.num_steps
    y0 = torch.zeros(1 + 2 * n, 1, dtype=torch.float64)
    y0[0] = 1.0
    solution = solve(reverse_term(), y0, method, grid, noise=PairedImpulses(n))
    k = solution.y[:, 0]
    return float(k[0]), k[1 : n + 1], k[n + 1 :], float(solution.stats.nfe[0])


def split_weak(method: Method, num_steps: int) -> tuple[float, float]:
    """Error of the variance at the end, from the exact variance at the start."""
    start, draws, second, nfe = _coefficients(method, _uniform(START, END, num_steps))
    variance = start**2 * (DATA_STD**2 + START**2) + float(draws.square().sum() + second.square().sum())
    return abs(variance - (DATA_STD**2 + END**2)), nfe


def split_strong(method: Method, num_steps: int) -> tuple[float, float]:
    """Root mean square distance to the exact solution driven by the same Brownian motion."""
    grid = _uniform(START, END, num_steps)
    start, draws, second, nfe = _coefficients(method, grid)
    t, s, halved = grid.ts[:-1], grid.ts[1:], second != 0
    m = middle(identity, t, s)
    a = torch.cat([t, m[halved]])
    b = torch.cat([torch.where(halved, m, s), s[halved]])
    k = torch.cat([draws, second[halved]])
    weights, term = Weights(reverse_term()), reverse_term()
    assert term.diffusion is not None
    c = weights.noise(a, b)
    assert c is not None
    square = torch.zeros((), dtype=torch.float64)
    for node, weight in zip(*np.polynomial.legendre.leggauss(8), strict=True):
        u = a + (b - a) * (float(node) + 1) / 2
        exact = (DATA_STD**2 + END**2) / (DATA_STD**2 + u.square())
        error = (k * weights.factor(u, b) / c - exact) * term.diffusion(u)
        square += float(weight) / 2 * (error.square() * (b - a).abs()).sum()
    phi = (DATA_STD**2 + END**2) / (DATA_STD**2 + START**2)
    return math.sqrt((start - phi) ** 2 * (DATA_STD**2 + START**2) + float(square)), nfe
