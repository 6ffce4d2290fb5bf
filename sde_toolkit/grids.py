"""Time grids: at which times a sampler with N steps looks at the model.

A grid maps (sde, num_steps, t_min) to num_steps + 1 times in float64 that fall from t_max, by default the
process' T, to t_min, both exact:

    uniform      t_i = T + (t_min - T) i / N
    quadratic    sqrt(t) uniform                                   (DDIM's choice for CIFAR-10)
    log_snr      lam(t) = log(alpha / sigma) uniform               (DPM-Solver)
    karras       nsr(t)^(1/rho) uniform, rho = 7                   (EDM, eq. 5)
    explicit     the times given

References: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (2010.02502); Lu et al., "DPM-Solver"
(2206.00927); Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_toolkit.sde import ForwardSDE
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
    times = _ends(sde, *ends)
    first, last = clock(times)
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    ts = inverse(first + (last - first) * u)
    ts[0], ts[-1] = times
    return ts


def _ends(sde: ForwardSDE, t_min: float, t_max: float | None) -> Tensor:
    """The first and the last time, with shape (2,)."""
    return torch.tensor([sde.T if t_max is None else t_max, t_min], dtype=torch.float64)


def uniform(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in t; shape (num_steps + 1,)."""
    first, last = _ends(sde, t_min, t_max)
    return torch.linspace(float(first), float(last), num_steps + 1, dtype=torch.float64)


def quadratic(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in sqrt(t), finer near the data; shape (num_steps + 1,)."""
    return _spaced(sde, num_steps, (t_min, t_max), torch.sqrt, torch.square)


def log_snr(sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
    """Equal steps in log(alpha / sigma); shape (num_steps + 1,).

    Raises:
        ValueError: the noise level at t_min is 0, where the clock is infinite.
    """
    _require_noise(sde, t_min, "log_snr")
    return _spaced(sde, num_steps, (t_min, t_max), sde.lam, lambda lam: sde.inverse_nsr((-lam).exp()))


@dataclass(frozen=True)
class Karras:
    """Equal steps in nsr^(1/rho) (2206.00364, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")

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


class Explicit:
    """The given times, whatever T and t_min are; num_steps must be one less than their number.

    Raises:
        ValueError: fewer than two times, not finite, not strictly decreasing, or outside [0, T] of the
            process.
    """

    def __init__(self, ts: Tensor | Sequence[float]) -> None:
        self.ts = FixedGrid(ts).ts
        if float(self.ts[0]) < float(self.ts[-1]):
            raise ValueError("the times of a sampler's grid must decrease, from noise to data; reverse them")

    def __repr__(self) -> str:
        return f"Explicit({self.ts.tolist()})"

    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """The given times with shape (num_steps + 1,)."""
        if len(self.ts) != num_steps + 1:
            raise ValueError(f"the grid must have num_steps + 1 = {num_steps + 1} times, got {len(self.ts)}")
        if float(self.ts[0]) > sde.T or float(self.ts[-1]) < 0:
            raise ValueError(f"the times of the grid must lie in [0, {sde.T}], got {self.ts.tolist()}")
        return self.ts


def _require_noise(sde: ForwardSDE, t_min: float, name: str) -> None:
    if float(sde.sigma(torch.tensor(t_min, dtype=torch.float64))) == 0:
        raise ValueError(f"the {name} grid needs noise at its end, but sigma({t_min}) = 0; raise t_min")
