"""Whitened coordinates: the state in which the probability flow of a Gaussian does not move.

Data with mean m and covariance S = U diag(l) U^T have, at the noise-to-signal ratio n, the covariance S + n^2
I in the scale-free state y = x_t / alpha.  The whitened coordinates of that Gaussian are

    u = (l + n^2)^{-1/2} U^T (y - m),              y = m + U (l + n^2)^{1/2} u

and log |dy/du| = 1/2 sum log(l + n^2).

Reference: Wang and Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation" (2412.09726).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_toolkit.models.moments import Moments


class Whitening:
    """The map between scale-free states and whitened coordinates of N(m, S), in float64.

    Args:
        moments: m and S.
        floor: the smallest variance along an axis, in units of the largest; 0 leaves axes without variance.
        device: of the states.

    Attributes:
        variances: l with shape (n,).
        project, embed: U^T y with shape (B, n), and U r with shape (B, *).
    """

    def __init__(self, moments: Moments, floor: float = 0.0, device: torch.device | str = "cpu") -> None:
        variances = moments.variances
        self.moments = moments
        self.variances = variances.clamp(min=floor * float(variances.amax())).to(device)
        self._mean = moments.mean.to(device)
        self.project, self.embed = moments.rotations(self.variances)

    def std(self, nsr: Tensor) -> Tensor:
        """(l + n^2)^{1/2} with shape (n,) or (B, n), for a ratio with shape () or (B,)."""
        return (self.variances + nsr.square()[..., None]).sqrt()

    def whiten(self, y: Tensor, nsr: Tensor) -> Tensor:
        """u with shape (B, n), for y with shape (B, *) and a ratio with shape () or (B,)."""
        return self.project(y - self._mean) / self.std(nsr)

    def unwhiten(self, u: Tensor, nsr: Tensor) -> Tensor:
        """y with shape (B, *), for u with shape (B, n) and a ratio with shape () or (B,)."""
        return self._mean + self.embed(self.std(nsr) * u)
