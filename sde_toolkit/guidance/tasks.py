"""Inverse problems ready to use: inpainting, restoration and imputation, in the units of raw data.

    inpaint     the features outside a mask from those inside
    restore     the data from any linear observation: blurred, coarse, grey, noisy, some Fourier coefficients
    impute      the missing entries of the rows of a table

Each draws K samples of p(x0 | y) for every example by a method of this room and a sampler, and tells their
mean and the interval of every feature (``sde_toolkit.metrics.interval``: 90% needs 19 draws or more).

Draw k of example i of a seed is the same whatever else is drawn, up to rounding, see ``draws``.

Short vectors, such as rows of a table, are drawn by particles (``default_sampler``), whose law is that of the
model as their number grows.

Not promised: methods that guide a sampler are approximate.  Where p(x0 | x_t) has several modes, draws have
the wrong share of them, and intervals hold the truth less often than they say;
``sde_toolkit.metrics.coverage`` measures it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.draws import (
    NUM_DRAWS,
    Plan,
    PosteriorSampler,
    Progress,
    draw_given,
    plan_draws,
)
from sde_toolkit.guidance.inverse.instruments import entries
from sde_toolkit.guidance.inverse.observations import LinearObservation
from sde_toolkit.guidance.inverse.posterior import Method
from sde_toolkit.guidance.raw_units import in_model_scale, mixes_rows
from sde_toolkit.metrics import Interval, interval
from sde_toolkit.models import Condition, DataScale, ScoreModel
from sde_toolkit.samplers import Sampler
from sde_toolkit.utils import as_tensor, checked


@dataclass(frozen=True, eq=False)
class Restored:
    """Draws given observations, and what they say of every feature.

    Attributes:
        x: K draws of n examples in model scale, with shape (K, n, *D).
        draws: the same as raw data.
        mean: of the draws as raw data, float64 with shape (n, *D).
        low, high: ends of the interval of every feature as raw data, with shape (n, *D).
        level: the probability with which an exact posterior's interval holds the truth; nan for one draw.
        nfe: network evaluations per draw.
        seconds: wall time.
        settings: the method's and the sampler's, as plain values.
    """

    x: Tensor = field(repr=False)
    draws: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)
    level: float
    nfe: float
    seconds: float
    settings: Mapping[str, Any]


@checked
def restore(
    model: ScoreModel,
    observation: LinearObservation,
    y: Any,
    *,
    num_draws: int = NUM_DRAWS,
    method: Method | None = None,
    sampler: Sampler | PosteriorSampler | None = None,
    condition: Condition | None = None,
    level: float = 0.9,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Restored:
    """Draws of the data given linear observations of them.

    Args:
        model: of the data; where it knows their scaling, the observation is one of raw data, else of data in
            model scale.
        observation: the law of y, with std in the units of y.
        y: observations with shape (n, *Y), or one with shape Y.
        num_draws: K, at least 1.
        method: how y guides; when None ``default_method``.
        sampler: ``TwistedSMC`` and ``SplitGibbs`` need no method; when None, DPM-Solver++ with 50 steps for a
            method, and ``default_sampler`` without one.
        condition: of a model that takes one: a class for all, or one row per example.
        level: of the intervals, see ``sde_toolkit.metrics.interval``.
        seed: of the draws.
        batch_size: draws per evaluation of the network.
        progress: told how many draws are finished, batch by batch.

    Raises:
        ValueError: shapes that do not fit, a number below 1, or a scaling that cannot bring the observation
            to model scale, see ``in_model_scale``.
        solvers.SolverError: a draw became nan or inf.
    """
    scaling = model.scaling
    if mixes_rows(observation, scaling):
        raise ValueError(
            "observation must have one mask for all rows under this scaling, got entries; call impute"
        )
    posed, values = in_model_scale(observation, y, scaling)
    plan = plan_draws(model, posed, method, sampler, num_draws, level, seed, batch_size)
    rows = model.conditions(condition, len(values))
    x, nfe, seconds = draw_given(model, plan, values, torch.arange(len(values)), rows, progress)
    return _told(x, nfe, seconds, scaling, plan)


@checked
def inpaint(model: ScoreModel, images: Any, mask: Any, *, std: float = 0.0, **options: Any) -> Restored:
    """Draws of data of which the features in a mask are known.

    Args:
        model: of the data.
        images: with shape (n, *D) or D, in raw units; what they hold outside the mask is not looked at.
        mask: bool with shape D, or the last dimensions of D such as (H, W), True where a feature is known.
        std: of the noise of what is known, in raw units.
        **options: those of ``restore``.

    Raises:
        ValueError: a mask of another shape, or without a True; what ``restore`` refuses.
    """
    table, shape = as_tensor("mask", mask), _raw_shape(model)
    if table.dtype != torch.bool or table.ndim < 1 or tuple(shape[-table.ndim :]) != tuple(table.shape):
        raise ValueError(
            f"mask must be bool with shape {shape}, or the last of these numbers, True where a feature is "
            f"known, got {table.dtype} with shape {tuple(table.shape)}"
        )
    observation = LinearObservation(table.cpu().expand(shape), std)
    y = as_tensor("images", images)
    y = y if y.is_floating_point() else y.double()
    known = table.expand(shape).to(y.device)
    if tuple(y.shape) != shape and tuple(y.shape[1:]) != shape:
        raise ValueError(
            f"images must have shape {shape}, or (n, {', '.join(map(str, shape))}), got {tuple(y.shape)}"
        )
    if not len(y) or not bool((y.isfinite() | ~known).all()):
        raise ValueError("images must be one or more, finite inside the mask, got none, or nan or inf")
    seen = torch.where(known, y, torch.nan)
    return restore(model, observation, seen, **options)


@checked
def impute(model: ScoreModel, rows: Any, *, std: float = 0.0, **options: Any) -> Restored:
    """Draws of the rows of a table whose missing entries are nan.

    Under a scaling that mixes the columns (whitening), rows are taken mask by mask.

    Args:
        model: of the data.
        rows: with shape (n, *D), in raw units, nan where an entry is missing.
        std: of the noise of the entries, in raw units; with 0 they are kept as they are.
        **options: those of ``restore``.

    Raises:
        ValueError: rows of another shape, infinite entries, or rows without any entry; what ``restore``
            refuses.
    """
    shape = _raw_shape(model)
    y = as_tensor("rows", rows)
    y = y if y.is_floating_point() else y.double()
    if y.ndim != len(shape) + 1 or tuple(y.shape[1:]) != shape or not len(y):
        raise ValueError(
            f"rows must have shape (n, {', '.join(map(str, shape))}), the model's, got {tuple(y.shape)}"
        )
    held = ~y.isnan()
    empty = (~held.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"rows must have an entry each, got {len(empty)} without, the first number {empty[0]}; leave "
            "them out, or draw samples for them"
        )
    observation = LinearObservation(entries(shape), std)
    if not mixes_rows(observation, model.scaling):
        found = restore(model, observation, y, **options)
    else:
        found = _by_masks(model, y, held, std, **options)
    return _kept(found, y, held) if std == 0 else found


def _by_masks(
    model: ScoreModel, y: Tensor, held: Tensor, std: float, *,
    num_draws: int = NUM_DRAWS, method: Method | None = None,
    sampler: Sampler | PosteriorSampler | None = None, condition: Condition | None = None,
    level: float = 0.9, seed: int = 0, batch_size: int = 256, progress: Progress | None = None,
) -> Restored:  # fmt: skip
    """Imputation of rows with one mask after the other."""
    masks, which = held.unique(dim=0, return_inverse=True)
    given, scaling = model.conditions(condition, len(y)), model.scaling
    x, total, seconds, plan = None, 0.0, 0.0, None
    for k, mask in enumerate(masks):
        at = (which == k).nonzero().flatten()
        posed, values = in_model_scale(LinearObservation(mask.cpu(), std), y[at], scaling)
        plan = plan_draws(model, posed, method, sampler, num_draws, level, seed, batch_size)
        part, nfe, took = draw_given(model, plan, values, at, None if given is None else given[at], progress)
        x = part.new_empty(num_draws, len(y), *part.shape[2:]) if x is None else x
        x[:, at] = part
        total, seconds = total + nfe * len(at), seconds + took
    assert x is not None
    assert plan is not None
    return _told(x, total / len(y), seconds, scaling, plan)


def _told(x: Tensor, nfe: float, seconds: float, scaling: DataScale | None, plan: Plan) -> Restored:
    raw = x if scaling is None else scaling.to_data(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    ends = interval(raw, plan.level) if len(raw) > 1 else Interval(raw[0], raw[0], float("nan"))
    method = plan.sampler if plan.method is None else plan.method
    settings = {
        "method": repr(method), "observation": repr(plan.observation), "draws": plan.num_draws,
        "seed": plan.seed, **plan.sampler.settings,
    }  # fmt: skip
    return Restored(x, raw, raw.double().mean(0), *ends, nfe, seconds, settings)


def _kept(found: Restored, y: Tensor, held: Tensor) -> Restored:
    """The same with the entries that are known exactly as they are in the rows."""

    def put(part: Tensor) -> Tensor:
        kept, known = held.to(part.device), y.to(part.device)
        return torch.where(kept, known, part.to(known)) if part.is_floating_point() else part

    return dataclasses.replace(
        found, draws=put(found.draws), mean=put(found.mean), low=put(found.low), high=put(found.high)
    )


def _raw_shape(model: ScoreModel) -> tuple[int, ...]:
    """The shape of raw data: that of the model, without what angles add."""
    added = getattr(model.scaling, "num_added", 0)
    shape = tuple(model.event_shape)
    return shape if not added else (shape[0] - added,)
