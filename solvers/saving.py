"""What a solution keeps: the end, requested times, every step, or a function of the state at those times.

    y(t + u h) ~ y + h sum_i b_i(u) k_i,      0 <= u <= 1                  dense output, ``solvers.dense``

A method with dense output does not shorten its steps for requested times; it evaluates this polynomial at the
time wanted.  On a fixed grid all samples share the step; under adaptive control every sample is interpolated
inside a step of its own.  Methods without dense output, such as those for SDEs, end a step at every requested
time under adaptive control and refuse times between the points of a fixed grid.  If only the end is saved,
the memory of a run does not grow with its number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from solvers.arguments import check_fields
from solvers.control import Adaptive, FixedGrid
from solvers.interval import Interval, Step
from solvers.methods import Method


@dataclass(frozen=True)
class SaveAt:
    """What a solution keeps: by default the state at the end.

    Args:
        steps: keep the start and the state after every step.  Under adaptive control the times of the
            solution have shape (S, B), and samples with fewer steps than others repeat their last.
        function: applied to (t, y) before keeping; t with shape () (with ``steps`` under adaptive control
            (B,)), y with shape (B, *).
        times: keep the state at these times, in the order of the run, both ends allowed.

    Raises:
        ValueError: times that are not finite or not strictly monotone, or both steps and times.
    """

    steps: bool = False
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    times: Sequence[float] | Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.times is None:
            return
        if self.steps:
            raise ValueError("SaveAt keeps every step or requested times, not both: leave one out")
        times = tuple(torch.as_tensor(self.times, dtype=torch.float64).flatten().tolist())
        signs = {math.copysign(1.0, b - a) if a != b else 0.0 for a, b in pairwise(times)}
        if not times or not all(map(math.isfinite, times)) or len(signs) > 1 or 0.0 in signs:
            raise ValueError(f"times must be finite and strictly increase or decrease, got {times[:4]}")
        object.__setattr__(self, "times", times)

    def of(self, t: Tensor, y: Tensor) -> Tensor:
        """What is kept of the state y at time t."""
        return y if self.function is None else self.function(t, y)

    def check_times(self, t0: float, t1: float) -> None:
        """Refuse times that do not lie, in order, between the ends of a run.

        Raises:
            ValueError: such times.
        """
        times, direction = list(self.times or ()), math.copysign(1.0, t1 - t0)
        if any(direction * a > direction * b for a, b in pairwise([t0, *times, t1])):
            raise ValueError(f"times must run from {t0} to {t1}, got {times[0]} to {times[-1]}")

    def check(self, method: Method, control: FixedGrid | Adaptive, hooked: bool) -> None:
        """Refuse times outside the run, or inside steps that cannot be interpolated.

        Raises:
            ValueError: with what would do.
        """
        if self.times is None:
            return
        if isinstance(control, Adaptive):
            self.check_times(control.t0, control.t1)
            return
        self.check_times(*control.ts[[0, -1]].tolist())
        inside = not set(self.times) <= set(control.ts.tolist())
        if inside and method.dense is None:
            raise ValueError(
                f"method {method.name} has no dense output: save times of its grid, or choose another method"
            )
        if inside and hooked:
            raise ValueError("after_step changes the state that dense output joins: save times of the grid")


END = SaveAt()


class GridRecord:
    """What is kept of a run on a fixed grid."""

    def __init__(self, save: SaveAt, method: Method, grid: FixedGrid) -> None:
        self._save, self._dense, self._ts = save, method.dense, grid.ts
        self._kept: list[Tensor] = []
        self._due: dict[int, list[tuple[Tensor, float]]] = {}
        sign = math.copysign(1.0, grid.ends[1] - grid.ends[0])
        for time in save.times or ():
            t = torch.tensor(time, dtype=torch.float64)
            index = int(torch.searchsorted(sign * grid.ts, sign * t)) - 1
            u = 1.0 if index < 0 else float((t - grid.ts[index]) / (grid.ts[index + 1] - grid.ts[index]))
            self._due.setdefault(index, []).append((t, u))

    def start(self, t: Tensor, y: Tensor) -> None:
        """Before the first step."""
        if self._save.steps or -1 in self._due:
            self._kept.append(self._save.of(t, y))

    def after(self, term: object, interval: Interval, y: Tensor, step: Step, y_next: Tensor) -> None:
        """After the step from y to y_next, both with shape (B, *)."""
        if self._save.steps:
            self._kept.append(self._save.of(interval.s, y_next))
        due = self._due.get(interval.number)
        if due is None:
            return
        stages: Sequence[Tensor] = ()
        for t, u in due:
            value = y_next
            if u != 1:
                assert self._dense is not None
                stages = stages or self._dense.extend(term, interval, y, step.stages)
                value = self._dense.at(interval.h, y, stages, u)
            self._kept.append(self._save.of(t, value))

    def result(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Times with shape (S,) and what was kept there with shape (S, B, *), for a run that ended at y."""
        if self._save.times is not None:
            return torch.tensor(self._save.times, dtype=torch.float64), torch.stack(self._kept)
        if self._save.steps:
            return self._ts, torch.stack(self._kept)
        return self._ts[-1:], self._save.of(self._ts[-1], y)[None]


class PacedRecord:
    """What is kept of an adaptive run, in which every sample reaches the requested times in its own steps.

    A requested time lies inside a step where the method has dense output, and at the end of one elsewhere.
    """

    def __init__(self, save: SaveAt, control: Adaptive, y0: Tensor, dense: bool) -> None:
        self._save, self._sign, self._y0, self._t1 = save, control.direction, y0, control.t1
        self._times = torch.tensor(save.times or (), dtype=torch.float64, device=y0.device)
        self._clock = self._sign * self._times
        self.interpolates = dense and save.times is not None
        self.idle = save.times is None and not save.steps
        times = tuple(save.times or ())
        self._first = int(bool(times) and times[0] == control.t0)
        self.stops: Tensor | None = None
        if times and not dense:
            last = () if times[-1] == control.t1 else (control.t1,)
            stops = (*times[self._first :], *last)
            self.stops = torch.tensor(stops, dtype=torch.float64, device=y0.device)
        self._pieces: list[tuple[Tensor, ...]] = []
        if self._first or save.steps:
            everyone = torch.arange(len(y0), device=y0.device)
            start = torch.full((len(y0),), control.t0, dtype=torch.float64, device=y0.device)
            self._pieces.append((torch.zeros_like(everyone), everyone, y0, start))

    def ends(
        self, rows: Tensor, taken: Tensor, stop: Tensor, s: Tensor, accepted: Tensor, y_next: Tensor
    ) -> None:
        """Keep those ends y_next with shape (A, *) of accepted steps of the samples ``rows`` that are wanted.

        Args:
            taken: number of the step, with shape (A,).
            stop: number of the next of ``stops``, with shape (A,).
            s: time of the end, with shape (A,).
        """
        if self._save.steps:
            wanted, number = accepted, taken
        elif self.stops is not None:
            number = stop + self._first
            wanted = accepted & (s == self.stops[stop]) & (number < len(self._times))
        else:
            return
        if bool(wanted.any()):
            self._pieces.append((number[wanted], rows[wanted], y_next[wanted], s[wanted]))

    def due(self, t: Tensor, s: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Which requested times lie in the accepted steps from t to s, each with shape (A,).

        Returns:
            The positions, with shape (P,), of the samples with at least one such time; and for every such
            time, with shape (M,), its number and the index of its sample among the positions.  None if there
            are no such times.
        """
        first = torch.searchsorted(self._clock, self._sign * t, right=True)
        count = (torch.searchsorted(self._clock, self._sign * s, right=True) - first) * accepted
        positions = count.nonzero().flatten()
        if not len(positions):
            return None
        count = count[positions]
        sample = torch.arange(len(positions), device=t.device).repeat_interleave(count)
        rank = torch.arange(len(sample), device=t.device) - (count.cumsum(0) - count)[sample]
        return positions, first[positions][sample] + rank, sample

    def fraction(self, number: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Where requested times with these numbers lie in the steps from t of length h, in [0, 1]."""
        return ((self._times[number] - t) / h).clamp(0, 1)

    def keep(self, number: Tensor, rows: Tensor, inside: Tensor, s: Tensor, y_next: Tensor) -> None:
        """Keep interpolated states of the samples ``rows``, or y_next at the end of the step."""
        times = self._times[number]
        at_end = (times == s).reshape(-1, *[1] * (y_next.ndim - 1))
        self._pieces.append((number, rows, torch.where(at_end, y_next, inside), times))

    def result(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Times and what was kept at them, with shape (S, B, *), for a run that ended at y.

        The times have shape (S,), or (S, B) where every step is kept.  A sample that never reached a
        requested time has nan there; a sample with fewer steps than others repeats its last.
        """
        if self._save.times is None and not self._save.steps:
            end = torch.tensor(self._t1, dtype=torch.float64)
            return end[None], self._save.of(end, y)[None]
        steps, count = self._save.steps, len(self._times)
        numbers, rows, values, times = self._gathered()
        if steps:
            count = int(numbers.max()) + 1 if len(numbers) else 1
        ys = torch.full((count, *self._y0.shape), math.nan, dtype=y.dtype, device=y.device)
        ys = ys.index_put((numbers, rows), values)
        ts = self._times.to("cpu")
        if steps:
            ts = torch.zeros((count, len(y)), dtype=torch.float64, device=y.device)
            ts = ts.index_put((numbers, rows), times)
            last = torch.bincount(rows, minlength=len(y)) - 1
            held = torch.arange(count, device=y.device)[:, None].minimum(last)
            everyone = torch.arange(len(y), device=y.device)
            ts, ys = ts[held, everyone], ys[held, everyone]
        if self._save.function is None:
            return ts, ys
        return ts, torch.stack([self._save.function(t, state) for t, state in zip(ts, ys, strict=True)])

    def _gathered(self) -> tuple[Tensor, ...]:
        """Numbers, rows, values and times of all that was kept."""
        if self._pieces:
            return tuple(torch.cat(parts) for parts in zip(*self._pieces, strict=True))
        none = torch.zeros(0, dtype=torch.int64, device=self._y0.device)
        return none, none, self._y0[:0], none.to(torch.float64)
