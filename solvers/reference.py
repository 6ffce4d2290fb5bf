"""Other libraries' solvers behind the same call: SciPy's ``solve_ivp`` and torchsde's ``sdeint``.

SciPy integrates the whole batch as one system of equations, as score_sde does.  All samples share their
steps, and the run fails for all of them or for none.  So a sample's result depends, within the tolerance, on
the other samples.

torchsde works forwards in time on states of shape (B, D).  A run from t0 down to t1 is given to it in the
clock u = |t - t0|, and any state shape is flattened and restored.  Its methods for Stratonovich equations get
the drift f - g g' / 2, so that they solve the same Ito equation.  Where ``noise`` is given, they run on the
same path as our own methods, and otherwise on torchsde's own Brownian motion.

Neither carries gradients.

References: Virtanen et al., "SciPy 1.0" (1907.10121); Li et al., "Scalable Gradients for Stochastic
Differential Equations" (2001.01328).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.integrate
import torch
import torchsde
from torch import Tensor

from solvers.brownian import NoiseSource
from solvers.control import Adaptive, FixedGrid
from solvers.integrator import Integrator
from solvers.saving import SaveAt
from solvers.solution import Solution, SolverError, Stats, Status
from solvers.stochastic import diffusion_and_product
from solvers.terms import ODE, SDE, Term, expand_like, flatten
from solvers.tree import BrownianTree, path_between

SCIPY_METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")

_NEAR = 1e-4  # of a step: torchsde's times this close to a time of the grid are taken for it

TORCHSDE_METHODS = {
    "euler": ("ito", "none"),
    "milstein": ("ito", "none"),
    "srk": ("ito", "space-time"),
    "euler_heun": ("stratonovich", "none"),
    "heun": ("stratonovich", "none"),
    "midpoint": ("stratonovich", "none"),
    "reversible_heun": ("stratonovich", "none"),
    "log_ode": ("stratonovich", "foster"),
}
"""torchsde's methods: their calculus, and the Levy areas that they use."""


def _solution(
    ts: Tensor, ys: list[Tensor], y: Tensor, save: SaveAt, counts: tuple[int, int], status: Status
) -> Solution:
    """The solution of a run that ended at y, in which all samples share ``counts``, (evaluations, steps)."""
    count = torch.ones(len(y), dtype=torch.int64, device=y.device)
    finite = flatten(y.detach()).isfinite().all(1)
    ended = torch.where(finite | (status != Status.SUCCESS), int(status), int(Status.NONFINITE))
    kept = torch.stack([save.of(t, value) for t, value in zip(ts, ys, strict=True)])
    return Solution(ts, kept, Stats(counts[0] * count, counts[1] * count, 0 * count), ended)


class _BrokenFieldError(Exception):
    """The field became nan or inf: at which time, and in which samples."""


@dataclass(frozen=True)
class SciPy(Integrator):
    """A solver of ``scipy.integrate.solve_ivp``, on the host in float64, under ``Adaptive`` control.

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
            TypeError, ValueError: not an ODE, or not under ``Adaptive`` control.
            SolverError: the field became nan or inf, or SciPy gave up.
        """
        if not isinstance(term, ODE):
            raise TypeError(f"scipy integrates an ODE, got {type(term).__name__}")
        if not isinstance(control, Adaptive):
            raise ValueError("scipy chooses its own steps: give it Adaptive control")
        save.check_times(control.t0, control.t1)
        run = _SciPyRun(term, y0, control, save)
        try:
            status, message = run.integrate(getattr(scipy.integrate, self.name))
        except _BrokenFieldError as error:
            where, samples = error.args
            shown = f"samples {samples[:8]} of {len(y0)}" if len(samples) > 1 else f"sample {samples[0]}"
            message = f"NONFINITE: {shown} failed at t = {where:.9g}: the field became nan or inf"
            solution = run.result(Status.NONFINITE)
            raise SolverError(message, Status.NONFINITE, samples, where, math.nan, solution) from None
        solution = run.result(status)
        if status != Status.SUCCESS:
            message = f"{status.name}: all samples, which SciPy solves as one, at t = {run.t:.9g}: {message}"
            raise SolverError(message, status, tuple(range(len(y0))), run.t, math.nan, solution)
        return solution


class _SciPyRun:
    """The steps of one of SciPy's solvers, and what is kept of them."""

    def __init__(self, term: ODE, y0: Tensor, control: Adaptive, save: SaveAt) -> None:
        self._term, self._y0, self._control, self._save = term, y0, control, save
        self._due = list(save.times or ())
        self._ts, self._ys = ([control.t0], [y0]) if save.steps else ([], [])
        self.t, self._y, self._calls, self._taken = control.t0, y0, 0, 0

    def _state(self, flat: Any) -> Tensor:
        return torch.from_numpy(np.array(flat)).reshape(self._y0.shape).to(self._y0)

    def _field(self, t: float, flat: Any) -> Any:
        self._calls += 1
        dy = self._term.drift(torch.tensor(t, dtype=torch.float64), self._state(flat), *self._term.args)
        bad = ~flatten(dy).isfinite().all(1)
        if bool(bad.any()):
            raise _BrokenFieldError(t, tuple(bad.nonzero().flatten().tolist()))
        return dy.detach().to("cpu", torch.float64).flatten().numpy()

    def integrate(self, solver: Any) -> tuple[Status, str]:
        """Step to the end; return how the run ended, and SciPy's message."""
        control = self._control
        stepper = solver(
            self._field,
            control.t0,
            self._y0.detach().to("cpu", torch.float64).flatten().numpy(),
            control.t1,
            rtol=max(control.rtol, 100 * torch.finfo(torch.float64).eps),
            atol=control.atol,
            first_step=control.first_step and min(control.first_step, abs(control.t1 - control.t0)),
        )
        while stepper.status == "running":
            if self._taken == control.max_steps:
                return Status.MAX_STEPS, "max_steps was reached; loosen rtol and atol or raise max_steps"
            message = stepper.step()
            if message is not None:
                return Status.STEP_UNDERFLOW, message
            self._taken += 1
            self.t, self._y = float(stepper.t), self._state(stepper.y)
            self._keep(stepper)
        return Status.SUCCESS, ""

    def _keep(self, stepper: Any) -> None:
        """Keep what is wanted of the step just taken."""
        if self._save.steps:
            self._ts.append(self.t)
            self._ys.append(self._y)
        direction, inside = self._control.direction, None
        while self._due and direction * self._due[0] <= direction * self.t:
            t = self._due.pop(0)
            inside = inside or stepper.dense_output()
            self._ts.append(t)
            self._ys.append(self._y if t == self.t else self._state(inside(t)))

    def result(self, status: Status) -> Solution:
        """All that was kept so far; nan at the times that the run never reached."""
        if self._save.times is None and not self._save.steps:
            self._ts, self._ys = [self._control.t1], [self._y]
        ts = self._ts + self._due
        ys = self._ys + [torch.full_like(self._y0, math.nan)] * len(self._due)
        times = torch.tensor(ts, dtype=torch.float64)
        return _solution(times, ys, self._y, self._save, (self._calls, self._taken), status)


@dataclass(frozen=True)
class TorchSDE(Integrator):
    """``torchsde.sdeint`` on a uniform ``FixedGrid`` (its length gives ``dt``).

    Args:
        name: a torchsde method: "euler", "milstein", "srk" for Ito equations; "euler_heun", "heun",
            "midpoint", "reversible_heun", "log_ode" for Stratonovich equations, to which the term is
            converted.
        seed: entropy of torchsde's own Brownian motion, used where ``solve`` is given no ``noise``; the
            result then depends on the batch size, unlike that of our own noise.
    """

    name: str = "euler"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in TORCHSDE_METHODS:
            raise ValueError(f"name must be one of {', '.join(TORCHSDE_METHODS)}, got {self.name!r}")
        object.__setattr__(self, "seed", operator.index(self.seed))

    @torch.no_grad()
    def integrate(
        self, term: Term, y0: Tensor, control: FixedGrid | Adaptive, noise: NoiseSource | None, save: SaveAt
    ) -> Solution:
        """Solve an ``SDE`` from y0 with shape (B, *).

        Raises:
            TypeError, ValueError: not an SDE, not on a uniform FixedGrid, times that are not on the grid, or
                noise that is not a path.
        """
        if not isinstance(term, SDE):
            raise TypeError(f"torchsde integrates an SDE, got {type(term).__name__}")
        if not isinstance(control, FixedGrid) or not _uniform(control):
            raise ValueError("torchsde takes equal steps: give it a FixedGrid with equally spaced times")
        if not set(save.times or ()) <= set(control.ts.tolist()):
            raise ValueError("torchsde has no dense output: save times of the grid")
        calculus, areas = TORCHSDE_METHODS[self.name]
        problem, flat = _Flattened(term, y0.shape, control, calculus), flatten(y0)
        t0, t1, count = problem.t0, problem.t1, control.num_steps
        span = abs(t1 - t0)
        if noise is None:
            motion: Any = torchsde.BrownianInterval(
                0.0, span, size=flat.shape, dtype=y0.dtype, device=y0.device, entropy=self.seed,
                levy_area_approximation=areas,
            )  # fmt: skip
        elif areas == "foster":
            raise ValueError(f"{self.name} asks for areas between coordinates: leave noise out, use seed")
        else:
            motion = _Driven(path_between(t0, t1, noise), problem, flat, areas)
        dt = span / count * (1 + _NEAR / 1e3 / count)  # or the sum falls short, and a step is added
        every = save.steps or save.times is not None
        ts = torch.linspace(0, span, count + 1 if every else 2, dtype=torch.float64)
        ys = torchsde.sdeint(problem, flat, ts, bm=motion, method=self.name, dt=dt).reshape(-1, *y0.shape)
        grid = control.ts if every else control.ts[-1:]
        wanted = range(len(grid)) if save.times is None else [grid.tolist().index(t) for t in save.times]
        kept = list(ys if every else ys[-1:])
        counts = (problem.calls, count)
        return _solution(grid[list(wanted)], [kept[i] for i in wanted], ys[-1], save, counts, Status.SUCCESS)


def _uniform(grid: FixedGrid) -> bool:
    even = torch.linspace(float(grid.ts[0]), float(grid.ts[-1]), grid.num_steps + 1, dtype=torch.float64)
    return bool(((grid.ts - even).abs() <= 1e-6 * (grid.ts[-1] - grid.ts[0]).abs()).all())


class _Flattened(torch.nn.Module):
    """A term in torchsde's form: f(u, y), g(u, y) on states (B, D) in the clock u = |t - t0|."""

    noise_type = "diagonal"

    def __init__(self, term: SDE, shape: torch.Size, grid: FixedGrid, calculus: str) -> None:
        super().__init__()
        self._term, self._shape, self.calls, self.sde_type = term, shape, 0, calculus
        self.t0, self.t1, self._ts = float(grid.ts[0]), float(grid.ts[-1]), grid.ts
        self._direction = math.copysign(1.0, self.t1 - self.t0)

    def time(self, u: Any) -> Tensor:
        """The time t in the interval, float64 with shape (), at which the clock shows u."""
        low, high = min(self.t0, self.t1), max(self.t0, self.t1)
        clock = torch.as_tensor(u, dtype=torch.float64).detach().to("cpu")
        count = len(self._ts) - 1
        steps = float(clock) / (high - low) * count
        if abs(steps - round(steps)) < _NEAR and round(steps) <= count:
            return self._ts[round(steps)]
        return (self.t0 + self._direction * clock).clamp(low, high)

    def f(self, u: Tensor, flat: Tensor) -> Tensor:
        """Drift in the clock u, with shape (B, D)."""
        self.calls += 1
        t, y = self.time(u), flat.reshape(self._shape)
        drift = self._direction * flatten(self._term.drift(t, y, *self._term.args))
        if self.sde_type == "stratonovich" and self._term.noise == "diagonal":
            drift = drift - 0.5 * flatten(diffusion_and_product(self._term, t, y)[1])
        return drift

    def g(self, u: Tensor, flat: Tensor) -> Tensor:
        """Diffusion with shape (B, D)."""
        t, y = self.time(u), flat.reshape(self._shape)
        if self._term.noise == "additive":
            return flatten(expand_like(self._term.diffusion(t), y).expand(self._shape)).to(y.dtype)
        return flatten(self._term.diffusion(t, y, *self._term.args))


class _Driven(torchsde.BaseBrownian):
    """One of our paths in torchsde's form: W, and U = int_0^h W_r dr = h (W / 2 + H)."""

    dtype = device = shape = levy_area_approximation = None  # abstract properties there

    def __init__(self, path: BrownianTree, problem: _Flattened, flat: Tensor, areas: str) -> None:
        super().__init__()
        self._path, self._problem = path, problem
        self.dtype, self.device, self.shape = flat.dtype, flat.device, flat.shape
        self.levy_area_approximation = areas

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        """W with shape (B, D), and U, over the clock from ta to tb."""
        w, h = (flatten(part) for part in self._path(self._problem.time(ta), self._problem.time(tb)))
        return (w, float(tb - ta) * (0.5 * w + h)) if return_U else w

    def __repr__(self) -> str:
        return f"_Driven({self._path!r})"
