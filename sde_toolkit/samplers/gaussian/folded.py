"""The same steps with both rotations folded into the weights, for few axes: one product of matrices a step.

A step of ``plan`` is linear in the states and evaluations that its weights reach back to.  With the newest
first it is

    x' = [x_0  raw_0  x_1  raw_1 ...  z  1] M,       with the blocks of M

    for raw_k:  U diag(w_k) U^T,      for x_k:  U diag(w_k mix_k) U^T, for x_0 with diag(keep) added,
    for z:      diag(spread) U^T,     for 1:    mean' + U (sum_k w_k (shift_k - mix_k centre_k) - keep centre)

The row [x_0 raw_0 ...] is a window with K places.  Evaluation i is written into place i mod K, so that
nothing moves, and the blocks of M are put into the same order.  The product costs 2 K n^2 multiplications per
sample where the elementwise form costs (2 n + K) n, and one call where that needs ten: it is the faster one
where calls count, up to ``MOST_AXES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import Moments, padded_rows
from sde_toolkit.samplers.gaussian.plan import Tables

MOST_AXES = 12
"""Most axes that are folded."""

_MOST_NUMBERS = 1 << 21
"""Most numbers in the matrices of a run."""


class Window(NamedTuple):
    """What the steps of a run pass on.  A step writes into it, except where gradients are recorded.

    Attributes:
        plan: of all steps.
        rows: states, evaluations, draw and 1 with shape (B', (2 K + 1) n + 1); B' is B rounded up for the
            product.  Without noise there is no draw.
        places: views of ``rows`` with shape (B, n), the state and the evaluation of every place and the draw.
        replaced: whether the caller has replaced the state.
    """

    plan: FoldedPlan
    rows: Tensor
    places: tuple[Tensor, ...]
    replaced: bool = False

    def without_prediction(self) -> Window:
        """The window after the state was replaced: the prediction that made the state is not corrected."""
        return self._replace(replaced=True)


@dataclass(frozen=True)
class FoldedPlan:
    """The matrices in the state's type, on its device.

    Attributes:
        usual, moved: M of every step, and of one whose state was replaced.
        places: K.
        event_shape: of a sample.
    """

    usual: list[Tensor]
    moved: list[Tensor]
    places: int
    event_shape: tuple[int, ...]

    def start(self, x: Tensor) -> Window:
        """An empty window for states like x with shape (B, *)."""
        # the weights of what is not there yet are 0
        return self._window(x.new_ones(padded_rows(len(x)), self.usual[0].shape[0]), len(x))

    def _window(self, rows: Tensor, count: int, replaced: bool = False) -> Window:
        height, n = self.usual[0].shape
        own = rows[:count]
        if torch.is_grad_enabled():  # autograd lets views be written into only if they are made one by one
            return Window(self, rows, tuple(own.narrow(1, i, n) for i in range(0, height - 1, n)), replaced)
        return Window(self, rows, own.split(n, 1), replaced)

    def step(
        self, i: int, x: Tensor, carry: Window, raw: Tensor | None, z: Tensor | None
    ) -> tuple[Tensor, Window]:
        """The state with shape (B, *) after step i from x, given the evaluation there and the draw."""
        flat = len(self.event_shape) == 1
        if torch.is_grad_enabled():
            carry = self._window(carry.rows.clone(), x.shape[0], carry.replaced)
        _, rows, places, replaced = carry
        place = 2 * (i % self.places)
        places[place].copy_(x if flat else x.flatten(1))
        if raw is not None:
            places[place + 1].copy_(raw if flat else raw.flatten(1))
        if z is not None:
            places[2 * self.places].copy_(z if flat else z.flatten(1))
        found = torch.mm(rows, (self.moved if replaced else self.usual)[i])  # runs are outside autocast
        if found.shape[0] != x.shape[0]:
            found = found[: x.shape[0]]
        if replaced:
            carry = carry._replace(replaced=False)
        return found if flat else found.unflatten(-1, self.event_shape), carry


def folds(tables: Tables) -> bool:
    """Whether a run with these tables is small enough for this form."""
    steps, places, n = tables.usual.shape
    return n <= MOST_AXES and steps * (2 * places + 1) * n * n <= _MOST_NUMBERS


def fold(tables: Tables, moments: Moments, like: Tensor) -> FoldedPlan:
    """The tables as matrices for states like ``like`` with shape (B, *)."""
    usual = _matrices(tables, tables.usual, moments, like)
    moved = _matrices(tables, tables.moved, moments, like)
    return FoldedPlan(usual, moved, tables.usual.shape[1], moments.event_shape)


def _matrices(tables: Tables, weights: Tensor, moments: Moments, like: Tensor) -> list[Tensor]:
    """M of every step, for ``weights`` with shape (N, K, n)."""
    steps, places, n = weights.shape
    axes = torch.eye(n, dtype=torch.float64) if moments.axes is None else moments.axes
    number, age = torch.arange(steps)[:, None], torch.arange(places)
    which = (number - age - 1).clamp(min=0)  # of the evaluations; where there is none yet the weight is 0
    of_states = weights * tables.mix[which]
    of_states[:, 0] += tables.keep
    blocks = torch.stack([of_states, weights], 2)[number, (number - age) % places]
    parts = [((axes * blocks.unsqueeze(-2)) @ axes.mT).flatten(1, 3)]
    if tables.spread is not None:
        parts.append(tables.spread[..., None] * axes.mT)
    centre = tables.centre(moments)
    offset = ((tables.shift - tables.mix) * centre[1:-1])[which]
    along = (weights * offset).sum(1) - tables.keep * centre[:-1]
    parts.append((tables.mean[1:] + along @ axes.mT)[:, None])
    return list(torch.cat(parts, 1).to(like).unbind())
