"""How good restored data are: PSNR, and how often intervals of draws hold the truth.

    PSNR        10 log10(peak^2 / mean (x - truth)^2), in dB, one number per example
    interval    [X_(i), X_(K + 1 - i)], order statistics of K draws, one for every feature

If the truth and the K draws are draws of one law, each of the K + 1 ranks of the truth is as likely, and the
interval holds it with probability

    (K + 1 - 2 i) / (K + 1)

exactly, for every continuous law and every K (for laws with ties at least that).  i is the largest rank for
which this is not below the level asked for, and 1 where there is none: K draws give at most (K - 1)/(K + 1).
For 90% the least K is 19.  Results tell the exact level, which is what a coverage is to be compared with.

Features of one example depend on each other: error bars are those of means over examples.

Reference: Wilks, "Determination of Sample Sizes for Setting Tolerance Limits" (1941), for the interval.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.metrics.errors import Estimate
from sde_toolkit.utils import checked


class Interval(NamedTuple):
    """An interval of draws for every feature.

    Attributes:
        low, high: the ends, with shape (n, *D).
        level: the probability that an exact posterior's interval holds the truth.
    """

    low: Tensor
    high: Tensor
    level: float


@checked
def interval(draws: Tensor, level: float = 0.9) -> Interval:
    """The interval of the draws of every feature; its ends are draws.

    Args:
        draws: K of them, with shape (K, n, *D), K >= 2.
        level: between 0 and 1, the probability to hold the truth that is asked for.

    Raises:
        ValueError: fewer than 2 draws, or a level that is not between 0 and 1.
    """
    count = len(draws) if draws.ndim else 0
    if count < 2:
        raise ValueError(f"draws must have shape (K, n, *) with K >= 2, got {tuple(draws.shape)}")
    if draws.is_complex():
        raise TypeError(f"draws must be real numbers, got {draws.dtype}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    rank = max(1, math.floor((1 - level) * (count + 1) / 2 + 1e-9))
    ordered = draws.sort(0).values
    return Interval(ordered[rank - 1], ordered[count - rank], (count + 1 - 2 * rank) / (count + 1))


@checked
def psnr(x: Tensor, truth: Tensor, peak: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, with shape (n,); infinite for equal examples.

    Args:
        x, truth: with shape (n, *D).
        peak: the range of the data, such as 255 for levels 0 to 255.

    Raises:
        ValueError: shapes that differ, or a peak that is not positive.
    """
    _same_shape("x", x, truth)
    if not 0 < peak < math.inf:
        raise ValueError(f"peak must be positive, got {peak}")
    error = (x.double() - truth.double()).square().flatten(1).mean(1)
    return 20 * math.log10(peak) - 10 * error.log10()


@checked
def mean_psnr(x: Tensor, truth: Tensor, peak: float) -> Estimate:
    """The mean of ``psnr`` over the examples, with its standard error; the arguments are the same.

    Raises:
        ValueError: see ``psnr``.
    """
    return over_examples(psnr(x, truth, peak))


@checked
def coverage(draws: Tensor, truth: Tensor, level: float = 0.9, where: Tensor | None = None) -> Estimate:
    """The share of features whose interval holds the truth, with its standard error over the examples.

    Compare it with ``interval(draws, level).level``, that of an exact posterior.

    Args:
        draws: with shape (K, n, *D).
        truth: with shape (n, *D).
        level: of the intervals.
        where: bool with shape (n, *D) or D, True for features that count; all when None.

    Raises:
        ValueError: shapes that differ, an example without a feature that counts; what ``interval`` refuses.
    """
    found = interval(draws, level)
    _same_shape("draws of one example", found.low, truth)
    inside = (found.low <= truth) & (truth <= found.high)
    if where is None:
        return over_examples(inside.flatten(1).double().mean(1))
    if where.dtype != torch.bool or where.shape not in (truth.shape, truth.shape[1:]):
        raise ValueError(
            f"where must be bool with shape {tuple(truth.shape)} or {tuple(truth.shape[1:])}, got "
            f"{where.dtype} with shape {tuple(where.shape)}"
        )
    kept = where.expand(truth.shape).flatten(1)
    if not bool(kept.any(1).all()):
        raise ValueError("where must hold a True for every example, got one without")
    return over_examples((inside.flatten(1) & kept).double().sum(1) / kept.double().sum(1))


def over_examples(values: Tensor) -> Estimate:
    """The mean of values with shape (n,), one per example, and its standard error; nan for one example."""
    v = values.double()
    error = float(v.std() / math.sqrt(len(v))) if len(v) > 1 else math.nan
    return Estimate(
        float(v.mean()), error, f"{len(v)} examples", degrees_of_freedom=float(max(len(v) - 1, 1))
    )


def _same_shape(name: str, x: Tensor, truth: Tensor) -> None:
    if truth.is_complex():
        raise TypeError(f"truth must be real numbers, got {truth.dtype}")
    if x.shape != truth.shape or truth.ndim < 2 or not truth.numel():
        raise ValueError(
            f"{name} and truth must have one shape (n, *), got {tuple(x.shape)} and {tuple(truth.shape)}"
        )
