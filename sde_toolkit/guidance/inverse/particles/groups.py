"""Groups of particles: their random numbers, their weights, and which of them go on.

Sample i is particle i modulo P of group i // P.  Normals are keyed by (seed, sample), the uniforms of
resampling by (seed, group).  Systematic resampling takes particle j about P w_j times, w its normalised
weight: the points (0 + u) / P, ..., (P - 1 + u) / P fall into the cells of the cumulated weights, for one
uniform u.

Reference: Wu et al. (2306.17775), section 3; Douc and Cappe, "Comparison of Resampling Schemes for Particle
Filtering" (2005) for systematic resampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.observations import LinearObservation
from sde_toolkit.guidance.inverse.particles.kernels import Steps
from sde_toolkit.models import ScoreModel
from sde_toolkit.utils import Stream
from solvers import Normals, Solution, Stats, Status
from solvers.solution import finish


class Draws:
    """The random numbers of groups: normals keyed by sample, uniforms keyed by group."""

    def __init__(self, seed: int, groups: Tensor, P: int, model: ScoreModel, steps: Steps) -> None:
        samples = (groups[:, None] * P + torch.arange(P)).flatten()
        self._shape, self._n = model.event_shape, math.prod(model.event_shape)
        linear = isinstance(steps.observation, LinearObservation)
        self._m = steps.seen.values.shape[1] if linear else 0
        each = (2 * self._n + self._m,)
        self._normals = Normals(seed, samples, each, model.dtype, model.device)
        self._uniforms = Normals(seed, groups, (1,), torch.float64, model.device)

    def normals(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """For x0, y and the noise that is added, with shapes (B, *D), (B, m) and (B, *D)."""
        z = self._normals.draw(step, Stream.PARTICLES)
        first, seen, last = z.split((self._n, self._m, self._n), 1)
        return first.reshape(-1, *self._shape), seen, last.reshape(-1, *self._shape)

    def uniforms(self, step: int) -> Tensor:
        """With shape (G,)."""
        return torch.special.ndtr(self._uniforms.draw(step, Stream.ANCESTORS))[:, 0]


def weighed(log_w: Tensor) -> Tensor:
    """Log weights in which a particle that is not finite has weight 0."""
    return log_w.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def effective(log_w: Tensor) -> Tensor:
    """The effective numbers of particles, (sum w)^2 / sum w^2, with shape (G,)."""
    w = (log_w - log_w.amax(1, keepdim=True)).double().exp()
    return w.sum(1).square() / w.square().sum(1)


def resampled(log_w: Tensor, u: Tensor, turn: Tensor | None = None) -> Tensor:
    """Systematic resampling: the numbers in the batch, with shape (G, P), of the particles that go on.

    Args:
        log_w: log weights with shape (G, P).
        u: one uniform per group, with shape (G,).
        turn: another, by which the places within the group are turned, so that the particle in every place
            has the law of the weights.
    """
    G, P = log_w.shape
    w = log_w.double().softmax(1).nan_to_num()
    above = w.cumsum(1)
    above = above / above[:, -1:].clamp(min=1e-300)
    place = torch.arange(P, dtype=torch.float64, device=w.device)
    points = (place + u[:, None]) / P
    index = torch.searchsorted(above, points).clamp(max=P - 1)
    if turn is not None:
        moved = (place.long() + (turn[:, None] * P).long()) % P
        index = index.gather(1, moved)
    return index + P * torch.arange(G, device=w.device)[:, None]


def check_groups(name: str, rows: Tensor, wanted: range, P: int) -> None:
    """Refuse rows with shape (B, ...) that differ within a group."""
    flat = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
    group = torch.tensor([i // P for i in wanted], device=rows.device)
    same = group[1:] == group[:-1]
    alike = ((flat[1:] == flat[:-1]) | (flat[1:].isnan() & flat[:-1].isnan())).all(1)
    if bool((same & ~alike).any()):
        raise ValueError(
            f"{name} must be the same for the {P} samples of a group of particles, got rows that differ; "
            f"give {name}.repeat_interleave({P}, 0), which makes one group for each, or one {name} for all"
        )


def groups_of(samples: range, P: int) -> Tensor:
    """The numbers of the groups that hold the samples, with shape (G,)."""
    return torch.arange(samples.start // P, -(-samples.stop // P))


def batches(sizes: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """The numbers 0, 1, ... of things of these sizes, in lists of ``at_once`` in all, or of one thing."""
    some, held = list[int](), 0
    for i, size in enumerate(sizes):
        if some and held + size > at_once:
            yield some
            some, held = [], 0
        some.append(i)
        held += size
    if some:
        yield some


def failures(
    log_evidence: Tensor, x: Tensor, wanted: range, P: int, t: float, throw: bool
) -> Mapping[int, str]:
    """Global index -> why, of the samples of groups without any weight; raises where ``throw`` is True."""
    group = torch.tensor([i // P - wanted.start // P for i in wanted], device=x.device)
    broken = ~log_evidence.isfinite()[group] | ~x.flatten(1).isfinite().all(1)
    if not bool(broken.any()):
        return {}
    status = torch.where(broken, int(Status.NONFINITE), int(Status.SUCCESS)).cpu()
    none = torch.zeros_like(status)
    ts = torch.tensor([t, 0.0], dtype=torch.float64)
    try:
        finish(Solution(ts, x[None], Stats(none, none, none), status), ts[:1].expand(len(x)), None, throw)
    except RuntimeError as error:
        raise error.located(wanted) from None  # type: ignore[attr-defined]
    return {i: Status(int(kind)).name for i, kind in zip(wanted, status, strict=True) if kind}
