"""Latents by the probability flow: encode, decode, interpolate.

The flow maps data at t_min to x_T and back, one to one.  In whitened coordinates
(``sde_toolkit.likelihood.whitened``) the end of the run is u ~ N(0, I), up to the signal that the process
leaves at T; the latent is z = U u, with the shape of the data.  In many dimensions straight lines between
latents pass through points that are too short for N(0, I).  Great circles do not:

    slerp(z_a, z_b; w) = sin((1 - w) theta) / sin(theta) z_a + sin(w theta) / sin(theta) z_b,
    cos(theta) = z_a . z_b / (|z_a| |z_b|)

The norm changes linearly from |z_a| to |z_b|.  Where theta is tiny, or nearly a half turn, the path is the
straight line.

``interpolate_data`` goes from data to data: encode, great circle, decode.  With ``t_end`` below T the flow
turns back there: the latents are whitened states x_t, the points stay nearer to the ends, and their law is
that of the data only as far as x_t is Gaussian.  A guided model encodes and decodes under its guidance; so do
classes and other conditions.  A ``decoder``, such as the model given an observation, decodes what the model
has encoded: all points, the ends too, then have what was observed.

Values do not depend on batches or processes: bit for bit for models that compute rows independently of each
other, as exact models do, and to rounding for networks.

References: Song et al. (2011.13456), section 4.3; Shoemake, "Animating Rotation with Quaternion Curves"
(1985).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.likelihood.flow import DEFAULT_SOLVER, FlowSolver
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN, WhitenedFlow
from sde_toolkit.models import Condition, Moments, ScoreModel, check_states, evaluated
from sde_toolkit.utils import ALONE, Processes, checked, host_tensor

_SMALL_ANGLE = 1e-6


@dataclass(frozen=True)
class Latents:
    """Latents of B samples and what they cost.

    Attributes:
        z: with shape (B, *), close to N(0, I) for draws of the model.
        round_trip: root-mean-square difference per element between x and its decoding, with shape (B,); None
            if it was not asked for.
        nfe: evaluations on the way to z, with shape (B,).
    """

    z: Tensor
    round_trip: Tensor | None
    nfe: Tensor


class _Ends(NamedTuple):
    """The ends of B runs in whitened coordinates with shape (B, n), and their evaluations with shape (B,)."""

    u: Tensor
    nfe: Tensor


@checked
@evaluated
def encode(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    solver: FlowSolver = DEFAULT_SOLVER,
    t_min: float = LIKELIHOOD_T_MIN,
    t_end: float | None = None,
    moments: Moments | None = None,
    round_trip: bool = True,
    batch_size: int | None = None,
    processes: Processes = ALONE,
) -> Latents:
    """The latents of x with shape (B, *), data in model scale.

    Args:
        model: any ``ScoreModel``.
        x: with shape (B, *), of the model's type.
        condition: a tensor with one row per sample, or a class for all samples.
        solver: the method and its steps or tolerances.
        t_min: where the run starts; sigma(t_min) > 0.
        t_end: where it ends, t_min < t_end <= T; at T when None.
        moments: of the data, for the coordinates; the model's own when None.
        round_trip: decode again, and report the difference.
        batch_size: samples per evaluation; all at once when None.
        processes: those of torch.distributed that share the batches; each gets the whole result.

    Raises:
        ValueError, TypeError: a shape, a type or a condition that is not the model's, values that are not
            finite, a t_min or t_end out of range or without noise, or a batch size below 1.
        solvers.SolverError: a run became nan or inf, or stalled.
    """
    check_states(model, x)
    flow = WhitenedFlow(model, t_min, moments)
    given = model.conditions(condition, len(x))
    start = flow.whiten(x, flow.start)
    end = _run(flow, start, solver, (flow.tau_min, flow.tau(t_end)), given, batch_size, processes)
    z, error = flow.moments.embed(end.u).to(x.dtype), None
    if round_trip:
        again = decode(
            model, z, condition=condition, solver=solver, t_min=t_min, t_end=t_end, moments=moments,
            batch_size=batch_size, processes=processes,
        )  # fmt: skip
        error = (again - x).flatten(1).square().mean(1).sqrt()
    return Latents(z, error, end.nfe)


@checked
@evaluated
def decode(
    model: ScoreModel,
    z: Tensor,
    *,
    condition: Condition | None = None,
    solver: FlowSolver = DEFAULT_SOLVER,
    t_min: float = LIKELIHOOD_T_MIN,
    t_end: float | None = None,
    moments: Moments | None = None,
    batch_size: int | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """The data x at t_min with shape (B, *) whose latents are z with shape (B, *).

    Arguments and errors are those of ``encode``.
    """
    check_states(model, z, "z")
    flow = WhitenedFlow(model, t_min, moments)
    given = model.conditions(condition, len(z))
    start = flow.moments.project(z.to(torch.float64))
    end = _run(flow, start, solver, (flow.tau(t_end), flow.tau_min), given, batch_size, processes)
    return flow.unwhiten(end.u, flow.start).to(z.dtype)


def _run(
    flow: WhitenedFlow,
    u: Tensor,
    solver: FlowSolver,
    ends: tuple[float, float],
    condition: Tensor | None,
    batch_size: int | None,
    processes: Processes,
) -> _Ends:
    """Carry u with shape (B, n) from one time of the clock to another, batch by batch."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    steps = solver.steps(*ends)
    levels = flow.levels(steps)

    def run(first: int, rows: Tensor) -> _Ends:
        given = None if condition is None else condition[first : first + len(rows)]
        samples = range(first, first + len(rows))
        solution = flow.solve(flow.states(levels, given), rows, solver.method, steps, samples)
        return _Ends(solution.y, solution.stats.nfe)

    with torch.no_grad():
        return processes.map(run, u, batch_size or len(u))


@checked
def interpolate(z_a: Tensor, z_b: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Points on the great circles from z_a to z_b, each with shape (B, *); returns shape (W, B, *).

    Args:
        z_a, z_b: latents.
        weights: W numbers, 0 for z_a and 1 for z_b.

    Raises:
        ValueError: shapes that differ.
    """
    if not (z_a.is_floating_point() and z_b.is_floating_point()):
        raise ValueError(f"z_a and z_b must hold real numbers, got {z_a.dtype} and {z_b.dtype}")
    if z_a.shape != z_b.shape or z_a.ndim < 2:
        raise ValueError(
            f"z_a and z_b must have one shape (B, *), got {tuple(z_a.shape)} and {tuple(z_b.shape)}"
        )
    weights = _checked_weights(weights)
    a, b = z_a.flatten(1), z_b.flatten(1)
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny
    unit_a, unit_b = a / norm_a.clamp(min=tiny), b / norm_b.clamp(min=tiny)
    # the angle by its half chord: accurate where the directions nearly agree
    theta = 2 * torch.atan2(
        (unit_a - unit_b).norm(dim=1, keepdim=True), (unit_a + unit_b).norm(dim=1, keepdim=True)
    )
    straight = theta.sin() < _SMALL_ANGLE
    sine = torch.where(straight, 1.0, theta.sin())
    points = []
    for w in weights.to(a.device, a.dtype):
        turned = (((1 - w) * theta).sin() * unit_a + (w * theta).sin() * unit_b) / sine
        curve = ((1 - w) * norm_a + w * norm_b) * turned
        points.append(torch.where(straight, (1 - w) * a + w * b, curve))
    return torch.stack(points).reshape(-1, *z_a.shape)


def _checked_weights(weights: Sequence[float] | Tensor) -> Tensor:
    """The weights on the host with shape (W,); raises ValueError for none, nan or inf."""
    found = host_tensor("weights", weights).flatten()
    if not found.numel() or not bool(found.isfinite().all()):
        raise ValueError(f"weights must hold one finite number or more, got {found.tolist()}")
    return found


@checked
@evaluated
def interpolate_data(
    model: ScoreModel,
    x_a: Tensor,
    x_b: Tensor,
    weights: Sequence[float] | Tensor,
    *,
    condition: Condition | None = None,
    solver: FlowSolver = DEFAULT_SOLVER,
    t_min: float = LIKELIHOOD_T_MIN,
    t_end: float | None = None,
    moments: Moments | None = None,
    batch_size: int | None = None,
    processes: Processes = ALONE,
    decoder: ScoreModel | None = None,
) -> Tensor:
    """Data between x_a and x_b, each with shape (B, *), through their latents; returns shape (W, B, *).

    Args:
        model: any ``ScoreModel``.
        x_a, x_b: data in model scale.
        weights: W numbers, 0 for x_a and 1 for x_b.
        condition: a tensor with one row for each of the B pairs, or a class for all.
        solver, t_min, t_end, moments, batch_size, processes: as for ``encode``.
        decoder: a model of the same process and event shape that decodes, with moments of its own, such as
            ``Observed(observation, y).model(model)``, whose points share the observation; the model itself
            when None.

    Raises:
        ValueError, TypeError, solvers.SolverError: as for ``encode`` and ``interpolate``.
    """
    decoder = model if decoder is None else decoder
    if decoder.event_shape != model.event_shape or decoder.sde != model.sde:
        raise ValueError(
            f"decoder must be of samples with shape {model.event_shape} under {model.sde!r}, as the model, "
            f"got {decoder.event_shape} under {decoder.sde!r}"
        )
    check_states(model, x_a, "x_a")
    check_states(model, x_b, "x_b")
    if x_a.shape != x_b.shape:
        raise ValueError(f"x_a and x_b must be as many, got {len(x_a)} and {len(x_b)}")
    weights = _checked_weights(weights)
    rows = model.conditions(condition, len(x_a))
    both = None if rows is None else torch.cat([rows, rows])
    z = encode(
        model, torch.cat([x_a, x_b]), condition=both, solver=solver, t_min=t_min, t_end=t_end,
        moments=moments, round_trip=False, batch_size=batch_size, processes=processes,
    ).z  # fmt: skip
    points = interpolate(z[: len(x_a)], z[len(x_a) :], weights)
    every = None if rows is None else torch.cat([rows] * len(points))
    x = decode(
        decoder, points.flatten(0, 1), condition=every, solver=solver, t_min=t_min, t_end=t_end,
        moments=moments if decoder is model else None, batch_size=batch_size, processes=processes,
    )  # fmt: skip
    return x.reshape(points.shape)
