"""The discrete chain: a forward process at N + 1 indices.

A forward process x_t = alpha_t x0 + sigma_t z is restricted to N + 1 times; index 0 is the data end, index N
the prior end.  Between two indices (s = i - 1, t = i) it is the Markov step

    q(x_t | x_s) = N(alpha_{t|s} x_s, sigma_{t|s}^2 I),
    alpha_{t|s} = alpha_t / alpha_s,             sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2

and, given the clean sample, the step back is Gaussian too.  With the noise-to-signal ratio n = sigma / alpha
and the share of its square that the step removes, gain = 1 - n_s^2 / n_t^2 = (n_t - n_s)(n_t + n_s) / n_t^2,

    q(x_s | x_t, x0) = N(alpha_s [gain x0 + (1 - gain) x_t / alpha_t], sigma_s^2 gain I)
    sigma_{t|s}^2 = sigma_t^2 gain

where only positive terms are added, so that no digits cancel, however short the step.  Ancestral sampling
draws from this distribution with x0_hat = E[x0 | x_t] in place of x0.  The last index may be noise alone,
alpha_N = 0: n_N is infinite and the gain of its step 1.  The chain of a variance-preserving
process is DDPM, with beta_i = 1 - (alpha_i / alpha_{i-1})^2 = sigma_{i|i-1}^2; the chain of a
variance-exploding one is SMLD, with sigma_0 = sigma_min and not 0.  As N grows the ancestral sampler tends to
the reverse SDE, at order 1.

Indices are ints or integer tensors with shape () or (B,).  Tables are float64; a state keeps its own type.

A chain may skip indices: what is left has the levels and times that it had, and the variances of its longer
steps follow from them (2102.09672, section 4).

References: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239), eq. 4 to 7; Song et
al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2011.13456), appendices B
and F; Kingma et al., "Variational Diffusion Models" (2107.00630), appendix A, for general alpha and sigma;
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sde_toolkit.utils import as_tensor, check_fields, checked, same_values, shown
from solvers.terms import expand_like

Variance = Literal["small", "large"]
"""Which variance an ancestral step has, see ``ancestral_coefficients``."""

VARIANCES: tuple[str, ...] = get_args(Variance)
"""The variances of an ancestral step by name."""


def ancestral_coefficients(
    alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor, variance: Variance = "small"
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (a, b, c) of the ancestral step x_s = a x_t + b x0_hat + c z from t to s < t, any shape.

    Args:
        alpha_t, sigma_t: signal scale and noise level where the step starts.
        alpha_s, sigma_s: where it ends.
        variance: c^2 is sigma_s^2 gain with "small", that of q(x_s | x_t, x0) (right for data at one
            point), and sigma_t^2 gain = sigma_{t|s}^2 with "large" (right for N(0, I) data under VP).  A step
            to sigma_s = 0 draws nothing with either: it returns its mean.

    Raises:
        ValueError: an unknown ``variance``.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    share = sigma_s / alpha_s / (sigma_t / alpha_t)  # n_s / n_t; 0 where alpha_t is
    gain = (1 - share) * (1 + share)
    a, b = sigma_s / sigma_t * share, alpha_s * gain
    std = sigma_s if variance == "small" else torch.where(sigma_s > 0, sigma_t, torch.zeros_like(sigma_t))
    return a, b, std * gain.sqrt()


@dataclass(frozen=True, eq=False)
class Chain:
    """A forward process at N + 1 indices: DDPM when it preserves the variance, SMLD when it explodes.

    Args:
        alphas: signal scales with shape (N + 1,), float64, positive; index 0 is the data end.  The last one
            may be 0 ("zero terminal SNR").
        sigmas: noise levels with shape (N + 1,), float64; sigmas / alphas increases strictly from 0 or more.
        times: the times at which a model is evaluated, with shape (N + 1,), float64.

    Raises:
        ValueError: shapes that differ, fewer than two indices, or ratios that do not increase.
    """

    alphas: Tensor
    sigmas: Tensor
    times: Tensor

    def __post_init__(self) -> None:
        check_fields(self)
        shapes = [tuple(table.shape) for table in (self.alphas, self.sigmas, self.times)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1 or shapes[0][0] < 2:
            raise ValueError(
                f"alphas, sigmas and times must have one shape (N + 1,) with N >= 1, got {shapes}"
            )
        for name in ("alphas", "sigmas", "times"):
            if getattr(self, name).dtype != torch.float64:
                raise ValueError(f"{name} must be float64, got {getattr(self, name).dtype}; call .double()")
        positive = bool((self.alphas[:-1] > 0).all() and self.alphas[-1] >= 0 and self.sigmas[0] >= 0)
        if not (positive and bool(((self.sigmas / self.alphas).diff() > 0).all())):
            raise ValueError(
                "sigmas / alphas must increase strictly from index 0, with alphas > 0 (the last may be 0) "
                "and sigmas[0] >= 0; index 0 is the data end, so flip tables that start at the noise"
            )

    def __repr__(self) -> str:
        first, last = float(self.sigmas[0]) + 0.0, float(self.sigmas[-1])
        return f"Chain(num_steps={self.num_steps}, sigmas from {first:.4g} to {last:.4g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and same_values(vars(self), vars(other))

    def __hash__(self) -> int:
        return hash((self.num_steps, float(self.sigmas[-1])))

    @classmethod
    def from_betas(cls, betas: Tensor) -> Chain:
        """The variance-preserving chain with the given betas, shape (N,), each in (0, 1); times are i / N.

        The last beta may be 1: index N is noise alone.

        Raises:
            ValueError: betas not one-dimensional, or outside (0, 1).
        """
        betas = as_tensor("betas", betas).double()
        valid = betas.ndim == 1 and len(betas) > 0 and bool(((betas > 0) & (betas <= 1)).all())
        if not valid or bool((betas[:-1] == 1).any()):
            raise ValueError(
                f"betas must have shape (N,) with values in (0, 1), the last may be 1, got {betas}"
            )
        log_alpha_bar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])
        return cls._at_equal_times((0.5 * log_alpha_bar).exp(), (-torch.expm1(log_alpha_bar)).sqrt())

    @classmethod
    @checked
    def cosine(cls, num_steps: int, s: float = 0.008, max_beta: float = 0.999) -> Chain:
        """The cosine table: alpha_i^2 = f(i) / f(0), f(i) = cos((i/N + s)/(1 + s) pi/2)^2, with betas of at
        most ``max_beta`` (2102.09672, eq. 17).

        Raises:
            ValueError: no step, s outside [0, 1], or max_beta outside (0, 1).
        """
        if num_steps < 1 or not 0 <= s <= 1 or not 0 < max_beta < 1:
            raise ValueError(
                "num_steps must be at least 1, s in [0, 1] and max_beta in (0, 1), got "
                f"{num_steps}, {s} and {max_beta}; try Chain.cosine(1000)"
            )
        t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        f = torch.cos((t + s) / (1 + s) * (math.pi / 2)).square()
        return cls.from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> Chain:
        """The variance-preserving chain with alpha_i^2 in a table with shape (N,), as diffusers keeps it;
        times are i / N.

        A table in float32 keeps its own rounding: 1 - alpha_1^2 = 1e-4 is off by 1.7e-4 of itself there, so
        build chains with known betas by ``from_betas``.

        Raises:
            ValueError: a table that does not fall strictly within (0, 1); the last value may be 0.
        """
        table = as_tensor("alphas_cumprod", alphas_cumprod).double()
        valid = table.ndim == 1 and len(table) > 0 and bool((table[0] < 1) & (table[-1] >= 0))
        if not valid or not bool((table.diff() < 0).all()):
            raise ValueError(
                "alphas_cumprod must have shape (N,) and fall strictly within (0, 1), the last may be 0, got "
                f"{table}; for tables that start at the noise use .flip(0)"
            )
        table = torch.cat([table.new_ones(1), table])
        return cls._at_equal_times(table.sqrt(), (1 - table).sqrt())

    @classmethod
    def from_sigmas(cls, sigmas: Tensor) -> Chain:
        """The variance-exploding chain (SMLD) with the given noise levels, shape (N,): alpha = 1, index 0 is
        the data without noise, and times are i / N.

        Raises:
            ValueError: levels that are not positive, or do not increase strictly.
        """
        sigmas = as_tensor("sigmas", sigmas).double()
        valid = sigmas.ndim == 1 and len(sigmas) > 0 and bool((sigmas[0] > 0) & sigmas.isfinite().all())
        if not valid or not bool((sigmas.diff() > 0).all()):
            raise ValueError(
                f"sigmas must have shape (N,), be positive and increase strictly, got {sigmas}; for tables "
                "that start at the largest use .flip(0)"
            )
        sigmas = torch.cat([sigmas.new_zeros(1), sigmas])
        return cls._at_equal_times(torch.ones_like(sigmas), sigmas)

    @classmethod
    def _at_equal_times(cls, alphas: Tensor, sigmas: Tensor) -> Chain:
        return cls(alphas, sigmas, torch.linspace(0, 1, len(alphas), dtype=torch.float64))

    @checked
    def first(self, num_steps: int) -> Chain:
        """The chain of the first ``num_steps`` steps, with the levels and times that they have here.

        Raises:
            ValueError: not from 1 to the steps of this chain.
        """
        if not 1 <= num_steps <= self.num_steps:
            raise ValueError(f"num_steps must lie in 1 to {self.num_steps}, got {num_steps}")
        end = num_steps + 1
        return Chain(self.alphas[:end], self.sigmas[:end], self.times[:end])

    @checked
    def strided(self, num_steps: int) -> Chain:
        """The chain of ``num_steps`` longer steps, through indices spread evenly from 1 to N, with the levels
        and times that they have here; one made for this chain is asked at those (2102.09672, section 4).

        Raises:
            ValueError: not from 1 to the steps of this chain.
        """
        if not 1 <= num_steps <= self.num_steps:
            raise ValueError(f"num_steps must lie in 1 to {self.num_steps}, got {num_steps}")
        steps = torch.linspace(1 if num_steps > 1 else self.num_steps, self.num_steps, num_steps)
        index = torch.cat([torch.zeros(1), steps.double().round()]).long()
        return Chain(self.alphas[index], self.sigmas[index], self.times[index])

    @property
    def ends_in_noise(self) -> bool:
        """Whether index N is noise alone, alpha_N = 0."""
        return float(self.alphas[-1]) == 0

    @property
    def num_steps(self) -> int:
        """N, the number of steps between the N + 1 indices."""
        return len(self.alphas) - 1

    @property
    def betas(self) -> Tensor:
        """beta_i = 1 - (alpha_i / alpha_{i-1})^2 for i = 1 .. N, with shape (N,)."""
        ratio = self.alphas[1:] / self.alphas[:-1]
        return (1 - ratio) * (1 + ratio)

    def q_marginal(self, x0: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean with shape (B, *) and standard deviation, broadcastable to it, of q(x_i | x0)."""
        index, x0 = self._index(i, first=0), as_tensor("x0", x0)
        _check_index(index, x0)
        return _spread(self.alphas[index], x0) * x0, _spread(self.sigmas[index], x0)

    def q_sample(self, x0: Tensor, i: int | Tensor, z: Tensor) -> Tensor:
        """Draw x_i = alpha_i x0 + sigma_i z with shape (B, *), for standard normals z with shape (B, *)."""
        x0, z = _alike(x0=x0, z=z)
        mean, std = self.q_marginal(x0, i)
        return mean + std * z

    def q_posterior(self, x0: Tensor, x_i: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean with shape (B, *) and variance, broadcastable to it, of q(x_{i-1} | x_i, x0); i = 1 .. N."""
        x0, x_i = _alike(x0=x0, x_i=x_i)
        a, b, c = (_spread(k, x_i) for k in self._coefficients(i, "small", x_i))
        return a * x_i + b * x0, c**2

    def ancestral_step(
        self, x0_hat: Tensor, x_i: Tensor, i: int | Tensor, z: Tensor, variance: Variance = "small"
    ) -> Tensor:
        """One step of ancestral sampling, from x_i to x_{i-1}, with shape (B, *).

        Args:
            x0_hat: estimate of E[x0 | x_i] with shape (B, *), as ``ScoreModel.denoise`` returns it.
            x_i: the state at index i with shape (B, *).
            i: from 1 to N.
            z: standard normals with shape (B, *).
            variance: "small" or "large", see ``ancestral_coefficients``.

        Raises:
            ValueError: i outside 1 .. N, or an unknown ``variance``.
        """
        x0_hat, x_i, z = _alike(x0_hat=x0_hat, x_i=x_i, z=z)
        a, b, c = (_spread(k, x_i) for k in self._coefficients(i, variance, x_i))
        return a * x_i + b * x0_hat + c * z

    def _coefficients(self, i: int | Tensor, variance: Variance, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(variance, str):
            raise TypeError(f"variance must be one of {', '.join(VARIANCES)}, got {shown(variance)}")
        t = self._index(i, first=1)
        _check_index(t, x)
        s = t - 1
        return ancestral_coefficients(
            self.alphas[t], self.sigmas[t], self.alphas[s], self.sigmas[s], variance=variance
        )

    def _index(self, i: int | Tensor, first: int) -> Tensor:
        index = as_tensor("i", i, dtype=None)
        if index.is_meta:
            raise ValueError("i must hold values, got a tensor on the meta device; give one with data")
        index = index.to(self.alphas.device)
        if (
            index.dtype == torch.bool
            or index.is_floating_point()
            or not bool(((index >= first) & (index <= self.num_steps)).all())
        ):
            raise ValueError(f"i must hold integers from {first} to num_steps = {self.num_steps}, got {i}")
        return index


def _check_index(index: Tensor, x: Tensor) -> None:
    if index.ndim and index.shape != x.shape[:1]:
        raise ValueError(
            f"i must have shape () or ({len(x)},), one index per sample, got {tuple(index.shape)}"
        )


def _alike(**states: Tensor) -> list[Tensor]:
    """States by name as tensors; raises ValueError unless all have one shape (B, *) and one device."""
    found = {name: as_tensor(name, state) for name, state in states.items()}
    first = next(iter(found.values()))
    if first.ndim < 1 or any(s.shape != first.shape or s.device != first.device for s in found.values()):
        got = ", ".join(f"{name} {tuple(s.shape)} on {s.device}" for name, s in found.items())
        raise ValueError(f"{' and '.join(found)} must have one shape (B, *) and be on one device, got {got}")
    return list(found.values())


def _spread(c: Tensor, x: Tensor) -> Tensor:
    """Coefficients with shape () or (B,), moved to the device of x and broadcastable against it."""
    return expand_like(c if c.ndim == 0 else c.to(x.device), x)
