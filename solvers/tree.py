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

So a path is a sum over nodes of their draws times fixed shapes, and each node adds to a query's (W, H) a
matrix of its draws that depends on the times alone.  Between its ends a half-node continues the parabola that
its (W, H) imply, on which the interval from x to y (in units of its length) carries

    W' = (y - x) (W + 6 H (1 - x - y)),       H' = (y - x)^2 H,

and no term is a small difference of large numbers.  Only nodes with an end of the query strictly inside
contribute, at most two per level; ``snap`` moves a time a little, to one that needs few levels.

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

import torch
from torch import Tensor

from solvers.arguments import checked
from solvers.brownian import BLOCK_ELEMENTS, STEPS, BrownianMotion, NoiseSource, Normals
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
        shape = (2, normals.event_shape.numel())
        self._pairs = Normals(normals.seed, normals.samples, shape, device=normals.samples.device)
        self._chunk = max(1, BLOCK_ELEMENTS // max(1, 2 * shape[0] * shape[1] * normals.samples.numel()))
        self._whole: Tensor | None = None
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """W and H over [t, s], each with shape (B, *) in the type of the normals.

        Args:
            t, s: times in the order of the run, float64 with shape () or (B,).

        Raises:
            ValueError: an interval outside the run or shorter than a tick.
        """
        pair, length = self._standardised(t, s)
        scale = (length * self.tick).sqrt().reshape(-1, *[1] * (pair.ndim - 2))
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
        tree = copy.copy(self)
        tree.normals, tree._pairs = self.normals.take(rows), self._pairs.take(rows)
        tree._whole = None if self._whole is None else self._whole[..., rows]
        tree._kept = {
            first: (nodes[..., rows], z.unflatten(1, (-1, nodes.shape[2]))[..., rows].flatten(1))
            for first, (nodes, z) in self._kept.items()
        }
        return tree

    def snap(self, t: Tensor, s: Tensor) -> Tensor:
        """Times near s, with shape (B,), at which few levels of the tree are needed.

        The interval from t shrinks by less than a sixteenth and is at least a tick long; the end of the run
        stays.
        """
        start, end = self._ticks(t), self._ticks(s)
        _, exponent = (end - start).to(torch.float64).frexp()
        unit = torch.ones_like(start) << (exponent.to(torch.int64) - 1 - _SNAP_BITS).clamp(min=0)
        snapped = torch.maximum(end // unit * unit, start + 1)
        times = self.t0 + (self.t1 - self.t0) * (snapped.to(torch.float64) / _TICKS)
        return torch.where(end >= _TICKS, self.t1, times)

    def _ticks(self, t: Tensor) -> Tensor:
        """Times with shape () or (B,) as int64 numbers of ticks with shape (B,)."""
        t = t.to(self.normals.samples.device, torch.float64)
        ticks = ((t - self.t0) / (self.t1 - self.t0) * _TICKS).round().to(torch.int64)
        return ticks.expand(self.normals.samples.numel())

    def _standardised(self, t: Tensor, s: Tensor, area: bool = True) -> tuple[Tensor, Tensor]:
        """W / sqrt(h) and H / sqrt(h / 12), float64 with shape (B, 2, *), and h in ticks, shape (B,).

        Without ``area`` H is left out, which takes half the arithmetic, and the shape is (B, 1, *).
        """
        ends = torch.stack((self._ticks(t), self._ticks(s)))
        low, high = ends
        wrong = (low < 0) | (low >= high) | (high > _TICKS)
        if bool(wrong.any()):
            sample = int(wrong.nonzero()[0])
            raise ValueError(
                f"an interval must be at least {self.tick:.3g} long and lie in order between {self.t0} and "
                f"{self.t1}, got {float(t.expand(len(low))[sample]):.17g} to "
                f"{float(s.expand(len(low))[sample]):.17g} for sample {sample}"
            )
        if self._whole is None:
            everyone = torch.arange(len(low), device=low.device)
            self._whole = self._pairs.draw_each(everyone, torch.zeros_like(low), TREE).movedim(0, -1)
        times = ends.to(torch.float64)
        total = _apply(_root(times, area), self._whole[:, :, None])[:, :, 0]
        bits = torch.where(ends == 0, _TICKS, ends & -ends)
        depth = DEPTH + 1 - (int(bits.min()) if ends.numel() else _TICKS).bit_length()
        levels = torch.arange(depth, device=low.device)[:, None, None]
        positions = ends >> (DEPTH - levels)
        starts = positions << (DEPTH - levels)
        inside = starts != ends
        inside[:, 1] &= ~(inside[:, 0] & (positions[:, 0] == positions[:, 1]))
        matrices = _node(starts.to(torch.float64), (_TICKS >> levels).to(torch.float64), times, area)
        matrices *= inside
        nodes = positions + (1 << levels)
        for first in range(0, depth, self._chunk):
            part = slice(first, first + self._chunk)
            z = self._draws(first, nodes[part], inside[part])
            for contribution in _apply(matrices[:, :, part].flatten(2, 3), z).unbind(2):
                total += contribution
        pair = total.movedim(-1, 0).reshape(len(low), 1 + area, *self.normals.event_shape)
        return pair, times[1] - times[0]

    def _draws(self, first: int, nodes: Tensor, inside: Tensor) -> Tensor:
        """The draws of the nodes around the ends of a query, with shape (2, D, 2 L, B).

        Args:
            first: the first of the L levels.
            nodes: their numbers, with shape (L, 2, B).
            inside: which of them the query needs; the draws of the others are any finite numbers.
        """
        count, rows = nodes.numel(), nodes.shape[2]
        width = self._pairs.event_shape.numel()
        z = torch.zeros((width, count), dtype=torch.float64, device=nodes.device)
        held, missing = torch.zeros_like(nodes), inside
        if first in self._kept:
            # a node may have been around either end of the last query
            kept, kept_z = self._kept[first]
            shared = min(len(kept), len(nodes))
            kept, wanted = kept[:shared], nodes[:shared]
            place = (kept[:, 1:] == wanted).to(torch.int64)
            held[:shared] = kept.gather(1, place)
            levels = torch.arange(shared, device=nodes.device)[:, None, None]
            source = (2 * levels + place) * rows + torch.arange(rows, device=nodes.device)
            z[:, : source.numel()] = kept_z.index_select(1, source.flatten())
            missing = inside & (held != nodes)
        index = missing.flatten().nonzero().flatten()
        drawn = self._pairs.draw_each(index % rows, nodes.flatten()[index], TREE)
        z[:, index] = drawn.reshape(-1, width).T
        if (first + len(nodes)) * 2 * rows * width <= _KEPT_ELEMENTS:
            self._kept[first] = torch.where(missing, nodes, held), z
        return z.reshape(2, -1, 2 * len(nodes), rows)


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


def _apply(matrices: Tensor, z: Tensor) -> Tensor:
    """Matrices with shape (R, 2, n, B) times pairs of draws with shape (2, D, n, B), as (R, D, n, B).

    Written out elementwise, so that the rounding of a sample does not depend on the batch.
    """
    product = matrices[:, :1] * z[0]
    product += matrices[:, 1:] * z[1]
    return product


def _share(begin: Tensor, size: Tensor, times: Tensor, area: bool) -> tuple[Tensor, Tensor]:
    """What W and H of the block [begin, begin + size] contribute to those of the query between ``times``.

    All times are whole numbers of ticks in float64, so that their sums are exact.

    Returns:
        From W and from H, each with W and, if ``area``, H of the query along dimension 0; all zero without an
        overlap.
    """
    low, high = times
    length, end = high - low, begin + size
    first, last = low.clamp(begin, end), high.clamp(begin, end)
    part, middle = last - first, first + last
    fraction = part / size
    w_from_h = fraction * (6 * ((begin + end - middle) / size))
    if not area:
        return fraction[None], w_from_h[None]
    shift = (low + high - middle) / (2 * length)
    h_from_h = part / length * fraction.square() + shift * w_from_h
    return torch.stack((fraction, shift * fraction)), torch.stack((w_from_h, h_from_h))


def _scaled(a: Tensor, b: Tensor, size: Tensor, times: Tensor) -> Tensor:
    """(W, H) from a and (W, H) from b as matrices between draws of unit variance, with shape (2, 2, ...); of
    W alone, where that is all that a and b have, with shape (1, 2, ...).

    a and b have the variances size and size / 12, W and H of the query h and h / 12.
    """
    ratio = (size / (times[1] - times[0])).sqrt()
    twelve = math.sqrt(12)
    entries = [a[0] * ratio, b[0] * (ratio / twelve)]
    if len(a) == 2:
        entries += [a[1] * (ratio * twelve), b[1] * ratio]
    return torch.stack(entries).unflatten(0, (-1, 2))


def _root(times: Tensor, area: bool) -> Tensor:
    """Matrix from the draws of the whole run to the query, with shape (R, 2, 1, B)."""
    size = torch.full_like(times[:1], _TICKS)
    return _scaled(*_share(torch.zeros_like(size), size, times, area), size, times)


def _node(begin: Tensor, size: Tensor, times: Tensor, area: bool) -> Tensor:
    """Matrix from (4 Z, N) of the nodes [begin, begin + size], in units of their deviations, to the query."""
    half = size / 2
    w, h = _share(torch.stack((begin, begin + half)), half, times, area)
    left, right = w.unbind(1)
    a = (left - right - (h[:, 0] + h[:, 1]) / 2) / 4
    return _scaled(a, (h[:, 0] - h[:, 1]) / 2, size, times)
