"""Other people's solvers behind the same call, for comparison: scipy.integrate.solve_ivp and torchsde.sdeint.

SciPy integrates the whole batch as one system of equations, as score_sde does: all samples share their steps,
so a sample's result depends, within the tolerance, on its neighbours.  torchsde draws its own Brownian motion
from a seed and works forwards in time on states of shape (B, D); here a run from t0 down to t1 is handed over
in the clock u = |t - t0|, and any state shape is flattened and restored.  Neither carries gradients.

References: Virtanen et al., "SciPy 1.0" (1907.10121); Li et al., "Scalable Gradients for Stochastic
Differential Equations" (2001.01328).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import numpy as np
import scipy.integrate
import torch
import torchsde
from torch import Tensor

from solvers.brownian import NoiseSource
from solvers.control import Adaptive, FixedGrid
from solvers.methods import Integrator
from solvers.saving import SaveAt
from solvers.solution import Solution, SolverError, Stats, Status
from solvers.terms import ODE, SDE, Term, expand_like, flatten

SCIPY_METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


def _solution(t1: float, y: Tensor, nfe: int, num_steps: int, save: SaveAt) -> Solution:
    """The end of a run in which all samples took the same steps."""
    count = torch.ones(len(y), dtype=torch.int64, device=y.device)
    t = torch.tensor(t1, dtype=torch.float64)
    finite = flatten(y.detach()).isfinite().all(1)
    status = torch.where(finite, int(Status.SUCCESS), int(Status.NONFINITE))
    return Solution(t[None], save.of(t, y)[None], Stats(nfe * count, num_steps * count, 0 * count), status)


@dataclass(frozen=True)
class SciPy(Integrator):
    """One of the solvers behind ``scipy.integrate.solve_ivp``, on the host in float64, under ``Adaptive``
    control.

    Args:
        name: one of SciPy's methods, "RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA".
    """

    name: str = "RK45"

    def __post_init__(self) -> None:
        if self.name not in SCIPY_METHODS:
            raise ValueError(f"name must be one of {', '.join(SCIPY_METHODS)}, got {self.name!r}")

    @torch.no_grad()
    def integrate(
        self, term: Term, y0: Tensor, control: FixedGrid | Adaptive, noise: NoiseSource | None, save: SaveAt
    ) -> Solution:
        """Solve an ``ODE`` from y0 with shape (B, *).

        Raises:
            TypeError, ValueError: not an ODE, or not under ``Adaptive`` control with the end alone saved.
            SolverError: the field became nan or inf, or SciPy gave up.
        """
        if not isinstance(term, ODE):
            raise TypeError(f"scipy integrates an ODE, got {type(term).__name__}")
        if not isinstance(control, Adaptive) or save.steps or save.times:
            raise ValueError("scipy chooses its own steps: give it Adaptive control and save the end alone")
        everyone = tuple(range(len(y0)))
        calls = 0

        def field(t: float, flat: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            y = torch.from_numpy(flat).reshape(y0.shape).to(y0)
            dy = term.drift(torch.tensor(t, dtype=torch.float64), y, *term.args)
            bad = ~flatten(dy).isfinite().all(1)
            if bool(bad.any()):
                samples = tuple(bad.nonzero().flatten().tolist())
                message = f"NONFINITE: the field became nan or inf at t = {t:.9g} in samples {samples[:8]}"
                raise SolverError(message, Status.NONFINITE, samples, t, float("nan"))
            return dy.detach().to("cpu", torch.float64).flatten().numpy()

        stepper = getattr(scipy.integrate, self.name)(
            field,
            control.t0,
            y0.detach().to("cpu", torch.float64).flatten().numpy(),
            control.t1,
            rtol=max(control.rtol, 100 * torch.finfo(torch.float64).eps),
            atol=control.atol,
            first_step=control.first_step and min(control.first_step, abs(control.t1 - control.t0)),
        )
        taken = 0
        while stepper.status == "running":
            message = stepper.step() if taken < control.max_steps else "max_steps was reached"
            if message is not None:
                status = Status.STEP_UNDERFLOW if stepper.status == "failed" else Status.MAX_STEPS
                where = float(stepper.t)
                raise SolverError(
                    f"{status.name}: t = {where:.9g}: {message}", status, everyone, where, float("nan")
                )
            taken += 1
        y = torch.from_numpy(stepper.y.copy()).reshape(y0.shape).to(y0)
        return _solution(control.t1, y, calls, taken, save)


@dataclass(frozen=True)
class TorchSDE(Integrator):
    """``torchsde.sdeint`` with its own Brownian motion, on a uniform ``FixedGrid`` (its length gives ``dt``).

    Args:
        name: a torchsde method for Ito equations: "euler", "milstein", "srk".
        seed: entropy of the Brownian motion; the result depends on the batch size, unlike that of our own
            noise.
    """

    name: str = "euler"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in ("euler", "milstein", "srk"):
            raise ValueError(f"name must be one of euler, milstein, srk, got {self.name!r}")
        object.__setattr__(self, "seed", operator.index(self.seed))

    @torch.no_grad()
    def integrate(
        self, term: Term, y0: Tensor, control: FixedGrid | Adaptive, noise: NoiseSource | None, save: SaveAt
    ) -> Solution:
        """Solve an ``SDE`` from y0 with shape (B, *).

        Raises:
            TypeError, ValueError: not an SDE, or not on a uniform FixedGrid.
        """
        if not isinstance(term, SDE):
            raise TypeError(f"torchsde integrates an SDE, got {type(term).__name__}")
        if not isinstance(control, FixedGrid) or not _uniform(control):
            raise ValueError("torchsde takes equal steps: give it a FixedGrid with equally spaced times")
        problem = _Flattened(term, y0.shape, control)
        span = abs(float(control.ts[-1] - control.ts[0]))
        count = control.num_steps
        flat = flatten(y0)
        levy = "space-time" if self.name == "srk" else "none"
        motion = torchsde.BrownianInterval(
            0.0,
            span,
            size=flat.shape,
            dtype=y0.dtype,
            device=y0.device,
            entropy=self.seed,
            levy_area_approximation=levy,
        )
        dt = span / count * (1 + 1e-9)  # a hair more, or the sum of the steps falls short and one is added
        ts = torch.linspace(0, span, count + 1 if save.steps else 2, dtype=torch.float64)
        ys = torchsde.sdeint(problem, flat, ts, bm=motion, method=self.name, dt=dt).reshape(-1, *y0.shape)
        solution = _solution(float(control.ts[-1]), ys[-1], problem.calls, count, save)
        if not save.steps:
            return solution
        kept = torch.stack([save.of(t, y) for t, y in zip(control.ts, ys, strict=True)])
        return Solution(control.ts, kept, solution.stats, solution.status)


def _uniform(grid: FixedGrid) -> bool:
    even = torch.linspace(float(grid.ts[0]), float(grid.ts[-1]), grid.num_steps + 1, dtype=torch.float64)
    return bool(((grid.ts - even).abs() <= 1e-6 * (grid.ts[-1] - grid.ts[0]).abs()).all())


class _Flattened(torch.nn.Module):
    """A term in torchsde's form: f(u, y), g(u, y) on states (B, D) in the clock u = |t - t0|."""

    sde_type = "ito"
    noise_type = "diagonal"

    def __init__(self, term: SDE, shape: torch.Size, grid: FixedGrid) -> None:
        super().__init__()
        self._term, self._shape, self.calls = term, shape, 0
        self._t0 = float(grid.ts[0])
        self._t1 = float(grid.ts[-1])
        self._direction = math.copysign(1.0, self._t1 - self._t0)

    def _time(self, u: Tensor) -> Tensor:
        low, high = min(self._t0, self._t1), max(self._t0, self._t1)
        t = self._t0 + self._direction * u.detach().to("cpu", torch.float64)
        return t.clamp(low, high)

    def f(self, u: Tensor, flat: Tensor) -> Tensor:
        """Drift in the clock u, with shape (B, D)."""
        self.calls += 1
        drift = self._term.drift(self._time(u), flat.reshape(self._shape), *self._term.args)
        return self._direction * flatten(drift)

    def g(self, u: Tensor, flat: Tensor) -> Tensor:
        """Diffusion with shape (B, D)."""
        t, y = self._time(u), flat.reshape(self._shape)
        if self._term.noise == "additive":
            return flatten(expand_like(self._term.diffusion(t), y).expand(self._shape)).to(y.dtype)
        return flatten(self._term.diffusion(t, y, *self._term.args))
