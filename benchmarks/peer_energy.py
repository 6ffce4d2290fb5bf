"""Energy distance between samples and an exact Gaussian mixture, with noise that falls as 1 / n.

The squared energy distance of X to the law of Y, in D dimensions, is an average over directions theta of that
of the projections,

    2 E|X - Y| - E|X - X'| - E|Y - Y'|  =  k_D  mean over theta of the same for <theta, X> and <theta, Y>,

k_D = pi^(1/2) G((D + 1) / 2) / G(D / 2).  The projections of a mixture are mixtures of one number, so that
E|x - Y| and E|Y - Y'| are closed forms: the law is never drawn from.  E|X - X'| is the mean over pairs, by
sorting, so that a hundred thousand samples take a second.  The average is over ``DIRECTIONS`` fixed
directions, the same for all samplers: equal angles in 2-D, orthonormal bases at random otherwise (in 8-D some
per cent from the average over all).  An estimate is unbiased, and may be
negative.

Reference: Szekely and Rizzo, "Energy statistics: A class of statistics based on distances" (2013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.exact import GaussianMixture
from solvers import Normals

DIRECTIONS = 64
_BATCH = 8


def directions(num_features: int, num: int = DIRECTIONS) -> Tensor:
    """Unit vectors with shape (num, num_features)."""
    if num_features == 2:
        angles = (torch.arange(num, dtype=torch.float64) + 0.5) * (math.pi / num)
        return torch.stack([angles.cos(), angles.sin()], 1)
    bases = Normals(7, -(-num // num_features), (num_features, num_features)).draw(0)
    return torch.linalg.qr(bases).Q.reshape(-1, num_features)[:num]


def mean_distance(x: Tensor) -> Tensor:
    """Mean of |x_i - x_j| over pairs i != j along the last axis, with shape (..., n) -> (...)."""
    n = x.shape[-1]
    place = 2 * torch.arange(n, dtype=x.dtype) + 1 - n
    return 2 * (x.sort(-1).values * place).sum(-1) / (n * (n - 1))


def normal_distance(mean: Tensor, variance: Tensor) -> Tensor:
    """E|N(mean, variance)|, of any shape."""
    std = variance.sqrt()
    away = mean / std
    return std * ((2 / math.pi) ** 0.5 * (-away.square() / 2).exp() + away * torch.erf(away / 2**0.5))


@dataclass(frozen=True)
class Projections:
    """A mixture seen along directions: weights with shape (K,), means and variances with shape (L, K)."""

    theta: Tensor
    weights: Tensor
    means: Tensor
    variances: Tensor

    def energy(self, x: Tensor) -> tuple[float, float]:
        """Unbiased squared distance of samples x with shape (n, D), and its standard error.

        The error is of first order in the samples' fluctuations and includes what the estimate of their
        influence adds: for exact draws it is about twice the true one.
        """
        num_features, n = self.theta.shape[1], len(x)
        total, linear = 0.0, torch.zeros(n, dtype=torch.float64)
        pairs = self.weights[:, None] * self.weights
        for k in range(0, len(self.theta), _BATCH):
            m, v = self.means[k : k + _BATCH], self.variances[k : k + _BATCH]
            p, order = (x.double() @ self.theta[k : k + _BATCH].mT).mT.sort(-1)
            across = torch.zeros_like(p)
            for weight, mean, variance in zip(self.weights, m.mT, v.mT, strict=True):
                across += weight * normal_distance(p - mean[:, None], variance[:, None])
            within = normal_distance(m[:, :, None] - m[:, None], v[:, :, None] + v[:, None])
            own = (within * pairs).sum((1, 2))
            total += float((2 * across.mean(-1) - mean_distance(p) - own).sum())
            # mean over j of |x_i - x_j|, in sorted order
            below, number = p.cumsum(-1), torch.arange(1, n + 1)
            apart = ((2 * number - n) * p - 2 * below + below[:, -1:]) / n
            for row, where in zip(across - apart, order, strict=True):
                linear[where] += 2 * row
        scale = math.pi**0.5 * math.exp(math.lgamma((num_features + 1) / 2) - math.lgamma(num_features / 2))
        scale /= len(self.theta)
        return scale * total, scale * float(linear.std()) / n**0.5


def project(data: GaussianMixture, alpha: float, sigma: float, num: int = DIRECTIONS) -> Projections:
    """alpha x0 + sigma z along ``num`` directions, for x0 with shape (B, D)."""
    c = data.components
    theta = directions(data.event_shape[0], num)
    if c.axes is None:
        variances = theta.square() @ c.variances.mT
    else:
        variances = ((theta @ c.axes).square() * c.variances[:, None]).sum(-1).mT
    return Projections(theta, c.weights, alpha * theta @ c.means.mT, alpha**2 * variances + sigma**2)
