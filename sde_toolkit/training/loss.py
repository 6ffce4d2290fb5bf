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
    residual      axis by axis  (l + n^2) / l        the error of the residual, (2206.00364, section 5)

The last one weighs along the axes of the data's covariance S, with eigenvalues l, and n = sigma / alpha: it
is the squared error of EDM's network, set on the Gaussian with the data's moments (``models.Whitening``).
Its targets have variance 1 along every axis at every time if the data are that Gaussian.

The minimum is reached by the exact score and is not 0 but the mean of weight / sigma^2 Var[z | x_t] / D;
for data N(m, d^2 I) that variance is D alpha_t^2 d^2 / (alpha_t^2 d^2 + sigma_t^2).

Times are drawn on [t_min, T] and the loss is divided by their density over the uniform one, so that its
expectation is the same whatever they are:

    stratified    uniform in t: one uniform shift for the whole batch, the same law for every sample but
                  spread evenly over a batch (2107.00630, appendix I.1); so are the next two
    log_snr       uniform in lam: every sample then has the same weight under the likelihood weighting (the
                  importance sampling of 2101.09258), where a uniform t gives one that diverges like 1 / t
    moments       in lam with a density that follows the root of the loss that the Gaussian with the data's
                  moments has there, (mean of l / (l + n^2) over the eigenvalues l of the covariance)^(1/2)
                  with n = exp(-lam), plus a tenth uniform: fewer draws where nothing is left to be learnt.
                  Its inverse is a table
    uniform       independent, uniform in t

Near the data z_hat is smooth on the scale of the noise while z cannot be predicted, so gradients are mostly
noise, odd in z.  ``antithetic_nsr`` lets the rows of a batch with sigma / alpha below it go in pairs,
neighbours in time, that share x0 and have opposite z: every row keeps its law, and their noise cancels.

Data made continuous by uniform noise in bins (``levels`` L of them on [-1, 1]) allow more: with y = x_t /
alpha in units of n, and the ends a < b of x0's bin, the noise given x_t and the level v has the mean

    E[z | x_t, v] = (phi(B) - phi(A)) / (Phi(B) - Phi(A)),      A = (a - y) / n,  B = (b - y) / n

and regression on it in the place of z has the same minimiser and, on average, the same gradients, without
the noise that the place in the bin makes (Rao-Blackwell).  The loss is smaller by a constant.  Times of
"moments" then follow the part that is left: the guide is multiplied by n / (n^2 + (b - a)^2 / 12)^(1/2).

The second-order term, weighted by ``second_order``, asks for the right Jacobian as well (2206.08265): with
l = z - z_hat held fixed, Cov[z | x_t] = I - sigma dz_hat/dx, so for a random vector v of signs

    second-order loss = weight(t) / sigma_t^2  |sigma_t (dz_hat/dx)^T v - v + l (l . v)|^2 / D^2

whose minimum is where the score is exact.  It controls what the divergence of the probability flow adds to
the error of its likelihood, and costs about three times as much.

References: Vincent, "A Connection Between Score Matching and Denoising Autoencoders" (2011); Ho, Jain and
Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239); Song et al., "Score-Based Generative
Modeling through Stochastic Differential Equations" (2011.13456); Song et al., "Maximum Likelihood Training of
Score-Based Diffusion Models" (2101.09258); Kingma et al., "Variational Diffusion Models" (2107.00630); Lu et
al., "Maximum Likelihood Training for Score-Based Diffusion ODEs by High-Order Denoising Score Matching"
(2206.08265).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sde_toolkit.models import Preconditioner, ScoreModel, check_states, known_moments
from sde_toolkit.sdes import Chain, ForwardSDE
from sde_toolkit.utils import check_fields, checked, integer
from solvers.terms import expand_like

Weighting = Literal["noise", "sigma^2", "likelihood", "residual"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
"""Weights of the times, see the module's text."""

TimeSampling = Literal["stratified", "uniform", "log_snr", "moments"]
TIME_SAMPLINGS: tuple[str, ...] = get_args(TimeSampling)
"""Laws of the times, see the module's text."""

_NODES, _UNIFORM_SHARE = 257, 0.1
"""Of the table of "moments": its nodes, and the part of the draws that are uniform in lam in any case."""

Loss = Callable[..., Tensor]
"""(model, x0 with shape (B, *), generator) -> the loss of every sample, with shape (B,); for models with
conditions (model, x0, generator, condition)."""


@dataclass(frozen=True)
class DenoisingLoss:
    """Denoising score matching in continuous time; an instance is called ``loss(model, x0, generator)``.

    Args:
        weighting: "noise", "sigma^2" (the same by identity), "likelihood", or "residual", by
            ``model.moments`` (N(0, data_std^2 I) where there are none).
        t_min: earliest time of the training, in [0, T); the process must have noise there.
        time_sampling: "stratified" or "uniform" in t; "log_snr" or "moments", stratified in log-SNR and
            importance-weighted, the latter by ``model.moments`` (N(0, data_std^2 I) where there are none).
        antithetic_nsr: noise-to-signal ratio below which rows are antithetic pairs; 0 for none.
        second_order: weight of the second-order term; 0 to leave it out.
        levels: number of grey levels, for data that are uniform within bins of width 2 / levels on [-1, 1];
            0 for all others.  Not together with the second-order term, whose l is the noise itself.

    Raises:
        ValueError: an unknown weighting or time sampling, or a negative number;
            when called: ``t_min`` at or after the end of the process, or no noise at ``t_min``.
    """

    weighting: Weighting = "likelihood"
    t_min: float = 1e-5
    time_sampling: TimeSampling = "moments"
    antithetic_nsr: float = 0.0
    second_order: float = 0.0
    levels: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_word("weighting", self.weighting, WEIGHTINGS)
        _check_word("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        if not 0 <= self.t_min < math.inf:
            raise ValueError(f"t_min must be a finite time >= 0, got {self.t_min}; try 1e-5")
        for name in ("antithetic_nsr", "second_order"):
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

        Draws B (or one) uniforms, then the normals, then signs if there is a second-order term, from
        ``generator``, on its own device.
        """
        check_states(model, x0, "x0", finite=False)
        sde = model.sde
        self._check(sde)
        u = _uniforms(len(x0), generator, stratified=self.time_sampling != "uniform").to(x0.device)
        t, correction = self._times(model, u)
        z = _normals_like(x0, generator)
        if self.antithetic_nsr:
            x0, z, condition = _paired(x0, z, condition, sde.nsr(t), self.antithetic_nsr)
        x_t = sde.perturb(x0, t, z)
        if self.levels:
            z = noise_given_levels(x0, z, sde.nsr(t), self.levels)
        if self.second_order:
            signs = _normals_like(x0, generator).sign()
            error = _error_with_jacobian(model, x_t, t, condition, z, signs, self.second_order)
        else:
            error = _squared_error(model, x_t, t, condition, z, self.weighting == "residual")
        return (correction * self._weight(sde, t)).to(error.dtype) * error

    def _check(self, sde: ForwardSDE) -> None:
        if self.t_min >= sde.T:
            raise ValueError(f"t_min must be below the end of the process, T = {sde.T}, got {self.t_min}")
        if not float(sde.sigma(torch.tensor(self.t_min, dtype=torch.float64))) > 0:
            raise ValueError(f"t_min must be a time with noise, got {self.t_min}, where sigma is 0; try 1e-5")

    def _times(self, model: ScoreModel, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times in [t_min, T] and the uniform density over theirs, with the shape (B,) of u in [0, 1)."""
        sde, length = model.sde, model.sde.T - self.t_min
        if self.time_sampling in ("stratified", "uniform"):
            return self.t_min + length * u, torch.ones_like(u)
        first, last = sde.lam(torch.tensor([self.t_min, sde.T], dtype=u.dtype, device=u.device))
        if self.time_sampling == "log_snr":
            lam, stretch = torch.lerp(first, last, u), first - last
        else:
            moments = known_moments(model)
            width = 2 / self.levels if self.levels else 0.0
            lam, stretch = _guided(first, last, moments.variances.to(u.device), u, width)
        t = sde.inverse_nsr((-lam).exp()).clamp(self.t_min, sde.T)
        return t, stretch / (length * _lam_rate(sde, t))

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

    def __post_init__(self) -> None:
        check_fields(self)

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

        Draws B (or one) uniforms and then the normals from ``generator``, on its own device.
        """
        check_states(model, x0, "x0", finite=False)
        u = _uniforms(len(x0), generator, self.stratified)
        i = 1 + (self.chain.num_steps * u).long().clamp(max=self.chain.num_steps - 1)
        z = _normals_like(x0, generator)
        t = self.chain.times[i].to(x0.device)
        return _squared_error(model, self.chain.q_sample(x0, i, z), t, condition, z)


def _guided(first: Tensor, last: Tensor, variances: Tensor, u: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Half log-SNRs from ``first`` down to ``last`` and the inverse of their density, for u with shape (B,).

    The density is constant between the nodes of a table.
    """
    share = torch.linspace(0, 1, _NODES, dtype=u.dtype, device=u.device)
    square = (-2 * torch.lerp(first, last, share)).exp()
    guide = (variances / (variances + square[:, None])).mean(1).sqrt()
    guide = guide * (square / (square + width**2 / 12)).sqrt()
    guide = 0.5 * (guide[1:] + guide[:-1])
    mass = (1 - _UNIFORM_SHARE) * guide / guide.sum() + _UNIFORM_SHARE / len(guide)
    cumulative = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    cell = (torch.searchsorted(cumulative, u, right=True) - 1).clamp(0, len(mass) - 1)
    place = (cell + (u - cumulative[cell]) / mass[cell]) / len(mass)
    return torch.lerp(first, last, place), (first - last) / (mass[cell] * len(mass))


def noise_given_levels(x0: Tensor, z: Tensor, nsr: Tensor, levels: int) -> Tensor:
    """E[z | x_t, v] with shape (B, *): the mean noise given the noised state and the grey levels v of x0.

    Args:
        x0: levels of bins of equal width on [-1, 1] with uniform noise inside their bins, shape (B, *).
        z: the noise in x_t = alpha (x0 + nsr z), with shape (B, *).
        nsr: with shape (B,).
        levels: number of grey levels.
    """
    n, x = expand_like(nsr, x0.double()), x0.double()
    low = ((x + 1) * (levels / 2)).floor().clamp(0, levels - 1) * (2 / levels) - 1
    y = x + n * z.double()
    a, b = (low - y) / n, (low + 2 / levels - y) / n
    # on the side where both tails are small; a shift of sign exchanges the ends and the sign of the mean
    flip = a + b > 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    mean = torch.exp(-0.5 * b.square()) - torch.exp(-0.5 * a.square())
    mean = mean / (math.sqrt(2 * math.pi) * (torch.special.ndtr(b) - torch.special.ndtr(a)))
    return torch.where(flip, -mean, mean).to(z)


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


def _squared_error(
    model: ScoreModel, x_t: Tensor, t: Tensor, condition: Tensor | None, z: Tensor, residual: bool = False
) -> Tensor:
    """Of the noise or, on request, of the residual, with shape (B,)."""
    error = model.noise(x_t, t, condition) - z
    if residual:
        wide = error.float() if error.dtype.itemsize < 4 else error
        error = Preconditioner(known_moments(model), wide).in_units(wide, model.sde.nsr(t))
    return error.square().flatten(1).mean(1)


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
