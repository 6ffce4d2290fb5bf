"""The loop: a term, a method and a rule for the steps make a solution.

Every sample of the batch is a problem of its own.  On a fixed grid all take the same steps, and no step waits
for the device: the states are checked once, at the end, and a run that failed is repeated with a check after
every step, to find where it broke.  Under adaptive control each sample has its own time, step size, error and
status (``solvers.adaptive``).

Status of a sample: SUCCESS; NONFINITE, the state or its error estimate became nan or inf; STEP_UNDERFLOW;
MAX_STEPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as _checkpoint

from solvers.adaptive import run_adaptive
from solvers.annotations import shown
from solvers.arguments import checked
from solvers.brownian import BrownianMotion, NoiseSource, StepNormals
from solvers.control import Adaptive, FixedGrid
from solvers.integrator import Integrator
from solvers.interval import Interval, Step
from solvers.methods import Method
from solvers.saving import END, GridRecord, SaveAt
from solvers.schemes import SchemeMethod
from solvers.solution import Solution, SolverError, Stats, Status, finish
from solvers.terms import SDE, Recursion, Scheme, Semilinear, Spread, Term, flatten
from solvers.tree import path_between

AfterStep = Callable[[Interval, Tensor], Tensor | None]


@checked
def solve(
    term: Term,
    y0: Tensor,
    method: Method | Integrator,
    control: FixedGrid | Adaptive,
    *,
    noise: NoiseSource | None = None,
    save: SaveAt = END,
    after_step: AfterStep | None = None,
    throw: bool = True,
    checkpoint: bool = False,
    plan: Any = None,
) -> Solution:
    """Integrate a term for a batch of samples.

    Args:
        term: the equation, ``ODE``, ``SDE``, ``Semilinear``, ``Recursion``, ``Spread`` or ``Scheme``.
        y0: start with shape (B, *), floating point.
        method: a ``Method``, or an ``Integrator`` such as those of ``solvers.reference``.
        control: ``FixedGrid(ts)`` or ``Adaptive(t0, t1, ...)``.
        noise: source of normals with shape (B, *), wanted by terms with noise.  Under adaptive control it is
            a ``BrownianTree`` over the interval, or ``Normals``, of which one is made.
        save: what to keep.
        after_step: called as ``after_step(interval, y)`` after every step of a fixed grid (correctors,
            progress); it may return a state with the shape of y, with which the run goes on, or None.
        throw: raise ``SolverError`` if a sample fails; otherwise its status tells.
        checkpoint: on a fixed grid, keep for autograd only the states between the steps and repeat each step
            in the backward pass: memory for time, the same gradients.
        plan: what ``method.prepare(term, control, y0)`` returned, for several runs on one grid; made here
            when None.

    Gradients flow through fixed grids as through any code.  Through an adaptive run they flow with the sizes
    of the accepted steps held constant: they are the gradients of the same steps on a fixed grid.

    Raises:
        TypeError, ValueError: the parts do not fit together; raised before the first evaluation (or right
            after it, when the drift does not return the shape and type of the state).
        SolverError: a sample failed and ``throw`` is true; names status, samples, t and h.
    """
    _check(term, y0, method, control, noise, save, after_step)
    if checkpoint and not (isinstance(method, Method) and isinstance(control, FixedGrid)):
        raise ValueError("checkpoint repeats the steps of a FixedGrid; leave it out for other runs")
    if isinstance(method, Integrator):
        try:
            return finish(method.integrate(term, y0, control, noise, save), None, None, throw)
        except SolverError as error:
            if throw:
                raise
            return error.solution
    if isinstance(control, Adaptive):
        path = path_between(control.t0, control.t1, noise) if isinstance(term, SDE) else None
        solution, t, h = run_adaptive(term, Counter(), y0, method, control, path, save)
        return finish(solution, t, h, throw)
    return _solve_fixed(term, y0, method, control, noise, save, after_step, throw, checkpoint, plan)


def _solve_fixed(
    term: Term,
    y0: Tensor,
    method: Method,
    control: FixedGrid,
    noise: NoiseSource | None,
    save: SaveAt,
    after_step: AfterStep | None,
    throw: bool,
    checkpoint: bool,
    plan: Any,
) -> Solution:
    """Run once without waiting for the device, and again up to the break if a sample failed."""
    if isinstance(method, SchemeMethod) and method.evaluates_end and (after_step is not None or save != END):
        method = replace(method, exposed=True)
    motion = noise if noise is None or isinstance(noise, BrownianMotion) else StepNormals(noise)
    plan = method.prepare(term, control, y0) if plan is None else plan
    solution, broken = _run_fixed(term, y0, method, control, motion, save, after_step, checkpoint, plan)
    if not broken or not throw:
        return solution
    sample = int(solution.status.nonzero()[0])
    index = _first_break(term, y0, method, control, motion, after_step, sample, plan)
    h = control.ts.diff()[index]
    return finish(solution, control.ts[index].expand(len(y0)), h.expand(len(y0)), throw)


def _check(
    term: Term,
    y0: Tensor,
    method: Method | Integrator,
    control: FixedGrid | Adaptive,
    noise: NoiseSource | None,
    save: SaveAt,
    after_step: AfterStep | None,
) -> None:
    if y0.ndim < 1 or not y0.is_floating_point():
        raise ValueError(f"y0 must be floating point with shape (B, *), got {y0.dtype} {tuple(y0.shape)}")
    for k, argument in enumerate(term.args):
        if not isinstance(argument, Tensor) or argument.shape[:1] != y0.shape[:1]:
            raise ValueError(
                f"args[{k}] of the term must be a tensor with one row for each of the {len(y0)} samples, got "
                f"{shown(argument)}; repeat it with expand, or bind it to the function"
            )
    if isinstance(method, Integrator):
        if after_step is not None:
            raise ValueError(
                f"after_step needs one of our own methods, got {method.name}, which runs by itself"
            )
        return
    if not isinstance(term, method.terms):
        wanted = " or ".join(kind.__name__ for kind in method.terms)
        raise TypeError(
            f"method {method.name} integrates {wanted}, got {type(term).__name__}; choose another method"
        )
    if isinstance(term, SDE) and term.noise == "diagonal" and method.diagonal_strong_order is None:
        raise ValueError(
            f"method {method.name} takes additive noise, got diagonal; choose MILSTEIN or EULER_MARUYAMA"
        )
    if isinstance(control, Adaptive):
        if not method.has_error:
            raise ValueError(
                f"method {method.name} has no error estimate for adaptive control; give it a FixedGrid"
            )
        if after_step is not None:
            raise ValueError("after_step needs a FixedGrid, got Adaptive control; leave it out")
    save.check(method, control, after_step is not None)
    noisy = isinstance(term, SDE | Spread) or (isinstance(term, Recursion | Scheme) and term.noisy)
    noisy = noisy or (isinstance(term, Semilinear) and term.diffusion is not None)
    if noisy and noise is None:
        raise ValueError(
            f"a {type(term).__name__} with noise needs noise=, for instance Normals(seed, B, event_shape)"
        )


class Counter:
    """Counts the evaluations of a drift, and checks what the first one returns."""

    def __init__(self) -> None:
        self.calls = 0

    def bind(self, term: Term, args: tuple[Tensor, ...]) -> Any:
        """The term with a counted drift and a diffusion that need no further arguments.

        Args:
            term: the equation.
            args: the samples' own arguments, one row for each sample of the state.
        """
        drift = term.drift

        def counted(t: Tensor, y: Tensor) -> Any:
            dy = drift(t, y, *args)
            if not self.calls:
                _check_evaluation(term, dy, y)
            self.calls += 1
            return dy

        if not isinstance(term, SDE) or term.noise == "additive":
            bound: Any = term
            return replace(bound, drift=counted)
        g, slope = term.diffusion, term.diffusion_derivative
        return replace(
            term,
            drift=counted,
            diffusion=lambda t, y: g(t, y, *args),
            diffusion_derivative=None if slope is None else lambda t, y: slope(t, y, *args),
            args=(),
        )


def _check_evaluation(term: Term, found: Any, y: Tensor) -> None:
    """Refuse what the first evaluation returned if it does not fit the state."""
    if not isinstance(term, Spread):
        _check_field(found, y)
        return
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"the drift of a Spread must return (N, v), got {shown(found)}")
    for part in found:
        _check_field(part, y)


def _check_field(dy: Tensor, y: Tensor) -> None:
    if not isinstance(dy, Tensor):
        raise TypeError(f"the drift must return a tensor, got {type(dy).__name__}")
    if dy.shape != y.shape or torch.promote_types(dy.dtype, y.dtype) != y.dtype:
        raise TypeError(
            f"the drift must return the shape and type of the state, {tuple(y.shape)} and {y.dtype}, got "
            f"{tuple(dy.shape)} and {dy.dtype}; expand_like(t, y) fits times and coefficients to a state"
        )


def _steps(
    term: Any,
    y: Tensor,
    method: Method,
    grid: FixedGrid,
    noise: BrownianMotion | None,
    after_step: AfterStep | None,
    plan: Any,
    checkpoint: bool = False,
) -> Iterator[tuple[Interval, Tensor, Step, Tensor]]:
    """Every step of a fixed grid: its interval, the state before, the step, the state after."""
    advance = partial(_checkpoint, method.step, use_reentrant=False) if checkpoint else method.step
    carry = method.start(term, grid.ts[0], y, plan)
    for interval in grid.intervals:
        step = advance(term, interval, y, carry, noise)
        y_next, carry = step.y, step.carry
        replacement = None if after_step is None else after_step(interval, y_next)
        if replacement is not None:
            y_next, carry = replacement, method.replaced(carry)
        yield interval, y, step, y_next
        y = y_next


def _run_fixed(
    term: Term,
    y: Tensor,
    method: Method,
    grid: FixedGrid,
    noise: BrownianMotion | None,
    save: SaveAt,
    after_step: AfterStep | None,
    checkpoint: bool,
    plan: Any,
) -> tuple[Solution, bool]:
    """What was kept, and whether any sample ended badly."""
    counter = Counter()
    bound = counter.bind(term, term.args)
    record = GridRecord(save, method, grid)
    record.start(grid.ts[0], y)
    for interval, before, step, after in _steps(bound, y, method, grid, noise, after_step, plan, checkpoint):
        if save is not END:
            record.after(bound, interval, before, step, after)
        y = after
    zeros = y.detach() * 0  # nan for inf and nan
    broken = math.isnan(float(zeros.sum()))
    counts = (counter.calls, grid.num_steps, 0, int(Status.SUCCESS))
    *stats, status = (torch.full(y.shape[:1], n, dtype=torch.int64, device=y.device) for n in counts)
    if broken:
        status[flatten(zeros).sum(1).isnan()] = int(Status.NONFINITE)
    return Solution(*record.result(y), Stats(*stats), status), broken


@torch.no_grad()
def _first_break(
    term: Term,
    y: Tensor,
    method: Method,
    grid: FixedGrid,
    noise: BrownianMotion | None,
    after_step: AfterStep | None,
    sample: int,
    plan: Any,
) -> int:
    """Repeat a run that ended badly and return the first step after which ``sample`` is not finite."""
    bound = Counter().bind(term, term.args)
    for interval, _, _, after in _steps(bound, y, method, grid, noise, after_step, plan):
        if not bool(after[sample].isfinite().all()):
            return interval.number
    return grid.num_steps - 1
