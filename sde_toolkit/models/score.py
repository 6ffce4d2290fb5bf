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
    flow       dx_t/dt = alpha' x0_hat + sigma' z_hat, the velocity of the probability flow, and flow
               matching's; under straight paths it is z_hat - x0_hat.  Networks with it are read as
               "velocity" by all others, because its coefficients are those of the process, not of its
               levels                              a = alpha'    b = sigma'
    residual   edm with the data's mean and covariance in the place of d (``models.Whitening``); networks with
               it are read as "edm" by all others

so one formula inverts them all: with D = a sigma - alpha b,

    x0_hat = (sigma raw - b x_t) / D,             z_hat = (a x_t - alpha raw) / D

A condition c (a class, an embedding, an observation) is an argument of the call with one row per sample; the
posterior means are then those given c as well, E[z | x_t, c].  A model without conditions refuses one.

References: Salimans and Ho, "Progressive Distillation" (2202.00512) for the velocity; Karras et al.,
"Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364) for the preconditioning.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.models.moments import Moments, isotropic
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import UNSIGNED, as_tensor, as_times, shown
from solvers.terms import expand_like

Condition = int | Tensor | np.ndarray | Sequence[int]
"""What callers give for a condition: a class for all samples, or one row per sample."""

Prediction = Literal["noise", "data", "velocity", "flow", "score", "edm", "residual"]
"""What a network puts out."""

PREDICTIONS: tuple[str, ...] = get_args(Prediction)
"""The names of the predictions."""

READ_AS = {"residual": "edm", "flow": "velocity"}
"""What ``raw`` makes of predictions that the levels alone do not convert."""

COMBINATIONS = tuple(name for name in PREDICTIONS if name not in READ_AS)
"""Those that are a x0_hat + b z_hat with numbers a and b of the levels, as ``raw`` returns them."""

PREDICTION_ALIASES = {
    "epsilon": "noise", "sample": "data", "v_prediction": "velocity", "flow_prediction": "flow",
}  # fmt: skip
"""diffusers' names of predictions, and ours."""

TIME_SCALE = 1000.0
"""The time feature of a network at t = T, as in DDPM's code; it is 0 at t = 0."""


def prediction_name(name: str) -> str:
    """One of ``PREDICTIONS`` for its name here or in diffusers.

    Raises:
        ValueError: an unknown name.
    """
    name = PREDICTION_ALIASES.get(name, name)
    if name not in PREDICTIONS:
        raise ValueError(
            f"predicts must be one of {', '.join((*PREDICTIONS, *PREDICTION_ALIASES))}, got {name!r}"
        )
    return name


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
        norm = (sigma_t.square() + (alpha_t * data_std).square()).sqrt()
        return sigma_t / (data_std * norm), -data_std * alpha_t / norm
    raise ValueError(f"predicts must be one of {', '.join(COMBINATIONS)}, got {predicts!r}")


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


def flow_as_velocity(sde: ForwardSDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P, Q) such that v_hat = P x_t + Q flow, for the flow dx_t/dt at t with shape () or (B,).

    flow = f x_t + r z_hat with r = g^2 / (2 sigma), and v_hat = (z_hat - sigma x_t / (alpha^2 + sigma^2))
    (alpha^2 + sigma^2) / alpha.  The times must have noise.
    """
    alpha_t, sigma_t, rate = sde.alpha(t), sde.sigma(t), sde.noise_rate(t)
    factor = (alpha_t.square() + sigma_t.square()) / (alpha_t * rate)
    return -(sigma_t / alpha_t) - sde.f(t) * factor, factor


class DataScale(Protocol):
    """The map between raw data and model scale, such as ``sde_toolkit.data.Scaling``."""

    def to_data(self, x: Tensor, /) -> Tensor:
        """Raw data with shape (B, *), for x with shape (B, *) in model scale."""
        ...


def of_states(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A model's function of x_t, t and condition, for arrays and numbers too.

    What fails with an error of torch's is looked at again: arguments that are not of the model are refused by
    name, with ValueError or TypeError.
    """

    @functools.wraps(method)
    def call(self: Any, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if not (isinstance(x_t, Tensor) and isinstance(t, Tensor)):
            x_t, t = (
                as_tensor("x_t", x_t, self.dtype, self.device),
                t if isinstance(t, Tensor) else as_times("t", t),
            )
        if condition is not None and not isinstance(condition, Tensor):
            condition = self.conditions(condition, len(x_t))
        try:
            return method(self, x_t, t) if condition is None else method(self, x_t, t, condition)
        except (RuntimeError, IndexError, AttributeError) as error:
            _explain(self, x_t, t, condition, error)
            raise

    return call


def _explain(model: ScoreModel, x_t: Tensor, t: Tensor, condition: Tensor | None, error: Exception) -> None:
    """Raise the sentence for what is not of the model; nothing if all is."""
    try:
        _check_kind(model, x_t, "x_t")
        if t.ndim and t.shape != x_t.shape[:1]:
            raise ValueError(f"t must have shape () or ({len(x_t)},), got {tuple(t.shape)}")
        if condition is not None:
            model.conditions(condition, len(x_t))
    except (ValueError, TypeError) as sentence:
        raise sentence from error


class ScoreModel(ABC):
    """Anything that estimates the score under a forward process: a network, or data known in closed form.

    States and times are tensors; arrays, and numbers for times, are taken as well.

    Attributes:
        sde: the forward process.
        predicts: what ``raw`` returns, one of ``COMBINATIONS``.
        event_shape: the shape D of one sample, so that states have shape (B, *D).
        data_std: root-mean-square standard deviation of the data, used by the "edm" prediction and the input
            scale.
        moments: mean and covariance of the data; None where they are not known.
        class_moments: those of every class; None where they are not known.
        scaling: from model scale to raw data and back; None where it is not known.
        num_classes: number of classes that a condition may be; 0 for none.
        condition_shape: of one sample's condition, for conditions that are no classes; None for none.
        exact: whether this is the score of known data, with no error of a network.
        learned_variance: whether there is a ``raw_and_fraction``.
        dtype, device: of the states that the model takes.
    """

    sde: ForwardSDE
    predicts: str
    event_shape: tuple[int, ...]
    data_std: float
    moments: Moments | None = None
    class_moments: Sequence[Moments] | None = None
    scaling: DataScale | None = None
    num_classes: int = 0
    condition_shape: tuple[int, ...] | None = None
    exact: bool = False
    learned_variance: bool = False
    dtype: torch.dtype
    device: torch.device

    def __init_subclass__(cls, **options: object) -> None:
        """Every model's ``raw`` takes arrays and numbers."""
        super().__init_subclass__(**options)
        if "raw" in vars(cls):
            cls.raw = of_states(cls.raw)  # type: ignore[method-assign]

    @abstractmethod
    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction named by ``predicts``.

        Args:
            x_t: states with shape (B, *).
            t: times with shape () or (B,).
            condition: one row per sample, as ``conditions`` gives it, or None.
        """

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``raw`` and, of the same evaluation, the fraction v of a learned variance, each with shape (B, *).

        The reverse step from t has the variance exp(v log large + (1 - v) log small), see
        ``sde_toolkit.sdes.variational``.

        Raises:
            ValueError: a model without one.
        """
        raise ValueError(
            f"model must have learned variances, got {self!r}; train IndexedModel(network, chain, ..., "
            'learned_variance=True) by HybridLoss, or take variance="small" or "large"'
        )

    def conditions(self, condition: Condition | None, count: int) -> Tensor | None:
        """The condition of ``count`` samples with one row for each, on the model's device; None for none.

        Args:
            condition: a class for all samples, a tensor with ``count`` rows, or None.
            count: number of samples.

        Raises:
            ValueError, TypeError: a condition that the model does not take, or of another shape or type.
        """
        if condition is not None:
            raise ValueError(
                f"condition must be left out for a model without conditions, got {_shown(condition)}; build "
                "its network with num_classes or condition_shape"
            )
        return None

    def _linear(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """(raw, alpha, sigma, a, b) with raw = a x0_hat + b z_hat.

        A score is handed on as the noise -sigma score, so that nothing is divided by sigma, which may be 0.
        """
        raw = self.raw(x_t, t, condition)
        alpha_t, sigma_t = self.sde.alpha(t), self.sde.sigma(t)
        predicts = self.predicts
        if predicts == "score":
            raw, predicts = expand_like(-sigma_t, raw) * raw, "noise"
        return raw, alpha_t, sigma_t, *prediction_coefficients(predicts, alpha_t, sigma_t, self.data_std)

    @of_states
    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x0_hat = E[x0 | x_t] with shape (B, *)."""
        if self.predicts == "data":
            return self.raw(x_t, t, condition)
        raw, alpha_t, sigma_t, a, b = self._linear(x_t, t, condition)
        d = a * sigma_t - alpha_t * b
        return expand_like(sigma_t / d, raw) * raw - expand_like(b / d, x_t) * x_t

    @of_states
    def noise(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """z_hat = E[z | x_t] with shape (B, *)."""
        if self.predicts == "noise":
            return self.raw(x_t, t, condition)
        if self.predicts == "score":
            raw = self.raw(x_t, t, condition)
            return expand_like(-self.sde.sigma(t), raw) * raw
        raw, alpha_t, sigma_t, a, b = self._linear(x_t, t, condition)
        d = a * sigma_t - alpha_t * b
        return expand_like(a / d, x_t) * x_t - expand_like(alpha_t / d, raw) * raw

    @of_states
    def score(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """grad log p_t(x_t) = -z_hat / sigma_t with shape (B, *)."""
        if self.predicts == "score":
            return self.raw(x_t, t, condition)
        z_hat = self.noise(x_t, t, condition)
        return expand_like(-1 / self.sde.sigma(t), z_hat) * z_hat

    @of_states
    def velocity(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """v_hat = alpha_t z_hat - sigma_t x0_hat with shape (B, *)."""
        if self.predicts == "velocity":
            return self.raw(x_t, t, condition)
        raw, alpha_t, sigma_t, a, b = self._linear(x_t, t, condition)
        d = a * sigma_t - alpha_t * b
        keep, mix = (alpha_t * a + sigma_t * b) / d, -(alpha_t.square() + sigma_t.square()) / d
        return expand_like(keep, x_t) * x_t + expand_like(mix, raw) * raw


def known_moments(model: ScoreModel) -> Moments:
    """The model's moments; mean 0 and variance data_std^2 where it has none."""
    return isotropic(model.event_shape, model.data_std) if model.moments is None else model.moments


def check_states(model: ScoreModel, x: Tensor, name: str = "x", finite: bool = True) -> None:
    """Refuse states that are not of the model: raises ValueError unless x has shape (B, *D) with B >= 1, the
    model's type, and finite values, which are not looked at where ``finite`` is False."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {shown(x)}; convert it with torch.as_tensor({name}, "
            f"dtype={model.dtype})"
        )
    _check_kind(model, x, name)
    if finite and not bool(x.isfinite().all()):
        rows = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{name} must be finite, got nan or inf in {len(rows)} rows, the first {rows[0]}")


def _check_kind(model: ScoreModel, x: Tensor, name: str) -> None:
    """Refuse states of another shape, type or device than the model's."""
    wanted = tuple(model.event_shape)
    if x.ndim < 1 or len(x) < 1 or tuple(x.shape[1:]) != wanted:
        raise ValueError(
            f"{name} must have shape (B, {', '.join(map(str, wanted))}), got {tuple(x.shape)}"
            + _turned(name, tuple(x.shape), wanted)
        )
    if x.dtype != model.dtype:
        raise ValueError(
            f"{name} must have the model's type {model.dtype}, got {x.dtype}; convert it with {name}.to(...)"
        )
    if x.device.type != model.device.type:
        raise ValueError(
            f"{name} must be on the model's device {model.device}, got {x.device}; move it with "
            f"{name}.to({str(model.device)!r})"
        )


def _turned(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to do with a batch of other order, or with one sample alone."""
    if len(wanted) == 3 and len(shape) == 4 and (shape[3], *shape[1:3]) == wanted:
        return f"; channels come first: use {name}.permute(0, 3, 1, 2)"
    return f"; for one sample use {name}[None]" if shape == wanted else ""


def class_labels(
    condition: Condition, count: int, num_classes: int, device: torch.device, null: bool = False
) -> Tensor:
    """Labels with shape (count,), int64: of a class for all samples, or of labels with that shape.

    Args:
        condition: the class, or labels.
        count: number of samples.
        num_classes: K.
        device: of the result.
        null: whether K stands for "no class".

    Raises:
        ValueError: a class out of range, or labels of another shape.
        TypeError: labels that are no integers.
    """
    if isinstance(condition, (np.ndarray, list, tuple)):
        condition = as_tensor("condition", condition, dtype=None)
    if not isinstance(condition, Tensor):
        try:
            condition = torch.full((count,), operator.index(condition))  # type: ignore[arg-type]
        except (TypeError, OverflowError, RuntimeError):
            raise TypeError(
                f"condition must be a class 0 .. {num_classes - 1} for all samples, or integers with shape "
                f"({count},), got {shown(condition)}"
            ) from None
    elif condition.dtype in UNSIGNED:
        condition = condition.to(torch.int64)
    if condition.dtype.is_floating_point or condition.dtype.is_complex or condition.dtype == torch.bool:
        raise TypeError(
            f"condition: class labels must be integers, got {condition.dtype}; convert them with .long()"
        )
    if tuple(condition.shape) != (count,):
        raise ValueError(
            f"condition: class labels must have shape ({count},), one per sample, got "
            f"{tuple(condition.shape)}"
        )
    low, high = (int(condition.min()), int(condition.max())) if count else (0, 0)
    if low < 0 or high >= num_classes + null:
        none = f", or {num_classes} for none" if null else ""
        raise ValueError(
            f"condition: class labels must be among 0 .. {num_classes - 1}{none}, got "
            f"{low if low < 0 else high}"
        )
    return condition.to(device, torch.int64)


def _shown(condition: Condition) -> str:
    return (
        f"a tensor with shape {tuple(condition.shape)}" if isinstance(condition, Tensor) else shown(condition)
    )
