"""The steps of the Gaussian-residual sampler in numbers: sums of evaluations along the covariance's axes.

Less the Gaussian's centre, a step is, with weights that differ from axis to axis (all products with them
elementwise),

    s = U^T x - centre,      g = U^T raw + shift + mix s,      s' = keep s + sum_k w_k g_k + spread z,
    x' = mean + U s'

with g_0 the evaluation at the step's start and g_1, ... those before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import Moments, Rotation


class Tables(NamedTuple):
    """Numbers of N steps and of the N - 1 evaluations at the starts of all but the first, in float64.

    Attributes:
        mean: of the Gaussian, alpha m at all N + 1 times, with shape (N + 1, n).
        shift: of the evaluations over the Gaussian's centre, with shape (N - 1, 1).
        mix: of the evaluations, with shape (N - 1, k), along ``moments.distinct``, which are all n axes but
            for low rank, like those below.
        keep: what multiplies s, with shape (N, k).
        spread: what multiplies the draw, with shape (N, k); None without noise.
        usual, moved: w with shape (N, K, k): that of every step, and that of one whose state was replaced.
        used, used_moved: which of the K evaluations, the newest is 0, a step uses.
    """

    mean: Tensor
    shift: Tensor
    mix: Tensor
    keep: Tensor
    spread: Tensor | None
    usual: Tensor
    moved: Tensor
    used: Sequence[Sequence[int]]
    used_moved: Sequence[Sequence[int]]

    def centre(self, moments: Moments) -> Tensor:
        """alpha U^T m at all times, with shape (N + 1, n)."""
        return moments.project(self.mean.reshape(-1, *moments.event_shape))


Part = tuple[tuple[Tensor, int], ...]
"""What a step adds: weights with shape (n,), and which evaluations, the newest is 0, they multiply."""


class Carry(NamedTuple):
    """From step to step: the plan, the state along the axes, and past evaluations, the newest first.

    Attributes:
        plan: of all steps.
        s: the state along the axes with shape (B, n); None where the caller has replaced the state.
        past: evaluations along the axes, each with shape (B, n).
    """

    plan: Plan
    s: Tensor | None
    past: tuple[Tensor, ...] = ()

    def without_prediction(self) -> Carry:
        """The carry after the state was replaced: it is found along the axes anew, nothing is corrected."""
        return self._replace(s=None)


@dataclass(frozen=True)
class Plan:
    """The tables in the state's type, on its device, row by row; None for those that are zero.

    Attributes:
        project, embed: U^T and U.
        mean, centre, shift, mix, keep, spread: as in ``Tables``.
        usual, moved: what every step adds, and what a step from a replaced state adds.
        most: evaluations that are kept.
    """

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

    def start(self, x: Tensor) -> Carry:
        """The start x with shape (B, *) along the axes, and no evaluations yet."""
        return Carry(self, self.along_axes(0, x))

    def along_axes(self, i: int, x: Tensor) -> Tensor:
        """U^T x less the Gaussian's centre with shape (B, n), for x with shape (B, *) at time i."""
        r = self.project(x)
        return r if self.centre is None else r - self.centre[i]

    def step(
        self, i: int, x: Tensor, carry: Carry, raw: Tensor | None, z: Tensor | None
    ) -> tuple[Tensor, Carry]:
        """The state with shape (B, *) after step i from x, given the evaluation there and the draw."""
        s, past, parts = carry.s, carry.past, self.usual
        if s is None:
            s, parts = self.along_axes(i, x), self.moved
        if raw is not None:
            r = self.project(raw, None if self.shift is None else self.shift[i - 1])
            past = (torch.addcmul(r, self.mix[i - 1], s), *past[: self.most - 1])
        s = self.keep[i] * s
        for weight, k in parts[i]:
            s.addcmul_(weight, past[k])
        if z is not None:
            assert self.spread is not None
            s.addcmul_(self.spread[i], z.flatten(1))
        return self.embed(s, None if self.mean is None else self.mean[i + 1]), Carry(self, s, past)


def parts(weights: Tensor, used: Sequence[Sequence[int]]) -> list[Part]:
    """What every step adds: weights with shape (N, K, n), of which it uses ``used``."""
    pairs = zip(weights.unbind(), used, strict=True)
    return [tuple((row[k], k) for k in which) for row, which in pairs]


def make_plan(tables: Tables, moments: Moments, like: Tensor) -> Plan:
    """The tables as a plan for states like ``like`` with shape (B, *)."""

    def rows(x: Tensor | None) -> list[Tensor] | None:
        return None if x is None or not bool(x.any()) else every(x)

    def every(x: Tensor) -> list[Tensor]:
        return list(x.to(like).unbind())

    centre = tables.centre(moments)
    return Plan(
        *moments.rotations(like),
        rows(tables.mean),
        rows(centre),
        rows(tables.shift * centre[1:-1]),
        every(tables.mix),
        every(tables.keep),
        None if tables.spread is None else every(tables.spread),
        parts(tables.usual.to(like), tables.used),
        parts(tables.moved.to(like), tables.used_moved),
        tables.usual.shape[1],
    )
