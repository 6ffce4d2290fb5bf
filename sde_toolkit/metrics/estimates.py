"""Error bars of distances between two sets of samples, of their differences, by resampling and over seeds.

A bootstrap that draws with replacement repeats points, which shifts every distance of this room and inflates
the spread of a U-statistic.  ``bootstrap`` therefore resamples without replacement, by groups.  The sets x
and y are cut at random into G groups; T is the distance of the whole sets, T_g the distance without group g
of both sets, T_gh without groups g and h:

    jackknife       V = (G - 1)/G sum_g (T_g - mean)^2                                 (variance, first order)
    interactions    Q_gh = G T - (G - 1)(T_g + T_h) + (G - 2) T_gh,    quadratic = var(Q_gh) / 2
    linear          linear = V - 2 quadratic

The jackknife counts the quadratic part of T twice (Efron and Stein, section 4).  Where the two distributions
are nearly equal, little but that part is left.  The value reported is T, never a mean over resamples, and

    standard_error^2 = max( V - quadratic, V / 2 )                        of a value
    standard_error^2 = max( V - 2 quadratic, 0 ) + quadratic              of a difference of values

Both sets count as random.

**Intervals.**  Near zero a squared distance is a sum of lambda_k [(Z_k + m_k)^2 - 1] with few terms: skewed,
with a variance, 2 sum lambda_k^2 + 4 sum lambda_k^2 m_k^2, that rises with what is estimated, and V is small
where T is too small by chance.  T +- 1.96 standard errors then holds the truth in 80% to 90% of all cases.
``interval`` inverts a test instead, as Wilson's does for a proportion: it holds every theta with

    (T - theta)^2 <= t^2 V(theta),    V(theta) = max( quadratic + max(linear, 0) + c (theta - T), quadratic )

t of Student's law with G - 1 degrees of freedom, c = linear / (T - bias) between 1/2 and 2^(3/2) times the
root of the quadratic part (a single term has c = 4 lambda, the upper end), bias = (G - 1) (mean T_g - T).
Where T is linear this is Student's interval.  Differences, of either sign, have Student's.

The vector (T, T_1 .. T_G, T_12 .. T_G1) are the ``replicates`` of an estimate: all that its error bar is made
of.  Whatever is linear in T is linear in them, so the jackknife of replicates

    a - b            is that of the difference of two estimates from the same groups      (``difference``)
    (a_1 + .. + a_K) / K    is that of the mean over K seeds, real data in common         (``pooled``)

If sample i of both sets starts from the same noise and the real data are the same, then most of the error is
common to a and b and drops out of the difference: its error bar is far smaller than hypot(s_a, s_b).

Not promised: an error bar says nothing about bias, nor about the choice of projections, bandwidth or
features.

Reference: Efron and Stein, "The Jackknife Estimate of Variance" (Ann. Statist. 9, 1981).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.metrics.protocol import Distance, Statistic, check_size, checked_set, checked_sets
from sde_toolkit.utils import Stream, checked, integer, permutation

FEWEST_GROUPS = 10
"""Of a jackknife."""


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and how the latter was found.

    Attributes:
        value: the estimate.
        standard_error: of the value.
        how: the standard error was found.
        replicates: (T, T_1 .. T_G, T_12 .. T_G1) of the jackknife by G groups, see the module; empty for an
            error bar of another kind.
        groups: names the groups and the real data; estimates of equal ``groups`` may be subtracted.
        degrees_of_freedom: of the standard error; infinite for the normal law.
        is_difference: of two values, by ``difference``; its interval is symmetric.
    """

    value: float
    standard_error: float
    how: str
    replicates: tuple[float, ...] = field(default=(), repr=False)
    groups: str = field(default="", repr=False)
    degrees_of_freedom: float = math.inf
    is_difference: bool = False

    @classmethod
    @checked
    def from_replicates(
        cls, replicates: Sequence[float], groups: str = "", is_difference: bool = False
    ) -> Estimate:
        """The estimate whose ``replicates`` these are: value, standard error and degrees of freedom.

        Raises:
            ValueError: not 1 + 2 G finite numbers with G >= 10.
        """
        t = np.asarray(replicates, dtype=np.float64)
        num_groups = (t.size - 1) // 2
        if t.ndim != 1 or t.size != 1 + 2 * num_groups or num_groups < FEWEST_GROUPS:
            raise ValueError(
                f"replicates must be 1 + 2 G numbers with G >= {FEWEST_GROUPS}, got shape {t.shape}"
            )
        if not np.isfinite(t).all():
            raise ValueError(
                f"replicates must be finite, got {int((~np.isfinite(t)).sum())} NaN or infinite values"
            )
        parts = _Parts.of(t)
        error = math.sqrt(parts.of_difference if is_difference else parts.of_value)
        how = f"{'paired ' if is_difference else ''}delete-group jackknife, {num_groups} groups"
        degrees, replicates = float(num_groups - 1), tuple(t.tolist())
        return cls(replicates[0], error, how, replicates, groups, degrees, is_difference)

    @checked
    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval that holds what is estimated with probability ``level``; see the module.

        What is estimated is the expected value at these numbers of samples: the bias of a plug-in estimate
        is not in it.

        Raises:
            ValueError: ``level`` is not between 0 and 1.
        """
        from scipy.special import stdtrit

        if not 0 < level < 1:
            raise ValueError(f"level must be a number between 0 and 1, got {level!r}")
        t = float(stdtrit(self.degrees_of_freedom, (1 + level) / 2))
        if self.replicates and not self.is_difference:
            down, up = _Parts.of(np.asarray(self.replicates)).reach(t)
        else:
            down = up = t * self.standard_error
        return self.value - down, self.value + up


@dataclass(frozen=True)
class _Parts:
    """What the variance of T is made of, from the replicates of a jackknife; see the module."""

    jackknife: float
    quadratic: float
    distance: float

    @classmethod
    def of(cls, t: np.ndarray) -> _Parts:
        num_groups = len(t) // 2
        t_g, t_gh = t[1:].reshape(2, num_groups)
        q = num_groups * t[0] - (num_groups - 1) * (t_g + np.roll(t_g, -1)) + (num_groups - 2) * t_gh
        bias = (num_groups - 1) * (t_g.mean() - t[0])
        return cls(float((num_groups - 1) * t_g.var()), float(q.var(ddof=1)) / 2, float(t[0] - bias))

    @property
    def of_value(self) -> float:
        return max(self.jackknife - self.quadratic, self.jackknife / 2)

    @property
    def of_difference(self) -> float:
        return max(self.jackknife - 2 * self.quadratic, 0.0) + self.quadratic

    def reach(self, t: float) -> tuple[float, float]:
        """How far the interval reaches below and above the value, for Student's quantile ``t``."""
        linear, root = self.of_difference - self.quadratic, math.sqrt(self.quadratic)
        slope = min(max(linear / max(abs(self.distance), 1e-300), root / 2), math.sqrt(8) * root)
        slope = math.copysign(slope, self.distance)

        def far(towards: float) -> float:
            b = t * t * slope * towards
            return max((b + math.sqrt(b * b + 4 * t * t * (linear + self.quadratic))) / 2, t * root)

        return far(-1.0), far(1.0)


@checked
def bootstrap(
    distance: Distance | Statistic | Callable[..., float],
    x: Tensor,
    y: Tensor | None = None,
    num_resamples: int = 100,
    seed: int = 0,
) -> Estimate:
    """Return the distance of ``x`` with shape (n, *) and ``y`` with shape (m, *) with its standard error.

    The spread comes from ``num_resamples`` resamples without replacement (see the module): the jackknife by
    groups with Efron and Stein's correction.  The error bar's own relative error is about
    num_resamples^(-1/2), more for equal distributions, where it is up to a quarter too large on average;
    ``Estimate.interval`` holds the truth as often as it says there too.  A ``Distance`` shares work between
    resamples; any other function of two sets is called once for each.  A ``Statistic`` is one of ``x`` alone.
    Raises ValueError for bad samples, fewer than 10 of them, or fewer than 20 resamples.
    """
    num_groups = integer("num_resamples", num_resamples, 20) // 2
    if isinstance(distance, Statistic):
        return _of_one_set(distance, x, y, num_groups, seed)
    if y is None:
        raise ValueError("y must be given for a distance of two sets, the real data, got None")
    x, y = checked_sets(x, y)
    num_groups = _groups(num_groups, x=x, y=y)
    keep_x, keep_y = (_group_masks(len(s), num_groups, seed, step) for step, s in enumerate((x, y)))
    if isinstance(distance, Distance):
        check_size(distance.facts, x=x, y=y)
        t = distance.on_subsets(x, y, keep_x, keep_x if distance.facts.needs == "pairs" else keep_y)
    else:
        pairs = zip(keep_x, keep_y, strict=True)
        t = torch.tensor([distance(x[a], y[b]) for a, b in pairs], dtype=torch.float64)
    groups = f"{num_groups} groups (seed {seed}) of {len(x)} samples and of {len(y)} of data {_digest(y)}"
    return Estimate.from_replicates(t.tolist(), groups)


def _of_one_set(statistic: Statistic, x: Tensor, y: Tensor | None, num_groups: int, seed: int) -> Estimate:
    if y is not None:
        raise ValueError(
            f"y must be left out for the {statistic.facts.title}, a statistic of one set, got a second set"
        )
    x = checked_set(x)
    check_size(statistic.facts, x=x)
    num_groups = _groups(num_groups, x=x)
    t = statistic.on_subsets(x, _group_masks(len(x), num_groups, seed, 0))
    return Estimate.from_replicates(t.tolist(), f"{num_groups} groups (seed {seed}) of {len(x)} samples")


def _groups(most: int, **sets: Tensor) -> int:
    """The number of groups: one sample at least in each."""
    found = min(most, *(len(s) for s in sets.values()))
    if found < FEWEST_GROUPS:
        raise ValueError(
            f"{' and '.join(sets)} must hold at least {FEWEST_GROUPS} samples for an error bar, got "
            f"{' and '.join(str(len(s)) for s in sets.values())}"
        )
    return found


@checked
def difference(a: Estimate, b: Estimate) -> Estimate:
    """Return a - b with the error bar of the paired difference: negative if ``a`` is lower.

    Both estimates must come from the same groups: equal numbers of samples, number and seed of the groups,
    and the same real data.  What the two sets of samples have in common (sample i of both from the same
    noise) drops out of the error bar.  Sets drawn independently of each other are paired all the same; the
    error bar is then about hypot of the two, less the share of the real data.
    Raises ValueError for estimates without replicates or from different groups.
    """
    for name, estimate in (("a", a), ("b", b)):
        if not estimate.replicates:
            raise ValueError(
                f"{name} must carry replicates, as those of bootstrap do, got an estimate by {estimate.how!r}"
            )
    _same_groups("b", b, a)
    pairs = zip(a.replicates, b.replicates, strict=True)
    return Estimate.from_replicates([s - t for s, t in pairs], a.groups, is_difference=True)


@checked
def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of the estimates (or of the differences) of independent seeds, with its error bar.

    Replicates are averaged: the real data, which the seeds have in common, then keep their share of the
    error, and the rest falls as K^(-1/2).  Without replicates the error is sqrt(sum_k s_k^2) / K.  The spread
    over seeds is ``over_seeds`` of the values.
    Raises ValueError for no estimates, or estimates from different groups.
    """
    found = list(estimates)
    if not found:
        raise ValueError("estimates must hold at least one estimate, got none")
    if all(estimate.replicates for estimate in found):
        for k, estimate in enumerate(found):
            _same_groups(f"estimates[{k}]", estimate, found[0])
        mean = np.mean([estimate.replicates for estimate in found], axis=0)
        return Estimate.from_replicates(mean.tolist(), found[0].groups, found[0].is_difference)
    value = float(np.mean([estimate.value for estimate in found]))
    error = math.hypot(*(estimate.standard_error for estimate in found)) / len(found)
    degrees = float(sum(estimate.degrees_of_freedom for estimate in found))
    return Estimate(value, error, f"mean over {len(found)} seeds", degrees_of_freedom=degrees)


@checked
def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean of the values of independent runs and its standard error, std / sqrt(number of runs).

    Raises ValueError for fewer than 2 values and values that are not finite.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or len(v) < 2 or not np.isfinite(v).all():
        raise ValueError(f"values must be at least 2 finite numbers, one per seed, got {values}")
    error = float(v.std(ddof=1) / math.sqrt(len(v)))
    return Estimate(float(v.mean()), error, f"{len(v)} seeds", degrees_of_freedom=float(len(v) - 1))


def _same_groups(name: str, found: Estimate, wanted: Estimate) -> None:
    if _kind(found) != _kind(wanted):
        raise ValueError(
            f"{name} must come from the same groups as the first estimate: {_words(wanted)}, got "
            f"{_words(found)}; give bootstrap equal numbers of samples, the same real data, num_resamples "
            "and seed"
        )


def _kind(estimate: Estimate) -> tuple[int, str, bool]:
    return len(estimate.replicates), estimate.groups, estimate.is_difference


def _words(estimate: Estimate) -> str:
    words = estimate.groups or f"{len(estimate.replicates)} replicates"
    return f"a difference from {words}" if estimate.is_difference else words


def _digest(y: Tensor) -> str:
    """Names the content of a set in 8 hexadecimal digits."""
    return hashlib.sha256(y.contiguous().numpy().tobytes()).hexdigest()[:8]


def _group_masks(n: int, num_groups: int, seed: int, step: int) -> Tensor:
    """Return which samples stay, with shape (1 + 2 G, n): all; all but group g; all but g and g + 1."""
    group = torch.empty(n, dtype=torch.int64)
    group[permutation(n, seed, step, Stream.SPLIT)] = torch.arange(n) % num_groups
    keep = torch.ones(1 + 2 * num_groups, n, dtype=torch.bool)
    one, two = keep[1 : 1 + num_groups], keep[1 + num_groups :]
    for g in range(num_groups):
        torch.ne(group, g, out=one[g])
    for g in range(num_groups):
        torch.logical_and(one[g], one[(g + 1) % num_groups], out=two[g])
    return keep
