"""The same steps with both rotations folded into the weights, for few axes: one product of matrices a step.

A step of ``plan`` is linear in the states and evaluations that its weights reach back to.  In the order x, raw
of the newest, x, raw of the one before, ... it is

    x' = c + [x_0  raw_0  x_1  raw_1 ...  z] M,

    for raw_k:  U diag(w_k) U^T,      for x_k:  U diag(w_k mix_k) U^T, for x_0 with diag(keep) added,
    for z:      diag(spread) U^T,     c = mean' + U (sum_k w_k (shift_k - mix_k centre_k) - keep centre)

The row [x_0 raw_0 ...] is a window with K places.  Evaluation i is written into place i mod K, so that nothing
moves, and the blocks of M are put into the same order.  The product costs 2 K n^2 multiplications per sample
where the elementwise form costs (2 n + K) n, and one call where that needs ten: it is the faster one where
calls count, up to ``MOST_AXES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import Moments, padded_rows
from sde_toolkit.samplers.gaussian.plan import Tables

MOST_AXES = 16
"""Most axes that are folded."""

_MOST_NUMBERS = 1 << 21
"""Most numbers in the matrices of a run."""


class Window(NamedTuple):
    """What the steps of a run pass on.  A step writes into it, except where gradients are recorded.

    Attributes:
        plan: of all steps.
        rows: states and evaluations with shape (B', 2 K n), and the draw where there is noise, n more; B' is B
            rounded up for the product.
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
        usual, moved: (c, M) of every step, and of one whose state was replaced.
        places: K.
        event_shape: of a sample.
    """

    usual: list[tuple[Tensor, Tensor]]
    moved: list[tuple[Tensor, Tensor]]
    places: int
    event_shape: tuple[int, ...]

    def start(self, x: Tensor) -> Window:
        """An empty window for states like x with shape (B, *)."""
        width = self.usual[0][1].shape[0]
        return self._window(x.new_zeros(padded_rows(len(x)), width), len(x))

    def _window(self, rows: Tensor, count: int, replaced: bool = False) -> Window:
        return Window(self, rows, rows[:count].split(self.usual[0][1].shape[1], dim=1), replaced)

    def step(
        self, i: int, x: Tensor, carry: Window, raw: Tensor | None, z: Tensor | None
    ) -> tuple[Tensor, Window]:
        """The state with shape (B, *) after step i from x, given the evaluation there and the draw."""
        flat, count = len(self.event_shape) == 1, x.shape[0]
        if torch.is_grad_enabled():
            carry = self._window(carry.rows.clone(), count, carry.replaced)
        _, rows, places, replaced = carry
        place = 2 * (i % self.places)
        places[place].copy_(x if flat else x.flatten(1))
        if raw is not None:
            places[place + 1].copy_(raw if flat else raw.flatten(1))
        if z is not None:
            places[-1].copy_(z if flat else z.flatten(1))
        constant, matrix = (self.moved if replaced else self.usual)[i]
        found = torch.addmm(constant, rows, matrix)
        if found.shape[0] != count:
            found = found[:count]
        carry = carry._replace(replaced=False) if replaced else carry
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


def _matrices(
    tables: Tables, weights: Tensor, moments: Moments, like: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """(c, M) of every step, for ``weights`` with shape (N, K, n)."""
    steps, places, n = weights.shape
    axes = torch.eye(n, dtype=torch.float64) if moments.axes is None else moments.axes
    number, age = torch.arange(steps)[:, None], torch.arange(places)
    which = (number - age - 1).clamp(min=0)  # of the evaluations; where there is none yet the weight is 0
    mix = tables.mix[which]
    offset = (tables.shift - tables.mix * tables.centre[1:-1])[which]
    of_states = weights * mix
    of_states[:, 0] += tables.keep
    blocks = torch.stack([of_states, weights], 2)[number, (number - age) % places]
    matrix = ((axes * blocks.unsqueeze(-2)) @ axes.mT).reshape(steps, 2 * places * n, n)
    if tables.spread is not None:
        matrix = torch.cat([matrix, tables.spread[..., None] * axes.mT], 1)
    along = (weights * offset).sum(1) - tables.keep * tables.centre[:-1]
    constant = tables.mean[1:] + along @ axes.mT
    return list(zip(constant.to(like).unbind(), matrix.to(like).unbind(), strict=True))
