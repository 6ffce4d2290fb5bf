"""The loop: a term, a method and a rule for the steps make a solution.

Every sample of the batch is a problem of its own.  On a fixed grid all take the same steps, and nothing on
the way waits for the device; only at the end is the result looked at, and a run that ended badly is repeated
with a look at every step, to say where it broke.  Under adaptive control each sample has its own time, step
size, error and status; samples that have finished or failed leave the batch and cost nothing.

Status of a sample: SUCCESS; NONFINITE, the state or its error estimate became nan or inf (for adaptive
control: and stayed so after the step was cut several times); STEP_UNDERFLOW, the step fell below the spacing
of floating-point times; MAX_STEPS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as _checkpoint

from solvers.brownian import BrownianMotion, HeldInterval, NoiseSource, StepNormals
from solvers.control import Adaptive, FixedGrid, power, rms
from solvers.methods import Integrator, Interval, Method, Step
from solvers.saving import END, GridRecord, PacedRecord, SaveAt
from solvers.solution import Solution, Stats, Status, finish
from solvers.terms import SDE, Recursion, Scheme, Semilinear, Term, expand_like, flatten
from solvers.tree import BrownianTree, path_between

AfterStep = Callable[[Interval, Tensor], Tensor]

_NONFINITE_TRIALS = 8
_SMALLEST_START = 1e-9  # of the interval: a first step never vanishes


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
) -> Solution:
    """Integrate a term for a batch of samples.

    Args:
        term: the equation, ``ODE``, ``SDE``, ``Semilinear`` or ``Recursion``.
        y0: start with shape (B, *), floating point.
        method: a ``Method``, or an ``Integrator`` such as those of ``solvers.reference``.
        control: ``FixedGrid(ts)`` or ``Adaptive(t0, t1, ...)``.
        noise: source of normals with shape (B, *), wanted by terms with noise.  Under adaptive control it is
            a ``BrownianTree`` over the interval, or ``Normals``, of which one is made.
        save: what to keep.
        after_step: called as ``after_step(interval, y) -> y`` after every step of a fixed grid (correctors,
            thresholding, progress).
        throw: raise ``SolverError`` if a sample fails; otherwise its status tells.
        checkpoint: on a fixed grid, keep for autograd only the states between the steps and repeat each step
            in the backward pass: memory for time, the same gradients.

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
        solution = method.integrate(term, y0, control, noise, save)
        return finish(solution, None, None, throw)
    if isinstance(control, Adaptive):
        path = path_between(control.t0, control.t1, noise) if isinstance(term, SDE) else None
        solution, where = _run_adaptive(term, y0, method, control, path, save)
        return finish(solution, where[0], where[1], throw)
    motion = noise if noise is None or isinstance(noise, BrownianMotion) else StepNormals(noise)
    solution = _run_fixed(term, y0, method, control, motion, save, after_step, checkpoint)
    if not throw or not bool(solution.status.any()):
        return solution
    sample = int(solution.status.nonzero()[0])
    index = _first_break(term, y0, method, control, motion, after_step, sample)
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
        if save.steps or after_step is not None:
            raise ValueError(
                "saving every step and after_step need a FixedGrid, got Adaptive control; SaveAt(times=...) "
                "keeps the states of all samples at the same times"
            )
    save.check(method, control, after_step is not None)
    noisy = isinstance(term, SDE) or (isinstance(term, Recursion | Scheme) and term.noisy)
    noisy = noisy or (isinstance(term, Semilinear) and term.diffusion is not None)
    if noisy and noise is None:
        raise ValueError(
            f"a {type(term).__name__} with noise needs noise=, for instance Normals(seed, B, event_shape)"
        )


class _Counter:
    """A drift that counts its evaluations and passes the samples' own arguments on."""

    def __init__(self, term: Term) -> None:
        self._drift, self.args, self.calls = term.drift, term.args, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        dy = self._drift(t, y, *self.args)
        if not self.calls:
            _check_field(dy, y)
        self.calls += 1
        return dy


def _check_field(dy: Tensor, y: Tensor) -> None:
    if dy.shape != y.shape or torch.promote_types(dy.dtype, y.dtype) != y.dtype:
        raise TypeError(
            f"the drift must return the shape and type of the state, {tuple(y.shape)} and {y.dtype}, got "
            f"{tuple(dy.shape)} and {dy.dtype}; expand_like(t, y) fits times and coefficients to a state"
        )


def _bind(term: Term, counter: _Counter) -> Any:
    """The term with a counted drift and a diffusion that need no further arguments."""
    if not isinstance(term, SDE) or term.noise == "additive":
        return replace(term, drift=counter)
    g, slope = term.diffusion, term.diffusion_derivative
    return replace(
        term,
        drift=counter,
        diffusion=lambda t, y: g(t, y, *counter.args),
        diffusion_derivative=None if slope is None else lambda t, y: slope(t, y, *counter.args),
    )


def _steps(
    term: Any,
    y: Tensor,
    method: Method,
    grid: FixedGrid,
    noise: BrownianMotion | None,
    after_step: AfterStep | None,
    checkpoint: bool = False,
) -> Iterator[tuple[Interval, Tensor, Step, Tensor]]:
    """Every step of a fixed grid: its interval, the state before, the step, the state after."""
    times, lengths = grid.ts.unbind(), grid.ts.diff().tolist()
    advance = partial(_checkpoint, method.step, use_reentrant=False) if checkpoint else method.step
    carry = method.start(term, times[0], y, grid)
    for index, h in enumerate(lengths):
        interval = Interval(index, times[index], times[index + 1], h)
        step = advance(term, interval, y, carry, noise)
        y_next, carry = step.y, step.carry
        if after_step is not None:
            y_next = after_step(interval, y_next)
            carry = None if method.first_same_as_last else carry
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
) -> Solution:
    counter = _Counter(term)
    bound = _bind(term, counter)
    record = GridRecord(save, method, grid)
    record.start(grid.ts[0], y)
    for interval, before, step, after in _steps(bound, y, method, grid, noise, after_step, checkpoint):
        record.after(bound, interval, before, step, after)
        y = after
    finite = flatten(y.detach()).isfinite().all(1)
    count = torch.ones(len(y), dtype=torch.int64, device=y.device)
    stats = Stats(counter.calls * count, grid.num_steps * count, 0 * count)
    status = torch.where(finite, int(Status.SUCCESS), int(Status.NONFINITE))
    return Solution(*record.result(y), stats, status)


@torch.no_grad()
def _first_break(
    term: Term,
    y: Tensor,
    method: Method,
    grid: FixedGrid,
    noise: BrownianMotion | None,
    after_step: AfterStep | None,
    sample: int,
) -> int:
    """Repeat a run that ended badly and return the first step after which ``sample`` is not finite."""
    bound = _bind(term, _Counter(term))
    for interval, _, _, after in _steps(bound, y, method, grid, noise, after_step):
        if not bool(after[sample].isfinite().all()):
            return interval.number
    return grid.num_steps - 1


@torch.no_grad()
def _first_size(
    term: Any, counter: _Counter, y: Tensor, k: Tensor, control: Adaptive, order: float
) -> Tensor:
    """Hairer's starting step size, per sample, with shape (B,) in float64, unsigned; one evaluation."""
    span = abs(control.t1 - control.t0)
    if control.first_step is not None:
        return torch.full((len(y),), min(control.first_step, span), dtype=torch.float64, device=y.device)
    scale = control.tolerance(y, y)
    d0, d1 = rms(y / scale), rms(k / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6 * span, 0.01 * d0 / d1)
    h0 = h0.nan_to_num(1e-6 * span).clamp(_SMALLEST_START * span, span)
    signed = control.direction * h0
    inside = (control.t0 + signed).clamp(min(control.t0, control.t1), max(control.t0, control.t1))
    k1 = term.drift(inside, y + expand_like(signed, y) * k)
    d2 = rms((k1 - k) / scale) / h0
    largest = torch.maximum(d1, d2)
    h1 = power((0.01 / largest).clamp(max=1.0), 1 / (order + 1)) * torch.where(largest > 0.01, 1.0, span)
    guess = torch.where(largest <= 1e-15, torch.clamp(1e-3 * h0, min=1e-6 * span), h1)
    return torch.minimum(100 * h0, guess).nan_to_num(1e-6 * span).clamp(_SMALLEST_START * span, span)


def _run_adaptive(
    term: Term, y0: Tensor, method: Method, control: Adaptive, path: BrownianTree | None, save: SaveAt
) -> tuple[Solution, tuple[Tensor, Tensor]]:
    """Each sample at its own pace; returns the solution and, per sample, the last time and step tried."""
    counter, order = _Counter(term), method.error_order or method.order
    run, record = _Paces(y0, control, path), PacedRecord(save, control, y0)
    bound = _bind(term, counter)
    start = torch.full((len(y0),), control.t0, dtype=torch.float64, device=y0.device)
    carry = method.start(bound, start, y0, None)
    with torch.no_grad():
        k = carry if carry is not None else bound.drift(start, y0)
        run.h = control.direction * _first_size(bound, counter, y0, k, control, order)
    run.nfe += counter.calls
    y, all_args = y0, counter.args
    while run.active.numel():
        rows, calls = run.active, counter.calls
        t, h, s = run.propose()
        counter.args = tuple(arg[rows] for arg in all_args)
        step = method.step(bound, Interval(0, t, s, expand_like(h, y)), y, carry, run.path)
        with torch.no_grad():
            assert step.error is not None
            error = rms(step.error / control.tolerance(y, step.y))
            accepted = run.judge(t, h, s, error, step.y, order)
        if step.y.requires_grad and not bool(step.y.isfinite().all()):
            step = _without(~accepted, method, bound, Interval(0, t, s, h), y, carry, run.path)
        run.nfe[rows] += counter.calls - calls
        _keep(record, run, method, bound, counter, all_args, (t, h, s), accepted, y, step)
        mask = expand_like(accepted, y).bool()
        y = torch.where(mask, step.y, y)
        carry = None if carry is None else torch.where(mask, step.carry, carry)
        y, carry = run.retire(y, carry)
    stats = Stats(run.nfe, run.taken, run.rejected)
    return Solution(*record.result(run.end, control.t1), stats, run.status), (run.t, run.h)


def _without(
    rejected: Tensor,
    method: Method,
    term: Any,
    interval: Interval,
    y: Tensor,
    carry: Tensor | None,
    path: BrownianTree | None,
) -> Step:
    """The step again, with length 0 for rejected samples: infinite values that no result depends on would
    still reach the gradients as 0 * inf."""
    number, t, s, h = interval
    assert isinstance(h, Tensor)
    h = torch.where(rejected, 0.0, h)
    noise = None if path is None else HeldInterval(path, interval)
    return method.step(
        term, Interval(number, t, torch.where(rejected, t, s), expand_like(h, y)), y, carry, noise
    )


def _keep(
    record: PacedRecord,
    run: _Paces,
    method: Method,
    term: Any,
    counter: _Counter,
    all_args: tuple[Tensor, ...],
    times: tuple[Tensor, Tensor, Tensor],
    accepted: Tensor,
    y: Tensor,
    step: Step,
) -> None:
    """Save the requested times that lie in the accepted steps, each sample inside its own step."""
    t, h, s = times
    due = record.due(t, s, accepted)
    if due is None:
        return
    positions, number, sample = due
    assert method.dense is not None
    rows, calls = run.active[positions], counter.calls
    t, h, s, y, y_next = (v[positions] for v in (t, h, s, y, step.y))
    counter.args = tuple(arg[rows] for arg in all_args)
    interval = Interval(0, t, s, expand_like(h, y))
    stages = method.dense.extend(term, interval, y, [k[positions] for k in step.stages])
    run.nfe[rows] += counter.calls - calls
    u = record.fraction(number, t[sample], h[sample])
    inside = method.dense.at(expand_like(h, y)[sample], y[sample], [k[sample] for k in stages], u)
    record.keep(number, rows[sample], inside, s[sample], y_next[sample])


class _Paces:
    """Time, step size, last error, counts and status of every sample under adaptive control, each with shape
    (B,); ``path`` is the noise of the active samples."""

    def __init__(self, y0: Tensor, control: Adaptive, path: BrownianTree | None) -> None:
        count, device = len(y0), y0.device
        self.control, self.path = control, path
        self.smallest = 0.0 if path is None else path.tick
        self.t = torch.full((count,), control.t0, dtype=torch.float64, device=device)
        self.h = torch.zeros_like(self.t)
        self.previous = torch.ones_like(self.t)
        self.nfe, self.taken, self.rejected, self.trials = torch.zeros(
            (4, count), dtype=torch.int64, device=device
        )
        self.status = torch.zeros(count, dtype=torch.int64, device=device)
        self.may_grow = torch.ones(count, dtype=torch.bool, device=device)
        self.active = torch.arange(count, device=device)
        self.end = y0.clone()

    def propose(self) -> tuple[Tensor, Tensor, Tensor]:
        """(t, h, s) of the active samples; the last step ends exactly at t1."""
        t, h = self.t[self.active], self.h[self.active]
        left = self.control.t1 - t
        last = h.abs() >= left.abs() * (1 - 1e-9)
        h, s = torch.where(last, left, h), torch.where(last, self.control.t1, t + h)
        if self.path is None:
            return t, h, s
        s = self.path.snap(t, s)
        return t, s - t, s

    def judge(self, t: Tensor, h: Tensor, s: Tensor, error: Tensor, y_next: Tensor, order: float) -> Tensor:
        """Accept or reject the step of every active sample, and set its next size and status."""
        rows, control = self.active, self.control
        finite = error.isfinite() & flatten(y_next.detach()).isfinite().all(1)
        accepted = finite & (error <= 1)
        factor = control.factor(error, self.previous[rows], accepted & self.may_grow[rows], order)
        factor = torch.where(finite, factor, control.min_factor)
        self.t[rows] = torch.where(accepted, s, t)
        self.may_grow[rows] = accepted
        self.previous[rows] = torch.where(accepted, error.clamp(min=1e-4), self.previous[rows])
        self.taken[rows] += accepted
        self.rejected[rows] += ~accepted
        self.trials[rows] = torch.where(finite, 0, self.trials[rows] + 1)
        spacing = 16 * torch.finfo(torch.float64).eps * torch.maximum(t.abs(), s.abs())
        spacing = spacing.clamp(min=self.smallest)
        status = torch.zeros_like(rows)
        status[self.taken[rows] + self.rejected[rows] >= control.max_steps] = int(Status.MAX_STEPS)
        underflow = (factor < 1) & ((h * factor).abs() <= spacing)
        status[underflow] = int(Status.STEP_UNDERFLOW)
        status[(underflow & ~finite) | (self.trials[rows] > _NONFINITE_TRIALS)] = int(Status.NONFINITE)
        status[self.t[rows] == control.t1] = int(Status.SUCCESS)
        self.status[rows] = status
        self.h[rows] = torch.where(status == 0, h * factor, h)
        return accepted

    def retire(self, y: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Take finished and failed samples out of the batch."""
        rows = self.active
        running = (self.status[rows] == 0) & (self.t[rows] != self.control.t1)
        if bool(running.all()):
            return y, carry
        done = ~running
        self.end[rows[done]] = y[done]
        self.active = rows[running]
        if self.path is not None:
            self.path = self.path.take(running.nonzero().flatten())
        return y[running], None if carry is None else carry[running]
