"""Adaptive runs: every sample of the batch at its own pace.

Each sample has its own time t, step size h, error E and status.  One turn of the loop attempts one step of
every sample that is still on its way: steps with E <= 1 are accepted, the others tried again with a smaller
h; samples that have come to the end, or failed, leave the batch and cost nothing from then on.

A sample fails as NONFINITE when its state or its error estimate stayed nan or inf after the step was cut
several times, as STEP_UNDERFLOW when its step fell below the spacing of floating-point times, and as
MAX_STEPS.  What happens to one sample depends on no other: all operations on the batch are elementwise or
reduce within a sample.

Times, sizes and counts are arrays on the host, where an operation on a few hundred numbers costs a fraction
of what it costs a tensor: a turn sends the times of its steps to the device of the states, and waits for
their errors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.brownian import HeldInterval
from solvers.control import Adaptive, Powers, mean_square
from solvers.interval import Interval, Step
from solvers.methods import Method
from solvers.saving import PacedRecord, SaveAt
from solvers.solution import Solution, Stats, Status
from solvers.terms import expand_like
from solvers.tree import BrownianTree

_NONFINITE_TRIALS = 8
_SMALLEST_START = 1e-9  # of the interval: a first step never vanishes
_NO_SLIVER = 1 + 1e-9  # a step that would leave less than this of itself is stretched to the end
_EPS = torch.finfo(torch.float64).eps


@torch.no_grad()
def first_size(term: Any, y: Tensor, k: Tensor, control: Adaptive, powers: Powers) -> np.ndarray:
    """Hairer's starting step size, per sample, with shape (B,) in float64, unsigned; one evaluation."""
    span = abs(control.t1 - control.t0)
    if control.first_step is not None:
        return np.full(len(y), min(control.first_step, span))
    scale = control.tolerance(y, y)
    d0, d1 = mean_square(y / scale).sqrt(), mean_square(k / scale).sqrt()
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6 * span, 0.01 * d0 / d1)
    h0 = h0.nan_to_num(1e-6 * span).clamp(_SMALLEST_START * span, span)
    signed = control.direction * h0
    inside = (control.t0 + signed).clamp(min(control.t0, control.t1), max(control.t0, control.t1))
    k1 = term.drift(inside, y + expand_like(signed, y) * k)
    d2 = mean_square((k1 - k) / scale).sqrt() / h0
    largest = torch.maximum(d1, d2)
    h1 = there(powers.start(largest.square().cpu().numpy()), y) * torch.where(largest > 0.01, 1.0, span)
    guess = torch.where(largest <= 1e-15, torch.clamp(1e-3 * h0, min=1e-6 * span), h1)
    h = torch.minimum(100 * h0, guess).nan_to_num(1e-6 * span).clamp(_SMALLEST_START * span, span)
    return h.cpu().numpy()


def there(x: np.ndarray, like: Tensor) -> Tensor:
    """An array of the host as a tensor on the device of ``like``."""
    return torch.from_numpy(x).to(like.device)


class _Pace:
    """Time, step size, last error and counts of the samples on their way, each with shape (A,), and how the
    runs of all ended, each with shape (B,).

    Attributes:
        rows: their numbers in the batch.
        taken: accepted steps; may_grow, unhindered: whose last step was accepted, and whether all were.
        broken_off: how often in a row the error was nan or inf; None for never.
        tiny: sizes above this are no underflow at any time of the run.
        path: their noise, or None.
        stops: times that steps must end at, the last of them t1; None where t1 is the only one.
    """

    def __init__(
        self, y0: Tensor, control: Adaptive, path: BrownianTree | None, stops: Tensor | None
    ) -> None:
        count = len(y0)
        self.control, self.path = control, path
        self.stops = None if stops is None else stops.cpu().numpy()
        self.smallest = _EPS**2 * abs(control.t1 - control.t0) if path is None else path.tick
        self.tiny = max(16 * _EPS * max(abs(control.t0), abs(control.t1)), self.smallest)
        self.attempts = self.calls = 0
        self.rows, self.t = np.arange(count), np.full(count, control.t0)
        self.h, self.gain = np.zeros(count), np.ones(count)
        self.may_grow, self.unhindered = np.ones(count, dtype=bool), True
        self.taken, self.extra, self.stop = np.zeros((3, count), dtype=np.int64)
        self.broken_off: np.ndarray | None = None
        self.ended: np.ndarray | None = None
        self.end, self.end_t, self.end_h = y0.clone(), self.t.copy(), self.h.copy()
        self.status, self.nfe, self.all_taken, self.all_rejected = np.zeros((4, count), dtype=np.int64)

    def propose(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(t, h, s) of the next steps; the last one ends exactly at t1, none goes beyond."""
        t, h, down = self.t, self.h, self.control.direction < 0
        limit = self.control.t1 if self.stops is None else self.stops[self.stop]
        reach, s = t + h * _NO_SLIVER, t + h
        if self.path is not None:  # what is left must be longer than the path's resolution
            reach += 2 * self.control.direction * self.path.tick
            s = self.path.snapped(t, np.maximum(s, limit) if down else np.minimum(s, limit))
        last = reach <= limit if down else reach >= limit
        if last.any():
            s = np.where(last, limit, s)
            return t, s - t if self.path is not None else np.where(last, limit - t, h), s
        return t, s - t if self.path is not None else h, s

    def judge(
        self, h: np.ndarray, s: np.ndarray, powers: Powers, error: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """Accept or reject the steps to s by their E^2, and set time, next size and status.

        Returns:
            Which steps are accepted, with shape (A,), and whether all are.
        """
        control = self.control
        accepted = error <= 1  # false for nan
        everyone = bool(accepted.all())
        grow, gain = powers(error)
        factor = np.minimum(np.maximum(grow * self.gain, control.min_factor), control.max_factor)
        if not (everyone and self.unhindered):
            np.minimum(factor, 1.0, out=factor, where=~(accepted & self.may_grow))
        following = h * factor
        if self.stops is not None:
            following, gain = self._at_stops(accepted, s, following, gain)
        self.attempts += 1
        self.may_grow, self.unhindered = accepted, everyone
        self.taken = self.taken + accepted
        if everyone:
            self.t, self.gain = s, gain
        else:
            self.t, self.gain = np.where(accepted, s, self.t), np.where(accepted, gain, self.gain)
        self.h = following
        self._find_ended(h, s, error)
        return accepted, everyone

    def _at_stops(
        self, accepted: np.ndarray, s: np.ndarray, following: np.ndarray, gain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pass on to the next stop.  A step that was cut to end at one does not make those after it short."""
        assert self.stops is not None
        cut = accepted & (s == self.stops[self.stop])
        self.stop = np.minimum(self.stop + cut, len(self.stops) - 1)
        longer = np.maximum if self.control.direction > 0 else np.minimum
        return np.where(cut, longer(self.h, following), following), np.where(cut, self.gain, gain)

    def _find_ended(self, h: np.ndarray, s: np.ndarray, error: np.ndarray) -> None:
        """Set ``ended``, the samples whose run is over, or None, and their status (see the module's text)."""
        arrived, size, finite = self.t == self.control.t1, np.abs(self.h), error < math.inf
        self.ended = None
        running = self.attempts < self.control.max_steps
        if running and finite.all() and not arrived.any() and size.min() > self.tiny:
            self.broken_off = None
            return
        trials = np.zeros_like(self.rows) if self.broken_off is None else self.broken_off
        self.broken_off = trials = np.where(finite, 0, trials + 1)
        tiny = (size <= (16 * _EPS * np.abs(s)).clip(min=self.smallest)) & (size < np.abs(h))
        broken = trials > _NONFINITE_TRIALS
        ended = arrived | tiny | broken | (not running)
        if not ended.any():
            return
        status = np.full_like(self.rows, int(Status.MAX_STEPS))
        status[tiny] = int(Status.STEP_UNDERFLOW)
        status[(tiny & ~finite) | broken] = int(Status.NONFINITE)
        status[arrived] = int(Status.SUCCESS)
        rows, self.ended = self.rows[ended], ended
        self.status[rows] = status[ended]
        self.end_t[rows], self.end_h[rows] = self.t[ended], h[ended]

    def retire(self, y: Tensor) -> Tensor | None:
        """Take the samples whose run is over out of the batch; return the positions of the others, None for
        all."""
        if self.ended is None:
            return None
        rows = self.rows[self.ended]
        self.end[there(rows, y)] = y[there(self.ended, y)]
        self.nfe[rows] = self.calls + self.extra[self.ended]
        self.all_taken[rows] = self.taken[self.ended]
        self.all_rejected[rows] = self.attempts - self.taken[self.ended]
        keep = np.flatnonzero(~self.ended)
        for name in ("rows", "t", "h", "gain", "may_grow", "taken", "extra", "stop"):
            setattr(self, name, getattr(self, name)[keep])
        if self.broken_off is not None:
            self.broken_off = self.broken_off[keep]
        positions = there(keep, y)
        if self.path is not None:
            self.path = self.path.take(positions)
        return positions


def run_adaptive(
    term: Any, counter: Any, y0: Tensor, method: Method, control: Adaptive, path: BrownianTree | None,
    save: SaveAt,
) -> tuple[Solution, Tensor, Tensor]:  # fmt: skip
    """Each sample at its own pace.

    Args:
        term: the equation, with the samples' own arguments.
        counter: counts evaluations in ``calls``; ``bind(term, args)`` is the term for some of the samples.
        y0: start with shape (B, *).
        method, control, path, save: as given to ``solvers.solve``.

    Returns:
        The solution and, per sample, the last time and the last step tried, each with shape (B,).
    """
    record = PacedRecord(save, control, y0, method.dense is not None)
    pace, powers = _Pace(y0, control, path, record.stops), Powers(control, method.error_order or method.order)
    args, bound, start = term.args, counter.bind(term, term.args), there(pace.t, y0)
    carry = method.start(bound, start, y0, None)
    with torch.no_grad():
        k = carry if carry is not None else bound.drift(start, y0)
        pace.h = control.direction * first_size(bound, y0, k, control, powers)
    pace.calls, y = counter.calls, y0
    while len(pace.rows):
        before, stop = counter.calls, pace.stop
        proposed = pace.propose()
        t, h, s = there(np.stack(proposed), y).unbind()
        interval = Interval(0, t, s, expand_like(h, y))
        step = method.step(bound, interval, y, carry, pace.path)
        with torch.no_grad():
            assert step.error is not None
            error = control.squared_error(step.error, y, step.y).cpu().numpy()
        accepted, everyone = pace.judge(*proposed[1:], powers, error)
        if step.y.requires_grad and not bool(step.y.isfinite().all()):
            step = _without(there(~accepted, y), method, bound, interval, h, y, carry, pace.path)
        pace.calls += counter.calls - before
        if not record.idle:
            _keep(record, pace, method, (term, args), counter, (t, h, s), stop, accepted, y, step)
        if everyone:
            y, carry = step.y, step.carry
        else:
            mask = there(accepted, y).reshape(-1, *[1] * (y.ndim - 1))
            y = torch.where(mask, step.y, y)
            carry = None if carry is None else torch.where(mask, step.carry, carry)
        keep = pace.retire(y)
        if keep is not None:
            y, carry = y[keep], None if carry is None else carry[keep]
            if args:
                args = tuple(arg[keep] for arg in args)
                bound = counter.bind(term, args)
    counts = (pace.nfe, pace.all_taken, pace.all_rejected, pace.status, pace.end_t, pace.end_h)
    nfe, taken, rejected, status, end_t, end_h = (there(count, y0) for count in counts)
    return Solution(*record.result(pace.end), Stats(nfe, taken, rejected), status), end_t, end_h


def _without(
    rejected: Tensor, method: Method, term: Any, interval: Interval, h: Tensor, y: Tensor,
    carry: Tensor | None, path: BrownianTree | None,
) -> Step:  # fmt: skip
    """The step again, with length 0 for rejected samples: infinite values that no result depends on would
    still reach the gradients as 0 * inf."""
    noise = None if path is None else HeldInterval(path, interval)
    length = expand_like(torch.where(rejected, 0.0, h), y)
    s = torch.where(rejected, interval.t, interval.s)
    return method.step(term, Interval(interval.number, interval.t, s, length), y, carry, noise)


def _keep(
    record: PacedRecord, pace: _Pace, method: Method, equation: tuple[Any, tuple[Tensor, ...]], counter: Any,
    times: tuple[Tensor, Tensor, Tensor], stop: np.ndarray, accepted: np.ndarray, y: Tensor, step: Step,
) -> None:  # fmt: skip
    """Save what is wanted of the accepted steps: their ends, or the times inside them, each sample inside its
    own step."""
    t, h, s = times
    rows, taken, at_stop, passed = (there(x, y) for x in (pace.rows, pace.taken, stop, accepted))
    if not record.interpolates:
        record.ends(rows, taken, at_stop, s, passed, step.y)
        return
    due = record.due(t, s, passed)
    if due is None:
        return
    positions, number, sample = due
    assert method.dense is not None
    t, h, s, y, y_next = (v[positions] for v in (t, h, s, y, step.y))
    (term, args), calls = equation, counter.calls
    bound = counter.bind(term, tuple(arg[positions] for arg in args))
    interval = Interval(0, t, s, expand_like(h, y))
    stages = method.dense.extend(bound, interval, y, [k[positions] for k in step.stages])
    pace.extra[positions.cpu().numpy()] += counter.calls - calls
    u = record.fraction(number, t[sample], h[sample])
    inside = method.dense.at(expand_like(h, y)[sample], y[sample], [k[sample] for k in stages], u)
    record.keep(number, rows[positions][sample], inside, s[sample], y_next[sample])
