"""The same steps where all axes but a few share one variance: two products with n x r matrices a step.

With a covariance V diag(l) V^T + s^2 (I - V V^T) the weights of ``plan`` differ along the r columns of V and
are one number, mix~, keep~ and w~, along everything else.  So nothing has to be turned to the axes.  With y =
x - mean,

    G = raw + shift mean + mix~ y,       y' = keep~ y + sum_k w~_k G_k,        x' = mean' + y' + V (s' - e')

moves every axis as the rest of them move, and puts right what V sees: with s = V^T y,

    b = V^T G,     g = b + (mix - mix~) s,     s' = keep s + sum_k w_k g_k,     e' = keep~ s + sum_k w~_k b_k

b is the only product with V^T.  Noise, which is drawn along the axes, is turned back by U and needs two more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import Moments, Rotation, row_product
from sde_toolkit.samplers.gaussian.plan import Part, Tables, parts


class Evaluation(NamedTuple):
    """What is kept of an evaluation: G with shape (B, n), b and g with shape (B, r')."""

    whole: Tensor
    seen: Tensor
    wide: Tensor


class LowRankCarry(NamedTuple):
    """From step to step.

    Attributes:
        plan: of all steps.
        y: the state less the mean with shape (B, n); None where the caller has replaced the state.
        s: V^T y with shape (B, r').
        past: evaluations, the newest first.
    """

    plan: LowRankPlan
    y: Tensor | None
    s: Tensor | None
    past: tuple[Evaluation, ...] = ()

    def without_prediction(self) -> LowRankCarry:
        """The carry after the state was replaced: it is looked at anew, nothing is corrected."""
        return self._replace(y=None, s=None)


class Numbers(NamedTuple):
    """A table along the columns of V, one row of shape (r',) for every step, and along the rest."""

    wide: list[Tensor]
    rest: list[float]


@dataclass(frozen=True)
class LowRankPlan:
    """The tables for states of one type, on one device; None for those that are zero.

    Attributes:
        down, up: V and V^T with zeros up to r' columns.
        embed: U, where there is noise.
        mean: alpha m at all times, each with shape (n,).
        shift: shift alpha m of all evaluations, likewise.
        mix: mix - mix~, and mix~.
        keep, spread: as in ``Tables``.
        usual, moved: what every step adds, and what a step from a replaced state adds: along V and the rest.
        most: evaluations that are kept.
        event_shape: of a sample.
    """

    down: Tensor
    up: Tensor
    embed: Rotation | None
    mean: list[Tensor] | None
    shift: list[Tensor] | None
    mix: Numbers
    keep: Numbers
    spread: Numbers | None
    usual: list[tuple[Part, list[float]]]
    moved: list[tuple[Part, list[float]]]
    most: int
    event_shape: tuple[int, ...]

    def start(self, x: Tensor) -> LowRankCarry:
        """The start x with shape (B, *), and no evaluations yet."""
        return LowRankCarry(self, *self._looked_at(0, x))

    def _looked_at(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and s of the state x with shape (B, *) at time i."""
        y = x.flatten(1) if self.mean is None else x.flatten(1) - self.mean[i]
        return y, row_product(y, self.down)

    def step(
        self, i: int, x: Tensor, carry: LowRankCarry, raw: Tensor | None, z: Tensor | None
    ) -> tuple[Tensor, LowRankCarry]:
        """The state with shape (B, *) after step i from x, given the evaluation there and the draw."""
        y, s, past, (wide, rest) = carry.y, carry.s, carry.past, self.usual[i]
        if y is None or s is None:
            (y, s), (wide, rest) = self._looked_at(i, x), self.moved[i]
        if raw is not None:
            past = (self._evaluation(i - 1, raw, y, s), *past[: self.most - 1])
        following, seen = y * self.keep.rest[i], s * self.keep.rest[i]
        s = self.keep.wide[i] * s
        for (weight, k), number in zip(wide, rest, strict=True):
            following.add_(past[k].whole, alpha=number)
            seen.add_(past[k].seen, alpha=number)
            s.addcmul_(weight, past[k].wide)
        if z is not None:
            assert self.spread is not None
            assert self.embed is not None
            drawn = z.flatten(1)[:, : s.shape[1]]
            drawn = torch.nn.functional.pad(drawn, (0, s.shape[1] - drawn.shape[1]))
            following.add_(self.embed(z.flatten(1)).flatten(1), alpha=self.spread.rest[i])
            seen.add_(drawn, alpha=self.spread.rest[i])
            s.addcmul_(self.spread.wide[i], drawn)
        following = row_product(s - seen, self.up, following)
        x = following if self.mean is None else following + self.mean[i + 1]
        return x.unflatten(1, self.event_shape), LowRankCarry(self, following, s, past)

    def _evaluation(self, i: int, raw: Tensor, y: Tensor, s: Tensor) -> Evaluation:
        whole = torch.add(raw.flatten(1), y, alpha=self.mix.rest[i])
        if self.shift is not None:
            whole.add_(self.shift[i])
        seen = row_product(whole, self.down)
        return Evaluation(whole, seen, torch.addcmul(seen, self.mix.wide[i], s))


def make_low_rank_plan(tables: Tables, moments: Moments, like: Tensor) -> LowRankPlan:
    """The tables, along ``moments.distinct``, as a plan for states like ``like`` with shape (B, *)."""

    def split(x: Tensor) -> Numbers:
        return Numbers(list(x[..., :-1].to(like).unbind()), x[..., -1].tolist())

    def both(weights: Tensor, used: Sequence[Sequence[int]]) -> list[tuple[Part, list[float]]]:
        numbers = [[float(row[k, -1]) for k in which] for row, which in zip(weights, used, strict=True)]
        return list(zip(parts(weights[..., :-1].to(like), used), numbers, strict=True))

    def rows(x: Tensor) -> list[Tensor] | None:
        return list(x.to(like).unbind()) if bool(x.any()) else None

    basis = moments.covariance.basis.to(like)
    return LowRankPlan(
        basis,
        basis.mT.contiguous(),
        None if tables.spread is None else moments.rotations(like)[1],
        rows(tables.mean),
        rows(tables.shift * tables.mean[1:-1]),
        split(torch.cat([tables.mix[:, :-1] - tables.mix[:, -1:], tables.mix[:, -1:]], 1)),
        split(tables.keep),
        None if tables.spread is None else split(tables.spread),
        both(tables.usual, tables.used),
        both(tables.moved, tables.used_moved),
        tables.usual.shape[1],
        moments.event_shape,
    )
