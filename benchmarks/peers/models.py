"""What peers are given: one model in scale-free coordinates, its range of noise levels, and a clock.

Every sampler of the field, whatever process its library has in mind, is a rule for the scale-free state
y = x_t / alpha_t and the noise-to-signal ratio n = sigma_t / alpha_t of the flow dy/dn = z_hat(y, n).  A peer
starts from our start y_T at the largest ratio of the process and ends at the smallest one, or at noise zero
where its last step goes there; it may look at the model at any ratio, and every look is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.sdes import VPSDE

INSTALL = "pip install 'sde-toolkit[peers]'"
TABLE = 1000
"""Training indices of the schedulers that think in indices."""


class Look:
    """A model as peers see it, and the count of their looks.

    Args:
        model: any ``ScoreModel``.
        t_min: end of the run.
    """

    def __init__(self, model: ScoreModel, t_min: float) -> None:
        self.model, self.t_min, self.count = model, t_min, 0
        ends = torch.tensor([model.sde.T, t_min], dtype=torch.float64)
        self.nsr_max, self.nsr_min = model.sde.nsr(ends).tolist()
        self._seen: dict[float, tuple[Tensor, float]] = {}

    def noise(self, y: Tensor, n: float) -> Tensor:
        """z_hat(y, n) with the shape and type of y."""
        if n not in self._seen:
            t = self.model.sde.inverse_nsr(torch.tensor(n, dtype=torch.float64))
            self._seen[n] = t, float(self.model.sde.alpha(t))
        t, alpha_t = self._seen[n]
        self.count += 1
        return self.model.noise((alpha_t * y).to(self.model.dtype), t).to(y.dtype)

    def data(self, y: Tensor, n: float) -> Tensor:
        """x0_hat(y, n) with the shape and type of y."""
        return y - n * self.noise(y, n)

    def start(self, x_T: Tensor) -> Tensor:
        """y at the largest ratio."""
        return x_T / float(self.model.sde.alpha(torch.tensor(self.model.sde.T, dtype=torch.float64)))

    def end(self, y: Tensor) -> Tensor:
        """x at t_min."""
        return y * float(self.model.sde.alpha(torch.tensor(self.t_min, dtype=torch.float64)))


def vp_clock(u: Tensor, nsr_min: float, nsr_max: float) -> Tensor:
    """Ratios at fractions u in [0, 1] of the time of DDPM's linear schedule between two ratios."""
    sde = VPSDE()
    first, last = sde.inverse_nsr(torch.tensor([nsr_min, nsr_max], dtype=torch.float64))
    return sde.nsr(first + (last - first) * u)


@dataclass(frozen=True)
class Peer:
    """One sampler of another library under one of its schedules.

    Attributes:
        library, name, schedule: for the tables.
        run: (look, y_T, num_steps, seed) -> y at the end; the seed is for stochastic samplers.
        at_zero: whether the end is noise zero, not the smallest ratio.
        stochastic: whether the sampler draws.
        per_step, extra: looks in a run of N steps, per_step N + extra.
        least: the smallest number of steps that the library takes.
        divides: whether the steps must divide ``TABLE``, for libraries that step by whole indices.
    """

    library: str
    name: str
    schedule: str
    run: Callable[[Look, Tensor, int, int], Tensor]
    at_zero: bool
    stochastic: bool = False
    per_step: int = 1
    extra: int = 0
    least: int = 1
    divides: bool = False

    @property
    def title(self) -> str:
        """Library, sampler, schedule and end, as in the tables."""
        return f"{self.library} {self.name}, {self.schedule}{', to zero' if self.at_zero else ''}"

    @property
    def sampler(self) -> str:
        """Library and sampler."""
        return f"{self.library} {self.name}"

    def steps_within(self, nfe: int) -> int:
        """The largest number of steps that spends at most ``nfe`` looks; 0 where there is none."""
        steps = (nfe - self.extra) // self.per_step
        while self.divides and steps > 0 and TABLE % steps:
            steps -= 1
        return steps if steps >= self.least else 0
