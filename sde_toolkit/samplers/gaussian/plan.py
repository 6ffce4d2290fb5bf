"""The default sampler's steps in numbers: the sums that ``sde_toolkit.residual`` makes of evaluations.

Along the axes of the covariance, less the Gaussian's centre, a step is, with weights that differ from axis to
axis (all products with them elementwise),

    s = U^T x - centre,      g = U^T raw + shift + mix s,      s' = keep s + sum_k w_k g_k + spread z,
    x' = mean + U s'

with g_0 the evaluation at the step's start and g_1, ... those before.  Where there are many axes it is done
as it stands.  Where there are few, such sums cost less than the operations that they consist of, and the
rotations go into the weights: with g = raw + x (U mix U^T) in the coordinates of x, the whole step is one
product of

    (1, x, z, g_0, g_1, ...)   with the rows   (constant, U keep U^T, spread U^T, U w_0 U^T, U w_1 U^T, ...)

and the evaluations stay where they are, in a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import ROW_BLOCK, Moments, Rotation

FEW_AXES = 8
"""Up to here the rotations go into the weights."""


class Tables(NamedTuple):
    """Numbers of N steps and of the N - 1 evaluations at the starts of all but the first, in float64.

    Attributes:
        mean, centre: of the Gaussian, alpha m and alpha U^T m, at all N + 1 times, with shape (N + 1, n).
        shift, mix: of the evaluations, with shape (N - 1, n).
        keep: what multiplies s, with shape (N, n).
        spread: what multiplies the draw, with shape (N, n); None without noise.
        usual, moved: w with shape (N, K, n): that of every step, and that of one whose state somebody moved.
        used, used_moved: which of the K evaluations, the newest is 0, a step uses.
    """

    mean: Tensor
    centre: Tensor
    shift: Tensor
    mix: Tensor
    keep: Tensor
    spread: Tensor | None
    usual: Tensor
    moved: Tensor
    used: Sequence[Sequence[int]]
    used_moved: Sequence[Sequence[int]]


class Part(NamedTuple):
    """What a step adds: weights with shape (n,), and which evaluations, the newest is 0, they multiply."""

    weights: tuple[Tensor, ...]
    which: tuple[int, ...]


@dataclass(frozen=True)
class AxesPlan:
    """The tables in the state's type, on its device, row by row; None for those that are zero."""

    project: Rotation
    embed: Rotation
    mean: list[Tensor] | None
    centre: list[Tensor] | None
    shift: list[Tensor] | None
    mix: list[Tensor]
    keep: list[Tensor]
    spread: list[Tensor] | None
    usual: list[Part]
    moved: list[Part]
    most: int

    def begin(self, x: Tensor) -> AxesRun:
        """A run from x with shape (B, *)."""
        return AxesRun(self, x)


class AxesRun:
    """One run along the axes: s with shape (B, n), the state that it is, and the evaluations so far."""

    def __init__(self, plan: AxesPlan, x: Tensor) -> None:
        self._plan, self._x, self._past = plan, x, ()  # type: tuple[AxesPlan, Tensor, tuple[Tensor, ...]]
        self._s = self._enter(0, x)

    def _enter(self, i: int, x: Tensor) -> Tensor:
        r = self._plan.project(x)
        return r if self._plan.centre is None else r - self._plan.centre[i]

    def step(self, i: int, x: Tensor, raw: Tensor | None, z: Tensor | None) -> Tensor:
        """The state with shape (B, *) after step i from x, given the evaluation there and the draw."""
        plan, s, parts = self._plan, self._s, self._plan.usual
        if x is not self._x:  # moved by a corrector or a threshold: there is nothing to correct then
            s, parts = self._enter(i, x), plan.moved
        if raw is not None:
            r = plan.project(raw, None if plan.shift is None else plan.shift[i - 1])
            self._past = (torch.addcmul(r, plan.mix[i - 1], s), *self._past[: plan.most - 1])
        s = plan.keep[i] * s
        weights, which = parts[i]
        for weight, k in zip(weights, which, strict=True):
            s.addcmul_(weight, self._past[k])
        if z is not None:
            assert plan.spread is not None
            s.addcmul_(plan.spread[i], z.flatten(1))
        self._s, self._x = s, plan.embed(s, None if plan.mean is None else plan.mean[i + 1])
        return self._x


@dataclass(frozen=True)
class FoldedPlan:
    """The products of the module's head.

    Attributes:
        mix: per evaluation, with shape (n, n).
        usual, moved: per step, with shape (W, n), the rows of the evaluations in the order of the ring.
        ring: length of the ring.
        noisy: whether a draw takes part.
    """

    mix: list[Tensor]
    usual: list[Tensor]
    moved: list[Tensor]
    ring: int
    noisy: bool

    def begin(self, x: Tensor) -> FoldedRun:
        """A run from x with shape (B, *)."""
        return FoldedRun(self, x)


class FoldedRun:
    """One run: a matrix with the rows (1, x, z, g, g, ...) of all samples."""

    def __init__(self, plan: FoldedPlan, x: Tensor) -> None:
        self._plan, self._x, self._shape = plan, x, x.shape
        self._few, self._flat_already = len(x) < ROW_BLOCK, x.ndim == 2
        width, n = plan.usual[0].shape
        # a row's length in memory is a multiple of 4: products are a tenth faster for it
        self._rows = x.new_zeros(max(len(x), ROW_BLOCK), -(-width // 4) * 4)[:, :width]
        self._rows[:, 0] = 1
        state, *rest = self._rows[:, 1:].unflatten(1, (-1, n)).unbind(1)
        self._state, self._draw = state, rest.pop(0) if plan.noisy else None
        self._ring = rest

    def _flat(self, x: Tensor) -> Tensor:
        x = x if self._flat_already else x.flatten(1)
        return torch.cat([x, x.new_zeros(len(self._rows) - len(x), x.shape[1])]) if self._few else x

    def step(self, i: int, x: Tensor, raw: Tensor | None, z: Tensor | None) -> Tensor:
        """The state with shape (B, *) after step i from x, given the evaluation there and the draw."""
        plan, flat = self._plan, self._flat(x)
        parts = plan.usual if x is self._x else plan.moved
        self._state.copy_(flat)
        if raw is not None:
            torch.addmm(self._flat(raw), flat, plan.mix[i - 1], out=self._ring[i % plan.ring])
        if z is not None:
            assert self._draw is not None
            self._draw.copy_(self._flat(z))
        x = torch.mm(self._rows, parts[i])
        if self._few:
            x = x[: self._shape[0]]
        self._x = x if self._flat_already else x.reshape(self._shape)
        return self._x


Plan = AxesPlan | FoldedPlan
Run = AxesRun | FoldedRun


def plan(tables: Tables, moments: Moments, y: Tensor) -> Plan:
    """The tables as a plan for states like y with shape (B, *)."""
    return (folded if len(moments.variances) <= FEW_AXES else along_axes)(tables, moments, y)


def along_axes(tables: Tables, moments: Moments, y: Tensor) -> AxesPlan:
    """The plan for many axes."""

    def rows(x: Tensor | None) -> list[Tensor] | None:
        return None if x is None or not bool(x.any()) else every(x)

    def every(x: Tensor) -> list[Tensor]:
        return list(x.to(y).unbind())

    def parts(weights: Tensor, used: Sequence[Sequence[int]]) -> list[Part]:
        pairs = zip(every(weights), used, strict=True)
        return [Part(tuple(row[k] for k in which), tuple(which)) for row, which in pairs]

    return AxesPlan(
        *moments.rotations(y),
        rows(tables.mean),
        rows(tables.centre),
        rows(tables.shift),
        every(tables.mix),
        every(tables.keep),
        None if tables.spread is None else every(tables.spread),
        parts(tables.usual, tables.used),
        parts(tables.moved, tables.used_moved),
        tables.usual.shape[1],
    )


def folded(tables: Tables, moments: Moments, y: Tensor) -> FoldedPlan:
    """The plan for few axes."""
    n, ring, steps = len(moments.variances), tables.usual.shape[1], len(tables.keep)
    axes = torch.eye(n, dtype=torch.float64) if moments.axes is None else moments.axes

    def turned(x: Tensor) -> Tensor:
        """U diag(x) U^T with shape (*, n, n), for x with shape (*, n)."""
        return axes @ (x[..., None] * axes.mT)

    # of every evaluation what does not depend on the state; there is none before the first step
    constant = tables.shift - tables.mix * tables.centre[1:-1]
    constant = torch.cat([torch.zeros(ring, n, dtype=torch.float64), constant])
    age = torch.arange(steps)[:, None] - torch.arange(ring)  # evaluation, from 1, of step and k
    slot = age % ring

    def products(weights: Tensor) -> list[Tensor]:
        s = (weights * constant[age + ring - 1]).sum(1) - tables.keep * tables.centre[:-1]
        s = tables.mean[1:] + s @ axes.mT
        blocks = [s[:, None], turned(tables.keep)]
        if tables.spread is not None:
            blocks.append(tables.spread[:, :, None] * axes.mT)
        ordered = torch.zeros(steps, ring, n, n, dtype=torch.float64)
        ordered[torch.arange(steps)[:, None], slot] = turned(weights)
        return list(torch.cat([*blocks, ordered.flatten(1, 2)], 1).to(y).unbind())

    return FoldedPlan(
        list(turned(tables.mix).to(y).unbind()),
        products(tables.usual),
        products(tables.moved),
        ring,
        tables.spread is not None,
    )
