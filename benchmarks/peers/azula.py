"""The samplers of azula, driven by any score model over our range of noise levels.

azula's grids are uniform in the time of a schedule t -> (alpha_t, sigma_t), which is free to choose, so a
grid is a schedule whose time runs from the largest ratio at 1 to the smallest at 0.  Here alpha = 1, and n is

    vp             in the time of DDPM's linear schedule (azula's VPSchedule is of this kind)
    exponential    geometric (VESchedule)
    cosine         arctan n uniform (CosineSchedule)
    rectified      n / (1 + n) uniform (RectifiedSchedule)
    karras         n^(1/7) uniform

All runs end at the smallest ratio; azula's samplers divide by sigma at zero.  REAB is run as it is in azula
0.11: its update has sigma_t where its own formula has sigma_s, and it is of order one for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import azula.sample
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from torch import Tensor

from benchmarks.peers.models import Look, Peer, vp_clock

RHO = 7


def _between(clock: Callable[[float], float], inverse: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def ratios(u: Tensor, low: float, high: float) -> Tensor:
        first, last = clock(low), clock(high)
        return inverse(first + (last - first) * u)

    return ratios


CLOCKS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "vp": vp_clock,
    "exponential": _between(math.log, torch.exp),
    "cosine": _between(math.atan, torch.tan),
    "rectified": _between(lambda n: n / (1 + n), lambda u: u / (1 - u)),
    "karras": _between(lambda n: n ** (1 / RHO), lambda u: u**RHO),
}


class Clock(Schedule):
    """A schedule with alpha = 1 whose ratio runs by one of ``CLOCKS``."""

    def __init__(self, look: Look, name: str) -> None:
        self._ratio, self._ends = CLOCKS[name], (look.nsr_min, look.nsr_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale with the shape of t."""
        return torch.ones_like(t, dtype=torch.float64), self._ratio(t.double(), *self._ends)


class Looking(Denoiser):
    """x0_hat of a score model, as an azula denoiser."""

    def __init__(self, look: Look, schedule: Schedule) -> None:
        super().__init__()
        self.look, self.schedule = look, schedule

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        """The denoised state at y with shape (B, *) and t with shape ()."""
        return DiracPosterior(self.look.data(x_t, float(self.schedule(t)[1])))


def _peer(label: str, name: str, clock: str, cost: tuple[int, int] = (1, 0), **options: Any) -> Peer:
    stochastic = bool(options.pop("stochastic", False))

    def run(look: Look, y: Tensor, num_steps: int, seed: int) -> Tensor:
        made = getattr(azula.sample, name)(
            Looking(look, Clock(look, clock)), steps=num_steps, silent=True, dtype=torch.float64, **options
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return made(y)

    return Peer("azula", label, clock, run, False, stochastic, *cost)


def deterministic() -> Iterator[Peer]:
    """Every sampler of the probability flow, under each clock."""
    for clock in CLOCKS:
        yield _peer("DDIM", "DDIMSampler", clock)
        yield _peer("Euler", "EulerSampler", clock)
        yield _peer("Ito, eta 0", "ItoSampler", clock, eta=0.0)
        yield _peer("Heun", "HeunSampler", clock, cost=(2, 0))
        for family in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
            for order in (2, 3, 4):
                yield _peer(f"{family}-{order}", f"{family}Sampler", clock, order=order)


def stochastic() -> Iterator[Peer]:
    """Every sampler that draws, under each clock."""
    for clock in CLOCKS:
        yield _peer("DDPM", "DDPMSampler", clock, stochastic=True)
        yield _peer("DDIM, eta 1/2", "DDIMSampler", clock, stochastic=True, eta=0.5)
        for eta in (0.5, 1.0):
            yield _peer(f"Ito, eta {eta:g}", "ItoSampler", clock, stochastic=True, eta=eta)
        for delta in (0.01, 0.1):
            yield _peer(f"PC, delta {delta:g}", "PCSampler", clock, (2, 0), stochastic=True, delta=delta)
