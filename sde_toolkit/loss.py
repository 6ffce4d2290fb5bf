"""Denoising score matching: what a score network is trained on.

With x_t = alpha_t x0 + sigma_t z, the score of the noise kernel is -z / sigma_t, and regression on it
gives the score of the data's marginal (Vincent 2011).  With z_hat = -sigma_t score(x_t, t) the loss of
one sample is (lam = log(alpha / sigma))

    weight(t) |score(x_t, t) + z / sigma_t|^2 / D  =  weight(t) / sigma_t^2  |z_hat - z|^2 / D

and only the right-hand side is computed: it has no division by a vanishing sigma_t.

    weighting     weight(t)     weight / sigma^2
    noise         sigma_t^2     1                    DDPM's simple loss (2006.11239, eq. 14)
    sigma^2       sigma_t^2     1                    the same thing, under the name of 2011.13456
    likelihood    g(t)^2        -2 dlam/dt           bounds the likelihood (2101.09258)

Its minimum is reached by the exact score and is not 0 but the mean of weight / sigma^2 Var[z | x_t] / D;
for data N(m, d^2 I) that variance is D alpha_t^2 d^2 / (alpha_t^2 d^2 + sigma_t^2).

Times are drawn on [t_min, T].  Stratified draws (one uniform shift for the whole batch, 2107.00630,
appendix I.1) have the same law for every sample but spread evenly over a batch, which removes most of the
loss's variance.  "log_snr" draws lam evenly instead of t and divides by the density of t, so that the
expected loss is unchanged; under the likelihood weighting every sample then has the same weight, where a
uniform t gives one that diverges like 1 / t.

References: Vincent, "A Connection Between Score Matching and Denoising Autoencoders" (2011); Ho, Jain and
Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239); Song et al., "Score-Based Generative
Modeling through Stochastic Differential Equations" (2011.13456); Song et al., "Maximum Likelihood Training of
Score-Based Diffusion Models" (2101.09258); Kingma et al., "Variational Diffusion Models" (2107.00630).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sde_toolkit.ddpm import Chain
from sde_toolkit.score import ScoreModel
from sde_toolkit.sde import ForwardSDE

Weighting = Literal["noise", "sigma^2", "likelihood"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)

TimeSampling = Literal["stratified", "uniform", "log_snr"]
TIME_SAMPLINGS: tuple[str, ...] = get_args(TimeSampling)

Loss = Callable[[ScoreModel, Tensor, torch.Generator], Tensor]
"""(model, x0 with shape (B, *), generator) -> the loss of every sample, with shape (B,)."""


@dataclass(frozen=True)
class DenoisingLoss:
    """Denoising score matching in continuous time; an instance is called ``loss(model, x0, generator)``.

    Args:
        weighting: "noise", "sigma^2" (the same by identity) or "likelihood".
        t_min: earliest time of the training, in [0, T); the process must have noise there.
        time_sampling: "stratified" or "uniform" in t, or "log_snr" (stratified in log-SNR,
            importance-weighted).

    Raises:
        ValueError: an unknown weighting or time sampling, or ``t_min`` negative; when called: ``t_min``
            at or after the end of the process, or a process without noise at ``t_min``.
    """

    weighting: Weighting = "noise"
    t_min: float = 1e-5
    time_sampling: TimeSampling = "stratified"

    def __post_init__(self) -> None:
        _check_word("weighting", self.weighting, WEIGHTINGS)
        _check_word("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        if not 0 <= self.t_min < math.inf:
            raise ValueError(f"t_min must be a finite time >= 0, got {self.t_min}; try 1e-5")

    def __call__(self, model: ScoreModel, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of every sample, with shape (B,), averaged over the event, for x0 with shape
        (B, *).

        Draws B (or one) uniforms and then the normals from ``generator``, on its own device.
        """
        sde = model.sde
        self._check(sde)
        u = _uniforms(len(x0), generator, stratified=self.time_sampling != "uniform").to(x0.device)
        t, correction = self._times(sde, u)
        z = _normals_like(x0, generator)
        error = _squared_error(model, sde.perturb(x0, t, z), t, z)
        return (correction * self._weight(sde, t)).to(error.dtype) * error

    def _check(self, sde: ForwardSDE) -> None:
        if self.t_min >= sde.T:
            raise ValueError(f"t_min must be below the end of the process, T = {sde.T}, got {self.t_min}")
        if not float(sde.sigma(torch.tensor(self.t_min, dtype=torch.float64))) > 0:
            raise ValueError(f"t_min must be a time with noise, got {self.t_min}, where sigma is 0; try 1e-5")

    def _times(self, sde: ForwardSDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times in [t_min, T] and the uniform density over theirs, with the shape (B,) of u in [0, 1)."""
        length = sde.T - self.t_min
        if self.time_sampling != "log_snr":
            return self.t_min + length * u, torch.ones_like(u)
        first, last = sde.lam(torch.tensor([self.t_min, sde.T], dtype=u.dtype, device=u.device))
        t = sde.inverse_nsr((-torch.lerp(first, last, u)).exp()).clamp(self.t_min, sde.T)
        return t, (first - last) / (length * _lam_rate(sde, t))

    def _weight(self, sde: ForwardSDE, t: Tensor) -> Tensor:
        """weight / sigma^2 with the shape of t."""
        return 2 * _lam_rate(sde, t) if self.weighting == "likelihood" else torch.ones_like(t)


@dataclass(frozen=True)
class ChainLoss:
    """DDPM's training loss (2006.11239, algorithm 1): |z_hat - z|^2 / D at an index drawn among 1 .. N of
    a chain.

    Args:
        chain: the discretised process, as ``sde.discretize(N)`` gives it.
        stratified: spread the indices of a batch evenly over 1 .. N; each one still is uniform.
    """

    chain: Chain
    stratified: bool = True

    def __call__(self, model: ScoreModel, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of every sample, with shape (B,), averaged over the event, for x0 with shape
        (B, *).

        Draws B (or one) uniforms and then the normals from ``generator``, on its own device.
        """
        u = _uniforms(len(x0), generator, self.stratified)
        i = 1 + (self.chain.num_steps * u).long().clamp(max=self.chain.num_steps - 1)
        z = _normals_like(x0, generator)
        return _squared_error(model, self.chain.q_sample(x0, i, z), self.chain.times[i].to(x0.device), z)


def _squared_error(model: ScoreModel, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
    return (model.noise(x_t, t) - z).square().flatten(1).mean(1)


def _lam_rate(sde: ForwardSDE, t: Tensor) -> Tensor:
    """-dlam/dt = g^2 / (2 sigma^2), with the shape of t."""
    return 0.5 * sde.g_squared(t) / sde.sigma(t).square()


def _uniforms(batch_size: int, generator: torch.Generator, stratified: bool) -> Tensor:
    """Uniforms in [0, 1), float64 with shape (B,); stratified: u + i / B modulo 1, one u for the batch."""
    if not stratified:
        return torch.rand(batch_size, dtype=torch.float64, generator=generator, device=generator.device)
    shift = torch.rand((), dtype=torch.float64, generator=generator, device=generator.device)
    return (torch.arange(batch_size, dtype=torch.float64, device=generator.device) / batch_size + shift) % 1


def _normals_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=generator, device=generator.device).to(x.device)


def _check_word(name: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {word!r}")
