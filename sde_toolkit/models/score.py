"""Score models, and the one place where predictions are converted into each other.

At x_t = alpha x0 + sigma z a model estimates posterior means given x_t: x0_hat = E[x0 | x_t] and z_hat = E[z
| x_t], with alpha x0_hat + sigma z_hat = x_t and score = -z_hat / sigma (Tweedie).  Every prediction in use
is a linear combination  raw = a x0_hat + b z_hat  with coefficients that depend on (alpha, sigma) only:

    noise      z_hat                              a = 0         b = 1
    data       x0_hat                             a = 1         b = 0
    score      -z_hat / sigma                     a = 0         b = -1 / sigma
    velocity   alpha z_hat - sigma x0_hat         a = -sigma    b = alpha
    edm        (x0_hat - c_skip x_t/alpha) / c_out,  nsr = sigma / alpha, d = data_std,
               c_skip = d^2 / (nsr^2 + d^2), c_out = d nsr / sqrt(nsr^2 + d^2)
                                                  a = (1 - c_skip) / c_out     b = -c_skip nsr / c_out

so one formula inverts them all: with D = a sigma - alpha b,

    x0_hat = (sigma raw - b x_t) / D,             z_hat = (a x_t - alpha raw) / D

A network sees the state scaled to unit variance, c_in x_t with c_in = 1 / sqrt(alpha^2 d^2 + sigma^2), and
the time feature 1000 t / T.  One of K classes estimates posterior means given the class as well, E[z | x_t,
k]; ``model.given(k)`` is the score model of p_t(x_t | k).

References: Salimans and Ho, "Progressive Distillation" (2202.00512) for the velocity; Karras et al.,
"Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364) for the preconditioning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from sde_toolkit.models.moments import Moments, isotropic
from sde_toolkit.sdes import ForwardSDE
from solvers.terms import expand_like

Prediction = Literal["noise", "data", "velocity", "score", "edm"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)

TIME_SCALE = 1000.0


def prediction_coefficients(
    predicts: str, alpha_t: Tensor, sigma_t: Tensor, data_std: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return (a, b) such that the prediction is a x0_hat + b z_hat; alpha_t and sigma_t with shape () or
    (B,)."""
    zero, one = torch.zeros_like(sigma_t), torch.ones_like(sigma_t)
    if predicts == "noise":
        return zero, one
    if predicts == "data":
        return one, zero
    if predicts == "score":
        return zero, -1 / sigma_t
    if predicts == "velocity":
        return -sigma_t, alpha_t
    if predicts == "edm":
        nsr = sigma_t / alpha_t
        norm = (nsr.square() + data_std**2).sqrt()
        return nsr / (data_std * norm), -data_std / norm
    raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, got {predicts!r}")


def conversion(
    predicts: str, wanted: str, alpha_t: Tensor, sigma_t: Tensor, data_std: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return (P, Q) such that the prediction ``wanted`` is P x_t + Q raw, for levels of shape () or (B,).

    Args:
        predicts: what ``raw`` is.
        wanted: "noise", "data", "velocity" or "score".
    """
    zero, one = torch.zeros_like(sigma_t), torch.ones_like(sigma_t)
    if predicts == wanted:
        return zero, one
    factor = one
    if predicts == "score":  # as the noise -sigma score: nothing is divided by sigma
        predicts, factor = "noise", -sigma_t
    a, b = prediction_coefficients(predicts, alpha_t, sigma_t, data_std)
    d = a * sigma_t - alpha_t * b
    if wanted == "data":
        return -b / d, factor * sigma_t / d
    if wanted == "velocity":
        return (alpha_t * a + sigma_t * b) / d, -factor * (alpha_t.square() + sigma_t.square()) / d
    keep, factor = a / d, -factor * alpha_t / d
    return (keep, factor) if wanted == "noise" else (-keep / sigma_t, -factor / sigma_t)


class ScoreModel(ABC):
    """Anything that estimates the score under a forward process: a network, or data known in closed form.

    Attributes:
        sde: the forward process.
        predicts: what ``raw`` returns, one of ``PREDICTIONS``.
        event_shape: the shape D of one sample, so that states have shape (B, *D).
        data_std: root-mean-square standard deviation of the data, used by the "edm" prediction and the input
            scale.
        moments: mean and covariance of the data; None where they are not known.
        dtype, device: of the states that the model takes.
    """

    sde: ForwardSDE
    predicts: str
    event_shape: tuple[int, ...]
    data_std: float
    moments: Moments | None = None
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def raw(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction named by ``predicts`` at x_t with shape (B, *) and t with shape () or (B,)."""

    def _linear(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """(raw, alpha, sigma, a, b) with raw = a x0_hat + b z_hat.

        A score is handed on as the noise -sigma score, so that nothing is divided by sigma, which may be 0.
        """
        raw, alpha_t, sigma_t = self.raw(x_t, t), self.sde.alpha(t), self.sde.sigma(t)
        predicts = self.predicts
        if predicts == "score":
            raw, predicts = expand_like(-sigma_t, raw) * raw, "noise"
        return raw, alpha_t, sigma_t, *prediction_coefficients(predicts, alpha_t, sigma_t, self.data_std)

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x0_hat = E[x0 | x_t] with shape (B, *)."""
        if self.predicts == "data":
            return self.raw(x_t, t)
        raw, alpha_t, sigma_t, a, b = self._linear(x_t, t)
        d = a * sigma_t - alpha_t * b
        return expand_like(sigma_t / d, raw) * raw - expand_like(b / d, x_t) * x_t

    def noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """z_hat = E[z | x_t] with shape (B, *)."""
        if self.predicts == "noise":
            return self.raw(x_t, t)
        if self.predicts == "score":
            raw = self.raw(x_t, t)
            return expand_like(-self.sde.sigma(t), raw) * raw
        raw, alpha_t, sigma_t, a, b = self._linear(x_t, t)
        d = a * sigma_t - alpha_t * b
        return expand_like(a / d, x_t) * x_t - expand_like(alpha_t / d, raw) * raw

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t) = -z_hat / sigma_t with shape (B, *)."""
        if self.predicts == "score":
            return self.raw(x_t, t)
        z_hat = self.noise(x_t, t)
        return expand_like(-1 / self.sde.sigma(t), z_hat) * z_hat

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """v_hat = alpha_t z_hat - sigma_t x0_hat with shape (B, *)."""
        if self.predicts == "velocity":
            return self.raw(x_t, t)
        raw, alpha_t, sigma_t, a, b = self._linear(x_t, t)
        d = a * sigma_t - alpha_t * b
        keep, mix = (alpha_t * a + sigma_t * b) / d, -(alpha_t.square() + sigma_t.square()) / d
        return expand_like(keep, x_t) * x_t + expand_like(mix, raw) * raw


def known_moments(model: ScoreModel) -> Moments:
    """The model's moments; mean 0 and variance data_std^2 where it has none."""
    return isotropic(model.event_shape, model.data_std) if model.moments is None else model.moments


def check_states(model: ScoreModel, x: Tensor, name: str = "x") -> None:
    """Refuse states that are not of the model: raises ValueError unless x has shape (B, *D) with B >= 1, the
    model's type, and finite values."""
    wanted = tuple(model.event_shape)
    if x.ndim < 1 or len(x) < 1 or tuple(x.shape[1:]) != wanted:
        raise ValueError(f"{name} must have shape (B, {', '.join(map(str, wanted))}), got {tuple(x.shape)}")
    if x.dtype != model.dtype:
        raise ValueError(
            f"{name} must have the model's type {model.dtype}, got {x.dtype}; convert it with {name}.to(...)"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got nan or inf")
