"""The sampler: from noise to data in N looks at a model.

A sampler is a choice of equation (``sde_toolkit.equations``), of a method of ``solvers``, of a time grid and,
if wanted, of a corrector, of restarts and of guidance.  The literature's samplers are made by the
functions of ``sde_toolkit.samplers``.

A run starts from the prior at T and goes down to t_min >= 0.  The end is a matter of options:

    denoise         the last state is replaced by x0_hat (Tweedie), for one more evaluation; it is the same as
                    one more step of first order from t_min to sigma = 0
    t_min = 0       for processes without noise at 0 the last step goes to sigma = 0 itself
    lower_final     (multistep methods) the last steps use the formulas of lower order, which those in
                    log(alpha / sigma) must do on the way to sigma = 0

Predictor-corrector runs some steps of Langevin dynamics after every step; restarts go back to a higher noise
level and down again.  ``callback`` sees every step of a fixed grid.

Sample i of a seed is a function of (seed, i) alone: normals are keyed by sample and draw
(``solvers.brownian``).
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, Wrapper
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.correctors import Corrector
from sde_toolkit.samplers.equations import Equation, ReverseEquation
from sde_toolkit.samplers.grids import Grid
from sde_toolkit.samplers.restarts import Restart, restarted
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream
from solvers import (
    EULER,
    EULER_MARUYAMA,
    RECURSION,
    Adams,
    Adaptive,
    FixedGrid,
    Integrator,
    Interval,
    Method,
    NoiseSource,
    Normals,
    SchemeMethod,
    solve,
)

T_MIN = 1e-3
"""Default end of the reverse run, score_sde's choice for VP."""

_NEVER_AT_END = (EULER, EULER_MARUYAMA, RECURSION, Adams(1))
"""Methods that do not look at the end of a step; those of schemes check by themselves where they look."""


@dataclass(frozen=True)
class Samples:
    """Samples and how they were made.

    Attributes:
        x: the samples with shape (B, *).
        nfe: network evaluations per sample, counted (a mean where samples choose their own steps).
        seconds: wall time.
        seed: of the noise; sample i of the batch has the global index first_sample + i.
        settings: the sampler's options, as plain values.
    """

    x: Tensor
    nfe: float
    seconds: float
    seed: int
    first_sample: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees of one step.

    Attributes:
        number, num_steps: the step, from 0, of how many.
        t, s: where it started and ended, tensors with shape ().
        x: the state at s with shape (B, *), after a corrector.
        x0_hat: the clean prediction of the latest evaluation, with shape (B, *); None where a first step in
            closed form needed none.
        nfe: evaluations per sample so far.
        first_sample: global index of the first sample of the batch.
    """

    number: int
    num_steps: int
    t: Tensor
    s: Tensor
    x: Tensor
    x0_hat: Tensor | None
    nfe: float
    first_sample: int


Callback = Callable[[StepInfo], None]


Guidance = Callable[[ScoreModel], ScoreModel]
"""What changes a model's prediction while sampling: model -> model, see ``sde_toolkit.guidance``."""


class CountedModel(Wrapper):
    """A model that counts its evaluations, one for every row of a batch, and may remember the latest."""

    def __init__(self, model: ScoreModel, remember: bool = False) -> None:
        super().__init__(model)
        self._remember, self.rows = remember, 0
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The model's own prediction at x_t with shape (B, *)."""
        self.rows += x_t.shape[0]
        raw = self.model.raw(x_t, t, condition)
        if self._remember:
            self._latest = x_t, t, raw
        return raw

    def latest_x0_hat(self) -> Tensor | None:
        """The clean prediction of the latest evaluation, with shape (B, *), if there was one."""
        if self._latest is None:
            return None
        x_t, t, raw = self._latest
        return _Known(self, raw).denoise(x_t, t)


class _Known(Wrapper):
    """A model that answers with one prediction made before."""

    def __init__(self, model: ScoreModel, raw: Tensor) -> None:
        super().__init__(model)
        self._raw = raw

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction with shape (B, *)."""
        return self._raw


@dataclass(frozen=True)
class Sampler:
    """A reverse-time sampler: equation, method, grid and options.

    Args:
        name: for records and messages.
        equation: model -> the equation to integrate down to t_min, see ``sde_toolkit.equations``.
        method: of ``solvers``.
        num_steps: steps on the grid; None where the method chooses its own by rtol and atol.
        t_min: end of the run, 0 <= t_min < T.
        grid: times of the steps, see ``sde_toolkit.grids``.
        denoise: whether the last state is replaced by x0_hat there, for one more evaluation.
        corrector: run after every step, or None.
        restarts: intervals that are gone through again, or none.
        guidance: model -> the model that is sampled from, such as one with a threshold or a guided one.
        rtol, atol: tolerances of adaptive methods.
        options: what else distinguishes the sampler, for the records.

    The facts ``order``, ``strong_order``, ``weak_order`` and ``nfe`` are those that the method declares.

    Raises:
        ValueError: num_steps below 1, t_min negative or not finite; a corrector or restarts with a method
            that does the whole run or chooses its own steps; restarts of a stochastic method.
    """

    name: str
    equation: ReverseEquation = field(repr=False)
    method: Method | Integrator
    num_steps: int | None
    t_min: float = T_MIN
    grid: Grid = grids.uniform
    denoise: bool = True
    corrector: Corrector | None = None
    restarts: tuple[Restart, ...] = ()
    guidance: Guidance | None = None
    rtol: float = 1e-5
    atol: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)
    _grids: dict[tuple[ForwardSDE, float], FixedGrid] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.num_steps is not None and operator.index(self.num_steps) < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 <= self.t_min < math.inf:
            raise ValueError(f"t_min must be a finite time >= 0, got {self.t_min}")
        whole = self.num_steps is None or isinstance(self.method, Integrator)
        if self.corrector is not None and whole:
            raise ValueError(f"a corrector needs a fixed grid, but {self.name} chooses its own steps")
        if self.restarts and (whole or self.weak_order is not None):
            raise ValueError(f"restarts need a deterministic sampler on a fixed grid, got {self.name}")

    @property
    def order(self) -> int | None:
        """Declared order of the deterministic error; None for foreign solvers."""
        return None if isinstance(self.method, Integrator) else self.method.order

    @property
    def strong_order(self) -> float | None:
        """Declared strong order; None without noise, or where no path is approximated."""
        return None if isinstance(self.method, Integrator) else self.method.strong_order

    @property
    def weak_order(self) -> float | None:
        """Declared weak order; None for samplers without noise."""
        return None if isinstance(self.method, Integrator) else self.method.weak_order

    @property
    def nfe(self) -> int | None:
        """Declared evaluations per sample; None where the method chooses its own steps."""
        if self.num_steps is None or isinstance(self.method, Integrator):
            return None
        method, n = self.method, self.num_steps
        again = 0 if self.corrector is None else self.corrector.num_steps * n
        if self.corrector is not None and isinstance(method, SchemeMethod) and method.ahead:
            again += n - 1
        if self.corrector is not None and method.first_same_as_last:
            again += n - 1
        restarts = sum(r.repeats * method.nfe(r.num_steps) for r in self.restarts)
        return method.nfe(n) + again + restarts + self.denoise

    @property
    def settings(self) -> dict[str, Any]:
        """The options as plain values, for records."""
        return dict(self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        common: dict[str, Any] = {"sampler": self.name, "t_min": self.t_min, "denoise": self.denoise}
        if self.num_steps is None:
            steps: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol}
        else:
            steps = {"num_steps": self.num_steps, "grid": label(self.grid)}
        wrappers = {"corrector": self.corrector, "restarts": self.restarts, "guidance": self.guidance}
        used = {name: repr(value) for name, value in wrappers.items() if value}
        return common | steps | used | dict(self.options)

    def sample(
        self,
        model: ScoreModel,
        num_samples: int,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        first_sample: int = 0,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
    ) -> Samples:
        """Draw samples with the global indices first_sample, ..., first_sample + num_samples - 1.

        Args:
            model: any ``ScoreModel``.
            num_samples: at least 1.
            seed: of the noise.
            batch_size: samples per evaluation; all at once when None.  The samples do not depend on it.
            first_sample: global index of the first sample.
            noise: a source of normals for all samples in one batch, instead of the seed's own.
            callback: called with a ``StepInfo`` after every step of every batch; needs a fixed grid.

        Raises:
            ValueError: an argument out of range, or t_min >= T of the model's process; before any evaluation.
            solvers.SolverError: a sample became nan or inf, or an adaptive run stalled.
        """
        batch = self._check(model, num_samples, batch_size, noise, callback)
        counted, start = CountedModel(model, callback is not None), time.perf_counter()
        looked_at: ScoreModel = counted if self.guidance is None else self.guidance(counted)
        equation = self.equation(looked_at)
        if (self.corrector is not None or self.restarts) and not equation.plain:
            raise ValueError(
                f"correctors and restarts move x itself, but {self.name} has coordinates of its own"
            )
        parts = []
        for first in range(0, num_samples, batch):
            rows = range(first_sample + first, first_sample + min(first + batch, num_samples))
            source = noise or Normals(seed, rows, model.event_shape, model.dtype, model.device)
            parts.append(self._run(counted, looked_at, equation, source, callback, rows[0]))
        seconds = time.perf_counter() - start
        x = torch.cat(parts) if len(parts) > 1 else parts[0]
        return Samples(x, counted.rows / num_samples, seconds, seed, first_sample, self.settings)

    def _check(
        self,
        model: ScoreModel,
        num_samples: int,
        batch_size: int | None,
        noise: NoiseSource | None,
        callback: Callback | None,
    ) -> int:
        """Refuse what cannot work with this model; return the batch size."""
        if num_samples < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError(f"num_samples and batch_size must be >= 1, got {num_samples} and {batch_size}")
        if noise is not None and batch_size is not None:
            raise ValueError("a noise source serves one batch: leave batch_size out when noise is given")
        if callback is not None and (self.num_steps is None or isinstance(self.method, Integrator)):
            raise ValueError(f"a callback needs a fixed grid, but {self.name} does the whole run by itself")
        if self.t_min >= model.sde.T:
            raise ValueError(f"t_min must be smaller than T = {model.sde.T} of the process, got {self.t_min}")
        # an evaluation at the end of the last step divides by sigma there
        for restart in self.restarts:
            restart.check(model.sde)
        never = self.method in _NEVER_AT_END or isinstance(self.method, SchemeMethod)
        looks_at_end = self.denoise or self.corrector is not None or not never
        # sigma grows from t = 0 on: only there can it be 0
        zero = torch.zeros((), dtype=torch.float64)
        if self.t_min == 0 and looks_at_end and float(model.sde.sigma(zero)) == 0:
            raise ValueError(
                f"{self.name} evaluates the score at t_min, but sigma({self.t_min}) = 0; "
                "raise t_min, or use a sampler that does not look there with denoise=False"
            )
        return batch_size or num_samples

    def _control(self, model: ScoreModel, equation: Equation) -> FixedGrid | Adaptive:
        if self.num_steps is None:
            return Adaptive(equation.start, self.t_min, rtol=self.rtol, atol=self.atol)
        key = (model.sde, equation.start)
        if key not in self._grids:  # the latest alone is kept
            self._grids.clear()
            self._grids[key] = FixedGrid(self.grid(model.sde, self.num_steps, self.t_min, equation.start))
        return self._grids[key]

    @torch.no_grad()
    def _run(
        self,
        counted: CountedModel,
        model: ScoreModel,
        equation: Equation,
        noise: NoiseSource,
        callback: Callback | None,
        first_sample: int,
    ) -> Tensor:
        """One batch, from the prior to the data."""
        control = self._control(model, equation)
        before, x_T = counted.rows, model.sde.prior_sample(noise.draw(0, Stream.PRIOR))

        def after(interval: Interval, y: Tensor) -> Tensor:
            for restart in self.restarts:
                y = restarted(restart, model.sde, equation.term, self.method, control, interval, y, noise)
            if self.corrector is not None:
                y = self.corrector(model, interval, y, noise)
            if callback is not None:
                x, nfe = equation.leave(y, interval.s), (counted.rows - before) / len(y)
                ends = (interval.number, self.num_steps or 0, interval.t, interval.s)
                callback(StepInfo(*ends, x, counted.latest_x0_hat(), nfe, first_sample))
            return y

        hooked = self.corrector is not None or self.restarts or callback is not None
        y = equation.enter(x_T)
        solution = solve(
            equation.term, y, self.method, control, noise=noise, after_step=after if hooked else None
        )
        x = equation.leave(solution.y, solution.ts[-1])
        return model.denoise(x, solution.ts[-1]) if self.denoise else x


def label(function: object) -> str:
    """Name of a function, or what the object that takes its place says of itself, for records."""
    return str(getattr(function, "__name__", repr(function)))
