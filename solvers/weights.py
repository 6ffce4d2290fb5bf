"""Weights of exponential methods: integrals over the steps of a grid, in float64, once per grid.

For dy = [A y + B N] dt + C dW with Phi(s, u) = exp of the integral of A from u to s, and for nodes v_1, ...,
v_k in a monotone variable v of the time,

    Phi(s, t),    w_j = int_t^s Phi(s, u) B(u) l_j(v(u)) du,    c^2 = | int_t^s Phi(s, u)^2 C(u)^2 du |,

where l_j is the product of (v - v_m) / (v_j - v_m) over m != j.  The integrals are computed by quadrature.
Closed formulas suffer from cancellation: with four nodes and a hundred steps they lose every digit of
float32.

The rule is Gauss-Legendre with 16 points.  Where 10 points give another value, the step is integrated again
by the tanh-sinh rule, u = t + (s - t) sigmoid(pi sinh x) with equal weights in x.  That happens where the
integrand is singular at, or just outside, an end of the step (the noise-to-signal ratio grows like sqrt(t) at
0) or has the boundary layer of a stiff A.

Reference: Takahasi and Mori, "Double Exponential Formulas for Numerical Integration" (1974).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.terms import ODE, Semilinear

Variable = Callable[[Tensor], Tensor]
Weight = float | Tensor


class Rule(NamedTuple):
    """A quadrature rule on a step of unit length, each part with shape (Q,).

    Attributes:
        left: which points are nearer to the start than to the end.
        near: distance of the points from the nearer end.
        weight: their weights.
    """

    left: Tensor
    near: Tensor
    weight: Tensor


def _gauss(count: int) -> Rule:
    x, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(count))
    return Rule(x < 0, (1 - x.abs()) / 2, weight / 2)


def _tanh_sinh(per_unit: int) -> Rule:
    x = torch.arange(-4 * per_unit, 4 * per_unit + 1, dtype=torch.float64) / per_unit
    near = torch.sigmoid(-math.pi * torch.sinh(x.abs()))
    density = torch.cosh(x) * near * (1 - near)
    return Rule(x < 0, near, density / density.sum())


_COARSE, _FINE, _ROBUST = _gauss(10), _gauss(16), _tanh_sinh(16)
_AGREEMENT = 1e-13
_MOST_ELEMENTS = 1 << 21


def identity(t: Tensor) -> Tensor:
    """The time itself."""
    return t


def variable_name(variable: Variable) -> str:
    """The name of a variable as a part of method names; empty for the time itself."""
    return "" if variable is identity else str(getattr(variable, "__name__", "variable"))


def middle(variable: Variable, t: Tensor, s: Tensor) -> Tensor:
    """Times with shape (N,) at which ``variable`` is half-way between its values at t and s, by bisection."""
    target, sign = (variable(t) + variable(s)) / 2, (variable(s) - variable(t)).sign()
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(54):
        fraction = (low + high) / 2
        below = sign * (variable(t + fraction * (s - t)) - target) < 0
        low, high = torch.where(below, fraction, low), torch.where(below, high, fraction)
    return t + high * (s - t)


def _points(rule: Rule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Points inside the intervals from t to s (N,) and their weights, both with shape (N, Q)."""
    h = (s - t)[:, None]
    u = torch.where(rule.left, t[:, None] + h * rule.near, s[:, None] - h * rule.near)
    inside = (u != t[:, None]) & (u != s[:, None])
    return u, torch.where(inside, h * rule.weight, 0.0)


def lagrange(v: Tensor, nodes: Tensor) -> Tensor:
    """The Lagrange polynomials of the nodes, (N, k), at v, (N, Q): values with shape (N, Q, k)."""
    columns = []
    for j in range(nodes.shape[1]):
        product = torch.ones_like(v)
        for m in range(nodes.shape[1]):
            if m != j:
                product = product * ((v - nodes[:, m, None]) / (nodes[:, j, None] - nodes[:, m, None]))
        columns.append(product)
    return torch.stack(columns, 2)


def kernel_weights(
    kernel: Variable, nodes: Sequence[Tensor], start: Tensor, end: Tensor, variable: Variable = identity
) -> list[Tensor]:
    """Integrals from ``start`` to ``end``, both with shape (N,), of kernel(u) l_j(v(u)) du.

    Gauss-Legendre quadrature with 16 points; one tensor with shape (N,) for every node.

    Args:
        kernel: elementwise, smooth between the ends; called with shape (N, 16).
        nodes: v_j, each with shape (N,).
        variable: v, elementwise and smooth as well.
    """
    length = (end - start)[:, None]
    u = torch.where(_FINE.left, start[:, None] + length * _FINE.near, end[:, None] - length * _FINE.near)
    scaled = kernel(u) * _FINE.weight * length
    return list((scaled[..., None] * lagrange(variable(u), torch.stack(list(nodes), 1))).sum(1).unbind(1))


class Weights:
    """The integrals for one term: from times with shape (N,) to values with shape (N, *), * as in A, B or C.

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
        return self._integrate(self._exponent, t, s).exp()

    def weights(self, t: Tensor, s: Tensor, nodes: Tensor) -> Tensor:
        """w_j with shape (N, k, *) for the times of the nodes with shape (N, k)."""

        def integral(rule: Rule, t: Tensor, s: Tensor, nodes: Tensor) -> Tensor:
            u, w = _points(rule, t, s)
            v = self.variable(torch.cat([u, nodes], 1).flatten()).reshape(len(u), -1)
            basis = lagrange(v[:, : u.shape[1]], v[:, u.shape[1] :]) * w[..., None]
            kernel = self._kernel(rule, self._source, u, s)
            if kernel.ndim == 2:
                return torch.einsum("nq,nqk->nk", kernel, basis)
            flat = torch.einsum("nqd,nqk->nkd", kernel.flatten(2), basis)
            return flat.reshape(*flat.shape[:2], *kernel.shape[2:])

        return self._integrate(integral, t, s, nodes)

    def noise(self, t: Tensor, s: Tensor) -> Tensor | None:
        """c >= 0, or None for a term without noise."""
        if self._diffusion is None:
            return None

        def integral(rule: Rule, t: Tensor, s: Tensor) -> Tensor:
            u, w = _points(rule, t, s)
            square = self._kernel(rule, self._diffusion, u, s).square()
            return (_fit(w, square) * square).sum(1)

        return self._integrate(integral, t, s).abs().sqrt()

    def _kernel(self, rule: Rule, function: Variable | None, u: Tensor, s: Tensor) -> Tensor:
        """Phi(s, u) f(u) with shape (N, Q, *)."""
        value = torch.ones_like(u) if function is None else _on(function, u)
        if self._integral is not None:
            end = self._integral(s)
            growth = (end[:, None] - _on(self._integral, u)).exp()
        elif self._linear is not None:
            every = s[:, None].expand_as(u)
            growth = self._exponent(rule, u.flatten(), every.flatten())
            growth = growth.reshape(*u.shape, *growth.shape[1:]).exp()
        else:
            return value
        wide, narrow = (growth, value) if growth.ndim >= value.ndim else (value, growth)
        return wide * _fit(narrow, wide)

    def _exponent(self, rule: Rule, t: Tensor, s: Tensor) -> Tensor:
        """Integral of A from t to s."""
        assert self._linear is not None
        u, w = _points(rule, t, s)
        value = _on(self._linear, u)
        return (_fit(w, value) * value).sum(1)

    def _integrate(self, integral: Callable[..., Tensor], t: Tensor, s: Tensor, *more: Tensor) -> Tensor:
        """The integrals over all steps, each by the rule that suffices for it."""
        coarse, fine = (self._by_parts(integral, rule, t, s, *more) for rule in (_COARSE, _FINE))
        error, size = (
            (x.abs().flatten(1) if x.ndim > 1 else x.abs()[:, None]) for x in (fine - coarse, fine)
        )
        rough = ~(error <= _AGREEMENT * size.amax(1, keepdim=True)).all(1)
        if bool(rough.any()):
            some = (x[rough] for x in (t, s, *more))
            fine[rough] = self._by_parts(integral, _ROBUST, *some)
        return fine

    def _by_parts(self, integral: Callable[..., Tensor], rule: Rule, *steps: Tensor) -> Tensor:
        """The integrals, computed for as many steps at a time as a fixed amount of memory allows."""
        one, count = steps[0][:1], len(rule.near)
        given = (self._linear, self._integral, self._source, self._diffusion)
        width = max((f(one).numel() for f in given if f is not None), default=1)
        nested = count if self._integral is None and self._linear is not None else 1
        most = max(1, _MOST_ELEMENTS // (count * nested * width))
        parts = zip(*(x.split(most) for x in steps), strict=True)
        return torch.cat([integral(rule, *part) for part in parts])


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
    """factor y + sum of weights times values, with shape (B, *); values beyond the weights are ignored."""
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
