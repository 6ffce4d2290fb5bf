"""Guidance that needs no derivative of the network: the clean prediction is moved towards what was observed.

    ScoreALD     x0_hat + n^2 A^T (y - A x_t / alpha) / (s^2 + gamma^2 n^2)
    DDNM         x0_hat + A^+ W (y - A x0_hat),     W = min(1, n a_i / s) along the singular vectors, a_i
    their values DiffPIR      argmin over x of |y - A x|^2 / s^2 + lambda |x - x0_hat|^2 / n^2

with n = sigma / alpha.  In DDNM W is 1 where the noise of the state is above that of the observation
(DDNM+); without noise the observed part of the prediction is replaced.  All are biased: the first ignores
what the prior says of A x0 given x_t, the second the uncertainty of x0_hat, and the third takes it for n^2 I.

References: Jalal et al., "Robust Compressed Sensing MRI with Deep Generative Priors" (2108.01368), eq. 4, for
annealed Langevin dynamics; Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space
Model" (2212.00490), eq. 13 and 17-19 (DDNM+); Zhu et al., "Denoising Diffusion Models for Plug-and-Play
Image Restoration" (2305.08995), algorithm 1, eq. 12b, with rho_t = lambda s^2 / n^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sde_toolkit.guidance.inverse.observations import reciprocal
from sde_toolkit.guidance.inverse.posterior import Method, Query
from sde_toolkit.utils import check_fields
from solvers.terms import expand_like


def _column(v: Tensor) -> Tensor:
    return v if v.ndim == 0 else v[:, None]


@dataclass(frozen=True)
class ScoreALD(Method):
    """Annealed likelihood of the noised state (2108.01368).

    Args:
        gamma: std of A x_t / alpha that is added to that of the observation, in units of n.

    Raises:
        ValueError: a gamma that is not positive.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        seen, n2 = query.measured, query.nsr.square()
        r = seen.residual(query.x_t / expand_like(query.alpha, query.x_t))
        pull = seen.backward(r)
        return query.x0_hat() + expand_like(n2 / (seen.std**2 + self.gamma**2 * n2), pull) * pull


@dataclass(frozen=True)
class DDNM(Method):
    """Null-space replacement of the clean prediction (2212.00490)."""

    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        x0_hat, seen = query.x0_hat(), query.measured
        n = _column(query.nsr)

        def gain(e: Tensor) -> Tensor:
            if seen.std == 0:
                return reciprocal(e)
            return reciprocal(e) * (n * e.sqrt() / seen.std).clamp(max=1)

        return x0_hat + seen.backward(seen.of_gram(gain, seen.residual(x0_hat)))


@dataclass(frozen=True)
class DiffPIR(Method):
    """Plug-and-play restoration (2305.08995): the proximal step of the likelihood from x0_hat.

    Args:
        weight: lambda, how much x0_hat counts.

    Raises:
        ValueError: a weight that is not positive.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be positive, got {self.weight}")

    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        x0_hat, seen = query.x0_hat(), query.measured
        v = _column(query.nsr.square()) / self.weight
        g = seen.of_gram(lambda e: v * reciprocal(seen.std**2 + v * e), seen.residual(x0_hat))
        return x0_hat + seen.backward(g)
