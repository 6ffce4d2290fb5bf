"""Error bars of distances between two sets of samples, by resampling and over seeds.

A bootstrap that draws with replacement repeats points, which shifts every distance of this room and inflates
the spread of a U-statistic.  ``bootstrap`` therefore resamples without replacement, by groups.  The sets x
and y are cut at random into G groups; T is the distance of the whole sets, T_g the distance without group g
of both sets, T_gh without groups g and h:

    jackknife     V = (G - 1)/G sum_g (T_g - mean)^2                                   (variance, first order)
    correction    Q_gh = G T - (G - 1)(T_g + T_h) + (G - 2) T_gh,    Var T ~ V - var(Q_gh) / 2

The jackknife counts the quadratic part of T twice (Efron and Stein, section 4).  Where the two distributions
are nearly equal, little but that part is left and the correction halves the variance.  The value reported is
T, never a mean over resamples.  Both sets count as random.

Compared with the spread over independent repetitions, the error bar is right to about 10% where the two
distributions differ.  It is up to a quarter too large where they are equal and have few dimensions.

Not promised: an error bar says nothing about bias, nor about the choice of projections, bandwidth or
features.

Reference: Efron and Stein, "The Jackknife Estimate of Variance" (Ann. Statist. 9, 1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.metrics.distances import Distance, checked_sets
from sde_toolkit.utils import Stream, checked, integer, permutation


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and how the latter was found."""

    value: float
    standard_error: float
    how: str


@checked
def bootstrap(
    distance: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, num_resamples: int = 100, seed: int = 0
) -> Estimate:
    """Return the distance of ``x`` with shape (n, *) and ``y`` with shape (m, *) with its standard error.

    The spread comes from ``num_resamples`` resamples without replacement (see the module): the jackknife by
    groups with Efron and Stein's correction.  The error bar's own relative error is about
    num_resamples^(-1/2), more for equal distributions.  A ``Distance`` shares work between resamples;
    any other function is called once for each.
    Raises ValueError for bad samples, fewer than 10 of them, or fewer than 20 resamples.
    """
    x, y = checked_sets(x, y)
    num_groups = min(integer("num_resamples", num_resamples, 20) // 2, len(x), len(y))
    if num_groups < 10:
        raise ValueError(f"x and y must hold at least 10 samples for an error bar, got {len(x)} and {len(y)}")
    keep_x, keep_y = (_group_masks(len(s), num_groups, seed, step) for step, s in enumerate((x, y)))
    if isinstance(distance, Distance):
        t = distance.on_subsets(x, y, keep_x, keep_y)
    else:
        pairs = zip(keep_x, keep_y, strict=True)
        t = torch.tensor([distance(x[a], y[b]) for a, b in pairs], dtype=torch.float64)
    t_g, t_gh = t[1:].view(2, num_groups)
    jackknife = (num_groups - 1) * t_g.var(correction=0)
    q = num_groups * t[0] - (num_groups - 1) * (t_g + t_g.roll(-1)) + (num_groups - 2) * t_gh
    variance = torch.maximum(jackknife - q.var() / 2, jackknife / 2)
    return Estimate(float(t[0]), float(variance.sqrt()), f"delete-group jackknife, {num_groups} groups")


@checked
def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean of the values of independent runs and its standard error, std / sqrt(number of runs).

    Raises ValueError for fewer than 2 values and values that are not finite.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or len(v) < 2 or not np.isfinite(v).all():
        raise ValueError(f"values must be at least 2 finite numbers, one per seed, got {values}")
    return Estimate(float(v.mean()), float(v.std(ddof=1) / math.sqrt(len(v))), f"{len(v)} seeds")


def _group_masks(n: int, num_groups: int, seed: int, step: int) -> Tensor:
    """Return which samples stay, with shape (1 + 2 G, n): all; all but group g; all but g and g + 1."""
    group = torch.empty(n, dtype=torch.int64)
    group[permutation(n, seed, step, Stream.SPLIT)] = torch.arange(n) % num_groups
    out = torch.arange(num_groups)[:, None] == group
    return ~torch.cat([torch.zeros(1, n, dtype=torch.bool), out, out | out.roll(-1, 0)])
