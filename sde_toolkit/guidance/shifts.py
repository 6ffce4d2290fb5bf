"""What ways of guidance share: shifted scores, predictions of another model, one guidance after another.

A prediction raw = a x0_hat + b z_hat at x_t = alpha x0_hat + sigma z_hat whose score grows by d has

    x0_hat + (sigma^2 / alpha) d,      z_hat - sigma d,      raw + (sigma / alpha) (a sigma - alpha b) d

so that a gradient is added to any prediction, without a conversion there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, Wrapper, inner_network, prediction_coefficients
from sde_toolkit.samplers import CountedModel, Guidance, Sampler
from solvers import expand_like


def shifted(model: ScoreModel, raw: Tensor, t: Tensor, shift: Tensor) -> Tensor:
    """The prediction with shape (B, *) whose score is larger by ``shift`` with shape (B, *)."""
    if model.predicts == "score":
        return raw + shift
    alpha_t, sigma_t = model.sde.alpha(t), model.sde.sigma(t)
    a, b = prediction_coefficients(model.predicts, alpha_t, sigma_t, model.data_std)
    return raw + expand_like(sigma_t / alpha_t * (a * sigma_t - alpha_t * b), raw) * shift


def as_prediction(
    model: ScoreModel, like: ScoreModel, x_t: Tensor, t: Tensor, condition: Tensor | None
) -> Tensor:
    """The prediction of a model at x_t with shape (B, *), as that which ``like`` makes."""
    same = model.predicts == like.predicts
    if same and (model.predicts != "edm" or model.data_std == like.data_std):
        return model.raw(x_t, t, condition)
    if like.predicts in ("score", "noise"):
        return model.score(x_t, t, condition) if like.predicts == "score" else model.noise(x_t, t, condition)
    x0_hat = model.denoise(x_t, t, condition)
    if like.predicts == "data":
        return x0_hat
    alpha_t, sigma_t = like.sde.alpha(t), like.sde.sigma(t)
    a, b = prediction_coefficients(like.predicts, alpha_t, sigma_t, like.data_std)
    z_hat = (x_t - expand_like(alpha_t, x_t) * x0_hat) / expand_like(sigma_t, x_t)
    return expand_like(a, x_t) * x0_hat + expand_like(b, x_t) * z_hat


class Branch(NamedTuple):
    """States that a model is asked at: x_t with shape (B, *), t with shape () or (B,), rows or None."""

    x_t: Tensor
    t: Tensor
    condition: Tensor | None


def predictions(model: ScoreModel, branches: Sequence[Branch]) -> list[Tensor]:
    """The predictions of every branch, each with the shape of its states: in one call where the model knows
    a row that stands for "no condition", or where all have one; else in as many calls."""
    given = [branch.condition for branch in branches if branch.condition is not None]
    rows = [_rows(model, branch, given[0]) if given else None for branch in branches]
    known = [row for row in rows if row is not None]
    if len(branches) == 1 or len(known) < len(branches):
        return [model.raw(*branch) for branch in branches]
    counts, t = [len(branch.x_t) for branch in branches], branches[0].t
    if any(branch.t is not t for branch in branches) or t.ndim:
        t = torch.cat([branch.t.expand(count) for branch, count in zip(branches, counts, strict=True)])
    return list(model.raw(torch.cat([branch.x_t for branch in branches]), t, torch.cat(known)).split(counts))


def _rows(model: ScoreModel, branch: Branch, like: Tensor) -> Tensor | None:
    """The condition of a branch, or rows like another's that stand for none; None where there are none."""
    if branch.condition is not None:
        return branch.condition
    shape = (len(branch.x_t), *like.shape[1:])
    if model.num_classes:
        return like.new_full(shape, model.num_classes)
    inside: Any = model
    while isinstance(inside, Wrapper):
        inside = inside.model
    network = getattr(inside, "network", None)
    knows = network is not None and hasattr(inner_network(network), "condition_shape")
    return like.new_full(shape, math.nan) if knows and like.is_floating_point() else None


def charge(model: ScoreModel, rows: int) -> None:
    """Count evaluations of another model, one for every row, as those of the run."""
    while isinstance(model, Wrapper):
        if isinstance(model, CountedModel):
            model.rows += rows
            return
        model = model.model


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient with shape (B, *) of a function with shape (B,), each row's of its own; part of autograd's
    record where a run is recorded."""
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if recorded and x.requires_grad else x.detach().requires_grad_()
        value = function(x)
        return torch.autograd.grad(value.sum(), x, create_graph=recorded)[0]


@dataclass(frozen=True)
class InTurn:
    """model -> the model under one guidance, then under another."""

    first: Guidance
    second: Guidance

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The model under both."""
        return self.second(self.first(model))


def guided_by(sampler: Sampler, guidance: Guidance) -> Sampler:
    """The sampler under a guidance, after what it has already; one of the same kind takes its place."""
    own = sampler.guidance
    if own is None or type(own) is type(guidance):
        return replace(sampler, guidance=guidance)
    if isinstance(own, InTurn) and type(own.second) is type(guidance):
        return replace(sampler, guidance=InTurn(own.first, guidance))
    return replace(sampler, guidance=InTurn(own, guidance))
