"""What ways of guidance share: shifted scores, predictions of another model, one guidance after another.

A prediction raw = a x0_hat + b z_hat at x_t = alpha x0_hat + sigma z_hat whose score grows by d has

    x0_hat + (sigma^2 / alpha) d,      z_hat - sigma d,      raw + (sigma / alpha) (a sigma - alpha b) d

so that a gradient is added to any prediction, without a conversion there and back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, Wrapper, prediction_coefficients
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
