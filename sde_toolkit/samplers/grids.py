"""Time grids: at which times a sampler with N steps evaluates the model.

A grid maps (sde, num_steps, t_min) to num_steps + 1 times in float64 that fall from t_max, by default the
process' T, to t_min, both exact:

    uniform      t_i = T + (t_min - T) i / N
    quadratic    sqrt(t) uniform                                   (DDIM's choice for CIFAR-10)
    log_snr      lam(t) = log(alpha / sigma) uniform               (DPM-Solver)
    karras       nsr(t)^(1/rho) uniform, rho = 7                   (EDM, eq. 5)
    arctan       arctan(nsr(t) / c) uniform: optimal for Euler steps in nsr on a Gaussian of std c
    arcsinh      arcsinh(nsr(t) / c) uniform: logarithmic above c, linear below
    rectified    nsr(t) / (1 + nsr(t)) uniform: the time of straight paths
    cosine       the noise-to-signal ratios of the cosine schedule at equal times
    explicit     the times given
    snapped      those of another grid, moved to the nearest indices of a chain

and, for networks trained at N indices, index i at the time i T / N, the n indices that an n-step sampler
evaluates (the last step goes on to t_min)

    trailing     N, N - N/n, N - 2 N/n, ..., rounded               from the noise end, which it always holds
    leading      ..., 2 (N // n) + 1, N // n + 1, 1                from the data end; DDPM code's habit
    linspace     N, ..., 1 equally spaced, rounded                 both ends

Grids found for one model and one sampler are made in ``sde_toolkit.samplers.calibration``.

References: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (2010.02502); Lu et al., "DPM-Solver"
(2206.00927); Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364);
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672) for the cosine schedule;
Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed" (2305.08891), table 2, for the
indices.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_toolkit.sdes import VPSDE, ChainSDE, CosineBeta, ForwardSDE
from sde_toolkit.utils import check_fields, checked, host_tensor, integer, same_values
from solvers import FixedGrid

Function = Callable[[Tensor], Tensor]


class Grid(Protocol):
    """Called as ``grid(sde, num_steps, t_min, t_max)``; returns num_steps + 1 decreasing times in float64."""

    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times from ``t_max``, by default ``sde.T``, down to ``t_min``."""
        ...


def _spaced(
    sde: ForwardSDE, num_steps: int, ends: tuple[float, float | None], clock: Function, inverse: Function
) -> Tensor:
    """Times at which clock(t) is equally spaced, with exact ends: t_min and t_max."""
    integer("num_steps", num_steps, 1)
    times = _ends(sde, *ends)
    first, last = clock(times)
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    ts = inverse(first + (last - first) * u)
    ts[0], ts[-1] = times
    return ts


def _spaced_in_nsr(
    sde: ForwardSDE, num_steps: int, ends: tuple[float, float | None], clock: Function, inverse: Function
) -> Tensor:
    """The same for a clock that is a function of the noise-to-signal ratio."""
    return _spaced(sde, num_steps, ends, lambda t: clock(sde.nsr(t)), lambda u: sde.inverse_nsr(inverse(u)))


def _at_indices(
    sde: ForwardSDE, num_indices: int, num_steps: int, ends: tuple[float, float | None], indices: Tensor
) -> Tensor:
    """The times of decreasing indices, scaled to end at t_max where it is given, then t_min."""
    if not 1 <= num_steps <= num_indices:
        raise ValueError(f"num_steps must lie in 1 to the {num_indices} indices, got {num_steps}")
    if float(indices[0]) > num_indices:
        raise ValueError(f"offset must keep the indices at or below {num_indices}, got {int(indices[0])}")
    first, last = _ends(sde, *ends)
    ts = torch.cat([indices * (first / num_indices), last[None]])
    if not bool((ts.diff() < 0).all()):
        raise ValueError(
            f"t_min must lie below the last index, at {float(ts[-2]):.6g} for t_max = {float(first):.6g}, "
            f"got {float(last)}; lower t_min"
        )
    return ts


def _ends(sde: ForwardSDE, t_min: float, t_max: float | None) -> Tensor:
    """The first and the last time, with shape (2,)."""
    return torch.tensor([sde.T if t_max is None else t_max, t_min], dtype=torch.float64)


@checked
def uniform(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in t; shape (num_steps + 1,)."""
    integer("num_steps", num_steps, 1)
    first, last = _ends(sde, t_min, t_max)
    return torch.linspace(float(first), float(last), num_steps + 1, dtype=torch.float64)


@checked
def quadratic(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in sqrt(t), finer near the data; shape (num_steps + 1,)."""
    return _spaced(sde, num_steps, (t_min, t_max), torch.sqrt, torch.square)


@checked
def log_snr(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in log(alpha / sigma); shape (num_steps + 1,).

    Raises:
        ValueError: the noise level at t_min is 0, where the clock is infinite.
    """
    _require_noise(sde, t_min, "log_snr")
    return _spaced(sde, num_steps, (t_min, t_max), sde.lam, lambda lam: sde.inverse_nsr((-lam).exp()))


MOST_GAIN = 100.0
"""Largest factor on errors of the predicted noise in the first step that raises no warning."""

_LITTLE_SIGNAL = 1e-3


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite positive number, got {value}")


@dataclass(frozen=True)
class Karras:
    """Equal steps in nsr^(1/rho) (2206.00364, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")

    @checked
    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,)."""
        return _spaced(
            sde,
            num_steps,
            (t_min, t_max),
            lambda t: sde.nsr(t) ** (1 / self.rho),
            lambda u: sde.inverse_nsr(u**self.rho),
        )


karras = Karras()


@dataclass(frozen=True)
class Arctan:
    """Equal steps in arctan(nsr / scale), finest near nsr = 0, with infinite noise at a finite distance."""

    scale: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        _require_positive("scale", self.scale)

    @checked
    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,)."""
        c = self.scale
        clock, inverse = lambda n: torch.atan(n / c), lambda u: c * torch.tan(u)
        return _spaced_in_nsr(sde, num_steps, (t_min, t_max), clock, inverse)


@dataclass(frozen=True)
class Arcsinh:
    """Equal steps in arcsinh(nsr / scale): of log nsr above ``scale``, of nsr below."""

    scale: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self)
        _require_positive("scale", self.scale)

    @checked
    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,)."""
        c = self.scale
        clock, inverse = lambda n: torch.asinh(n / c), lambda u: c * torch.sinh(u)
        return _spaced_in_nsr(sde, num_steps, (t_min, t_max), clock, inverse)


arctan, arcsinh = Arctan(), Arcsinh()


@checked
def rectified(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in sigma / (alpha + sigma); shape (num_steps + 1,)."""
    return _spaced_in_nsr(sde, num_steps, (t_min, t_max), lambda n: n / (1 + n), lambda u: u / (1 - u))


@checked
def cosine(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in the time at which the cosine schedule has the ratio nsr (2102.09672, eq. 17); shape
    (num_steps + 1,)."""
    schedule = VPSDE(CosineBeta())
    return _spaced_in_nsr(sde, num_steps, (t_min, t_max), schedule.inverse_nsr, schedule.nsr)


@dataclass(frozen=True)
class Trailing:
    """The indices N, N - N/n, N - 2 N/n, ..., rounded (2305.08891, table 2), then t_min."""

    num_indices: int = 1000

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_indices", self.num_indices, 1)

    @checked
    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,).

        Raises:
            ValueError: more steps than indices, or t_min at or above the last of them.
        """
        N = self.num_indices
        integer("num_steps", num_steps, 1)
        left = torch.arange(num_steps, dtype=torch.float64) * (N / num_steps)
        return _at_indices(sde, N, num_steps, (t_min, t_max), (N - left).round())


@dataclass(frozen=True)
class Leading:
    """The indices k (N // n) + 1 for k = n - 1, ..., 0, then t_min; the first may lie well below N.

    Args:
        num_indices: N.
        offset: added to every index.
    """

    num_indices: int = 1000
    offset: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_indices", self.num_indices, 1)

    @checked
    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,).

        Raises:
            ValueError: more steps than indices, or t_min at or above the last of them.
        """
        N = self.num_indices
        k = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64)
        return _at_indices(sde, N, num_steps, (t_min, t_max), k * (N // num_steps) + 1 + self.offset)


@dataclass(frozen=True)
class Linspace:
    """n indices from N to 1 at equal distances, rounded, then t_min."""

    num_indices: int = 1000

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_indices", self.num_indices, 1)

    @checked
    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,).

        Raises:
            ValueError: more steps than indices, or t_min at or above the last of them.
        """
        N = self.num_indices
        if num_steps == 1:
            return _at_indices(sde, N, 1, (t_min, t_max), torch.tensor([float(N)], dtype=torch.float64))
        indices = torch.linspace(N, 1, num_steps, dtype=torch.float64).round()
        return _at_indices(sde, N, num_steps, (t_min, t_max), indices)


trailing, leading, linspace = Trailing(), Leading(), Linspace()


class Explicit:
    """The given times, whatever T and t_min are; num_steps must be one less than their number.

    Raises:
        ValueError: fewer than two times, not finite, not strictly decreasing, or outside [0, T] of the
            process.
    """

    def __init__(self, ts: Tensor | Sequence[float]) -> None:
        try:
            self.ts = FixedGrid(host_tensor("ts", ts)).ts
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith("ts") else f"ts: {error}") from None
        if float(self.ts[0]) < float(self.ts[-1]):
            raise ValueError("the times of a sampler's grid must decrease, from noise to data; reverse them")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Explicit) and same_values(self.ts, other.ts)

    def __hash__(self) -> int:
        return hash(tuple(self.ts.tolist()))

    def __repr__(self) -> str:
        return f"Explicit({self.ts.tolist()})"

    @checked
    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """The given times with shape (num_steps + 1,)."""
        if len(self.ts) != num_steps + 1:
            raise ValueError(f"the grid must have num_steps + 1 = {num_steps + 1} times, got {len(self.ts)}")
        if float(self.ts[0]) > sde.T or float(self.ts[-1]) < 0:
            raise ValueError(f"the times of the grid must lie in [0, {sde.T}], got {self.ts.tolist()}")
        return self.ts


@dataclass(frozen=True)
class Snapped:
    """Another grid with every time moved to the nearest index of a ``ChainSDE``.

    Args:
        grid: any grid.
    """

    grid: Grid

    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,).

        Raises:
            TypeError: the process has no indices.
            ValueError: two times fall on one index.
        """
        if not isinstance(sde, ChainSDE):
            raise TypeError(f"a Snapped grid needs a ChainSDE, whose times are indices, got {sde!r}")
        index = sde.index(self.grid(sde, num_steps, t_min, t_max)).round().long()
        if not bool((index.diff() < 0).all()):
            raise ValueError(
                f"{num_steps} steps do not fit on the {sde.chain.num_steps} indices: two times fall on one; "
                "take fewer steps, or another grid"
            )
        return sde.chain.times[index]


BY_NAME: dict[str, Grid] = {
    "uniform": uniform, "quadratic": quadratic, "log_snr": log_snr, "karras": karras, "arctan": arctan,
    "arcsinh": arcsinh, "rectified": rectified, "cosine": cosine, "trailing": trailing, "leading": leading,
    "linspace": linspace,
}  # fmt: skip
"""The grids that need no arguments, for configurations."""


def label(function: object) -> str:
    """Name of a function, or what the object that takes its place says of itself, for records."""
    return str(getattr(function, "__name__", repr(function)))


def warn_of_start(sde: ForwardSDE, ts: Tensor, name: str, from_noise: bool = True) -> None:
    """Warn of times that begin where the signal is still larger than the noise."""
    ratio, t = float(sde.nsr(ts[0])), float(ts[0])
    if ratio < 1:
        remedy = f"let the grid begin at T = {sde.T}" if t < sde.T else "take a process with more noise at T"
        warnings.warn(
            f"{name} begins at t = {t:.4g}, where the noise is {ratio:.3g} times the signal, but sampling "
            f"starts from {'noise alone' if from_noise else 'a Gaussian'}; {remedy}",
            stacklevel=5,
        )


def warn_of_first_step(sde: ForwardSDE, ts: Tensor, name: str) -> None:
    """Warn of a first step that multiplies errors of the predicted noise by more than ``MOST_GAIN``.

    From t to s the noise enters with the factor alpha_s (nsr_t - nsr_s), which is about 1 / alpha_t where
    next to nothing of the signal is left at t.

    Args:
        sde: the forward process.
        ts: the times of the run.
        name: of the sampler.
    """
    t, s = ts[0], ts[1]
    alpha, gain = float(sde.alpha(t)), float(sde.alpha(s) * (sde.nsr(t) - sde.nsr(s)))
    if alpha < _LITTLE_SIGNAL and gain > MOST_GAIN:
        warnings.warn(
            f"{name} multiplies errors of the predicted noise by {gain:.3g} in its first step, because alpha "
            f"is {alpha:.2g} at t = {float(t):.4g}; take ddim with a network that predicts the velocity or "
            "the data, or let the grid begin where alpha is larger",
            stacklevel=5,
        )


def _require_noise(sde: ForwardSDE, t_min: float, name: str) -> None:
    if float(sde.sigma(torch.tensor(t_min, dtype=torch.float64))) == 0:
        raise ValueError(f"the {name} grid needs noise at its end, but sigma({t_min}) = 0; raise t_min")
