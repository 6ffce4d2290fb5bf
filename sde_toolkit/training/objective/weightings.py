"""The weights of the times: what a loss of denoising score matching is a mean of.

Every prediction is an affine function of z_hat, so that every squared error of the literature is the squared
error of the noise times a factor, and every loss, with t uniform on [t_min, T],

    E_t[ w(t) |z_hat - z|^2 / D ],      n = sigma / alpha,   r = -dlam/dt = d log n / dt = g^2 / (2 sigma^2)

    name           w(t)                                    the same as
    noise          1                                       DDPM's simple loss (2006.11239, eq. 14)
    sigma^2        1                                       sigma^2 |score error|^2, as 2011.13456 has it
    data           n^2                                     |x0_hat - x0|^2
    velocity       (alpha^2 + sigma^2)^2 / alpha^2         |v_hat - v|^2 (2202.00512)
    flow           (g^2 / (2 sigma))^2                     |flow - dx_t/dt|^2, flow matching (2210.02747)
    likelihood     2 r                                     g^2 |score error|^2 (2101.09258)
    edm            r N(log n; mean, std^2) (1 + n^2/d^2)   EDM's loss and its law of n (2206.00364, table 1)
    logit_normal   r N(log n; mean, std^2) (1 + n)^2       flow matching at logit-normal times (2403.03206)
    min_snr        min(1, gamma n^2)                       2303.09556
    soft_min_snr   gamma n^2 / (1 + gamma n^2)             2401.11605
    p2             (n^2 / (1 + k n^2))^gamma               2204.00227
    sigmoid        2 r sigmoid(bias + 2 log n)             2303.00848
    a function     (model, t) -> w with the shape (B,) of t

Weights with r depend on the noise levels alone, not on how fast a process runs through them; the others are
those of their papers under the process of their papers.  "edm", "logit_normal", "sigmoid" and "likelihood"
are per unit of time: integrals over log n, divided by T - t_min.

The law of the times is another choice (``times``): it changes the spread of a loss, not its mean.

References: Ho, Jain and Abbeel (2006.11239); Song et al. (2011.13456, 2101.09258); Salimans and Ho
(2202.00512); Lipman et al. (2210.02747); Karras et al. (2206.00364); Esser et al. (2403.03206); Hang et al.,
"Efficient Diffusion Training via Min-SNR Weighting Strategy" (2303.09556); Crowson et al., "Scalable
High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers" (2401.11605); Choi et al.,
"Perception Prioritized Training of Diffusion Models" (2204.00227); Kingma and Gao, "Understanding Diffusion
Objectives as the ELBO with Simple Data Augmentation" (2303.00848).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.training.objective.times import LogNormal, lam_rate
from sde_toolkit.utils import check_fields

Weighting = Literal[
    "noise", "sigma^2", "data", "velocity", "flow", "likelihood", "residual", "edm", "logit_normal",
    "min_snr", "soft_min_snr", "p2", "sigmoid",
]  # fmt: skip
Weight = Callable[[ScoreModel, Tensor], Tensor]
"""(model, t with shape (B,)) -> w with shape (B,): the factor of the squared error of the noise."""


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be a finite positive number, got {number}")


@dataclass(frozen=True)
class EDMWeight:
    """EDM's loss: log n ~ N(mean, std^2), and the error of a network set on data of unit variance.

    Args:
        mean, std: of log n, for data of standard deviation 1/2; the mean moves with that of the model's data.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_fields(self)
        LogNormal(self.mean, self.std)

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """r N(log n) (1 + n^2 / data_std^2), with the shape of t."""
        square = (model.sde.nsr(t) / model.data_std).square()
        return LogNormal(self.mean, self.std)(model, t) * (1 + square)


@dataclass(frozen=True)
class LogitNormalWeight:
    """Flow matching on straight paths with logit-normal times: log n ~ N(mean, std^2)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        LogNormal(self.mean, self.std)

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """r N(log n) (1 + n)^2, with the shape of t."""
        law = LogNormal(self.mean, self.std, data_std=0.0)
        return law(model, t) * (1 + model.sde.nsr(t)).square()


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the error of the clean data."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_fields(self)
        _positive(gamma=self.gamma)

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """min(1, gamma n^2), with the shape of t."""
        return (self.gamma * model.sde.nsr(t).square()).clamp(max=1.0)


@dataclass(frozen=True)
class SoftMinSNR:
    """Half the harmonic mean of SNR and gamma on the error of the clean data."""

    gamma: float = 4.0

    def __post_init__(self) -> None:
        check_fields(self)
        _positive(gamma=self.gamma)

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """gamma n^2 / (1 + gamma n^2), with the shape of t."""
        product = self.gamma * model.sde.nsr(t).square()
        return product / (1 + product)


@dataclass(frozen=True)
class P2:
    """(k + SNR)^-gamma on the error of the noise: little weight where there is little noise."""

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        _positive(k=self.k, gamma=self.gamma)

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """(n^2 / (1 + k n^2))^gamma, with the shape of t."""
        square = model.sde.nsr(t).square()
        return (square / (1 + self.k * square)) ** self.gamma


@dataclass(frozen=True)
class SigmoidWeight:
    """The likelihood's weight times sigmoid(bias - log SNR), which falls with the noise."""

    bias: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not math.isfinite(self.bias):
            raise ValueError(f"bias must be a finite number, got {self.bias}; try 2")

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """2 r sigmoid(bias + 2 log n), with the shape of t."""
        return 2 * lam_rate(model.sde, t) * torch.sigmoid(self.bias - 2 * model.sde.lam(t))


def _noise(model: ScoreModel, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _data(model: ScoreModel, t: Tensor) -> Tensor:
    return model.sde.nsr(t).square()


def _velocity(model: ScoreModel, t: Tensor) -> Tensor:
    alpha_t, sigma_t = model.sde.alpha(t), model.sde.sigma(t)
    return ((alpha_t.square() + sigma_t.square()) / alpha_t).square()


def _flow(model: ScoreModel, t: Tensor) -> Tensor:
    return model.sde.noise_rate(t).square()


def _likelihood(model: ScoreModel, t: Tensor) -> Tensor:
    return 2 * lam_rate(model.sde, t)


WEIGHTS: dict[str, Weight] = {
    "noise": _noise,
    "sigma^2": _noise,
    "data": _data,
    "velocity": _velocity,
    "flow": _flow,
    "likelihood": _likelihood,
    "edm": EDMWeight(),
    "logit_normal": LogitNormalWeight(),
    "min_snr": MinSNR(),
    "soft_min_snr": SoftMinSNR(),
    "p2": P2(),
    "sigmoid": SigmoidWeight(),
}
"""Weights by name: the table of the module's head."""

WEIGHTS_WITH_OPTIONS: dict[str, Callable[..., Weight]] = {
    "edm": EDMWeight, "logit_normal": LogitNormalWeight, "min_snr": MinSNR, "soft_min_snr": SoftMinSNR,
    "p2": P2, "sigmoid": SigmoidWeight,
}  # fmt: skip
"""Those that have parameters, as in min_snr(gamma=3)."""


def weights_at(weighting: str | Weight, model: ScoreModel, t: Tensor) -> Tensor:
    """w with the shape of t.

    Raises:
        ValueError: a function returned something else than a tensor with the shape of t.
    """
    found = (WEIGHTS[weighting] if isinstance(weighting, str) else weighting)(model, t)
    if not isinstance(found, Tensor) or found.shape != t.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"weighting(model, t) must return a tensor with the shape of t, {tuple(t.shape)}, got {got}"
        )
    return found
