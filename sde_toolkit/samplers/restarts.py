"""Restarts: back to a higher noise level by the forward process, and down again by the sampler's own steps.

When a run reaches the noise-to-signal ratio n_min of an interval (n_min, n_max), it repeats K times

    x_t = (alpha_t / alpha_s) x_s + alpha_t sqrt(n_t^2 - n_s^2) z,      n_t = n_max,  z ~ N(0, I),

and integrates its deterministic equation from t back to s.  The noise contracts the errors made before, the
deterministic steps make few of their own.

Reference: Xu et al., "Restart Sampling for Improving Generative Processes" (2306.14878).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.samplers import grids
from sde_toolkit.samplers.grids import Grid
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream, check_fields
from solvers import Adaptive, FixedGrid, Integrator, Interval, Method, NoiseSource, Term, solve


@dataclass(frozen=True)
class Restart:
    """One interval of noise-to-signal ratios that is gone through again.

    Args:
        nsr_min: the run restarts at the first time of its grid at which the ratio is at most this, and
            restarts from the ratio there.
        nsr_max: where it goes back to.
        num_steps: steps down.
        repeats: how often.
        grid: of the steps down.
        stream: which draws it takes; give intervals of one sampler different ones.

    Raises:
        ValueError: ratios that do not increase, or counts below 1.
    """

    nsr_min: float
    nsr_max: float
    num_steps: int = 5
    repeats: int = 1
    grid: Grid = grids.karras
    stream: int = Stream.RESTART

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.nsr_min < self.nsr_max < math.inf:
            raise ValueError(
                f"a restart needs 0 < nsr_min < nsr_max, got {self.nsr_min} and {self.nsr_max}; the run goes "
                "back from the lower to the higher noise level"
            )
        if operator.index(self.num_steps) < 1 or operator.index(self.repeats) < 1:
            raise ValueError(
                f"num_steps and repeats of a restart must be >= 1, got {self.num_steps}, {self.repeats}"
            )

    def check(self, sde: ForwardSDE, t_start: float | None = None) -> None:
        """Refuse noise that the process, or a run from given states, does not reach.

        Raises:
            ValueError: nsr_max is above the ratio at ``t_start``, T by default.
        """
        most = float(sde.nsr(torch.tensor(sde.T if t_start is None else t_start, dtype=torch.float64)))
        if self.nsr_max > most * (1 + 1e-9):
            where = "T" if t_start is None else f"t_start = {t_start:.6g}"
            raise ValueError(
                f"nsr_max of a restart must be at most that at {where}, {most:.6g}, got {self.nsr_max}"
            )

    def due(self, sde: ForwardSDE, ts: Tensor) -> int | None:
        """The number of the step at whose end a run on the times ``ts`` restarts; None if it never does."""
        due = (sde.nsr(ts[1:]) <= self.nsr_min).nonzero()
        return int(due[0]) if len(due) else None

    def down(self, sde: ForwardSDE, s: Tensor) -> FixedGrid:
        """The times of the steps down, from where it goes back to, to the time s with shape ()."""
        t = sde.inverse_nsr(torch.tensor(self.nsr_max, dtype=torch.float64))
        return FixedGrid(self.grid(sde, self.num_steps, s.item(), t.item()))

    def noised(self, sde: ForwardSDE, down: FixedGrid, x: Tensor, noise: NoiseSource, k: int) -> Tensor:
        """A state x at the end of the times ``down`` brought back to their beginning, for repeat k."""
        t, s = down.ts[0], down.ts[-1]
        scale = float((sde.log_alpha(t) - sde.log_alpha(s)).exp())
        spread = float(sde.alpha(t) * (sde.nsr(t).square() - sde.nsr(s).square()).sqrt())
        return scale * x + spread * noise.draw(k, self.stream)


def restarted(
    restart: Restart,
    sde: ForwardSDE,
    term: Term,
    method: Method | Integrator,
    control: FixedGrid | Adaptive,
    interval: Interval,
    x: Tensor,
    noise: NoiseSource,
) -> Tensor | None:
    """The state with shape (B, *) after the restarts that are due at the end of a step; None if none is."""
    assert isinstance(control, FixedGrid)
    if restart.due(sde, control.ts) != interval.number:
        return None
    down = restart.down(sde, interval.s)
    plan = method.prepare(term, down, x) if isinstance(method, Method) else None
    for k in range(restart.repeats):
        x = restart.noised(sde, down, x, noise, k)
        x = solve(term, x, method, down, noise=noise, plan=plan).y
    return x
