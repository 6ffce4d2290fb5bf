"""Averages with power-function profiles, and any of them as a combination of a few stored ones.

The average of length sigma_rel after n updates weighs the weights theta_k after update k = 1 .. n by the mass
in (k - 1, k] of the profile

    p(tau) = (gamma + 1) tau^gamma / n^(gamma + 1),      0 < tau <= n
    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)

whose standard deviation is sigma_rel n.  So a length is a share of the run, whatever the run's length, and
the rule needs no warm-up: at update n, counted from 0,

    ema <- d_n ema + (1 - d_n) theta,      d_n = (n / (n + 1))^(gamma + 1)

Afterwards the average of any length sigma at any time T is a combination of stored averages: the profile p_T
is approximated, in the mean square, by profiles of traces gamma_1 .. gamma_K stored at t_1 < ... < t_m.
What is stored of a trace spans the pieces of its power function between the times,

    f_jk(tau) = (tau / t_j)^gamma_k  on (t_{j-1}, t_j]
              = t_j / (gamma_k + 1)  (p_jk - r^(gamma_k + 1) p_{j-1,k}),      r = t_{j-1} / t_j

Pieces at different j are orthogonal, so the least squares fall apart into one system
of K equations for every j.  The Gram matrix of all stored profiles, which is nearly singular where
there are many, is never formed.  With u = tau / t_j the inner products are

    <f_jk, f_jl> = t_j (1 - r^s) / s,      s = gamma_k + gamma_l + 1

and those with p_T the same, with the upper end min(1, T / t_j).  The combination is divided by the sum of its
coefficients, so that weights that do not change are reproduced.  The residual is |p_T - combination| / |p_T|
in the mean square over tau: 0 where the profile is one of the stored ones, near 1 where nothing stored is
like it.  It bounds no error of the weights; it says what share of the profile is missing.

Reference: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2312.02696),
section 3 and appendix C, where the system is solved for all profiles at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LONGEST = 1 / math.sqrt(12)
"""Of the lengths: that of gamma = 0, the plain mean of all weights."""

SHORTEST = 1e-4
"""Of the lengths."""

_CUT_OFF = 1e-12
"""Of the eigenvalues of one piece's system, relative to its largest."""


@dataclass(frozen=True)
class PowerProfile:
    """The profile of one average: the exponent and the time at which it ends."""

    gamma: float
    time: float

    def inner(self, other: PowerProfile) -> float:
        """The integral of the product of the two profiles."""
        end = min(self.time, other.time)
        ends = (end / self.time) ** self.gamma * (end / other.time) ** other.gamma
        tops = (self.gamma + 1) * (other.gamma + 1) / (self.time * other.time)
        return tops * ends * end / (self.gamma + other.gamma + 1)


@dataclass(frozen=True, eq=False)
class Combination:
    """A profile as a combination of stored ones.

    Attributes:
        coefficients: of the trace k at the time t_j, with shape (m, K); their sum is 1.
        residual: relative distance between the combination and the profile, in the mean square.
    """

    coefficients: np.ndarray = field(repr=False)
    residual: float


def need_length(name: str, sigma_rel: float) -> float:
    """The length, if there is a profile of it; refused with a ValueError otherwise."""
    if not SHORTEST <= sigma_rel <= LONGEST:
        raise ValueError(
            f"{name} must be between {SHORTEST} and {LONGEST:.4f} (that of the plain mean), got {sigma_rel}; "
            "try 0.05 or 0.1"
        )
    return float(sigma_rel)


@functools.cache
def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile of this length: the positive root of gamma^3 + 7 gamma^2 + (16 - q) gamma +
    12 - q with q = sigma_rel^(-2).

    Raises:
        ValueError: a length outside ``SHORTEST`` .. ``LONGEST``.
    """
    q = need_length("sigma_rel", sigma_rel) ** -2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - q, 12.0 - q]).real.max()))


def length_of(gamma: float) -> float:
    """The length sigma_rel of the profile with this exponent."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def power_decay(step: int, gamma: float) -> float:
    """The decay of the average at update ``step``, counted from 0."""
    return (step / (step + 1)) ** (gamma + 1)


def combine(times: Sequence[int], gammas: Sequence[float], wanted: PowerProfile) -> Combination:
    """The best combination of the profiles of all ``gammas`` at all ``times`` for a wanted profile.

    Args:
        times: t_1 < ... < t_m, at least 1.
        gammas: of the K traces, all different.
        wanted: a profile that ends at t_m or before.

    Raises:
        ValueError: a profile that ends after the last time, or no times.
    """
    if not times or wanted.time > times[-1]:
        raise ValueError(
            f"the profile must end at the last stored time or before, got {wanted.time} and "
            f"{times[-1] if times else 'no time'}"
        )
    powers = np.asarray(gammas, dtype=np.float64)
    found = np.zeros((len(times), len(powers)))
    fitted, squared = 0.0, 0.0  # <p_T, combination> and |combination|^2
    for j, end in enumerate(times):
        r = (times[j - 1] if j else 0.0) / end
        if r * end >= wanted.time:
            break
        gram = end * _between(r, 1.0, powers[:, None] + powers[None, :] + 1)
        top = (wanted.gamma + 1) * (end / wanted.time) ** (wanted.gamma + 1)
        right = top * _between(r, min(1.0, wanted.time / end), powers + wanted.gamma + 1)
        pieces = _solved(gram, right)
        fitted, squared = fitted + pieces @ right, squared + pieces @ gram @ pieces
        found[j] += pieces * end / (powers + 1)
        if j:
            found[j - 1] -= pieces * r ** (powers + 1) * end / (powers + 1)
    total = found.sum()
    norm = wanted.inner(wanted)
    distance = norm - 2 * fitted / total + squared / total**2
    return Combination(found / total, math.sqrt(max(distance, 0.0) / norm))


def _between(low: float, high: float, s: np.ndarray) -> np.ndarray:
    """The integral of u^(s - 1) from ``low`` to ``high``, without cancellation where they are close."""
    if low == 0:
        return high**s / s
    return -(high**s) * np.expm1(s * math.log(low / high)) / s


def _solved(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The least squares of one piece, scaled to functions of unit norm, by eigenvalues."""
    scale = 1 / np.sqrt(np.diag(gram))
    values, vectors = np.linalg.eigh(gram * np.outer(scale, scale))
    kept = values > _CUT_OFF * values[-1]
    basis = vectors[:, kept]
    solution: np.ndarray = scale * (basis @ ((basis.T @ (scale * right)) / values[kept]))
    return solution
