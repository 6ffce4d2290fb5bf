"""Dense output: the solution inside a step of a Runge-Kutta method, from the stages of the step.

With stages k_i of the step from t to s = t + h, and, for some methods, further stages

    k_j = f(t + c_j h,  y + h sum_{i<j} a_ji k_i),

the solution at t + u h, 0 <= u <= 1, is y + h sum_i b_i(u) k_i with polynomials b_i(u) = sum_m p_im u^(m+1).
An interpolant of order q has the local error O(h^(q+1)) at every u; at u = 1 it is the step's own result.

Reference: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I" (2nd ed.), section II.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.interval import Interval
from solvers.terms import expand_like


@dataclass(frozen=True)
class DenseOutput:
    """Polynomial weights inside a step.

    Args:
        order: q, the highest degree of polynomials in t that are reproduced.
        p: for every stage, the coefficients of u, u^2, ...
        a, c: rows and nodes of stages that only the dense output needs.
    """

    order: int
    p: tuple[tuple[float, ...], ...]
    a: tuple[tuple[float, ...], ...] = ()
    c: tuple[float, ...] = ()

    def extend(self, term: Any, interval: Interval, y: Tensor, stages: Sequence[Tensor]) -> Sequence[Tensor]:
        """The stages of the step from y with shape (B, *), and those that only the dense output needs."""
        _, t, s, h = interval
        k = list(stages)
        for row, c in zip(self.a, self.c, strict=True):
            k.append(term.drift(torch.lerp(t, s, c), y + h * combine(row, k)))
        return k

    def at(self, h: float | Tensor, y: Tensor, stages: Sequence[Tensor], u: float | Tensor) -> Tensor:
        """The solution at t + u h with shape (B, *).

        Args:
            h: length of the step, a number or broadcastable against y.
            y: state at t with shape (B, *).
            stages: what ``extend`` returned, each with shape (B, *).
            u: a number, or one for every sample with shape (B,) in float64.
        """
        return y + h * combine(tuple(_weight(coefficients, u, y) for coefficients in self.p), stages)


def _weight(coefficients: tuple[float, ...], u: float | Tensor, y: Tensor) -> float | Tensor:
    """Sum of p_m u^(m+1) by Horner's rule."""
    if not any(coefficients):
        return 0.0
    total: float | Tensor = 0.0
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * u
    return expand_like(total, y) if isinstance(total, Tensor) else total


def combine(weights: Sequence[float | Tensor], k: Sequence[Tensor]) -> Tensor:
    """Sum of the stages, without those whose weight is the number 0."""
    total = None
    for w, stage in zip(weights, k, strict=True):
        if isinstance(w, Tensor):
            total = w * stage if total is None else total + w * stage
        elif w:
            if total is None:
                total = stage if w == 1 else w * stage
            else:
                total = torch.add(total, stage, alpha=w)
    return torch.zeros_like(k[0]) if total is None else total
