"""A value with its error bar, differences of two values, and means over seeds.

The value T and the same metric of many parts of the sets are the ``replicates`` of an estimate: all that its
error bar is made of.  What they say about the variance, by groups, halves or quarters, is in ``schemes``.
Whatever is linear in T is linear in them, so the replicates

    a - b            are those of the difference of two estimates from the same parts     (``difference``)
    (a_1 + .. + a_K) / K    are those of the mean over K seeds, real data in common       (``pooled``)

If sample i of both sets starts from the same noise and the real data are the same, then most of the error is
common to a and b and drops out of the difference: its error bar is far smaller than hypot(s_a, s_b).

**Intervals** are T +- t standard errors, t of Student's law, for differences; those of values take into
account how the variance depends on what is estimated.

Not promised: an error bar says nothing about bias, nor about the choice of projections, bandwidth or
features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sde_toolkit.metrics.errors.schemes import FEWEST, IN_QUARTERS, SCHEMES, Spread, number_of, spread_of
from sde_toolkit.utils import checked

_WORDS = {
    "groups": "delete-group jackknife, {} groups", "halves": "{} random halves",
    "kinks": "{} random halves", "local": "{} random halves and their quarters",
    "quarters": "{} random halves and their quarters",
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and how the latter was found.

    Attributes:
        value: the estimate.
        standard_error: of the value.
        how: the standard error was found.
        replicates: the value T and those of parts of the sets, see ``schemes``; empty for an error bar of
            another kind.
        groups: names the parts and the real data; estimates of equal ``groups`` may be subtracted.
        degrees_of_freedom: of the standard error; infinite for the normal law.
        is_difference: of two values, by ``difference``; its interval is symmetric.
        scheme: "groups", "halves", "local", "kinks" or "quarters", of the replicates.
        count: the number of zeros and ones that the value is a mean of; 0 for other values.
        step: the least by which the value can change; 0 for smooth ones.
    """

    value: float
    standard_error: float
    how: str
    replicates: tuple[float, ...] = field(default=(), repr=False)
    groups: str = field(default="", repr=False)
    degrees_of_freedom: float = math.inf
    is_difference: bool = False
    scheme: str = "groups"
    count: float = 0.0
    step: float = 0.0

    @classmethod
    @checked
    def from_replicates(
        cls, replicates: Sequence[float], groups: str = "", is_difference: bool = False,
        scheme: str = "groups", count: float = 0.0, step: float = 0.0,
    ) -> Estimate:  # fmt: skip
        """The estimate whose ``replicates`` these are: value, standard error and degrees of freedom.

        Raises:
            ValueError: not 1 + 2 G finite numbers with G >= 10 (1 + 6 G for quarters), another scheme, or a
                count or step below 0.
        """
        if scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
        for name, number in (("count", count), ("step", step)):
            if not 0 <= number <= 1e100:
                raise ValueError(f"{name} must be a finite number >= 0 and at most 1e100, got {number!r}")
        t = np.asarray(replicates, dtype=np.float64)
        found = number_of(scheme, t.size) if t.ndim == 1 else 0
        if not found:
            raise ValueError(
                f"replicates must be 1 + {6 if scheme in IN_QUARTERS else 2} G numbers with G >= {FEWEST}, "
                f"got shape {t.shape}"
            )
        if not np.isfinite(t).all():
            raise ValueError(
                f"replicates must be finite, got {int((~np.isfinite(t)).sum())} NaN or infinite values"
            )
        spread = spread_of(scheme, t, is_difference)
        variance = max(spread.variance(is_difference), step**2)
        how = f"{'paired ' if is_difference else ''}{_WORDS[scheme].format(found)}"
        replicates, degrees = tuple(t.tolist()), spread.degrees
        return cls(
            replicates[0], math.sqrt(variance), how, replicates, groups, degrees, is_difference,
            scheme, count, step,
        )  # fmt: skip

    @checked
    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval that holds what is estimated with probability ``level``; see ``schemes``.

        What is estimated is the expected value at these numbers of samples: the bias of a plug-in estimate
        is not in it.

        Raises:
            ValueError: ``level`` is not between 0 and 1.
        """
        from scipy.special import stdtrit

        if not 0 < level < 1:
            raise ValueError(f"level must be a number between 0 and 1, got {level!r}")
        t = float(stdtrit(self.degrees_of_freedom, (1 + level) / 2))
        down = up = t * self.standard_error
        if self.replicates and not self.is_difference:
            spread = self._spread()
            if self.count:
                down, up = spread.reach_of_count(self.value, self.count, t)
            else:
                down, up = (max(far, t * self.step) for far in spread.reach(t))
        return self.value - down, self.value + up

    def _spread(self) -> Spread:
        return spread_of(self.scheme, np.asarray(self.replicates), self.is_difference)


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
    return Estimate.from_replicates(
        [s - t for s, t in pairs], a.groups, True, a.scheme, min(a.count, b.count), max(a.step, b.step)
    )


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
        first, step = found[0], max(estimate.step for estimate in found) / len(found)
        return Estimate.from_replicates(
            mean.tolist(), first.groups, first.is_difference, first.scheme, first.count, step
        )
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


def _kind(estimate: Estimate) -> tuple[int, str, bool, str]:
    return len(estimate.replicates), estimate.groups, estimate.is_difference, estimate.scheme


def _words(estimate: Estimate) -> str:
    words = estimate.groups or f"{len(estimate.replicates)} replicates"
    return f"a difference from {words}" if estimate.is_difference else words
