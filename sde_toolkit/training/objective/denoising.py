"""Denoising score matching: what a score network is trained on.

With x_t = alpha_t x0 + sigma_t z, the score of the noise kernel is -z / sigma_t, and regression on it
gives the score of the data's marginal (Vincent 2011).  With z_hat = -sigma_t score(x_t, t) the loss of
one sample is (lam = log(alpha / sigma))

    weight(t) |score(x_t, t) + z / sigma_t|^2 / D  =  weight(t) / sigma_t^2  |z_hat - z|^2 / D

and only the right-hand side is computed: it has no division by a vanishing sigma_t.

The factors w = weight / sigma^2 by name are in ``weightings``, the laws that times are drawn by in ``times``.
One weight is not a number for a time but one for an axis:

    residual      (l + n^2) / l      n = sigma / alpha, l the data's variance along an axis of theirs

It is the squared error of EDM's network (2206.00364, section 5), set on the Gaussian with the data's moments
(``models.Whitening``).  Its targets have variance 1 along every axis at every time if the data are that
Gaussian.

The minimum is reached by the exact score and is not 0 but the mean of weight / sigma^2 Var[z | x_t] / D;
for data N(m, d^2 I) that variance is D alpha_t^2 d^2 / (alpha_t^2 d^2 + sigma_t^2).

Near the data z_hat is smooth on the scale of the noise while z cannot be predicted, so gradients are mostly
noise, odd in z.  ``antithetic_nsr`` lets the rows of a batch with sigma / alpha below it go in pairs,
neighbours in time, that share x0 and have opposite z: every row keeps its law, and their noise cancels.

Data made continuous by uniform noise in bins (``levels`` L of them on [-1, 1]) allow more: with y = x_t /
alpha in units of n, and the ends a < b of x0's bin, the noise given x_t and the level v has the mean

    E[z | x_t, v] = (phi(B) - phi(A)) / (Phi(B) - Phi(A)),      A = (a - y) / n,  B = (b - y) / n

and regression on it in the place of z has the same minimiser and, on average, the same gradients, without
the noise that the place in the bin makes (Rao-Blackwell).  The loss is smaller by a constant.

Offset noise (Guttenberg 2023) adds to z one more normal for all positions of a channel, times
``offset_noise`` = s, so that a network learns to move the mean of a channel too: z has covariance
I + s^2 11' by channels.  The minimiser is then the mean of that z, which where s^2 counts is not the score of
the process that samplers and likelihoods go back through; s = .1 is usual.

The second-order term, weighted by ``second_order``, asks for the right Jacobian as well (2206.08265): with
l = z - z_hat held fixed, Cov[z | x_t] = I - sigma dz_hat/dx, so for a random vector v of signs

    second-order loss = weight(t) / sigma_t^2  |sigma_t (dz_hat/dx)^T v - v + l (l . v)|^2 / D^2

whose minimum is where the score is exact.  It controls what the divergence of the probability flow adds to
the error of its likelihood, and costs about three times as much.

References: Vincent, "A Connection Between Score Matching and Denoising Autoencoders" (2011); Song et al.,
"Score-Based Generative Modeling through Stochastic Differential Equations" (2011.13456); Lu et al., "Maximum
Likelihood Training for Score-Based Diffusion ODEs by High-Order Denoising Score Matching" (2206.08265).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from sde_toolkit.models import Preconditioner, ScoreModel, check_states, known_moments
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.training.objective.adaptive import LearnedWeight
from sde_toolkit.training.objective.learned import LearnedPart
from sde_toolkit.training.objective.levels import noise_given_levels
from sde_toolkit.training.objective.times import TimeLaw, TimeSampling, draw_times, uniforms
from sde_toolkit.training.objective.weightings import Weight, Weighting, weights_at
from sde_toolkit.utils import check_fields, checked, integer
from solvers.terms import expand_like

WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
"""Weights of the times by name, see the module's text and ``weightings``."""

TIME_SAMPLINGS: tuple[str, ...] = get_args(TimeSampling)
"""Laws of the times by name, see ``times``."""

Loss = Callable[..., Tensor]
"""(model, x0 with shape (B, *), generator) -> the loss of every sample, with shape (B,); for models with
conditions (model, x0, generator, condition)."""


@dataclass(frozen=True)
class DenoisingLoss:
    """Denoising score matching in continuous time; an instance is called ``loss(model, x0, generator)``.

    Args:
        weighting: a name of ``WEIGHTINGS``, "residual" by ``model.moments`` (N(0, data_std^2 I) where there
            are none); a weight with parameters such as ``MinSNR(gamma=3)``; or a function (model, t) -> the
            factor of the squared error of the noise, with the shape (B,) of t.  ``LearnedWeight`` learns one
            from the losses; the loss is then exp(-u) L + u.
        t_min: earliest time of the training, in [0, T); the process must have noise there.
        time_sampling: a name of ``TIME_SAMPLINGS``, "moments" by ``model.moments`` (N(0, data_std^2 I) where
            there are none); a law such as ``LogNormal(-0.4, 1.0)``; or a function (model, t) -> the density
            of t up to a factor.  The loss is divided by the density, so its mean stays.  ``AdaptiveTimes``
            learns it from the losses.
        antithetic_nsr: noise-to-signal ratio below which rows are antithetic pairs; 0 for none.
        second_order: weight of the second-order term; 0 to leave it out.
        levels: number of grey levels, for data that are uniform within bins of width 2 / levels on [-1, 1];
            0 for all others.  Not together with the second-order term, whose l is the noise itself.
        offset_noise: s of one more normal per channel; 0 for none.  Not together with the second-order term
            or ``levels``, which want independent noise.

    Raises:
        ValueError: an unknown weighting or time sampling, or a negative number; offset noise for vectors;
            when called: ``t_min`` at or after the end of the process, or no noise at ``t_min``.
    """

    weighting: Weighting | Weight = "likelihood"
    t_min: float = 1e-5
    time_sampling: TimeSampling | TimeLaw = "moments"
    antithetic_nsr: float = 0.0
    second_order: float = 0.0
    levels: int = 0
    offset_noise: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_word("weighting", self.weighting, WEIGHTINGS)
        _check_word("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        if not 0 <= self.t_min < math.inf:
            raise ValueError(f"t_min must be a finite time >= 0, got {self.t_min}; try 1e-5")
        for name in ("antithetic_nsr", "second_order", "offset_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}; try 0")
        if self.second_order and self.weighting == "residual":
            raise ValueError(
                'weighting must be one number for a time where there is a second-order term, got "residual"; '
                'use "likelihood"'
            )
        if integer("levels", self.levels, 0) == 1 or (self.levels and self.second_order):
            raise ValueError(
                "levels must be an integer >= 2, or 0: for none, and with a second-order term, "
                f"got {self.levels}"
            )
        if self.offset_noise and (self.second_order or self.levels):
            raise ValueError(
                "offset_noise must be 0 with a second-order term or known levels, which want independent "
                f"noise, got {self.offset_noise}"
            )

    @checked
    def __call__(
        self, model: ScoreModel, x0: Tensor, generator: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """The loss of every sample, with shape (B,), averaged over the event.

        Args:
            model: what is trained.
            x0: examples with shape (B, *).
            generator: of all draws.
            condition: one row per example, or None.

        Draws B (or one) uniforms, then the normals, those of the offset, and signs if there is a second-order
        term, from ``generator``, on its own device.
        """
        check_states(model, x0, "x0", finite=False)
        sde = model.sde
        self._check(sde)
        t, correction = self._times(model, len(x0), generator, x0.device)
        z = normals_like(x0, generator)
        if self.offset_noise:
            z = with_offset(z, self.offset_noise, generator)
        if self.antithetic_nsr:
            x0, z, condition = _paired(x0, z, condition, sde.nsr(t), self.antithetic_nsr)
        x_t = sde.perturb(x0, t, z)
        if self.levels:
            z = noise_given_levels(x0, z, sde.nsr(t), self.levels)
        if self.second_order:
            signs = normals_like(x0, generator).sign()
            error = _error_with_jacobian(model, x_t, t, condition, z, signs, self.second_order)
        else:
            error = squared_error(model, x_t, t, condition, z, self.weighting == "residual")
        weight = correction
        if self.weighting != "residual":
            weight = correction * weights_at(self.weighting, model, t)
        loss = weight.to(error.dtype) * error
        if isinstance(self.weighting, LearnedWeight):
            loss = loss + (correction * self.weighting.u(model, t)).to(error.dtype)
        return loss

    def _times(
        self, model: ScoreModel, count: int, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The first draws of a call: times and what the loss is multiplied by, each with shape (B,)."""
        u = uniforms(count, generator, stratified=self.time_sampling != "uniform").to(device)
        width = 2 / self.levels if self.levels else 0.0
        return draw_times(self.time_sampling, model, self.t_min, u, width)

    @property
    def learned_parts(self) -> dict[str, LearnedPart]:
        """The law of the times and the weight, where they learn."""
        parts: dict[str, object] = {"times": self.time_sampling, "weight": self.weighting}
        return {name: part for name, part in parts.items() if isinstance(part, LearnedPart)}

    def observe(self, model: ScoreModel, losses: Tensor, generator: torch.Generator) -> None:
        """Tell the learned parts of a batch.

        Args:
            model: what is trained.
            losses: of the whole batch, with shape (B,).
            generator: as the call that gave them got it.
        """
        t, correction = self._times(model, len(losses), generator, losses.device)
        losses = losses.double() / correction
        if isinstance(weight := self.weighting, LearnedWeight):
            u = weight.u(model, t)
            losses = losses - u
            weight.observe(model, t, losses * u.exp())
        if isinstance(law := self.time_sampling, LearnedPart):
            law.observe(model, t, losses)

    def _check(self, sde: ForwardSDE) -> None:
        if self.t_min >= sde.T:
            raise ValueError(f"t_min must be below the end of the process, T = {sde.T}, got {self.t_min}")
        if not float(sde.sigma(torch.tensor(self.t_min, dtype=torch.float64))) > 0:
            raise ValueError(f"t_min must be a time with noise, got {self.t_min}, where sigma is 0; try 1e-5")


def _paired(
    x0: Tensor, z: Tensor, condition: Tensor | None, nsr: Tensor, below: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x0 and z with shape (B, *), and the conditions, in which rows of ratios below a number go in pairs: two
    neighbours share x0 and its condition, and have opposite z."""
    order = nsr.argsort()
    count = int((nsr < below).sum()) // 2 * 2
    first, second = order[0:count:2], order[1:count:2]
    if condition is not None:
        condition = condition.index_copy(0, second, condition[first])
    return x0.index_copy(0, second, x0[first]), z.index_copy(0, second, -z[first]), condition


def _error_with_jacobian(
    model: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    condition: Tensor | None,
    z: Tensor,
    signs: Tensor,
    second_order: float,
) -> Tensor:
    """The squared error of the noise plus that of its Jacobian along ``signs``, with shape (B,)."""
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        z_hat = model.noise(x_t, t, condition)
        (pulled,) = torch.autograd.grad(z_hat, x_t, signs, create_graph=True)
        left = (z - z_hat).detach()
        along = expand_like((left * signs).flatten(1).sum(1), z)
        second = (expand_like(model.sde.sigma(t), z) * pulled - signs + left * along).square().flatten(1)
        return (z_hat - z).square().flatten(1).mean(1) + second_order * second.mean(1) / second.shape[1]


def squared_error(
    model: ScoreModel, x_t: Tensor, t: Tensor, condition: Tensor | None, z: Tensor, residual: bool = False
) -> Tensor:
    """Of the noise or, on request, of the residual, with shape (B,)."""
    error = model.noise(x_t, t, condition) - z
    if residual:
        wide = error.float() if error.dtype.itemsize < 4 else error
        error = Preconditioner(known_moments(model), wide).in_units(wide, model.sde.nsr(t))
    return error.square().flatten(1).mean(1)


def normals_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normals with the shape, type and device of x, drawn on the generator's own device."""
    return torch.randn(x.shape, dtype=x.dtype, generator=generator, device=generator.device).to(x.device)


def with_offset(z: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """z with shape (B, C, *) plus ``strength`` times one normal for every channel.

    Raises:
        ValueError: no positions, which an offset would be the same for.
    """
    if z.ndim < 3:
        raise ValueError(
            f"offset_noise is for events of channels and positions, got the shape {tuple(z.shape[1:])}; use 0"
        )
    return z + strength * normals_like(z[(...,) + (slice(0, 1),) * (z.ndim - 2)], generator)


def _check_word(name: str, word: object, words: tuple[str, ...]) -> None:
    """Refuse an unknown word; functions are no words."""
    if isinstance(word, str) and word not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {word!r}")
