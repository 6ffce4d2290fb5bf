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
        return self.increment_and_area(interval)[0]

    def increment_and_area(self, interval: Interval) -> tuple[Tensor, Tensor]:
        """W and H over the interval in units of their standard deviations, each with shape (B, *)."""
        pair, _ = self._standardised(interval.t, interval.s)
        w, area = pair.to(self.normals.dtype).unbind(1)
        return w, area

    def take(self, rows: Tensor) -> BrownianTree:
        """The paths of the samples in ``rows`` (indices with shape (n,)) alone."""
        n = self.normals
        part = Normals(n.seed, n.samples[rows], n.event_shape, n.dtype, n.samples.device)
        return BrownianTree(self.t0, self.t1, part)

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

    def _standardised(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """W / sqrt(h) and H / sqrt(h / 12), float64 with shape (B, 2, *), and h in ticks, shape (B,)."""
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
        everyone = torch.arange(len(low), device=low.device)
        total = _apply(_root(low, high), self._pairs.draw_each(everyone, torch.zeros_like(low), TREE))
        bits = torch.where(ends == 0, _TICKS, ends & -ends)
        depth = DEPTH + 1 - (int(bits.min()) if ends.numel() else _TICKS).bit_length()
        chunk = max(1, BLOCK_ELEMENTS // max(1, 2 * self._pairs.event_shape.numel() * len(low)))
        for level in range(0, depth, chunk):
            for part in self._parts(torch.arange(level, min(level + chunk, depth), device=low.device), ends):
                total = total + part
        return total.reshape(len(low), 2, *self.normals.event_shape), (high - low).to(torch.float64)

    def _parts(self, levels: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        """The contributions of some levels to the query: tensors with shape (B, 2, D), in order."""
        levels = levels[:, None, None]
        positions = ends >> (DEPTH - levels)
        starts = positions << (DEPTH - levels)
        inside = starts != ends
        inside[:, 1] &= ~(inside[:, 0] & (positions[:, 0] == positions[:, 1]))
        where = inside.nonzero(as_tuple=True)
        nodes = (1 << levels) + positions
        z = torch.zeros((*inside.shape, *self._pairs.event_shape), dtype=torch.float64, device=ends.device)
        z[where] = self._pairs.draw_each(where[2], nodes[where], TREE)
        return _apply(_node(starts, 1 << (DEPTH - levels), *ends), z).flatten(0, 1).unbind()


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


def _apply(matrix: Tensor, z: Tensor) -> Tensor:
    """Matrices with shape (..., B, 2, 2) times pairs of draws with shape (..., B, 2, D).

    Written out elementwise, so that the rounding of a sample does not depend on the batch.
    """
    return matrix[..., 0, None] * z[..., 0:1, :] + matrix[..., 1, None] * z[..., 1:2, :]


def _share(begin: Tensor, size: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What (W, H) of the block [begin, begin + size] contribute to [low, high], where the two overlap.

    Returns:
        W from W, W from H, H from W, H from H; all zero without an overlap.
    """
    first = torch.minimum(torch.maximum(low, begin), begin + size)
    last = torch.minimum(torch.maximum(high, begin), begin + size)
    length = (high - low).to(torch.float64)
    part = (last - first).to(torch.float64)
    fraction = part / size
    slope = 6 * ((size - (first - begin) - (last - begin)).to(torch.float64) / size)
    shift = ((high - last) - (first - low)).to(torch.float64) / (2 * length)
    w_from_h = fraction * slope
    return fraction, w_from_h, shift * fraction, part / length * fraction.square() + shift * w_from_h


def _scaled(rows: tuple[Tensor, ...], size: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(W from a, W from b, H from a, H from b) as matrices between draws of unit variance: a and b have the
    variances size and size / 12, W and H of the query h and h / 12."""
    ratio = (size / (high - low).to(torch.float64)).sqrt()
    w_a, w_b, h_a, h_b = rows
    twelve = math.sqrt(12)
    flat = torch.stack((w_a * ratio, w_b * (ratio / twelve), h_a * (ratio * twelve), h_b * ratio), -1)
    return flat.unflatten(-1, (2, 2))


def _root(low: Tensor, high: Tensor) -> Tensor:
    """Matrix from the draws of the whole run to the query, with shape (B, 2, 2)."""
    size = torch.full_like(low, _TICKS)
    return _scaled(_share(torch.zeros_like(low), size, low, high), size, low, high)


def _node(begin: Tensor, size: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Matrix from (4 Z, N) of the nodes [begin, begin + size], in units of their deviations, to the query."""
    half = size >> 1
    left, right = _share(begin, half, low, high), _share(begin + half, half, low, high)
    columns = []
    for w, h in ((0, 1), (2, 3)):
        columns += [(left[w] - right[w] - (left[h] + right[h]) / 2) / 4, (left[h] - right[h]) / 2]
    return _scaled(tuple(columns), size, low, high)
