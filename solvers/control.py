"""Where steps end: on a fixed grid, or by a step size that is controlled for every sample.

Fixed grid.  Points t_0, ..., t_N in float64 on the host, strictly monotone, up or down; the run lands on each
of them exactly.

Adaptive.  For a method with an embedded error estimate e of order p - 1 each sample measures

    E = rms( e / (atol + rtol max(|y_t|, |y_s|)) )        over its own elements,

accepts the step if E <= 1, and multiplies its step size by

    clip( safety E^(-k_I / p) E_previous^(k_P / p), min_factor, max_factor )        (a PI controller),

never growing right after a rejection.  For p < 3 the safety factor is raised to the power 3 / p, because the
error estimates of stochastic steps (p = 3/2) scatter from one attempt to the next.

Powers are looked up by E^2 in a table with a few entries per factor of 2.  Computed powers can round
differently in batches of different sizes; comparisons cannot.  So a sample's steps do not depend on the other
samples of its batch.

Reference: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", sections II.4 and IV.2.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import check_fields, checked
from solvers.interval import Interval
from solvers.terms import flatten

T = TypeVar("T")

_PER_OCTAVE, _LOWEST, _HIGHEST = 8, -60, 140  # of E^2, in powers of 2
_SMOOTH = 3  # from this order on the safety factor is enough


MAX_STEPS = 10_000
"""Attempted adaptive steps after which a sample has failed, by default."""


def _increasing_or_decreasing(ts: Tensor) -> bool:
    steps = ts.diff()
    return bool((steps > 0).all() or (steps < 0).all())


BLOCK_STEPS = 4096
"""Steps of a grid that are made at once."""


class InBlocks(Sequence[T]):
    """One entry for every step of a long grid, made in blocks when they are asked for.

    Args:
        parts: how many entries a part has, and what makes those first, ..., end - 1 of it.
    """

    def __init__(self, parts: Sequence[tuple[int, Callable[[int, int], list[T]]]]) -> None:
        self._makers = [make for _, make in parts]
        self._ends = list(itertools.accumulate(count for count, _ in parts))
        self._first = 0
        self._block: list[T] = []

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> T:  # type: ignore[override]
        """The entry of a step; the block around it is kept until another one is asked for."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        if not self._first <= number < self._first + len(self._block):
            which = bisect.bisect_right(self._ends, number)
            start = self._ends[which - 1] if which else 0
            first = (number - start) // BLOCK_STEPS * BLOCK_STEPS
            end = min(first + BLOCK_STEPS, self._ends[which] - start)
            self._first, self._block = start + first, self._makers[which](first, end)
        return self._block[number - self._first]


class FixedGrid:
    """The times at which the steps of a run begin and end.

    Args:
        ts: at least two times, strictly increasing or strictly decreasing; kept in float64 on the host.

    Raises:
        ValueError: the times are too few, not finite or not monotone.
    """

    @checked
    def __init__(self, ts: Tensor | Sequence[float]) -> None:
        grid = torch.as_tensor(ts, dtype=torch.float64).detach().to("cpu").clone()
        if grid.ndim != 1 or grid.numel() < 2:
            raise ValueError(
                f"ts: a grid needs at least two times in one dimension, got shape {tuple(grid.shape)}"
            )
        if not bool(grid.isfinite().all()):
            raise ValueError("ts: a grid needs finite times, got nan or inf")
        if not _increasing_or_decreasing(grid):
            raise ValueError(
                "ts: the times of a grid must strictly increase or strictly decrease; sort them, drop "
                "duplicates"
            )
        self.ts = grid

    @property
    def times(self) -> Iterator[Tensor]:
        """The times one by one, with shape (); made in blocks, so that a long grid takes little memory."""
        return (t for block in self.ts.split(BLOCK_STEPS) for t in block.unbind())

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last time as numbers."""
        return float(self.ts[0]), float(self.ts[-1])

    @property
    def intervals(self) -> Iterable[Interval]:
        """The steps, each with its number, its ends and its signed length; kept where they are few."""
        return self._few if self.num_steps <= BLOCK_STEPS else self._blocks()

    @cached_property
    def _few(self) -> tuple[Interval, ...]:
        return tuple(self._blocks())

    def _blocks(self) -> Iterator[Interval]:
        for first in range(0, self.num_steps, BLOCK_STEPS):
            part = self.ts[first : first + BLOCK_STEPS + 1]
            times = part.unbind()
            rows = zip(times, times[1:], part.diff().tolist(), strict=False)
            for number, (t, s, h) in enumerate(rows, first):
                yield Interval(number, t, s, h)

    @property
    def num_steps(self) -> int:
        """Number of steps, one less than the number of times."""
        return self.ts.numel() - 1


@dataclass(frozen=True)
class Adaptive:
    """Per-sample step-size control from t0 to t1.

    Args:
        t0, t1: ends of the interval; time runs down when t1 < t0.
        rtol, atol: tolerances per element; rtol is raised to 10 machine epsilons of the state's type.
        first_step: size of the first step, found from the field when None.
        max_steps: attempted steps per sample before it stops with the status MAX_STEPS.
        safety, min_factor, max_factor, k_i, k_p: the controller's constants (see the module).

    Raises:
        ValueError: an empty or infinite interval, a tolerance or a limit out of range.
    """

    t0: float
    t1: float
    rtol: float = 1e-5
    atol: float = 1e-5
    first_step: float | None = None
    max_steps: int = MAX_STEPS
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 5.0
    k_i: float = 0.7
    k_p: float = 0.4

    def __post_init__(self) -> None:
        check_fields(self)
        if not (math.isfinite(self.t0) and math.isfinite(self.t1)) or self.t0 == self.t1:
            raise ValueError(f"t0 and t1 must be finite and differ, got {self.t0} and {self.t1}")
        if not (0 <= self.rtol < math.inf and 0 <= self.atol < math.inf and self.rtol + self.atol > 0):
            raise ValueError(
                f"rtol and atol must be >= 0 and not both 0, got rtol = {self.rtol}, atol = {self.atol}"
            )
        if self.first_step is not None and not 0 < self.first_step < math.inf:
            raise ValueError(f"first_step must be a positive length or None, got {self.first_step}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not (0 < self.safety <= 1 and 0 < self.min_factor < 1 < self.max_factor < math.inf):
            raise ValueError(
                "safety must lie in (0, 1] and min_factor < 1 < max_factor, both positive and finite, got "
                f"{self.safety}, {self.min_factor} and {self.max_factor}"
            )
        if not (0 < self.k_i < 1 and 0 <= self.k_p < 1):
            raise ValueError(f"k_i must lie in (0, 1) and k_p in [0, 1), got {self.k_i} and {self.k_p}")

    @property
    def direction(self) -> float:
        """+1 when time runs up, -1 when it runs down."""
        return math.copysign(1.0, self.t1 - self.t0)

    def tolerance(self, y: Tensor, y_next: Tensor) -> Tensor:
        """atol + rtol max(|y|, |y_next|), elementwise, with the shape of y; never 0."""
        limits = torch.finfo(y.dtype)
        scale = torch.maximum(y.abs(), y_next.abs()).mul_(max(self.rtol, 10 * limits.eps)).add_(self.atol)
        return scale if self.atol > 0 else scale.clamp(min=limits.tiny)

    def squared_error(self, error: Tensor, y: Tensor, y_next: Tensor) -> Tensor:
        """E^2 with shape (B,) in float64; nan or inf where the error estimate or the new state is."""
        scale = self.tolerance(y, y_next)
        return mean_square(torch.add(error / scale, scale, alpha=0.0))  # 0 * inf is nan


class Powers:
    """Powers of the error E of a step, looked up by E^2, for arrays on the host.

    Args:
        control: gives the exponents k_I / p and k_P / p, and the safety factor.
        order: p.
    """

    def __init__(self, control: Adaptive, order: float) -> None:
        exponents = torch.arange(_LOWEST * _PER_OCTAVE, _HIGHEST * _PER_OCTAVE + 1, dtype=torch.float64)
        middles = torch.cat([exponents - 0.5, torch.tensor([math.inf], dtype=torch.float64)])
        e = torch.exp2(middles / (2 * _PER_OCTAVE))
        self._edges = torch.exp2(exponents / _PER_OCTAVE).numpy()
        safety = control.safety ** max(1.0, _SMOOTH / order)
        self._grow = (safety * e ** (-control.k_i / order)).numpy()
        self._gain = (e.clamp(1e-4, 1.0) ** (control.k_p / order)).numpy()
        self._start = ((0.01 / e).clamp(max=1.0) ** (1 / (order + 1))).numpy()

    def __call__(self, squared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """safety E^(-k_I / p), and max(E, 1e-4)^(k_P / p) for the next step, from E^2; each with shape (B,).

        Where E is nan or inf the first is 0.
        """
        index = self._edges.searchsorted(squared)
        return self._grow.take(index), self._gain.take(index)

    def start(self, squared: np.ndarray) -> np.ndarray:
        """min(1, 0.01 / E)^(1 / (p + 1)), from E^2."""
        return self._start.take(self._edges.searchsorted(squared))


def mean_square(x: Tensor) -> Tensor:
    """Mean square over each sample's elements, in float64 with shape (B,), for x with shape (B, *)."""
    return flatten(x).to(torch.float64).square().mean(1)
