"""What a loop hands to a method, an interval of time, and what it gets back, a step over it."""

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
    """The state at s with shape (B, *), the embedded error or None, what the method carries to the next step,
    and the stages that dense output is made from."""

    y: Tensor
    error: Tensor | None
    carry: Any
    stages: Sequence[Tensor] = ()
