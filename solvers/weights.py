"""Weights of exponential methods: integrals over the steps of a grid, in float64, once per grid.

For dy = [A y + B N] dt + C dW with Phi(s, u) = exp of the integral of A from u to s, and for nodes v_1, ...,
v_k in a monotone variable v of the time,

    Phi(s, t),    w_j = int_t^s Phi(s, u) B(u) l_j(v(u)) du,    c^2 = | int_t^s Phi(s, u)^2 C(u)^2 du |,

where l_j is the product of (v - v_m) / (v_j - v_m) over m != j.  The integrals are taken as they stand, not
by closed formulas, which cancel: with four nodes and a hundred steps those lose every digit of float32.

Quadrature is the tanh-sinh rule: u = t + (s - t) sigmoid(pi sinh x), equal weights in x.  It is exact to
rounding on smooth integrands, as Gauss-Legendre is, keeps its accuracy on those that are singular at, or just
outside, an end of the step (the noise-to-signal ratio grows like sqrt(t) at 0), and resolves the boundary
layers of stiff A.

Reference: Takahasi and Mori, "Double Exponential Formulas for Numerical Integration" (1974).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from solvers.terms import ODE, Semilinear

Variable = Callable[[Tensor], Tensor]
Weight = float | Tensor

_X = torch.arange(-64, 65, dtype=torch.float64) / 16
_NEAR = torch.sigmoid(-math.pi * torch.sinh(_X.abs()))
"""Distance of every point from the nearer end of the step, in steps."""

_DENSITY = torch.cosh(_X) * _NEAR * (1 - _NEAR)
_RULE = _DENSITY / _DENSITY.sum()
_MOST_ELEMENTS = 1 << 21


def identity(t: Tensor) -> Tensor:
    """The time itself."""
    return t


def middle(variable: Variable, t: Tensor, s: Tensor) -> Tensor:
    """Times with shape (N,) at which ``variable`` is half-way between its values at t and s, by bisection."""
    target, sign = (variable(t) + variable(s)) / 2, (variable(s) - variable(t)).sign()
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(54):
        fraction = (low + high) / 2
        below = sign * (variable(t + fraction * (s - t)) - target) < 0
        low, high = torch.where(below, fraction, low), torch.where(below, high, fraction)
    return t + high * (s - t)


def _points(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Points inside the intervals from t to s (N,) and their weights, both with shape (N, Q)."""
    h = (s - t)[:, None]
    u = torch.where(_X < 0, t[:, None] + h * _NEAR, s[:, None] - h * _NEAR)
    inside = (u != t[:, None]) & (u != s[:, None])
    return u, torch.where(inside, h * _RULE, 0.0)


def lagrange(v: Tensor, nodes: Tensor) -> Tensor:
    """Values with shape (N, Q, k) at v with shape (N, Q) of the polynomials that are 1 at one of the nodes
    (N, k) and 0 at the others."""
    columns = []
    for j in range(nodes.shape[1]):
        product = torch.ones_like(v)
        for m in range(nodes.shape[1]):
            if m != j:
                product = product * ((v - nodes[:, m, None]) / (nodes[:, j, None] - nodes[:, m, None]))
        columns.append(product)
    return torch.stack(columns, 2)


class Weights:
    """The integrals for one term: times with shape (N,), results (N, *) as A, B or C have it.

    Args:
        term: ``Semilinear``, or an ``ODE`` as the case A = 0, B = 1, C = 0.
        variable: v, in which N is a polynomial.
    """

    def __init__(self, term: ODE | Semilinear, variable: Variable = identity) -> None:
        self.variable = variable
        term = Semilinear(term.drift) if isinstance(term, ODE) else term
        self._linear, self._integral = term.linear, term.integral
        self._source, self._diffusion = term.source, term.diffusion

    def factor(self, t: Tensor, s: Tensor) -> Tensor:
        """Phi(s, t)."""
        if self._integral is not None:
            return (self._integral(s) - self._integral(t)).exp()
        if self._linear is None:
            return torch.ones_like(t)
        return self._by_parts(self._exponent, t, s).exp()

    def weights(self, t: Tensor, s: Tensor, nodes: Tensor) -> Tensor:
        """w_j with shape (N, k, *) for the times of the nodes with shape (N, k)."""

        def integrate(t: Tensor, s: Tensor, nodes: Tensor) -> Tensor:
            u, rule = _points(t, s)
            v = self.variable(torch.cat([u, nodes], 1).flatten()).reshape(len(u), -1)
            basis = lagrange(v[:, : u.shape[1]], v[:, u.shape[1] :]) * rule[..., None]
            kernel = self._kernel(self._source, u, s)
            if kernel.ndim == 2:
                return torch.einsum("nq,nqk->nk", kernel, basis)
            flat = torch.einsum("nqd,nqk->nkd", kernel.flatten(2), basis)
            return flat.reshape(*flat.shape[:2], *kernel.shape[2:])

        return self._by_parts(integrate, t, s, nodes)

    def noise(self, t: Tensor, s: Tensor) -> Tensor | None:
        """c >= 0, or None for a term without noise."""
        if self._diffusion is None:
            return None

        def integrate(t: Tensor, s: Tensor) -> Tensor:
            u, rule = _points(t, s)
            square = self._kernel(self._diffusion, u, s).square()
            return (_fit(rule, square) * square).sum(1).abs().sqrt()

        return self._by_parts(integrate, t, s)

    def _kernel(self, function: Variable | None, u: Tensor, s: Tensor) -> Tensor:
        """Phi(s, u) f(u) with shape (N, Q, *)."""
        value = torch.ones_like(u) if function is None else _on(function, u)
        if self._integral is not None:
            end = self._integral(s)
            growth = (end[:, None] - _on(self._integral, u)).exp()
        elif self._linear is not None:
            every = s[:, None].expand_as(u)
            growth = self._exponent(u.flatten(), every.flatten())
            growth = growth.reshape(*u.shape, *growth.shape[1:]).exp()
        else:
            return value
        wide, narrow = (growth, value) if growth.ndim >= value.ndim else (value, growth)
        return wide * _fit(narrow, wide)

    def _exponent(self, t: Tensor, s: Tensor) -> Tensor:
        """Integral of A from t to s."""
        assert self._linear is not None
        u, rule = _points(t, s)
        value = _on(self._linear, u)
        return (_fit(rule, value) * value).sum(1)

    def _by_parts(self, function: Callable[..., Tensor], t: Tensor, s: Tensor, *more: Tensor) -> Tensor:
        """The function of as many steps at a time as fit into memory."""
        one = t[:1]
        given = (self._linear, self._integral, self._source, self._diffusion)
        width = max((f(one).numel() for f in given if f is not None), default=1)
        nested = len(_X) if self._integral is None and self._linear is not None else 1
        most = max(1, _MOST_ELEMENTS // (len(_X) * nested * width))
        parts = zip(*(x.split(most) for x in (t, s, *more)), strict=True)
        return torch.cat([function(*part) for part in parts])


def _on(function: Variable, u: Tensor) -> Tensor:
    """A function of times (M,) at times with shape (N, Q)."""
    value = function(u.flatten())
    return value.reshape(*u.shape, *value.shape[1:])


def _fit(narrow: Tensor, wide: Tensor) -> Tensor:
    return narrow.reshape(*narrow.shape, *[1] * (wide.ndim - narrow.ndim))


def per_step(values: Tensor, y: Tensor) -> list[Weight]:
    """One weight per step: Python floats, or tensors in the type of y where features differ."""
    if values.ndim == 1:
        return list(values.tolist())
    return list(values.to(y).unbind())


def columns(values: Tensor, y: Tensor) -> list[tuple[Weight, ...]]:
    """The same for weights with shape (N, k, *): k per step."""
    return list(zip(*(per_step(values[:, j], y) for j in range(values.shape[1])), strict=True))


def update(factor: Weight, y: Tensor, weights: Sequence[Weight], values: Sequence[Tensor]) -> Tensor:
    """factor y + sum of weights times values, with shape (B, *); uses as many values as there are weights."""
    out = None if isinstance(factor, float) and factor == 1 else factor * y
    for w, value in zip(weights, values, strict=False):
        if out is None:
            out = torch.add(y, value, alpha=w) if isinstance(w, float) else torch.addcmul(y, w, value)
        elif isinstance(w, float):
            out.add_(value, alpha=w)
        else:
            out.addcmul_(w, value)
    assert out is not None
    return out
