"""The residual of a run between nodes: its envelope, the nodes of every step, and the weights they get.

``sde_toolkit.samplers.gaussian.method`` has the mathematics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.models import Moments
from sde_toolkit.samplers.gaussian.grid import Constants, node_clock
from solvers.weights import lagrange

_POINTS = 32
"""Gauss-Legendre points per step, in arcsinh(5 n / s) for the smallest s that matters."""

_MOST_ELEMENTS = 1 << 21

Nodes = list[tuple[float, int | None]]
"""Values of v, and which evaluation they belong to, the newest is 0; None where q is known to vanish."""


@functools.cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Points in [-1, 1] and weights, each with shape (_POINTS,)."""
    x, weight = np.polynomial.legendre.leggauss(_POINTS)
    return torch.from_numpy(x), torch.from_numpy(weight)


class Residual:
    """q of one run, a polynomial in v on every step.

    Args:
        moments: of the data.
        constants: of the sampler.
        eta: stochasticity.
        nsr: the ratios at all times with shape (N + 1,); evaluated is at all but the first and the last.
    """

    def __init__(self, moments: Moments, constants: Constants, eta: float, nsr: Tensor) -> None:
        start, self._end = float(nsr[0]), float(nsr[-1])
        self.moments, self.constants, self.eta, self.nsr = moments, constants, eta, nsr
        self._resolved = moments.distinct.clamp(min=self._end**2)
        self._clock = node_clock(moments, constants, start, self._end)
        limit = constants.smooth * moments.scale
        self._counts = [constants.counts(len(nsr) - 2, n > limit) for n in nsr.tolist()]

    def shrink(self, start: Tensor, end: Tensor) -> Tensor:
        """rho(end, start), for ratios that broadcast against shape (n,)."""
        variances = self.moments.distinct
        ratio = (variances + end.square()) / (variances + start.square())
        return ratio ** (self.eta**2 / 2)

    def envelope(self, nsr: Tensor) -> Tensor:
        """e with shape (..., k) along ``moments.distinct``, for ratios with shape (..., 1)."""
        return nsr * (self._resolved + nsr.square()) ** (-(1 + self.constants.fall) / 2)

    def nodes(self) -> tuple[list[Nodes], list[Nodes]]:
        """The newest nodes for every step's corrector and predictor."""
        v = self._clock(self.nsr.numpy()).tolist()

        def newest(i: int, count: int) -> Nodes:
            past = [(value, k) for k, value in enumerate(v[max(i - count, 0) + 1 : i + 1][::-1])]
            return [*past, (self._clock.total, None)][:count]

        predictors, correctors = zip(*self._counts[:-1], strict=True)
        return (
            [newest(i + 1, count) for i, count in enumerate(correctors)],
            [newest(i, count) for i, count in enumerate(predictors)],
        )

    def table(self, nodes: Sequence[Nodes], units: Tensor, lag: int) -> Tensor:
        """Weights of the evaluations in every step with shape (N, K, n), those with equally many nodes made
        together.

        Args:
            nodes: of the first N steps.
            units: q over what is kept of an evaluation, with shape (M, n).
            lag: evaluation k of step i has the entry i - k - lag there.
        """
        places = max(max(predictor + 1, corrector) for predictor, corrector in self._counts)
        table = torch.zeros(len(nodes), places, units.shape[-1], dtype=torch.float64)
        for count in {len(chosen) for chosen in nodes}:
            steps = [i for i, chosen in enumerate(nodes) if len(chosen) == count]
            at = torch.tensor([[value for value, _ in nodes[i]] for i in steps], dtype=torch.float64)
            index = torch.tensor(steps)
            weights = self._integrals(self.nsr[index], self.nsr[index + 1], at)
            chosen = [(m, j, i, nodes[i][j][1]) for m, i in enumerate(steps) for j in range(count)]
            used = [entry for entry in chosen if entry[3] is not None]
            if used:
                m, j, i, k = torch.tensor(used).unbind(1)
                table[i, k] = weights[m, j] * units[i - k - lag]
        return table

    def _integrals(self, start: Tensor, end: Tensor, at: Tensor) -> Tensor:
        """w_j with shape (M, k, n) for M steps; ``at`` with shape (M, k) are the values of v at the nodes."""
        variances = self.moments.distinct
        unit = 0.2 * math.sqrt(float(self._resolved.amin()))
        x, weight = _gauss_legendre()
        most = max(1, _MOST_ELEMENTS // (_POINTS * len(variances)))
        parts = []
        for a, b, nodes in zip(start.split(most), end.split(most), at.split(most), strict=True):
            lower, upper = torch.asinh(a / unit)[:, None], torch.asinh(b / unit)[:, None]
            asinh = lower + (upper - lower) * (x + 1) / 2
            n = unit * torch.sinh(asinh)
            dn = (upper - lower) * (weight / 2) * unit * torch.cosh(asinh)
            basis = lagrange(torch.from_numpy(self._clock(n.numpy())), nodes) * dn[..., None]
            n = n[..., None]
            kernel = self.envelope(n) * (variances + n.square()).rsqrt()
            if self.eta:
                kernel = (1 + self.eta**2) * kernel * self.shrink(n, b[:, None, None])
            parts.append(torch.einsum("mqk,mqd->mkd", basis, kernel))
        return torch.cat(parts)
