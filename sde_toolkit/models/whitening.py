"""Whitened coordinates: the state in which the probability flow of a Gaussian does not move.

Data with mean m and covariance S = U diag(l) U^T have, at the noise-to-signal ratio n, the covariance S + n^2
I in the scale-free state y = x_t / alpha.  The whitened coordinates of that Gaussian are

    u = (l + n^2)^{-1/2} U^T (y - m),              y = m + U (l + n^2)^{1/2} u

and log |dy/du| = 1/2 sum log(l + n^2).

A network may be set on that Gaussian as EDM's is on one standard deviation.  It sees u, rotated back to the
axes of the data, and its output F stands for what is left of the clean data, axis by axis in units of what
the Gaussian leaves open,

    x0_hat = m + S (S + n^2)^{-1} (y - m) + n S^{1/2} (S + n^2)^{-1/2} F( (S + n^2)^{-1/2} (y - m) )

so that F = 0 is the Gaussian, the target of F has variance 1 along every axis at every n for Gaussian data,
and with S = d^2 I and m = 0 it is EDM's preconditioning.  The noise that it adds to that of the Gaussian is
-S^{1/2} (S + n^2)^{-1/2} F: whatever F is, it vanishes like 1 / n.

References: Wang and Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation" (2412.09726);
Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364), section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_toolkit.models.moments import Moments
from solvers.terms import expand_like

LEAST_VARIANCE = 1e-6
"""Smallest l of a preconditioner, in units of the mean variance; along an axis without any, nothing could be
learnt."""


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


class Preconditioner:
    """A network set on the Gaussian N(m, S): the mathematics of the module's head, for one type and device.

    Axes with a variance below ``LEAST_VARIANCE`` times the mean variance are given that.

    Args:
        moments: m and S.
        like: a tensor of the states' type, at least float32, and on their device.
    """

    def __init__(self, moments: Moments, like: Tensor) -> None:
        self.moments, self.dtype, self.device = moments, like.dtype, like.device
        with torch.inference_mode(False), torch.no_grad():
            self._filter = moments.filter(like)
            self._variances = self._filter.variances.clamp(min=LEAST_VARIANCE * moments.std**2)
            self._mean = moments.mean.to(like)

    def inputs(self, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """(S + n^2)^{-1/2} (y - m) with shape (B, *), for x_t with shape (B, *) and levels of shape () or
        (B,)."""
        alpha_t, sigma_t = alpha_t.to(x_t), sigma_t.to(x_t)
        return self._filter((self._centred(x_t, alpha_t), self._variance(alpha_t, sigma_t).rsqrt()))

    def edm(self, F: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor, data_std: float) -> Tensor:
        """EDM's prediction with shape (B, *) for the network's output F: (x0_hat - c_skip y) / c_out with the
        coefficients of ``data_std``.  Nothing in it cancels, at any noise level."""
        alpha_t, sigma_t = alpha_t.to(x_t), sigma_t.to(x_t)
        variance = self._variance(alpha_t, sigma_t)
        norm = ((data_std * alpha_t).square() + sigma_t.square()).sqrt()
        keep = sigma_t * alpha_t / (data_std * norm)
        keep = keep[..., None] * (self._variances - data_std**2) / variance
        scale = (self._variances / variance).sqrt() * (norm / data_std)[..., None]
        joined = self._filter((self._centred(x_t, alpha_t), keep), (F, scale))
        return joined + expand_like(sigma_t / (data_std * norm), x_t) * self._mean

    def in_units(self, z: Tensor, nsr: Tensor) -> Tensor:
        """S^{-1/2} (S + n^2)^{1/2} z with shape (B, *): errors of the noise in units of F."""
        gain = ((self._variances + nsr.to(z).square()[..., None]) / self._variances).sqrt()
        return self._filter((z, gain))

    def _centred(self, x_t: Tensor, alpha_t: Tensor) -> Tensor:
        return x_t - expand_like(alpha_t, x_t) * self._mean

    def _variance(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """alpha^2 l + sigma^2 with shape (k,) or (B, k), along the filter's axes."""
        return alpha_t.square()[..., None] * self._variances + sigma_t.square()[..., None]
