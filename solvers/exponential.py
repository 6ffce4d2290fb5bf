"""Exponential Runge-Kutta methods for semilinear terms; they also start exponential Adams methods.

For dy = [A(t) y + B(t) N(t, y)] dt + C(t) dW, Phi(s, t) = exp of the integral of A, and w the exact integrals
of polynomials in a variable v through the stages (``solvers.weights``):

    2 stages    y_p = Phi y + w N(t, y) + noise
                y_s = Phi y + w_1 N(t, y) + w_2 N(s, y_p) + noise
    3 stages    y_m = Phi(m, t) y + w' N(t, y) + noise up to m
                y_p = Phi y + w [2 N(m, y_m) - N(t, y)] + noise
                y_s = Phi y + w_1 N(t, y) + w_2 N(m, y_m) + w_3 N(s, y_p) + noise

with m half-way from t to s in v.  For A = 0 they are the methods of Heun and of Kutta (order 3).  Additive
noise is exact: the stochastic integral over the step (over both its halves, with three stages) has the right
variance.  The orders are 2 and 3, and the weak order is 2 with noise.  They are classical orders: for stiff A
the method with three stages has a lower one.

Reference: Cox and Matthews, "Exponential Time Differencing for Stiff Systems" (2002), eq. 22 and 23-25;
Hochbruck and Ostermann, "Exponential Integrators" (2010).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.brownian import NoiseSource
from solvers.control import FixedGrid
from solvers.interval import Interval, Step
from solvers.methods import Method
from solvers.terms import Semilinear
from solvers.weights import (
    Variable,
    Weight,
    Weights,
    columns,
    identity,
    middle,
    per_step,
    update,
    variable_name,
)

SECOND_HALF = 0x68616C66
"""Stream of the normals of the second halves of steps with three stages; the first halves use stream 0."""


class Stages(NamedTuple):
    """Coefficients of one Runge-Kutta step.

    Attributes:
        factor: Phi(s, t).
        whole: weight of a constant.
        final: weights of the stages.
        noise: standard deviation of the noise of the step, or of its first half; None without noise.
        middle: time of the middle stage, its factor and weight; None with two stages.
        rest: Phi(s, m), and standard deviation of the noise of the second half, where there is noise.
    """

    factor: Weight
    whole: Weight
    final: tuple[Weight, ...]
    noise: Weight | None
    middle: tuple[Tensor, Weight, Weight] | None = None
    rest: tuple[Weight, Weight] | None = None


def stages(num_stages: int, weights: Weights, t: Tensor, s: Tensor, y: Tensor) -> list[Stages]:
    """The coefficients of steps from t to s, both with shape (N,), with the dtype and device of y."""
    factor, whole = per_step(weights.factor(t, s), y), columns(weights.weights(t, s, t[:, None]), y)
    nothing: list[Any] = [None] * len(t)
    if num_stages == 2:
        final = columns(weights.weights(t, s, torch.stack([t, s], 1)), y)
        std = weights.noise(t, s)
        rows = zip(factor, whole, final, nothing if std is None else per_step(std, y), strict=True)
        return [Stages(phi, w[0], b, c) for phi, w, b, c in rows]
    m = middle(weights.variable, t, s)
    final = columns(weights.weights(t, s, torch.stack([t, m, s], 1)), y)
    half = columns(weights.weights(t, m, t[:, None]), y)
    to_middle = zip(m.unbind(), per_step(weights.factor(t, m), y), (w[0] for w in half), strict=True)
    first, second = weights.noise(t, m), weights.noise(m, s)
    noise: Iterable[Any] = nothing
    rest: Iterable[Any] = nothing
    if first is not None and second is not None:
        noise = per_step(first, y)
        rest = zip(per_step(weights.factor(m, s), y), per_step(second, y), strict=True)
    table = zip(factor, whole, final, noise, to_middle, rest, strict=True)
    return [Stages(phi, w[0], b, c, mid, r) for phi, w, b, c, mid, r in table]


def runge_kutta(
    step: Stages, term: Any, interval: Interval, y: Tensor, first: Tensor, noise: NoiseSource | None
) -> Tensor:
    """The state with shape (B, *) after one step from y, given the first stage N(t, y)."""
    number, _, s, _ = interval
    shift = None
    if step.noise is not None:
        assert noise is not None
        shift = step.noise * noise.draw(number)
    values = [first]
    constant = first
    if step.middle is not None:
        m, factor, weight = step.middle
        y_m = _add(update(factor, y, (weight,), values), shift)
        values.append(term.drift(m, y_m))
        constant = 2 * values[1] - first
    if step.rest is not None:
        assert noise is not None
        assert shift is not None
        shift = step.rest[0] * shift + step.rest[1] * noise.draw(number, SECOND_HALF)
    y_p = _add(update(step.factor, y, (step.whole,), (constant,)), shift)
    values.append(term.drift(s, y_p))
    return _add(update(step.factor, y, step.final, values), shift)


def _add(y: Tensor, shift: Tensor | None) -> Tensor:
    return y if shift is None else y + shift


@dataclass(frozen=True)
class ExponentialRungeKutta(Method):
    """The exponential Runge-Kutta methods with two and three stages (see the module), on a fixed grid.

    Args:
        num_stages: 2 or 3, the order.
        variable: v(t), elementwise and strictly monotone on the grid, float64 tensors; t itself by default.

    Raises:
        ValueError: another number of stages.
    """

    num_stages: int
    variable: Variable = identity
    terms = (Semilinear,)
    strong_order: float = 1.0
    weak_order: float = 2.0

    def __post_init__(self) -> None:
        if self.num_stages not in (2, 3):
            raise ValueError(f"num_stages must be 2 or 3, got {self.num_stages}")

    @property
    def name(self) -> str:  # type: ignore[override]
        """For messages and records."""
        return "_".join(filter(None, (f"etd_rk{self.num_stages}", variable_name(self.variable))))

    @property
    def order(self) -> int:  # type: ignore[override]
        """The number of stages."""
        return self.num_stages

    @property
    def nfe_per_step(self) -> int:  # type: ignore[override]
        """The number of stages."""
        return self.num_stages

    def prepare(self, term: Semilinear, grid: FixedGrid, like: Tensor) -> list[Stages]:
        """The coefficients of all steps."""
        return stages(self.num_stages, Weights(term, self.variable), grid.ts[:-1], grid.ts[1:], like)

    def start(self, term: Semilinear, t: Tensor, y: Tensor, plan: list[Stages]) -> list[Stages]:
        """The plan."""
        return plan

    def step(
        self, term: Semilinear, interval: Interval, y: Tensor, carry: list[Stages], noise: NoiseSource | None
    ) -> Step:
        """Two or three evaluations, one draw per half."""
        first = term.drift(interval.t, y)
        return Step(runge_kutta(carry[interval.number], term, interval, y, first, noise), None, carry)


ETD_RK2 = ExponentialRungeKutta(2)
ETD_RK3 = ExponentialRungeKutta(3)
