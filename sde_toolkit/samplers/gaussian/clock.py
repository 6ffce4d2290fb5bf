"""Clocks of the noise-to-signal ratio n that follow the whole spectrum l of the data.

A clock is a function of n given by what an e-fold of n counts.  Every axis i, with standard deviation
s_i = l_i^{1/2}, wants a density of its own, psi(n / (c s_i)): that of arcsinh, r / (1 + r^2)^{1/2}, which
counts every e-fold above the axis's scale, or that of arctan, r / (1 + r^2), which counts only those around
it.  They are joined by a power mean, weighted by the variances:

    d tau / d ln n = ( sum_i l_i psi(n / (c s_i))^{1/k} / sum l )^k

Why a small k: an error of psi_i h^p per e-fold on the way of axis i adds up to sum_i l_i psi_i^2 h^{2p}; of
all clocks with equally many steps the one with d tau / d ln n ~ (sum_i l_i psi_i^2)^{1/(2p+1)} has the
smallest sum.  So an axis that is 100 times thinner gets not 10^4 times fewer evaluations per e-fold, but
10^{4 k} times.  With one scale, k does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.interpolate import PPoly

_POINTS_PER_E_FOLD = 40
_BEYOND = 12.0
"""E-folds of the table above the largest and below the smallest ratio that matter."""

_BINS_PER_E_FOLD = 64
"""Variances nearer than this count as equal."""

Density = Callable[[np.ndarray], np.ndarray]


def arcsinh_density(ratio: np.ndarray) -> np.ndarray:
    """d arcsinh(r) / d ln r with the shape of ``ratio``."""
    return ratio / np.sqrt(1 + ratio**2)


def arctan_density(ratio: np.ndarray) -> np.ndarray:
    """d arctan(r) / d ln r with the shape of ``ratio``."""
    return ratio / (1 + ratio**2)


def power_mean(variances: np.ndarray, length: float, k: float, psi: Density) -> Density:
    """The density of the module's head, a function of ln n.

    Args:
        variances: l > 0 with shape (n,).
        length: c, in standard deviations.
        k: of the mean, in (0, 1].
        psi: of n / (c s_i).
    """
    # variances that are almost equal count once: spectra of any size cost the same
    rounded, counts = np.unique(np.round(np.log(variances) * _BINS_PER_E_FOLD), return_counts=True)
    values = np.exp(rounded / _BINS_PER_E_FOLD)
    shares, stds = counts * values / np.sum(counts * values), length * np.sqrt(values)

    def density(log_nsr: np.ndarray) -> np.ndarray:
        return (psi(np.exp(log_nsr)[:, None] / stds) ** (1 / k) @ shares) ** k

    return density


@dataclass(frozen=True)
class Clock:
    """tau(n), increasing from 0 at n = 0 to ``total`` at n = infinity.

    Attributes:
        first, last: ln n at the ends of the table.
        table: tau as a function of ln n between them.
        total: tau at infinity.
    """

    first: float
    last: float
    table: PPoly
    total: float

    def __call__(self, nsr: np.ndarray) -> np.ndarray:
        """tau with the shape of ``nsr``, ratios > 0."""
        return self.table(np.clip(np.log(nsr), self.first, self.last))

    def inverse(self, tau: np.ndarray) -> np.ndarray:
        """The ratios at ``tau``, between the ends of the table: Newton's method from linear interpolation."""
        knots, slope = self.table.x, self.table.derivative()
        x = np.interp(tau, self.table(knots), knots)
        for _ in range(3):
            x = np.clip(x - (self.table(x) - tau) / slope(x), self.first, self.last)
        return np.exp(x)


def make_clock(density: Density, smallest: float, largest: float, fall: float = 1.0) -> Clock:
    """The clock of a density.

    Args:
        density: d tau / d ln n, a function of ln n that is ~ n as n falls to 0 and ~ n^{-fall} as it grows.
        smallest, largest: of the scales in the density.
        fall: of the density.
    """
    from scipy.interpolate import CubicSpline

    first, last = math.log(smallest) - _BEYOND, math.log(largest) + _BEYOND / fall
    x = np.linspace(first, last, math.ceil((last - first) * _POINTS_PER_E_FOLD))
    values = density(x)
    table = CubicSpline(x, values).antiderivative()
    table.c[-1] += values[0]  # what lies below the table
    return Clock(first, last, table, float(table(last) + values[-1] / fall))
