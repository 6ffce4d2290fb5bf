"""Our models in the hands of other libraries' solvers and samplers.

    as_vector_field(model)      f(t, x[, args]) = dx/dt of the probability flow: torchdiffeq, diffrax's form
    as_k_denoiser(model)        D(x, sigma), x = x0 + sigma z: k-diffusion's samplers
    as_azula_denoiser(model)    (x_t, t) -> posterior with a mean, and a schedule: azula's samplers

Each is an ``nn.Module`` that asks the model and nothing else; none of these libraries is needed to make one.

    dx_t/dt = f x_t + g^2 / (2 sigma) z_hat(x_t, t)
    D(y, n) = x0_hat(alpha y, t),            t where sigma / alpha = n

The times of azula run from 0 to 1, where the data end still has some noise: they are mapped to t_min .. T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.interop.denoisers import num_rows
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.utils import as_times, checked
from solvers import expand_like

_SLACK = 1e-5
"""Relative distance from the end of the range, by rounding, at which a noise level still is of it."""


def _number(name: str, value: Tensor | float) -> Tensor:
    """A tensor as it is; a number in float64."""
    return value if isinstance(value, Tensor) else as_times(name, value)


class _Guest(nn.Module):
    """A module around a model, which may be a module itself."""

    def __init__(self, model: ScoreModel, condition: Condition | None) -> None:
        super().__init__()
        self.model, self.condition = model, condition
        if condition is not None:
            model.conditions(condition, num_rows(condition) or 1)

    def _rows(self, x: Tensor, given: Condition | None) -> Tensor | None:
        return self.model.conditions(self.condition if given is None else given, len(x))


class VectorField(_Guest):
    """dx/dt of the probability flow, see ``as_vector_field``."""

    def forward(self, t: Tensor | float, x: Tensor, args: Condition | None = None) -> Tensor:
        """The rate with shape (B, *), per unit of the process's time.

        Args:
            t: time with shape () or (B,).
            x: states with shape (B, *).
            args: the condition, in place of the one that the field was made with.
        """
        t = _number("t", t).to(x.device)
        sde, rows = self.model.sde, self._rows(x, args)
        z_hat = self.model.noise(x, t) if rows is None else self.model.noise(x, t, rows)
        return expand_like(sde.f(t), x) * x + expand_like(sde.noise_rate(t), x) * z_hat


class KDenoiser(_Guest):
    """D(x, sigma) as k-diffusion's samplers call it, see ``as_k_denoiser``.

    Attributes:
        sigma_min, sigma_max: the noise levels that the model knows: sigma / alpha at t_min and at T.
    """

    def __init__(self, model: ScoreModel, condition: Condition | None, t_min: float) -> None:
        super().__init__(model, condition)
        ends = torch.tensor([t_min, model.sde.T], dtype=torch.float64)
        low, high = model.sde.nsr(ends).tolist()
        self.sigma_min, self.sigma_max = low, high

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """x0_hat with shape (B, *), for x = x0 + sigma z with shape (B, *) and sigma with shape () or (B,).

        Raises:
            ValueError: a noise level above that of the process at T.
        """
        sigma, rows = _number("sigma", sigma).to(x.device).double(), self._rows(x, condition)
        highest = float(sigma.max())
        if not 0 <= highest <= self.sigma_max * (1 + _SLACK):
            raise ValueError(
                f"sigma must be at most {self.sigma_max:.6g}, the noise-to-signal ratio of the process at T, "
                f"got {highest:.6g}; start the sampler at denoiser.sigma_max, without churn there"
            )
        sde = self.model.sde
        t = sde.inverse_nsr(sigma.clamp(max=self.sigma_max)).clamp(0.0, sde.T)
        x_t = expand_like(sde.alpha(t), x) * x
        return self.model.denoise(x_t, t) if rows is None else self.model.denoise(x_t, t, rows)

    def sigmas(self, num_steps: int, rho: float = 7.0) -> Tensor:
        """EDM's noise levels from sigma_max to sigma_min and a 0, with shape (num_steps + 1,), float64."""
        share = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        low, high = self.sigma_min ** (1 / rho), self.sigma_max ** (1 / rho)
        return torch.cat([(high + share * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class PosteriorMean:
    """What azula's samplers read of a posterior p(x0 | x_t).

    Attributes:
        mean: x0_hat with shape (B, *).
    """

    mean: Tensor


class AzulaDenoiser(_Guest):
    """A denoiser with a schedule, as azula's samplers call it, see ``as_azula_denoiser``."""

    def __init__(self, model: ScoreModel, condition: Condition | None, t_min: float) -> None:
        super().__init__(model, condition)
        self.t_min = t_min

    def _time(self, t: Tensor) -> Tensor:
        """The process's time for azula's, in float64."""
        t = _number("t", t).double()
        return self.t_min + (self.model.sde.T - self.t_min) * t

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma with the shape and type of t, from 0 (the data end) to 1."""
        t = _number("t", t)
        at, dtype = self._time(t), t.dtype if t.is_floating_point() else torch.get_default_dtype()
        return self.model.sde.alpha(at).to(dtype), self.model.sde.sigma(at).to(dtype)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, **_: Any) -> PosteriorMean:
        """The posterior's mean for x_t with shape (B, *) and t with shape () or (B,)."""
        at, rows = self._time(t).to(x_t.device), self._rows(x_t, condition)
        x0_hat = self.model.denoise(x_t, at) if rows is None else self.model.denoise(x_t, at, rows)
        return PosteriorMean(x0_hat)


@checked
def as_vector_field(model: ScoreModel, condition: Condition | None = None) -> VectorField:
    """The probability flow as f(t, x), for solvers of ordinary differential equations.

        torchdiffeq.odeint(as_vector_field(model), x_T, torch.tensor([1.0, 1e-3]))

    Args:
        model: any score model.
        condition: of all samples, or one row for each; a call's own third argument goes before it.

    Raises:
        ValueError, TypeError: a condition that the model does not take.
    """
    return VectorField(model, condition)


def _check_end(t_min: float, model: ScoreModel) -> None:
    if not 0 < t_min < model.sde.T:
        raise ValueError(f"t_min must be between 0 and T = {model.sde.T:g}, got {t_min}")


@checked
def as_k_denoiser(model: ScoreModel, condition: Condition | None = None, *, t_min: float = 1e-3) -> KDenoiser:
    """The model as D(x, sigma), for the samplers of k-diffusion.

        denoiser = as_k_denoiser(model)
        k_diffusion.sampling.sample_heun(denoiser, denoiser.sigma_max * z, denoiser.sigmas(20))

    Args:
        model: any score model; under VP it is asked at alpha x.
        condition: as for ``as_vector_field``; ``extra_args={"condition": ...}`` goes before it.
        t_min: the time whose noise level is the least of ``sigmas``.

    Raises:
        ValueError, TypeError: ``t_min`` outside the process, or a condition that the model does not take.
    """
    _check_end(t_min, model)
    return KDenoiser(model, condition, t_min)


@checked
def as_azula_denoiser(
    model: ScoreModel, condition: Condition | None = None, *, t_min: float = 1e-3
) -> AzulaDenoiser:
    """The model as a denoiser of azula.

        azula.sample.DDIMSampler(as_azula_denoiser(model), steps=50)(x_1)

    Args:
        model: any score model.
        condition: as for ``as_vector_field``; the keyword ``condition`` of a call goes before it.
        t_min: the process's time at azula's time 0.

    Raises:
        ValueError, TypeError: ``t_min`` outside the process, or a condition that the model does not take.
    """
    _check_end(t_min, model)
    return AzulaDenoiser(model, condition, t_min)
