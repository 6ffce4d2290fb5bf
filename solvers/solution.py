"""What a run returns: states, counts, and how the run of every sample ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Status(IntEnum):
    """How the run of one sample ended."""

    SUCCESS = 0
    NONFINITE = 1
    STEP_UNDERFLOW = 2
    MAX_STEPS = 3


class SolverError(RuntimeError):
    """A run that did not reach its end.

    Attributes:
        status: the ``Status`` of the first failing sample.
        samples: the failing samples' indices in the batch.
        t, h: time and signed step size at which the first of them failed.
        solution: what was computed before the failure, as ``throw=False`` would have returned it.
    """

    def __init__(
        self,
        message: str,
        status: Status,
        samples: tuple[int, ...],
        t: float,
        h: float,
        solution: Solution,
    ) -> None:
        super().__init__(message)
        self.status, self.samples, self.t, self.h, self.solution = status, samples, t, h, solution

    def located(self, samples: Sequence[int], time: Callable[[float], float] | None = None) -> SolverError:
        """The same failure in the caller's numbers of the samples and in its own time.

        Args:
            samples: the number of every sample of the batch.
            time: maps times of the run to the caller's; None where they are the same.
        """
        t, h = self.t, self.h
        if time is not None:
            t = time(self.t)
            h = time(self.t + self.h) - t if math.isfinite(self.h) else self.h
        mine = tuple(samples[k] for k in self.samples)
        nfe = int(self.solution.stats.nfe[self.samples[0]])
        message = failure(self.status, mine, len(self.solution.status), t, h, nfe)
        return SolverError(message, self.status, mine, t, h, self.solution)


@dataclass(frozen=True)
class Stats:
    """Counts per sample, with shape (B,): evaluations of the drift, accepted steps, rejected steps."""

    nfe: Tensor
    num_steps: Tensor
    num_rejected: Tensor


@dataclass(frozen=True)
class Solution:
    """Saved times (S,), what was saved there (S, B, *), counts and ``Status`` per sample (B,)."""

    ts: Tensor
    ys: Tensor
    stats: Stats
    status: Tensor

    @property
    def y(self) -> Tensor:
        """What was saved last, with shape (B, *)."""
        return self.ys[-1]


def finish(solution: Solution, t: Tensor | None, h: Tensor | None, throw: bool) -> Solution:
    """Raise the error of the first failing sample, or return the solution."""
    failed = solution.status.nonzero().flatten().tolist()
    if not failed or not throw:
        return solution
    first = failed[0]
    status = Status(int(solution.status[first]))
    where, length = (float(v[first]) if v is not None else float("nan") for v in (t, h))
    nfe = int(solution.stats.nfe[first])
    message = failure(status, tuple(failed), len(solution.status), where, length, nfe)
    raise SolverError(message, status, tuple(failed), where, length, solution)


def failure(
    status: Status, samples: tuple[int, ...], count: int, t: float, h: float, nfe: int | None = None
) -> str:
    """The sentence of a failure: which of ``count`` samples, where, why, and after how many evaluations."""
    cause = {
        Status.NONFINITE: "the state or its derivative became nan or inf",
        Status.STEP_UNDERFLOW: "the step size fell below the spacing of times; loosen rtol and atol",
        Status.MAX_STEPS: f"max_steps was reached after {nfe} evaluations; loosen rtol and atol or raise "
        "max_steps",
    }[status]
    shown = ("sample " if len(samples) == 1 else "samples ") + ", ".join(map(str, samples[:8]))
    shown += (", ..." if len(samples) > 8 else "") + f" of {count} failed"
    length = "" if math.isnan(h) else f", h = {h:.3g}"
    return f"{status.name}: {shown} at t = {t:.9g}{length}: {cause}"
