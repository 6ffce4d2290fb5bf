"""One-step methods: declared facts and a tableau (the tableaux themselves are in ``solvers.tableaux``).

A Runge-Kutta method with coefficients (a, b, c) takes the step from t to s = t + h by

    k_i = f(t + c_i h,  y + h sum_{j<i} a_ij k_j),       y_s = y + h sum_i b_i k_i,

and estimates its error by h sum_i (b_i - b^_i) k_i where a second set of weights b^ is given.  When the last
stage is the field at (s, y_s) ("first same as last") it serves as the first stage of the next step.

Every method states its facts as attributes: ``order`` (for ODEs), ``strong_order`` and ``weak_order`` (for
SDEs), ``nfe_per_step``, the terms it accepts.  Constructors refuse by them and tests measure them.

References: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I" (2nd ed.), table II.1.2
and II.5.2 (Dormand-Prince); Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations",
section 10.2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from solvers.brownian import BrownianMotion
from solvers.control import FixedGrid
from solvers.dense import DenseOutput, combine
from solvers.interval import Interval, Step
from solvers.terms import ODE, SDE, Recursion, Spread, expand_like


class Method(ABC):
    """A rule for one step, driven by the loop of ``solvers.solve``.

    Attributes:
        name: for messages and records.
        terms: the kinds of term that it can integrate.
        order: global order of the deterministic error.
        strong_order, weak_order: the same for SDEs with additive noise; None where the method takes no noise.
        diagonal_strong_order: strong order for SDEs with diagonal noise; None where the method takes additive
            noise alone.
        nfe_per_step: evaluations of the drift per step.
        nfe_extra: evaluations of a run on a fixed grid beyond ``nfe_per_step`` for every step: a first stage,
            the start of a multistep method.
        has_error: whether steps come with an error estimate, which adaptive control needs.
        first_same_as_last: whether a step hands its last stage to the next one, as ``carry``; with ``carry``
            None the step evaluates its first stage itself.
        error_order: power of the step size with which the error estimate falls; ``order`` when None.
        dense: how the solution inside a step follows from its stages, or None.
    """

    name: str
    terms: tuple[type, ...]
    order: int
    strong_order: float | None = None
    weak_order: float | None = None
    diagonal_strong_order: float | None = None
    nfe_per_step: int
    nfe_extra: int = 0
    has_error: bool = False
    first_same_as_last: bool = False
    error_order: float | None = None
    dense: DenseOutput | None = None

    def nfe(self, num_steps: int) -> int:
        """Evaluations of a run on a fixed grid."""
        return self.nfe_per_step * num_steps + self.nfe_extra

    def prepare(self, term: Any, grid: FixedGrid, like: Tensor) -> Any:
        """What all runs of ``term`` on ``grid`` share: coefficients that depend on the times alone, or None.

        Args:
            term: the equation; its drift is not evaluated.
            grid: the times.
            like: a state, for its type, device and event shape.
        """
        return None

    @abstractmethod
    def start(self, term: Any, t: Tensor, y: Tensor, plan: Any) -> Any:
        """What the first step needs, as its ``carry``.

        Args:
            term: the equation.
            t: the first time.
            y: the start with shape (B, *).
            plan: what ``prepare`` made of the grid; None under adaptive control.
        """

    def replaced(self, carry: Any) -> Any:
        """The carry for a next step from a state that the caller has put in the place of the step's own."""
        return None if self.first_same_as_last else carry

    @abstractmethod
    def step(
        self, term: Any, interval: Interval, y: Tensor, carry: Any, noise: BrownianMotion | None
    ) -> Step:
        """Advance y with shape (B, *) over the interval, driven by ``noise`` over that interval."""


@dataclass(frozen=True)
class RungeKutta(Method):
    """An explicit Runge-Kutta method given by its tableau.

    Args:
        name: for messages and records.
        order: of the propagated solution.
        a: rows of the lower triangle, without the empty first row.
        b: weights of the solution.
        c: nodes of the stages after the first.
        b_error: b minus the embedded weights, or None.
        b_error_low: the same for a companion of lower order, or None; with it the error is, per element,
            e |e| / sqrt(e^2 + e_low^2 / 100), of higher order than both (Hairer's rule for order 8).
        dense: polynomial weights inside the step, or None.

    Whether the last stage can be carried over follows from the tableau: its row of ``a`` equals ``b``.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    b_error: tuple[float, ...] | None = None
    b_error_low: tuple[float, ...] | None = None
    dense: DenseOutput | None = None
    terms = (ODE,)

    def __post_init__(self) -> None:
        if len(self.b) != len(self.a) + 1 or len(self.c) != len(self.a):
            raise ValueError(
                f"{self.name}: {len(self.b)} weights need {len(self.b) - 1} rows in a and as many nodes c"
            )

    @cached_property
    def first_same_as_last(self) -> bool:  # type: ignore[override]
        """Whether the last stage is evaluated at the step's own result."""
        return bool(self.a) and self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @property
    def nfe_per_step(self) -> int:  # type: ignore[override]
        """Number of stages, less one where the first is carried over."""
        return len(self.b) - self.first_same_as_last

    @property
    def nfe_extra(self) -> int:  # type: ignore[override]
        """The very first stage, where later ones are carried over."""
        return int(self.first_same_as_last)

    @property
    def has_error(self) -> bool:  # type: ignore[override]
        """Whether the tableau has an embedded pair."""
        return self.b_error is not None

    def start(self, term: ODE, t: Tensor, y: Tensor, plan: None) -> Tensor | None:
        """The first stage, where it is carried from step to step."""
        return term.drift(t, y) if self.first_same_as_last else None

    def step(
        self, term: ODE, interval: Interval, y: Tensor, carry: Tensor | None, noise: BrownianMotion | None
    ) -> Step:
        """Stages, solution and embedded error."""
        _, t, s, h = interval
        k = [term.drift(t, y) if carry is None else carry]
        y_next = None
        for row, c in zip(self.a, self.c, strict=True):
            y_stage = plus(y, h, combine(row, k))
            k.append(term.drift(s if c == 1 else torch.lerp(t, s, c), y_stage))
            y_next = y_stage
        if y_next is None or not self.first_same_as_last:
            y_next = plus(y, h, combine(self.b, k))
        return Step(y_next, self._error(h, k), k[-1] if self.first_same_as_last else None, k)

    def _error(self, h: float | Tensor, k: list[Tensor]) -> Tensor | None:
        """The embedded error with shape (B, *)."""
        if self.b_error is None:
            return None
        error = h * combine(self.b_error, k)
        if self.b_error_low is None:
            return error
        low = h * combine(self.b_error_low, k)
        scale = (error.square() + 0.01 * low.square()).sqrt()
        return error * (error.abs() / scale.clamp(min=torch.finfo(scale.dtype).tiny))


def plus(y: Tensor, factor: float | Tensor, x: Tensor) -> Tensor:
    """y + factor x with shape (B, *) in one operation."""
    return torch.addcmul(y, factor, x) if isinstance(factor, Tensor) else torch.add(y, x, alpha=factor)


def root(h: float | Tensor) -> float | Tensor:
    """sqrt|h|, the standard deviation of W over a step."""
    return math.sqrt(abs(h)) if isinstance(h, float) else h.abs().sqrt()


Numbers = Sequence[float]
"""A number for every step, in an array of eight bytes each."""


def matching(z: Tensor, y: Tensor) -> Tensor:
    """Return noise with the shape and the type of the state; any other would broadcast or promote."""
    if z.shape != y.shape or z.dtype != y.dtype:
        raise ValueError(
            f"noise must draw the shape and type of the state, {tuple(y.shape)} and {y.dtype}, got "
            f"{tuple(z.shape)} and {z.dtype}"
        )
    return z


def increment(noise: BrownianMotion | None, interval: Interval, y: Tensor) -> Tensor:
    """W / sqrt|h| over one step, with the shape and the type of the state."""
    if noise is None:
        raise ValueError("a step with noise needs a noise source; state the term as noisy and give noise=")
    return matching(noise.increment(interval), y)


def diffusions(term: SDE, grid: FixedGrid) -> Numbers | None:
    """g at the times of a grid as numbers; None where it is not one number per time without gradient."""
    if term.noise != "additive":
        return None
    first = term.diffusion(grid.ts[0])
    if first.ndim or first.requires_grad:
        return None
    return array("d", (float(term.diffusion(t)) for t in grid.times))


@dataclass(frozen=True)
class EulerMaruyama(Method):
    """y_s = y + h f(t, y) + g(t) sqrt|h| z: strong and weak order 1 for additive noise, strong 1/2 for
    diagonal."""

    name: str = "euler_maruyama"
    terms = (SDE,)
    order: int = 1
    strong_order: float = 1.0
    weak_order: float = 1.0
    diagonal_strong_order: float = 0.5
    nfe_per_step: int = 1

    def prepare(self, term: SDE, grid: FixedGrid, like: Tensor) -> Numbers | None:
        """The diffusion at all times, where it is one number per time."""
        return diffusions(term, grid)

    def start(self, term: SDE, t: Tensor, y: Tensor, plan: Numbers | None) -> Numbers | None:
        """The plan."""
        return plan

    def step(
        self,
        term: SDE,
        interval: Interval,
        y: Tensor,
        carry: Numbers | None,
        noise: BrownianMotion | None,
    ) -> Step:
        """One drift, one diffusion, one draw."""
        number, t, _, h = interval
        z = increment(noise, interval, y)
        g: float | Tensor
        if carry is not None:
            g = carry[number]
        else:
            g = expand_like(term.diffusion(t), y) if term.noise == "additive" else term.diffusion(t, y)
        return Step(plus(plus(y, h, term.drift(t, y)), g * root(h), z), None, carry)


class _ByCoefficients(Method):
    """A step whose coefficients are those that the term states."""

    def prepare(self, term: Recursion | Spread, grid: FixedGrid, like: Tensor) -> tuple[Numbers, ...]:
        """The coefficients of every step as numbers, column by column."""
        columns = term.coefficients(grid.ts[:-1], grid.ts[1:])
        return tuple(array("d", column.expand(grid.num_steps).tolist()) for column in columns)

    def start(
        self, term: Recursion | Spread, t: Tensor, y: Tensor, plan: tuple[Numbers, ...]
    ) -> tuple[Numbers, ...]:
        """The plan."""
        return plan


@dataclass(frozen=True)
class RecursionStep(_ByCoefficients):
    """y_s = a y + b N(t, y) + c z with the coefficients that the term states; its orders are those of the
    term."""

    name: str = "recursion"
    terms = (Recursion,)
    order: int = 1
    strong_order: float = 1.0
    weak_order: float = 1.0
    nfe_per_step: int = 1

    def step(
        self,
        term: Recursion,
        interval: Interval,
        y: Tensor,
        carry: tuple[Numbers, ...],
        noise: BrownianMotion | None,
    ) -> Step:
        """One evaluation, at most one draw."""
        number = interval.number
        a, b, c = carry[0][number], carry[1][number], carry[2][number]
        z = increment(noise, interval, y) if c else None
        y_next = a * y + b * term.drift(interval.t, y)
        return Step(y_next if z is None else y_next + c * z, None, carry)


@dataclass(frozen=True)
class SpreadStep(_ByCoefficients):
    """The step of a ``Spread`` term; its orders are those of the term."""

    name: str = "spread"
    terms = (Spread,)
    order: int = 1
    strong_order: float = 1.0
    weak_order: float = 1.0
    nfe_per_step: int = 1

    def step(
        self,
        term: Spread,
        interval: Interval,
        y: Tensor,
        carry: tuple[Numbers, ...],
        noise: BrownianMotion | None,
    ) -> Step:
        """One evaluation, at most one draw."""
        a, b, c_0, c_1 = (column[interval.number] for column in carry)
        n, v = term.drift(interval.t, y)
        y_next = a * y + b * n
        if not (c_0 and c_1):
            return Step(y_next, None, carry)
        spread = (math.log(c_0) + math.log(c_1 / c_0) * v).exp()
        return Step(y_next + spread * increment(noise, interval, y), None, carry)


EULER_MARUYAMA = EulerMaruyama()
SPREAD = SpreadStep()
RECURSION = RecursionStep()
