"""Latents by the probability flow: encode, decode, interpolate.

The flow maps data at t_min to x_T and back, one to one.  In whitened coordinates (``sde_toolkit.whitened``)
the end of the run is u ~ N(0, I), up to what the process leaves at T; the latent is z = U u, with the shape
of the data.  Straight lines between latents lead through points that are too short for N(0, I) in many
dimensions, great circles do not:

    slerp(z_a, z_b; w) = sin((1 - w) theta) / sin(theta) z_a + sin(w theta) / sin(theta) z_b,
    cos(theta) = z_a . z_b / (|z_a| |z_b|)

and the norm goes over linearly from |z_a| to |z_b|.  Where theta is tiny, or nearly a half turn, this is the
straight line.

References: Song et al. (2011.13456), section 4.3; Shoemake, "Animating Rotation with Quaternion Curves"
(1985).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.likelihood.flow import FlowSolver
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN, WhitenedFlow
from sde_toolkit.models import Condition, Moments, ScoreModel, check_states
from solvers import solve

_SMALL_ANGLE = 1e-6


@dataclass(frozen=True)
class Latents:
    """Latents of B samples and what they cost.

    Attributes:
        z: with shape (B, *), close to N(0, I) for draws of the model.
        round_trip: root-mean-square difference per element between x and its decoding, with shape (B,); None
            where it was not asked for.
        nfe: evaluations on the way to z, with shape (B,).
    """

    z: Tensor
    round_trip: Tensor | None
    nfe: Tensor


def encode(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    solver: FlowSolver = FlowSolver(),
    t_min: float = LIKELIHOOD_T_MIN,
    moments: Moments | None = None,
    round_trip: bool = True,
) -> Latents:
    """The latents of x with shape (B, *), data in model scale.

    Args:
        model: any ``ScoreModel``.
        x: with shape (B, *), of the model's type.
        condition: a class for all samples, or a tensor with one row per sample.
        solver: method, and tolerances on the whitened state or a number of steps.
        t_min: where the run starts; sigma(t_min) > 0.
        moments: of the data; the model's own when None.
        round_trip: decode again, and report the difference.

    Raises:
        ValueError: a shape or a type that is not the model's, values that are not finite, a t_min out of
            range or without noise, or a method without an error estimate.
        solvers.SolverError: a run became nan or inf, or stalled.
    """
    check_states(model, x)
    flow = WhitenedFlow(model, t_min, moments)
    control = solver.control(flow.tau_min, flow.tau_max)
    given = model.conditions(condition, len(x))
    with torch.no_grad():
        solution = solve(flow.states(given), flow.whiten(x, flow.start), solver.method, control)
    z = flow.moments.embed(solution.y).to(x.dtype)
    error = None
    if round_trip:
        again = decode(model, z, condition=given, solver=solver, t_min=t_min, moments=moments)
        error = (again - x).flatten(1).square().mean(1).sqrt()
    return Latents(z, error, solution.stats.nfe)


def decode(
    model: ScoreModel,
    z: Tensor,
    *,
    condition: Condition | None = None,
    solver: FlowSolver = FlowSolver(),
    t_min: float = LIKELIHOOD_T_MIN,
    moments: Moments | None = None,
) -> Tensor:
    """The data x at t_min with shape (B, *) that have the latents z with shape (B, *).

    Arguments and errors are those of ``encode``.
    """
    check_states(model, z, "z")
    flow = WhitenedFlow(model, t_min, moments)
    control = solver.control(flow.tau_max, flow.tau_min)
    with torch.no_grad():
        term = flow.states(model.conditions(condition, len(z)))
        solution = solve(term, flow.moments.project(z.to(torch.float64)), solver.method, control)
    return flow.unwhiten(solution.y, flow.start).to(z.dtype)


def interpolate(z_a: Tensor, z_b: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Points on the great circles from z_a to z_b, each with shape (B, *); returns shape (W, B, *).

    Args:
        z_a, z_b: latents.
        weights: W numbers, 0 for z_a and 1 for z_b.

    Raises:
        ValueError: shapes that differ.
    """
    if z_a.shape != z_b.shape or z_a.ndim < 2:
        raise ValueError(
            f"z_a and z_b must have one shape (B, *), got {tuple(z_a.shape)} and {tuple(z_b.shape)}"
        )
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
    for w in torch.as_tensor(weights, dtype=a.dtype, device=a.device).flatten():
        turned = (((1 - w) * theta).sin() * unit_a + (w * theta).sin() * unit_b) / sine
        curve = ((1 - w) * norm_a + w * norm_b) * turned
        points.append(torch.where(straight, (1 - w) * a + w * b, curve))
    return torch.stack(points).reshape(-1, *z_a.shape)
