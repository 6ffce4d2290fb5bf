"""Energy distance between samples and an exact Gaussian mixture, without drawing the mixture.

The squared energy distance of X to the law of Y, in D dimensions, is an average over directions theta of that
of the projections <theta, X> and <theta, Y>, which is an integral over their distribution functions:

    2 E|X - Y| - E|X - X'| - E|Y - Y'|  =  k_D  mean over theta of  2 int (F_X - F_Y)^2 du,

k_D = pi^(1/2) G((D + 1) / 2) / G(D / 2).  F_Y is a closed form.  F_X is taken from B independent blocks of
samples, of which each has the deviation d_b = F_b - F_Y: the mean of the inner products of different blocks,

    K_ab = k_D mean over theta of  2 int d_a d_b du,        estimate = mean of K_ab over a != b,

is unbiased whatever the samples within a block have to do with each other, and may be negative.  For exact
draws the K_ab are uncorrelated, which gives the noise; away from them the jackknife over blocks does.  The
integral is a sum over nodes 1/64 apart, exact to rounding for laws smooth on that scale, so that only the
numbers of samples between nodes are needed.

A symmetry of the mixture that every sampler shares (a turn of the starts and draws turns the output) is used:
the deviation of a block is averaged over the images of its samples, which takes away the larger part of the
noise and leaves the distance as it is.  The averages are over fixed directions, the same for all samplers:
equal angles in 2-D, orthonormal bases at random otherwise (in 8-D some per cent from the average over all).

Reference: Szekely and Rizzo, "Energy statistics: A class of statistics based on distances" (2013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.models import GaussianMixture
from solvers import Normals

DIRECTIONS = 64
REACH, PER_UNIT = 8, 64
"""Samples are told apart from -8 to 8 in a projection; what lies further counts at the ends."""
NODES = 2 * REACH * PER_UNIT


def directions(num_features: int, num: int, arc: float = math.pi) -> Tensor:
    """Unit vectors with shape (num, num_features); in 2-D at equal angles over ``arc``."""
    if num_features == 2:
        angles = (torch.arange(num, dtype=torch.float64) + 0.5) * (arc / num)
        return torch.stack([angles.cos(), angles.sin()], 1)
    bases = Normals(7, -(-num // num_features), (num_features, num_features)).draw(0)
    return torch.linalg.qr(bases).Q.reshape(-1, num_features)[:num]


def dihedral(num: int) -> Tensor:
    """The symmetries of a regular polygon with a corner on the first axis, with shape (2 num, 2, 2)."""
    angles = torch.arange(num, dtype=torch.float64) * (2 * math.pi / num)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], 1).reshape(-1, 2, 2)
    return torch.cat([turns, turns * torch.tensor([1.0, -1.0], dtype=torch.float64)])


@dataclass(frozen=True)
class Projections:
    """A mixture seen along directions.

    Attributes:
        images: theta under every symmetry with shape (L, S, D).
        exact: F_Y at the nodes with shape (L, NODES).
        scale: of the sums over directions and nodes.
    """

    images: Tensor
    exact: Tensor
    scale: float

    def deviation(self, x: Tensor) -> Tensor:
        """d_b of a block x with shape (n, D), flat; inner products of two are K_ab."""
        (L, S, D), size = self.images.shape, NODES + 1
        p = x @ self.images.reshape(L * S, D).to(x.dtype).mT
        first = ((p + REACH) * PER_UNIT).ceil_().clamp_(0, NODES).long()
        first += torch.arange(L * S) // S * size
        counts = first.flatten().bincount(minlength=L * size).reshape(L, size)[:, :NODES]
        return self.scale * (counts.cumsum(1) / (S * len(x)) - self.exact).flatten()


def products(deviations: Tensor) -> Tensor:
    """K_ab with shape (B, B), zero at a = b, for deviations with shape (B, *)."""
    return (deviations @ deviations.mT).fill_diagonal_(0)


def estimate(deviations: Tensor) -> tuple[float, float]:
    """Squared energy distance from the deviations of B blocks with shape (B, *), and its standard error.

    The error is the jackknife's: each block is left out once.
    """
    K, B = products(deviations), len(deviations)
    value = K.sum() / (B * (B - 1))
    without = (K.sum() - 2 * K.sum(1)) / ((B - 1) * (B - 2))
    return float(value), float(((without - value).square().sum() * (B - 1) / B).sqrt())


def deviation_noise(deviations: Tensor) -> float:
    """Root mean square of K_ab from blocks of exact draws with shape (B, *)."""
    B = len(deviations)
    return float((products(deviations).square().sum() / (B * (B - 1))).sqrt())


def project(
    data: GaussianMixture,
    alpha: float,
    sigma: float,
    symmetries: Tensor | None = None,
    num: int = DIRECTIONS,
) -> Projections:
    """alpha x0 + sigma z along ``num`` directions, for x0 with shape (B, D).

    Args:
        data: of x0.
        alpha, sigma: scales.
        symmetries: orthogonal matrices with shape (S, D, D) that leave the data's law as it is; if D = 2, all
            of a regular polygon.
        num: number of directions, their images counted.
    """
    c, D = data.components, data.event_shape[0]
    turns = torch.eye(D, dtype=torch.float64).unsqueeze(0) if symmetries is None else symmetries
    # one direction of every orbit: the arc between two mirrors
    theta = directions(D, num // len(turns), math.pi if symmetries is None else 2 * math.pi / len(turns))
    if c.axes is None:
        variances = theta.square() @ c.variances.mT
    else:
        variances = ((theta @ c.axes).square() * c.variances[:, None]).sum(-1).mT
    mean, std = alpha * theta @ c.means.mT, (alpha**2 * variances + sigma**2).sqrt()
    nodes = torch.arange(NODES, dtype=torch.float64).unsqueeze(1) / PER_UNIT - REACH
    exact = torch.special.ndtr((nodes - mean.unsqueeze(1)) / std.unsqueeze(1)) @ c.weights
    k_D = math.pi**0.5 * math.exp(math.lgamma((D + 1) / 2) - math.lgamma(D / 2))
    images = torch.einsum("ld,sde->lse", theta, turns)
    return Projections(images, exact, math.sqrt(2 * k_D / PER_UNIT / len(theta)))
