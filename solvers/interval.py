"""An interval of time, the input of a method's step, and the step over it, its output.

Interval(number, t, s, h),    h = s - t,      y_t  ->  Step(y_s, error, carry, stages)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Interval(NamedTuple):
    """One step: its number, its ends, and its signed length h = s - t.

    On a fixed grid t and s have shape () and h is a number; otherwise t and s have shape (B,) and h
    broadcasts against the state.
    """

    number: int
    t: Tensor
    s: Tensor
    h: float | Tensor


class Step(NamedTuple):
    """The result of one step.

    Attributes:
        y: the state at s with shape (B, *).
        error: the embedded error estimate with shape (B, *), or None.
        carry: what the method passes to its next step.
        stages: the evaluations that dense output uses.
    """

    y: Tensor
    error: Tensor | None
    carry: Any
    stages: Sequence[Tensor] = ()
