"""What the replicates of a value T say about its spread, by one of five schemes.

**groups**, for smooth values.  The sets are cut at random into G groups; T_g is the value without group g of
both sets, T_gh that without groups g and h = g + 1:

    jackknife       V = (G - 1)/G sum_g (T_g - mean)^2                                 (variance, first order)
    interactions    Q_gh = G T - (G - 1)(T_g + T_h) + (G - 2) T_gh,    quadratic = var(Q_gh) / 2
    linear          linear = V - 2 quadratic

The jackknife counts the quadratic part of T twice (Efron and Stein, section 4).  Where the two distributions
are nearly equal, little but that part is left:

    variance = max( V - quadratic, V / 2 )                     of a value
    variance = max( V - 2 quadratic, 0 ) + quadratic           of a difference of values

Near zero a squared distance is a sum of lambda_k [(Z_k + m_k)^2 - 1] with few terms: skewed, with a variance,
2 sum lambda_k^2 + 4 sum lambda_k^2 m_k^2, that rises with what is estimated, and V is small where T is too
small by chance.  The interval of a value inverts a test, as Wilson's does for a proportion: it holds every
theta with

    (T - theta)^2 <= t^2 V(theta),    V(theta) = max( quadratic + max(linear, 0) + c (theta - T), quadratic )

t of Student's law with G - 1 degrees of freedom, c = linear / (T - bias) between 1/2 and 2^(3/2) times the
root of the quadratic part (a single term has c = 4 lambda, the upper end), bias = (G - 1) (mean T_g - T).
Where the quadratic part is below zero, as for the Vendi score near the largest one, so is the bias of T, and
c = 4 sum lambda^2 / sum lambda = 2 quadratic / bias: the variance falls as the value rises.

**halves**, for values of which leaving out a few points says little: classifiers.  The sets are cut at
random into two halves, R times; A and B are the values on the two, and

    apart           E (A - B)^2 / 4                          unbiased for var(T of n/2 points) / 2
    around          the variance of all A and B              apart, and the spread of (A + B) / 2

``apart`` is the variance of T where this falls as 1/n: for linear T, for what is local, and for what is
trained on one part of the points and counted on the other.  Nothing is counted twice.  It is the variance of
differences, and of values downwards; the interval of a value reaches up by ``around``, because counts below a
bound, and values of classifiers that learn nothing, are skewed.

**local**, for shares of nearest neighbours: halves, and each half is cut in two again.  Two samplers that
differ little disagree in pairs of neighbours whose number rises faster than n.  With v_2 and v_4 the
variances of T on halves and quarters, n^(-a) is how it falls:

    variance = apart 2^(1 - a),    a = log2( v_4 / v_2 ) between 0 and 1

**kinks**, for values as |Z + m|, with kinks at the scale of the sampling error Z: total variation.  Halves;
but given the data A and B are off by +- Z', of the size of Z.  ``apart`` is 0 at the kink, and small where T
is too small by chance, though right on average.  ``around`` is the variance of |Z + m + Z'|, that at a larger
value, at the mean of A and B.  The interval of a value takes both,

    V(theta) = max( apart + c (theta - T), 2/3 around ),    c = (around - apart) / (mean of A, B - T)

(the norm of a normal vector has half the variance at 0 that it has far off, and three quarters there under
``around``), that of a difference ``around``.

**quarters**, for distances of transport: kinks, with apart / 2 as the least variance, and each half is cut in
two again.  The difference of nearly equal samplers is a sum of signs of F_x - F_y, whose spread does not fall
as n^(-1/2) until they are told apart: its variance is around 2^(1 - a), and t has 10 degrees of freedom, for
a sum of few signs.

What theory leaves open in these rules (up or down, 2/3 or 1/2, 10 degrees) was chosen on a grid of nine modes
in 3-D and a bent law in 4-D, and not on the laws of the benchmark, but for one thing: "local" for precision,
recall and coverage, which was tried there first for densities alone, was taken after recall had failed in the
benchmark.  Accuracies of classifiers and the Vendi score were never tried on the other laws.

**Counts.**  Where T is a mean of zeros and ones, of ``count`` such terms, the variance depends on what is
estimated as theta (1 - theta) does.  With rho = V / (T (1 - T)), at least 1 / count,

    V(theta) = V + rho ( theta (1 - theta) - T (1 - T) )

which is Wilson's interval of a proportion with the effective number 1 / rho, and holds [1 - 4/n, 1] where
nothing failed.  ``step`` is the least by which T can change; no standard error is below it: a count of which
nothing moved is not known to better than one.

References: Efron and Stein, "The Jackknife Estimate of Variance" (Ann. Statist. 9, 1981); Politis, Romano and
Wolf, "Subsampling" (1999); Wilson, "Probable inference" (J. Am. Stat. Assoc. 22, 1927).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SCHEMES = ("groups", "halves", "local", "kinks", "quarters")
IN_QUARTERS = ("local", "quarters")
"""Those whose halves are cut again."""

FEWEST = 10
"""Groups of a jackknife, or splits in halves."""

SIGNS_DEGREES = 10.0
"""Degrees of freedom of the variance of a difference by quarters."""


class Spread(Protocol):
    """What replicates say: the variance of T, and how far an interval reaches below and above T."""

    @property
    def degrees(self) -> float:
        """Degrees of freedom."""

    def variance(self, is_difference: bool) -> float:
        """Of a value, or of a difference of two values."""

    def reach(self, t: float) -> tuple[float, float]:
        """Of the interval of a value, for Student's quantile ``t``."""

    def reach_of_count(self, value: float, count: float, t: float) -> tuple[float, float]:
        """Of the interval of a mean of ``count`` zeros and ones."""


def number_of(scheme: str, size: int) -> int:
    """How many groups or splits ``size`` replicates come from; 0 where that is no whole number or too few."""
    found, rest = divmod(size - 1, 6 if scheme in IN_QUARTERS else 2)
    return found if rest == 0 and found >= FEWEST else 0


def spread_of(scheme: str, replicates: np.ndarray, is_difference: bool) -> Spread:
    """The parts of the variance, from T and all other replicates."""
    if scheme == "groups":
        return Groups.of(replicates)
    return Halves.of(replicates, scheme, is_difference)


def around_a_count(value: float, variance: float, count: float, t: float) -> tuple[float, float]:
    """How far the interval of a mean of ``count`` zeros and ones reaches below and above it."""
    p = min(max(value, 0.0), 1.0)
    rho = max(variance / max(p * (1 - p), 1 / count), 1 / count)
    a, b = 1 + t * t * rho, 2 * p + t * t * rho
    root = math.sqrt(max(b * b - 4 * a * (p * p - t * t * (variance - rho * p * (1 - p))), 0.0))
    low, high = (max((b - root) / (2 * a), 0.0), min((b + root) / (2 * a), 1.0))
    return value - min(low, p), max(high, p) - value


@dataclass(frozen=True)
class Groups:
    """The jackknife by groups."""

    num_groups: int
    jackknife: float
    quadratic: float
    distance: float
    bias: float

    @classmethod
    def of(cls, t: np.ndarray) -> Groups:
        """From (T, T_1 .. T_G, T_12 .. T_G1)."""
        num_groups = len(t) // 2
        t_g, t_gh = t[1:].reshape(2, num_groups)
        q = num_groups * t[0] - (num_groups - 1) * (t_g + np.roll(t_g, -1)) + (num_groups - 2) * t_gh
        bias = (num_groups - 1) * (t_g.mean() - t[0])
        variance, quadratic = float((num_groups - 1) * t_g.var()), float(q.var(ddof=1)) / 2
        return cls(num_groups, variance, quadratic, float(t[0] - bias), float(bias))

    @property
    def degrees(self) -> float:
        """See ``Spread``."""
        return float(self.num_groups - 1)

    def variance(self, is_difference: bool) -> float:
        """See ``Spread``."""
        if is_difference:
            return max(self.jackknife - 2 * self.quadratic, 0.0) + self.quadratic
        return max(self.jackknife - self.quadratic, self.jackknife / 2)

    def reach(self, t: float) -> tuple[float, float]:
        """See ``Spread``."""
        linear, root = self.variance(True) - self.quadratic, math.sqrt(self.quadratic)
        slope = min(max(linear / max(abs(self.distance), 1e-300), root / 2), math.sqrt(8) * root)
        slope = math.copysign(slope, self.distance)
        if self.bias < -root / 2:
            slope = max(2 * self.quadratic / self.bias, -math.sqrt(8) * root)
        low, high = (
            _solved(t, linear + self.quadratic, towards * slope, self.quadratic) for towards in (-1, 1)
        )
        return low, high

    def reach_of_count(self, value: float, count: float, t: float) -> tuple[float, float]:
        """See ``Spread``."""
        return around_a_count(value, self.variance(False), count, t)


@dataclass(frozen=True)
class Halves:
    """Random halves, and quarters of them."""

    degrees: float
    of_value: float
    of_difference: float
    upwards: float
    slope: float = 0.0
    least: float = 0.0

    @classmethod
    def of(cls, t: np.ndarray, scheme: str, is_difference: bool) -> Halves:
        """From (T, A_1, B_1 .. A_R, B_R), and four values for the quarters of each of the R splits."""
        splits = number_of(scheme, len(t))
        halves = t[1 : 1 + 2 * splits].reshape(splits, 2)
        apart, around = float(np.square(halves[:, 0] - halves[:, 1]).mean() / 4), float(halves.var())
        further = float(halves.mean() - t[0])
        slope = max(around - apart, 0.0) / further if further > 0 else 0.0
        if scheme == "halves":
            return cls(float(splits), apart, apart, around)
        if scheme == "kinks":
            least = 2 * around / 3
            return cls(float(splits), max(apart, least), around, apart, slope, least)
        of_quarters = float(t[1 + 2 * splits :].reshape(splits, 4).var(1, ddof=1).mean())
        fall = min(max(of_quarters / max(2 * apart, 1e-300), 1.0), 2.0)  # 2^a
        if scheme == "local":
            return cls(float(splits), 2 * apart / fall, 2 * apart / fall, around)
        degrees = SIGNS_DEGREES if is_difference else float(splits)
        return cls(degrees, apart, 2 * around / fall, apart, slope, apart / 2)

    def variance(self, is_difference: bool) -> float:
        """See ``Spread``."""
        return self.of_difference if is_difference else self.of_value

    def reach(self, t: float) -> tuple[float, float]:
        """See ``Spread``."""
        if not self.slope:
            return t * math.sqrt(self.of_value), t * math.sqrt(max(self.of_value, self.upwards))
        low, high = (_solved(t, self.upwards, towards * self.slope, self.least) for towards in (-1, 1))
        return low, high

    def reach_of_count(self, value: float, count: float, t: float) -> tuple[float, float]:
        """See ``Spread``."""
        low, _ = around_a_count(value, self.of_value, count, t)
        _, high = around_a_count(value, max(self.of_value, self.upwards), count, t)
        return low, high


def _solved(t: float, variance: float, slope: float, least: float) -> float:
    """The largest r with r^2 <= t^2 max( variance + slope r, least )."""
    b = t * t * slope
    return max((b + math.sqrt(b * b + 4 * t * t * variance)) / 2, t * math.sqrt(least))
