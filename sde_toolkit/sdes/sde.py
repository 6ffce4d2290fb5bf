"""Forward processes in continuous time: how data turn into noise.

A forward process is given by a signal scale alpha and a noise level sigma, functions of t in [0, T]:

    x_t = alpha_t x0 + sigma_t z,          z ~ N(0, I)
    dx  = f(t) x dt + g(t) dW,             f = alpha'/alpha,   g^2 = (sigma^2)' - 2 f sigma^2

and the reverse family, eta >= 0 (0 the probability-flow ODE, 1 Anderson's reverse SDE), run from T down to
t_min:

    dx = [ f x - (1 + eta^2)/2 g^2 score(x, t) ] dt + eta g dW

Two ratios appear everywhere: nsr = sigma / alpha (EDM's sigma) and lam = log(alpha / sigma) (DPM-Solver's
lambda). The variance-preserving processes are written with B(t), the integral of their rate beta from 0 to t:

    VP       alpha = exp(-B/2),  sigma^2 = 1 - exp(-B),    nsr = sqrt(exp(B) - 1)
    sub-VP   alpha = exp(-B/2),  sigma   = 1 - exp(-B),    nsr = 2 sinh(B/2)
    VE       alpha = 1,          sigma   = sigma_min (sigma_max / sigma_min)^t

VE keeps sigma(0) = sigma_min, not 0: at t = 0 its state is data plus noise of that level, and samplers and
likelihoods treat it so.

Times are tensors of shape () or (B,); every function of t returns the shape and the dtype of t.  Numbers,
arrays and integers are taken as float64.  A model is any object with a score.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456); Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672) for the
cosine rate; Kingma et al., "Variational Diffusion Models" (2107.00630) for the ratio as the clock.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

import solvers
from sde_toolkit.sdes.beta import Beta, LinearBeta, require_positive
from sde_toolkit.sdes.chain import Chain
from sde_toolkit.sdes.functions import OfTime
from sde_toolkit.utils import as_tensor, checked, same_values, takes_numbers
from solvers.terms import expand_like

Function = Callable[[Tensor], Tensor]

_OF_TIME = (
    *("log_alpha", "alpha", "sigma", "f", "g_squared", "g", "noise_rate"),
    *("nsr", "lam", "inverse_nsr"),
)
"""The functions of time that a process may define."""


class HasScore(Protocol):
    """Anything with a score, such as every ``ScoreModel``."""

    def score(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, /) -> Tensor:
        """grad log p_t(x_t) with shape (B, *), for x_t with shape (B, *), t with shape () or (B,), and a
        condition with B rows or None."""
        ...


class ForwardSDE(ABC):
    """A linear forward process dx = f(t) x dt + g(t) dW with marginals x_t = alpha_t x0 + sigma_t z.

    A subclass gives closed forms: ``log_alpha``, ``sigma``, ``f``, ``g_squared``, ``nsr`` and
    ``inverse_nsr``, and the attributes ``T`` and ``prior_std``.

    Attributes:
        T: end of the process.
        prior_std: standard deviation of the prior.
        default_t_min: the end of reverse runs, and the beginning of likelihoods, that have the default one;
            None where the default is a number of theirs.
    """

    T: float
    prior_std: float
    default_t_min: float | None = None

    def __init_subclass__(cls, **options: object) -> None:
        """The functions of time of every process take numbers."""
        super().__init_subclass__(**options)
        for name in set(_OF_TIME) & set(vars(cls)):
            setattr(cls, name, takes_numbers(vars(cls)[name]))

    def __eq__(self, other: object) -> bool:
        """Processes of one class with equal parts are equal; functions are by identity."""
        if not isinstance(other, ForwardSDE):
            return NotImplemented
        return type(self) is type(other) and same_values(vars(self), vars(other))

    def __hash__(self) -> int:
        return hash((type(self), self.T, self.prior_std))

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal scale, with the shape of t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level, with the shape of t."""

    @abstractmethod
    def f(self, t: Tensor) -> Tensor:
        """Drift rate f = alpha'/alpha, with the shape of t, per unit of time."""

    @abstractmethod
    def g_squared(self, t: Tensor) -> Tensor:
        """Squared diffusion g^2 = (sigma^2)' - 2 f sigma^2, with the shape of t, per unit of time."""

    @abstractmethod
    def nsr(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio sigma / alpha, strictly increasing, with the shape of t."""

    @abstractmethod
    def inverse_nsr(self, nsr: Tensor) -> Tensor:
        """Time at which the noise-to-signal ratio has the given value; values with any shape."""

    @takes_numbers
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale alpha_t, with the shape of t."""
        return self.log_alpha(t).exp()

    @takes_numbers
    def g(self, t: Tensor) -> Tensor:
        """Diffusion g(t), with the shape of t."""
        return self.g_squared(t).sqrt()

    @takes_numbers
    def noise_rate(self, t: Tensor) -> Tensor:
        """g^2 / (2 sigma) = sigma' - f sigma, with the shape of t, per unit of time; t must have noise.

        The probability flow is dx_t/dt = f x_t + noise_rate z_hat.
        """
        return self.g_squared(t) / (2 * self.sigma(t))

    @takes_numbers
    def lam(self, t: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, log(alpha / sigma), with the shape of t."""
        return -self.nsr(t).log()

    def perturb(self, x0: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return x_t = alpha_t x0 + sigma_t z with shape (B, *), for x0 and z with shape (B, *)."""
        x0, z, t = as_tensor("x0", x0), as_tensor("z", z), as_tensor("t", t)
        if x0.shape != z.shape or not (t.ndim == 0 or t.shape == x0.shape[:1]):
            raise ValueError(
                f"x0 and z must have one shape (B, *) and t the shape () or (B,), got x0 {tuple(x0.shape)}, "
                f"z {tuple(z.shape)} and t {tuple(t.shape)}"
            )
        if x0.device != z.device:
            raise ValueError(f"x0 and z must be on one device, got {x0.device} and {z.device}")
        return expand_like(self.alpha(t), x0) * x0 + expand_like(self.sigma(t), x0) * z

    def prior_sample(self, z: Tensor) -> Tensor:
        """Turn standard normals z with shape (B, *) into draws of the prior N(0, prior_std^2 I)."""
        return self.prior_std * as_tensor("z", z)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior N(0, prior_std^2 I), in nats with shape (B,), at x with shape (B, *)."""
        x = as_tensor("x", x)
        if x.ndim < 2:
            raise ValueError(f"x must have shape (B, *), got {tuple(x.shape)}; for one sample use x[None]")
        flat = x.flatten(1)
        constant = flat.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))
        return -0.5 * (flat / self.prior_std).square().sum(1) - constant

    def probability_flow(self, model: HasScore) -> solvers.ODE:
        """The ODE dx = [f x - g^2 score / 2] dt, whose marginals are those of the forward process."""

        def drift(t: Tensor, x: Tensor, *condition: Tensor) -> Tensor:
            pull = expand_like(0.5 * self.g_squared(t), x)
            return expand_like(self.f(t), x) * x - pull * model.score(x, t, *condition)

        return solvers.ODE(drift)

    @checked
    def reverse(self, model: HasScore, eta: float = 1.0) -> solvers.SDE:
        """The reverse SDE with stochasticity ``eta``: 1 is Anderson's, 0 the probability flow without noise.

        Raises:
            ValueError: ``eta`` is negative or not finite.
        """
        if not 0 <= eta <= 1e100:
            raise ValueError(
                f"eta must be a finite number >= 0, got {eta}; 1 is the reverse SDE, 0 the probability flow"
            )
        weight = 0.5 * (1 + eta**2)

        def drift(t: Tensor, x: Tensor, *condition: Tensor) -> Tensor:
            pull = expand_like(weight * self.g_squared(t), x)
            return expand_like(self.f(t), x) * x - pull * model.score(x, t, *condition)

        return solvers.SDE(drift, diffusion=lambda t: eta * self.g(t))

    @checked
    def discretize(self, num_steps: int) -> Chain:
        """The process at the ``num_steps`` + 1 times i T / num_steps: DDPM for VP, SMLD for VE."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        t = torch.linspace(0, self.T, num_steps + 1, dtype=torch.float64)
        return Chain(self.alpha(t), self.sigma(t), times=t)


class _VariancePreserving(ForwardSDE):
    """What VP and sub-VP share: alpha = exp(-B/2) and f = -beta/2.

    Args:
        beta: the rate, such as LinearBeta(0.1, 20.0) or CosineBeta(); LinearBeta() when None.
    """

    prior_std = 1.0

    @checked
    def __init__(self, beta: Beta | None = None) -> None:
        self.beta = LinearBeta() if beta is None else beta
        self.T = self.beta.T

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.beta!r})"

    def log_alpha(self, t: Tensor) -> Tensor:
        """-B(t) / 2, with the shape of t."""
        return -0.5 * self.beta.integral(t)

    def f(self, t: Tensor) -> Tensor:
        """-beta(t) / 2, with the shape of t."""
        return -0.5 * self.beta.rate(t)


class VPSDE(_VariancePreserving):
    """The variance-preserving process dx = -beta x dt / 2 + sqrt(beta) dW (2011.13456, eq. 11); DDPM's
    limit.

    Args:
        beta: the rate, such as LinearBeta(0.1, 20.0) or CosineBeta(); LinearBeta() when None.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-B)), with the shape of t."""
        return (-torch.expm1(-self.beta.integral(t))).sqrt()

    def g_squared(self, t: Tensor) -> Tensor:
        """beta(t), with the shape of t."""
        return self.beta.rate(t)

    def nsr(self, t: Tensor) -> Tensor:
        """sqrt(exp(B) - 1), with the shape of t."""
        return torch.expm1(self.beta.integral(t)).sqrt()

    def inverse_nsr(self, nsr: Tensor) -> Tensor:
        """The time at which B = log(1 + nsr^2)."""
        return self.beta.inverse_integral(torch.log1p(nsr.square()))


class SubVPSDE(_VariancePreserving):
    """The sub-variance-preserving process (2011.13456, eq. 12): alpha of VP, sigma = 1 - alpha^2.

    Args:
        beta: the rate, such as LinearBeta(0.1, 20.0) or CosineBeta(); LinearBeta() when None.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-B), with the shape of t."""
        return -torch.expm1(-self.beta.integral(t))

    def g_squared(self, t: Tensor) -> Tensor:
        """beta (1 - exp(-2 B)), with the shape of t."""
        return self.beta.rate(t) * -torch.expm1(-2 * self.beta.integral(t))

    def nsr(self, t: Tensor) -> Tensor:
        """2 sinh(B / 2), with the shape of t."""
        # by expm1: torch rounds sinh of one number differently in tensors of different sizes
        e = torch.expm1(0.5 * self.beta.integral(t))
        return e + e / (1 + e)

    def inverse_nsr(self, nsr: Tensor) -> Tensor:
        """The time at which B = 2 asinh(nsr / 2)."""
        return self.beta.inverse_integral(2 * torch.asinh(0.5 * nsr))


class VESDE(ForwardSDE):
    """The variance-exploding process (2011.13456, eq. 9).

        alpha = 1,      sigma = sigma_min (sigma_max / sigma_min)^t

    sigma(0) = sigma_min and not 0: at time 0 the state is the data plus noise of that level.  The prior is
    N(0, sigma_max^2 I).

    Args:
        sigma_min, sigma_max: noise levels at t = 0 and t = 1.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """

    T = 1.0

    @checked
    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"VE needs 0 < sigma_min < sigma_max, got sigma_min = {sigma_min}, sigma_max = {sigma_max}"
            )
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.prior_std = self.sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    def __repr__(self) -> str:
        return f"VESDE(sigma_min={self.sigma_min}, sigma_max={self.sigma_max})"

    def log_alpha(self, t: Tensor) -> Tensor:
        """Zero, with the shape of t."""
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^t, with the shape of t."""
        return self.sigma_min * (self._log_ratio * t).exp()

    def f(self, t: Tensor) -> Tensor:
        """Zero, with the shape of t."""
        return torch.zeros_like(t)

    def g_squared(self, t: Tensor) -> Tensor:
        """2 sigma^2 log(sigma_max / sigma_min), with the shape of t."""
        return 2 * self._log_ratio * self.sigma(t).square()

    def nsr(self, t: Tensor) -> Tensor:
        """sigma(t), because alpha = 1."""
        return self.sigma(t)

    def inverse_nsr(self, nsr: Tensor) -> Tensor:
        """log(nsr / sigma_min) / log(sigma_max / sigma_min)."""
        return (nsr / self.sigma_min).log() / self._log_ratio


class CustomSDE(ForwardSDE):
    """A forward process from alpha and sigma alone.

    f and g follow by automatic differentiation, the inverse of nsr by bisection.

    Args:
        alpha: t -> alpha_t, positive, elementwise and differentiable by autograd.
        sigma: t -> sigma_t, such that sigma / alpha increases strictly.
        T: end of the process.
        prior_std: standard deviation of the prior; sigma(T) when not given.

    Raises:
        ValueError: alpha or sigma is not positive and finite on (0, T], or sigma / alpha does not increase
            there.
    """

    _CHECKED_TIMES = 129
    _BISECTIONS = 70

    @checked
    def __init__(
        self, alpha: Function, sigma: Function, T: float = 1.0, prior_std: float | None = None
    ) -> None:
        require_positive("T", T)
        self._alpha, self._sigma, self.T = OfTime("alpha", alpha), OfTime("sigma", sigma), float(T)
        t = torch.linspace(0, T, self._CHECKED_TIMES, dtype=torch.float64)[1:]
        a, s = self._alpha(t), self._sigma(t)
        for name, value in (("alpha", a), ("sigma", s)):
            if value.shape != t.shape:
                raise ValueError(
                    f"{name}(t) must have the shape of t, got {tuple(value.shape)} for {tuple(t.shape)}"
                )
            if not bool((value.isfinite() & (value > 0)).all()):
                raise ValueError(f"{name}(t) must be finite and positive for 0 < t <= T = {T}")
        if not bool(((s / a).diff() > 0).all()):
            raise ValueError(
                f"sigma(t) / alpha(t) must increase strictly on (0, T] with T = {T}; swap or correct "
                "the functions"
            )
        self.prior_std = float(s[-1]) if prior_std is None else float(prior_std)
        require_positive("prior_std", self.prior_std)

    def __repr__(self) -> str:
        return f"CustomSDE(T={self.T}, prior_std={self.prior_std:.6g})"

    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the given alpha."""
        return self._alpha(t).log()

    def sigma(self, t: Tensor) -> Tensor:
        """The given sigma."""
        return self._sigma(t)

    def f(self, t: Tensor) -> Tensor:
        """d log alpha / dt by automatic differentiation, with the shape of t."""
        return _derivative(self.log_alpha, t)

    def g_squared(self, t: Tensor) -> Tensor:
        """(sigma^2)' - 2 f sigma^2 = alpha^2 (nsr^2)' by automatic differentiation, with the shape of t."""
        return self._alpha(t).square() * _derivative(lambda u: self.nsr(u).square(), t)

    def nsr(self, t: Tensor) -> Tensor:
        """sigma / alpha, with the shape of t."""
        return self._sigma(t) / self._alpha(t)

    def inverse_nsr(self, nsr: Tensor) -> Tensor:
        """Bisection on [0, T], to the last bits of float64; values beyond the ends give the ends."""
        low, high = torch.zeros_like(nsr), torch.full_like(nsr, self.T)
        for _ in range(self._BISECTIONS):
            middle = 0.5 * (low + high)
            below = self.nsr(middle) < nsr
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)


def _derivative(function: Function, t: Tensor) -> Tensor:
    """Derivative of an elementwise function of t, with the shape of t; nests in any transform."""
    return torch.func.grad(lambda u: function(u).sum())(t)
