"""The virtual Brownian tree: one path per sample, with its increments over any intervals, in any order.

A path W on the run from t0 to t1 is a function of (seed, sample) alone.  Time is counted in ticks, 2^DEPTH of
them from t0 to t1 in the direction of the run; a query rounds its ends to ticks and returns, for the interval
[t, s] of length h between them,

    W = W_s - W_t,          H = (1/h) int_0^h (W_{t+r} - W_t - (r/h) W) dr,

the increment and the space-time Levy area.  The answers to different queries are consistent: over adjoining
intervals of lengths p and q

    W = W_1 + W_2,          H = (p H_1 + q H_2) / (p + q) + (q W_1 - p W_2) / (2 (p + q)).

Construction.  W and H of the whole run are drawn first.  A node of the binary tree is a dyadic interval of
length n; its halves follow from its own (W, H) and two independent draws Z ~ N(0, n/16), N ~ N(0, n/12):

    W_left  = W/2 + 3H/2 + Z,     H_left  = H/4 - Z/2 + N/2,
    W_right = W/2 - 3H/2 - Z,     H_right = H/4 - Z/2 - N/2.

So a path is a sum over nodes of their draws times fixed shapes.  A query has a part [x, y] inside a node, in
units of its length and counted from its middle, -1/2 <= x < y <= 1/2.  With

    a = |x| + |y|,    e = |y| - |x|,    d = y - x,    c = x + y

the node adds to W of the query, and to the area over the part alone, times the part's length,

    4 e (3 a - 2) Z + 6 (d (a - 1) + c e) N,      n { 2 (d^2 - e^2 - d^3) Z - e (3 d^2 - e^2) N };

the whole run, of length T, adds d (W - 6 c H) and T d^3 H.  From the part to h H of the query comes W times
the middle of the query less that of the part.  Sums and differences of times are exact, and no term is a
small difference of large numbers.  Only nodes with an end of the query strictly inside contribute, at most
two per level; ``snap`` moves a time a little, to one that needs few levels.  The draws come from
``solvers.brownian.Scattered``.  Those of the last query are kept, because the next one of a solver begins
where it began or ended.

Distribution.  Over the intervals of any partition the pairs (W, H) are independent, with W ~ N(0, h) and H ~
N(0, h/12) exactly, where h is the length in ticks.  ``increment`` divides by that length, so that the steps
of a solver get exact standard normals.  Not promised: anything between ticks.

References: Jelincic, Foster and Kidger, "Single-seed generation of Brownian paths and integrals for adaptive
and high order SDE solvers" (2405.06464); Li et al., "Scalable Gradients for Stochastic Differential
Equations" (2001.01328), section 4; Foster, Lyons and Oberhauser (1904.06998).
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import checked
from solvers.brownian import BLOCK_ELEMENTS, STEPS, BrownianMotion, NoiseSource, Normals, Scattered
from solvers.interval import Interval

DEPTH = 40
"""Levels of the tree: a tick is 2^-40 of the run."""

_TICKS = 1 << DEPTH
TREE = 4
"""The stream of the nodes' draws: 0 is the root, 2^level + position the node."""
_KEPT_ELEMENTS = 1 << 23  # about the most draws that a path keeps from one query to the next
_SNAP_BITS = 4  # ``snap`` shortens an interval by less than 2^-4 of its length


class BrownianTree(BrownianMotion):
    """A Brownian path per sample from t0 to t1, with increments and areas over any interval.

    Args:
        t0, t1: ends of the run; t1 < t0 where time runs down.
        normals: give the path its seed, samples, event shape, dtype and device; ``draw`` is theirs.

    Raises:
        ValueError: the ends are not finite, or equal.
    """

    @checked
    def __init__(self, t0: float, t1: float, normals: Normals) -> None:
        if not (math.isfinite(t0) and math.isfinite(t1)) or t0 == t1:
            raise ValueError(f"t0 and t1 must be finite and differ, got {t0} and {t1}")
        self.t0, self.t1, self.normals = float(t0), float(t1), normals
        self.tick = abs(self.t1 - self.t0) / _TICKS
        self._scattered = Scattered(normals.seed, normals.samples, 2 * normals.event_shape.numel(), TREE)
        self._whole: Any = None
        self._kept: dict[int, _Kept] = {}

    def __call__(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """W and H over [t, s], each with shape (B, *) in the type of the normals.

        Args:
            t, s: times in the order of the run, float64 with shape () or (B,).

        Raises:
            ValueError: an interval outside the run or shorter than a tick.
        """
        pair, length = self._standardised(t, s)
        scale = torch.from_numpy(np.sqrt(length * self.tick)).to(pair.device)
        scale = scale.reshape(-1, *[1] * (pair.ndim - 2))
        dtype = self.normals.dtype
        return (pair[:, 0] * scale).to(dtype), (pair[:, 1] * (scale / math.sqrt(12))).to(dtype)

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """The normals' own draw, with shape (B, *), independent of the path."""
        return self.normals.draw(index, stream)

    def increment(self, interval: Interval) -> Tensor:
        """W over the interval in units of its standard deviation, with shape (B, *)."""
        pair, _ = self._standardised(interval.t, interval.s, area=False)
        return pair[:, 0].to(self.normals.dtype)

    def increment_and_area(self, interval: Interval) -> tuple[Tensor, Tensor]:
        """W and H over the interval in units of their standard deviations, each with shape (B, *)."""
        pair, _ = self._standardised(interval.t, interval.s)
        w, area = pair.to(self.normals.dtype).unbind(1)
        return w, area

    def take(self, rows: Tensor) -> BrownianTree:
        """The paths of the samples in ``rows`` (indices with shape (n,)) alone."""
        tree, chosen = copy.copy(self), rows.cpu().numpy()
        tree.normals, tree._scattered = self.normals.take(rows), self._scattered.take(chosen)
        there = self._placed(chosen)
        tree._whole = None if self._whole is None else self._whole[:, there]
        tree._kept = {
            first: _Kept(
                nodes[..., chosen],
                z.reshape(len(z), -1, nodes.shape[2])[..., there].reshape(len(z), -1),
            )
            for first, (nodes, z) in self._kept.items()
        }
        return tree

    def snap(self, t: Tensor, s: Tensor) -> Tensor:
        """Times near s, with shape (B,), at which few levels of the tree are needed.

        The interval from t shrinks by less than a sixteenth and is at least a tick long; the end of the run
        stays.
        """
        return torch.from_numpy(self.snapped(self._host(t), self._host(s))).to(s.device)

    def snapped(self, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        """``snap`` for arrays on the host, with shape (B,)."""
        start, end = self._ticks(t), self._ticks(s)
        exponent = np.frexp((end - start).astype(np.float64))[1]
        unit = np.left_shift(1, np.maximum(exponent.astype(np.int64) - (1 + _SNAP_BITS), 0))
        snapped = np.maximum(end & -unit, start + 1)
        times = self.t0 + (self.t1 - self.t0) / _TICKS * snapped
        times[end >= _TICKS] = self.t1
        return times

    def _host(self, t: Tensor) -> np.ndarray:
        """Times with shape () or (B,) as an array with shape (B,)."""
        t = t if t.dtype == torch.float64 and t.is_cpu and not t.requires_grad else t.detach().cpu().double()
        return (t if t.ndim else t.expand(self.normals.samples.numel())).numpy()

    def _ticks(self, t: np.ndarray) -> np.ndarray:
        """Times as int64 numbers of ticks, with their shape."""
        ticks = (t - self.t0) / (self.t1 - self.t0)
        ticks *= _TICKS
        found: np.ndarray = np.rint(ticks, out=ticks).astype(np.int64)
        return found

    def _standardised(self, t: Tensor, s: Tensor, area: bool = True) -> tuple[Tensor, np.ndarray]:
        """W / sqrt(h) and H / sqrt(h / 12), float64 with shape (B, 2, *), and h in ticks, shape (B,).

        Without ``area`` H is left out, which takes half the arithmetic, and the shape is (B, 1, *).
        """
        times = self._host(t), self._host(s)
        with np.errstate(invalid="ignore"):  # nan is refused below
            low, high = (self._ticks(time) for time in times)
        wrong = (low < 0) | (low >= high) | (high > _TICKS)
        if wrong.any():
            sample = int(wrong.argmax())
            raise ValueError(
                f"an interval must be at least {self.tick:.3g} long and lie in order between {self.t0} and "
                f"{self.t1}, got {times[0][sample]:.17g} to {times[1][sample]:.17g} for sample {sample}"
            )
        length = (high - low).astype(np.float64)
        scale = np.array((1 / np.sqrt(length), np.sqrt(12 / length) / length)[: 1 + area])
        total = self._sum(low, high, area)
        total *= self._placed(scale)[:, None]
        shape = (len(low), 1 + area, *self.normals.event_shape)
        return torch.as_tensor(total).movedim(-1, 0).reshape(shape), length

    def _placed(self, x: np.ndarray) -> Any:
        """An array where the draws are: itself on the host, a tensor on another device."""
        return x if self._scattered.on_host else torch.from_numpy(x).to(self.normals.samples.device)

    def _draw(self, rows: np.ndarray, nodes: np.ndarray) -> Any:
        """The draws of nodes, node 0 for the whole run, in units of their deviations, with shape (2 D, n)."""
        z = self._scattered.draw(rows, nodes)
        return z.numpy() if self._scattered.on_host else z

    def _sum(self, low: np.ndarray, high: np.ndarray, area: bool) -> Any:
        """W and, with ``area``, h H of queries between ticks, with shape (1 or 2, D, B)."""
        rows = len(low)
        if self._whole is None:
            self._whole = self._draw(np.arange(rows), np.zeros(rows, dtype=np.int64))
        ends = np.array((low, high))
        total = self._applied(_whole(low, high, area)[:, :, None, None], self._whole)[:, :, 0, 0]
        bits = int(np.bitwise_or.reduce(ends, None)) | _TICKS
        depth, times = DEPTH + 1 - (bits & -bits).bit_length(), ends.astype(np.float64)
        chunk = max(1, BLOCK_ELEMENTS // max(1, 2 * self._scattered.count * rows))
        for first in range(0, depth, chunk):
            levels = np.arange(first, min(first + chunk, depth))[:, None, None]
            scaled = times * np.exp2(levels - DEPTH)
            position = np.floor(scaled)
            inside = scaled != position
            inside[:, 1] &= ~(inside[:, 0] & (position[:, 0] == position[:, 1]))
            z = self._draws(first, position + np.exp2(levels), inside)
            position += 0.5
            weights = _weights(scaled, position, np.exp2(DEPTH - levels), inside, area)
            parts = self._applied(weights, z)
            total = _added(total, parts[:, :, :, 0] + parts[:, :, :, 1])
        return total

    def _applied(self, weights: np.ndarray, z: Any) -> Any:
        """Weights with shape (R, 2, L, m, B) times draws with shape (2 D, L m B), as (R, D, L, m, B).

        Written out elementwise, so that the rounding of a sample does not depend on the batch.
        """
        shape, matrix = weights.shape, self._placed(weights)
        z = z.reshape(2, -1, *shape[2:])
        product = matrix[:, :1] * z[0]
        product += matrix[:, 1:] * z[1]
        return product

    def _draws(self, first: int, nodes: np.ndarray, inside: np.ndarray) -> Any:
        """The draws of the nodes around the ends of a query, with shape (2 D, 2 L B).

        Args:
            first: the first of the L levels.
            nodes: their numbers, whole numbers in float64, with shape (L, 2, B).
            inside: which of them the query needs; the draws of the others are any finite numbers.
        """
        rows, width = nodes.shape[2], self._scattered.count
        numbers: np.ndarray
        numbers, z = self._kept.get(first, _Kept(nodes[:0], self._placed(np.zeros((width, 0)))))
        if (lack := len(nodes) - len(numbers)) > 0:
            numbers = np.concatenate((numbers, np.zeros((lack, 2, rows))))
            z, shorter = self._placed(np.zeros((width, numbers.size))), z
            z[:, : shorter.shape[1]] = shorter
        if (first + len(nodes)) * 2 * rows * width <= _KEPT_ELEMENTS:
            self._kept[first] = _Kept(numbers, z)
        numbers = numbers[: len(nodes)]
        # a node at the start of the query may have been one at the end of the last
        moved = (numbers[:, 0] != nodes[:, 0]) & (numbers[:, 1] == nodes[:, 0])
        index = moved.reshape(-1).nonzero()[0]
        index += index // rows * rows
        _put(z, self._placed(index), _taken(z, self._placed(index + rows)))
        np.copyto(numbers[:, 0], nodes[:, 0], where=moved)
        missing = inside & (numbers != nodes)
        index = missing.reshape(-1).nonzero()[0]
        _put(z, self._placed(index), self._draw(index % rows, nodes.reshape(-1)[index].astype(np.int64)))
        np.copyto(numbers, nodes, where=missing)
        return z[:, : nodes.size]


class _Kept(NamedTuple):
    """Draws with shape (2 D, 2 L B), and the numbers of their nodes with shape (L, 2, B), 0 for none."""

    nodes: np.ndarray
    z: Any


def path_between(t0: float, t1: float, noise: NoiseSource | None) -> BrownianTree:
    """The Brownian path of a run from t0 to t1 whose steps may be rejected.

    It is ``noise`` itself if that is a path, or a path made from ``noise`` if that is ``Normals``.

    Raises:
        TypeError, ValueError: noise that cannot be queried again, or a path over another interval.
    """
    if isinstance(noise, Normals):
        return BrownianTree(t0, t1, noise)
    if not isinstance(noise, BrownianTree):
        raise TypeError(
            "adaptive control of an SDE needs a path that can be queried again, a BrownianTree or Normals, "
            f"got {type(noise).__name__}"
        )
    if (noise.t0, noise.t1) != (t0, t1):
        raise ValueError(
            f"the path must span the run from {t0} to {t1}, got one from {noise.t0} to {noise.t1}"
        )
    return noise


def _added(total: Any, parts: Any) -> Any:
    """``total`` with shape (R, D, B) and, level after level, parts with shape (R, D, L, B), in place."""
    if isinstance(parts, np.ndarray) and parts.shape[3] > 1:  # a single column would be added in pairs
        parts[:, :, 0] += total
        return np.add.reduce(parts, 2)
    for level in range(parts.shape[2]):
        total += parts[:, :, level]
    return total


def _taken(z: Any, index: Any) -> Any:
    """The columns ``index`` of z."""
    return z.take(index, 1) if isinstance(z, np.ndarray) else z[:, index]


def _put(z: Any, index: Any, columns: Any) -> None:
    """Set the columns ``index`` of z; numpy is faster row by row."""
    if isinstance(z, np.ndarray):
        for row, values in zip(z, columns, strict=True):
            row[index] = values
    else:
        z[:, index] = columns


def _whole(low: np.ndarray, high: np.ndarray, area: bool) -> np.ndarray:
    """What the draws of the whole run add to queries: weights with shape (R, 2, B), see ``_weights``."""
    x, y = low / _TICKS - 0.5, high / _TICKS - 0.5
    d, unit = y - x, math.sqrt(_TICKS)
    entries = [d * unit, d * (x + y) * (-6 * unit / math.sqrt(12))]
    if area:
        entries += [np.zeros_like(d), d**3 * (_TICKS * unit / math.sqrt(12))]
    return np.array(entries).reshape(-1, 2, len(low))


def _weights(
    ends: np.ndarray, middle: np.ndarray, size: np.ndarray, inside: np.ndarray, area: bool
) -> np.ndarray:
    """What the draws of nodes add to queries, see the module's text: weights of the draws of Z and N, in
    units of their deviations, with shape (R, 2, L, 2, B), for W and, with ``area``, for h H.

    Args:
        ends: of the queries, in units of the length of the nodes, with shape (L, 2, B).
        middle: of the nodes around the ends, likewise; those around the second are after the first.
        size: length of the nodes in ticks, with shape (L, 1, 1).
        inside: which of them count, with shape (L, 2, B).
    """
    x = ends - middle
    y = x.copy()
    np.minimum(ends[:, 1] - middle[:, 0], 0.5, out=y[:, 0])
    x[:, 1] = -0.5
    abs_x, abs_y = np.abs(x), np.abs(y)
    a, e, d, c = abs_x + abs_y, abs_y - abs_x, y - x, x + y
    unit = inside * np.sqrt(size)
    weights = np.empty((1 + area, 2, *ends.shape))
    weights[0, 0] = e * (3 * a - 2) * unit
    weights[0, 1] = (d * (a - 1) + c * e) * (unit * math.sqrt(3))
    if area:
        shift = (ends[:, :1] + ends[:, 1:] - (2 * middle + c)) * (size / 2)
        d_d, e_e, unit = d * d, e * e, unit * (size / 2)
        weights[1, 0] = (d_d - e_e - d_d * d) * unit + shift * weights[0, 0]
        weights[1, 1] = e * (e_e - 3 * d_d) * (unit / math.sqrt(3)) + shift * weights[0, 1]
    return weights
