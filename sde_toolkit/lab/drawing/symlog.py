"""Axes for values that may be at or below zero: linear around zero, logarithmic beyond.

    s(y) = y / c                            |y| <= c
    s(y) = sign(y) (1 + log10(|y| / c))     |y| >  c

Unbiased estimates of a distance scatter around its true value, and fall below zero where that is small
beside their error.  On a logarithmic axis they would have to be left out or moved.  The threshold c is about
the error of the estimates that cannot be told from zero: below it the axis shows errors of equal size as
equal, above it equal ratios as equal.  This is matplotlib's scale "symlog" with ``linscale=0.9``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LINSCALE = 0.9
"""Of matplotlib's symlog: (0, c) is as long as a decade."""


def linear_threshold(values: Sequence[float], errors: Sequence[float]) -> float | None:
    """The threshold c for values with standard errors; None where all lie above their errors: a log axis.

    It is the median error of the values that do not lie above theirs, rounded up to one digit.
    """
    pairs = [(v, e) for v, e in zip(values, errors, strict=True) if math.isfinite(v) and math.isfinite(e)]
    near = [(value, error) for value, error in pairs if value - error <= 0]
    if not near:
        return None
    sizes = [error for _, error in near if error > 0] or [abs(value) for value, _ in pairs if value != 0]
    if not sizes:
        return 1.0
    middle = statistics.median(sizes)
    unit = 10.0 ** math.floor(math.log10(middle))
    return float(f"{math.ceil(middle / unit - 1e-9) * unit:.1g}")


def ticks(low: float, high: float, threshold: float | None) -> list[float]:
    """Values for the ticks between two values: 1, 2, 5, 10, ..., and around zero 0 and the threshold."""
    floor = threshold if threshold is not None else low
    top = max(abs(low), abs(high))
    if not (0 < floor < math.inf and math.isfinite(top)):
        return [0.0]
    steps = (1, 2, 5) if top < 300 * floor else (1,)
    exponents = range(math.floor(math.log10(floor)) - 1, math.ceil(math.log10(max(top, floor))) + 1)
    decades = [m * 10.0**k for k in exponents for m in steps]
    if threshold is None:
        return [value for value in decades if 0.7 * low <= value <= 1.3 * high]
    above = [value for value in decades if 1.5 * threshold < value]
    both = [-value for value in reversed(above)] + [-threshold, 0.0, threshold] + above
    slack = 0.3 * max(threshold, 0.0)
    return [value for value in both if min(1.3 * low, -slack) <= value <= 1.3 * high + slack]
