"""The laws of the times: where the noise levels of a batch are drawn.

Every law draws times in [t_min, T] and gives the density of the uniform law there over its own, by which the
loss is multiplied: so its expectation is the same under every law, and only its spread differs.  With n =
sigma / alpha and lam = -log n,

    stratified    uniform in t: one uniform shift for the whole batch, the same law for every sample but
                  spread evenly over a batch (2107.00630, appendix I.1); so are all but "uniform"
    uniform       independent, uniform in t
    log_snr       uniform in lam: every sample then has the same weight under the likelihood weighting (the
                  importance sampling of 2101.09258), where a uniform t gives one that diverges like 1 / t
    moments       by a guide: the root of the loss that the Gaussian with the data's moments has at lam, (mean
                  of l / (l + n^2) over the eigenvalues l of the covariance)^(1/2): few draws where nothing is
                  left to be learnt
    log_normal    by a guide: log n ~ N(-1.2, 1.2^2) for data of standard deviation 1/2 (2206.00364, table 1),
                  moved with that of the model's data
    logit_normal  by a guide: log n ~ N(0, 1), where n = t' / (1 - t') makes t' the time of straight paths,
                  logit-normal (2403.03206, section 3.1)
    a function    by a guide: (model, t) -> density in t up to a factor, for t with shape (N,)

A guide is a density in lam on a table of 257 nodes, constant between them, plus a tenth that is uniform in
lam, so that no level is left out and the factor of the loss stays bounded.

References: Kingma et al., "Variational Diffusion Models" (2107.00630); Song et al., "Maximum Likelihood
Training of Score-Based Diffusion Models" (2101.09258); Karras et al., "Elucidating the Design Space of
Diffusion-Based Generative Models" (2206.00364); Esser et al., "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis" (2403.03206).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, known_moments
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import check_fields

TimeLaw = Callable[[ScoreModel, Tensor], Tensor]
"""(model, t with shape (N,)) -> density of the times up to a factor, positive, with shape (N,)."""

TimeSampling = Literal["stratified", "uniform", "log_snr", "moments", "log_normal", "logit_normal"]

_NODES, _UNIFORM_SHARE = 257, 0.1
"""Of the table of a guide: its nodes, and the part of the draws that are uniform in lam in any case."""


@dataclass(frozen=True)
class LogNormal:
    """The law of the times with log n ~ N(mean, std^2), n = sigma / alpha.

    Args:
        mean, std: of log n.
        data_std: the standard deviation of the data that ``mean`` is for; the mean moves with that of the
            model's data.  0 for one that does not.

    Raises:
        ValueError: ``std`` not positive, or ``data_std`` negative.
    """

    mean: float = -1.2
    std: float = 1.2
    data_std: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be a finite positive number, got {self.std}; try 1.2")
        if not 0 <= self.data_std < math.inf:
            raise ValueError(f"data_std must be a finite number >= 0, got {self.data_std}; try 0.5")

    def in_log_nsr(self, model: ScoreModel, t: Tensor) -> Tensor:
        """The density of log n at t, with the shape of t."""
        mean = self.mean + (math.log(model.data_std / self.data_std) if self.data_std else 0.0)
        z = (model.sde.nsr(t).log() - mean) / self.std
        return (-0.5 * z.square()).exp() / (self.std * math.sqrt(2 * math.pi))

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """The density of t, with the shape of t."""
        return self.in_log_nsr(model, t) * lam_rate(model.sde, t)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> LogNormal:
    """The law log n ~ N(mean, std^2): the time n / (1 + n) of straight paths is logit-normal."""
    return LogNormal(mean, std, data_std=0.0)


LAWS: dict[str, TimeLaw] = {"log_normal": LogNormal(), "logit_normal": logit_normal()}
"""The laws with names that are densities of t."""

TIMES_WITH_OPTIONS: dict[str, Callable[..., TimeLaw]] = {
    "log_normal": LogNormal,
    "logit_normal": logit_normal,
}
"""What makes them of parameters, as in log_normal(mean=-0.4)."""


def draw_times(
    law: str | TimeLaw, model: ScoreModel, t_min: float, u: Tensor, width: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Times in [t_min, T] and the uniform density over theirs, with the shape (B,) of u in [0, 1).

    Args:
        law: a name of the module's head, or a density.
        model: whose process and moments they are.
        t_min: the earliest time.
        u: uniforms.
        width: of the bins that the data are uniform in and that the loss knows; the guide "moments" is
            multiplied by n / (n^2 + width^2 / 12)^(1/2).
    """
    sde, length = model.sde, model.sde.T - t_min
    if law in ("stratified", "uniform"):
        return t_min + length * u, torch.ones_like(u)
    first, last = sde.lam(torch.tensor([t_min, sde.T], dtype=u.dtype, device=u.device))
    if law == "log_snr":
        lam, stretch = torch.lerp(first, last, u), first - last
    else:
        nodes = torch.lerp(first, last, torch.linspace(0, 1, _NODES, dtype=u.dtype, device=u.device))
        if law == "moments":
            guide = _moments_guide(known_moments(model).variances.to(u.device), nodes, width)
        else:
            guide = _guide_of(LAWS[law] if isinstance(law, str) else law, model, nodes, t_min)
        lam, stretch = _guided(first, last, guide, u)
    t = sde.inverse_nsr((-lam).exp()).clamp(t_min, sde.T)
    return t, stretch / (length * lam_rate(sde, t))


def lam_rate(sde: ForwardSDE, t: Tensor) -> Tensor:
    """-dlam/dt = g^2 / (2 sigma^2), with the shape of t."""
    return 0.5 * sde.g_squared(t) / sde.sigma(t).square()


def uniforms(batch_size: int, generator: torch.Generator, stratified: bool) -> Tensor:
    """Uniforms in [0, 1), float64 with shape (B,); stratified: u + i / B modulo 1, one u for the batch."""
    if not stratified:
        return torch.rand(batch_size, dtype=torch.float64, generator=generator, device=generator.device)
    shift = torch.rand((), dtype=torch.float64, generator=generator, device=generator.device)
    return (torch.arange(batch_size, dtype=torch.float64, device=generator.device) / batch_size + shift) % 1


def _moments_guide(variances: Tensor, lam: Tensor, width: float) -> Tensor:
    """The guide "moments" at the nodes ``lam``, with their shape."""
    square = (-2 * lam).exp()
    guide = (variances / (variances + square[:, None])).mean(1).sqrt()
    return guide * (square / (square + width**2 / 12)).sqrt()


def _guide_of(law: TimeLaw, model: ScoreModel, lam: Tensor, t_min: float) -> Tensor:
    """The guide of a density of t at the nodes ``lam``; raises ValueError for what is no density."""
    t = model.sde.inverse_nsr((-lam).exp()).clamp(t_min, model.sde.T)
    density = law(model, t)
    if not isinstance(density, Tensor) or density.shape != t.shape:
        got = tuple(density.shape) if isinstance(density, Tensor) else type(density).__name__
        raise ValueError(
            f"time_sampling(model, t) must return a tensor with the shape of t, {tuple(t.shape)}, got {got}"
        )
    guide = density.to(lam) / lam_rate(model.sde, t)
    if not bool((guide.isfinite() & (guide >= 0)).all()) or float(guide.sum()) == 0:
        raise ValueError(
            "time_sampling(model, t) must be a density of t, finite and not negative on [t_min, T] and not 0 "
            f"everywhere; it is from {float(guide.min()):.3g} to {float(guide.max()):.3g}"
        )
    return guide


def _guided(first: Tensor, last: Tensor, guide: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """lam from ``first`` down to ``last`` and the inverse of its density, for u with shape (B,); the density
    is constant between the nodes of the guide."""
    guide = 0.5 * (guide[1:] + guide[:-1])
    mass = (1 - _UNIFORM_SHARE) * guide / guide.sum() + _UNIFORM_SHARE / len(guide)
    cumulative = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    cell = (torch.searchsorted(cumulative, u, right=True) - 1).clamp(0, len(mass) - 1)
    place = (cell + (u - cumulative[cell]) / mass[cell]) / len(mass)
    return torch.lerp(first, last, place), (first - last) / (mass[cell] * len(mass))
