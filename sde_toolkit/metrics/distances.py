"""Distances between two sets of samples.

Of x_1 .. x_n ~ P and y_1 .. y_m ~ Q, flattened to D features and computed in float64:

    sliced Wasserstein   ( mean over directions theta of W_p^p(theta.x, theta.y) )^(1/p),   p = 1 or 2
    energy distance      2 E|x - y| - E|x - x'| - E|y - y'|
    MMD^2                E k(x, x') + E k(y, y') - 2 E k(x, y),   k Gaussian, or a mean of Gaussians
    KID                  the same, k(x, y) = (x.y / F + 1)^3 of F features
    Frechet distance     |m_x - m_y|^2 + tr( C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2 ),   a squared distance

Energy distance, MMD^2 and KID are U-statistics (pairs of a point with itself are left out): unbiased for the
squared distances they stand for, hence sometimes below zero.  The sliced Wasserstein and the Frechet distance
are plug-in estimates, biased upwards by about n^(-1/2) and D/n for equal distributions, and can be compared
only at equal sample sizes.  The Frechet distance is, as in FID, the SQUARE of the 2-Wasserstein distance of
the two fitted Gaussians; ``gaussian_w2`` is the distance itself.

Not promised: the projections, the bandwidth and the features are held fixed, as parts of the distance.  Error
bars are in ``sde_toolkit.metrics.bootstrap``; those of the sliced Wasserstein distance, which is not smooth
near equal laws, are by halves.

References: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures" (J. Math. Imaging Vis. 51,
2015); Szekely and Rizzo, "Energy statistics: A class of statistics based on distances" (J. Stat. Plan.
Inference 143, 2013); Gretton et al., "A Kernel Two-Sample Test" (JMLR 13, 2012); Heusel et al., "GANs Trained
by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (1706.08500).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.metrics.protocol import Distance, Facts, checked_sets
from sde_toolkit.utils import Stream, check_fields, checked, integer, step_generator

MEDIAN_POINTS = 500
"""At most this many points of each set enter the median heuristic, evenly spaced in the set."""

CHUNK = 1 << 22
"""About this many entries of a matrix of distances are held at a time (32 MB)."""


@dataclass(frozen=True)
class SlicedWasserstein(Distance):
    """The mean W_p distance, p = ``order``, of the projections on ``num_projections`` random directions."""

    facts: ClassVar[Facts] = Facts("sliced Wasserstein", cost="sorting", resampling="quarters")

    num_projections: int = 128
    seed: int = 0
    order: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_projections", self.num_projections, 1)
        integer("seed", self.seed, 0)
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order}")

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: each set is projected and sorted once, a subset of a sorted set is sorted."""
        generator = step_generator(self.seed, 0, Stream.PROJECTIONS)
        theta = torch.randn(x[0].numel(), self.num_projections, dtype=torch.float64, generator=generator)
        theta = theta / theta.norm(dim=0)
        sets = []
        for s, keep in ((x, keep_x), (y, keep_y)):
            found = (s.flatten(1) @ theta).T.contiguous().sort(1)
            sets.append((found.values.numpy(), found.indices.numpy(), keep.numpy()))
        values = []
        for row in range(len(keep_x)):
            a, b = (_sorted_subset(of, indices, keep[row]) for of, indices, keep in sets)
            values.append(_quantile_cost(a, b, self.order))
        return torch.stack(values) ** (1 / self.order)


@dataclass(frozen=True)
class EnergyDistance(Distance):
    """The energy distance, unbiased: 2 E|x - y| - E|x - x'| - E|y - y'|."""

    facts: ClassVar[Facts] = Facts("energy distance", unbiased=True)

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: each distance is computed once."""
        return -_mean_discrepancy(torch.cdist, x, y, keep_x, keep_y)


@dataclass(frozen=True)
class MMD(Distance):
    """The squared maximum mean discrepancy, unbiased, for the mean of the kernels exp(-|x - y|^2 / (2 h^2)).

    ``bandwidths`` are the h; None means one, the median distance in the pooled sample (of the
    whole sets, also when subsets are compared).
    """

    facts: ClassVar[Facts] = Facts("squared MMD", unbiased=True)

    bandwidths: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bandwidths is not None and not (
            len(self.bandwidths) and all(0 < h < math.inf for h in self.bandwidths)
        ):
            raise ValueError(f"bandwidths must be positive and finite, at least one, got {self.bandwidths}")

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: each kernel value is computed once."""
        bandwidths = self.bandwidths or (median_distance(x, y),)

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            square = torch.cdist(x, y).square_().mul_(-0.5)
            return torch.stack([(square / h**2).exp_() for h in bandwidths]).mean(0)

        return _mean_discrepancy(kernel, x, y, keep_x, keep_y)


@dataclass(frozen=True)
class KernelInceptionDistance(Distance):
    """The squared MMD, unbiased, for the kernel (x.y / F + 1)^degree on F features: KID where degree = 3.

    With Inception's features (``OnFeatures``) and all pairs instead of the mean over blocks of them it is
    KID as published (Binkowski et al., "Demystifying MMD GANs", 1801.01401).
    """

    facts: ClassVar[Facts] = Facts("KID", unbiased=True)

    degree: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        integer("degree", self.degree, 1)

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: each kernel value is computed once."""

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.T / x.shape[1] + 1) ** self.degree

        return _mean_discrepancy(kernel, x, y, keep_x, keep_y, centred=False)


@dataclass(frozen=True)
class FrechetDistance(Distance):
    """The squared 2-Wasserstein distance of the Gaussians with the sets' means and (unbiased) covariances."""

    facts: ClassVar[Facts] = Facts("Frechet distance", cost="linear")

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: the sums over a subset are those over the whole set less the points left out."""
        (mean_x, cov_x), (mean_y, cov_y) = _subset_moments(x, keep_x), _subset_moments(y, keep_y)
        return _squared_gaussian_w2(mean_x, cov_x, mean_y, cov_y)


@dataclass(frozen=True)
class OnFeatures(Distance):
    """A distance between the features of the samples, ``features`` mapping shape (B, *) to shape (B, F)."""

    features: Callable[[Tensor], Tensor]
    distance: Distance

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "facts", self.distance.facts)

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: features are computed once."""
        names = ("features of x", "features of y")
        x, y = checked_sets(self.features(x), self.features(y), names)
        return self.distance.on_subsets(x, y, keep_x, keep_y)


@checked
def sliced_wasserstein(
    x: Tensor, y: Tensor, num_projections: int = 128, seed: int = 0, order: int = 1
) -> float:
    """Return the sliced Wasserstein distance of ``x`` with shape (n, *) and ``y`` with shape (m, *)."""
    return SlicedWasserstein(num_projections, seed, order)(x, y)


@checked
def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the unbiased energy distance of ``x`` with shape (n, *) and ``y`` with shape (m, *)."""
    return EnergyDistance()(x, y)


@checked
def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] | None = None) -> float:
    """Return the unbiased squared MMD of ``x`` with shape (n, *) and ``y`` with shape (m, *), see ``MMD``."""
    return MMD(None if bandwidths is None else tuple(bandwidths))(x, y)


@checked
def frechet_distance(features_x: Tensor, features_y: Tensor) -> float:
    """Return the Frechet distance (squared, as in FID) of features with shapes (n, F) and (m, F)."""
    return FrechetDistance()(*checked_sets(features_x, features_y, ("features_x", "features_y")))


@checked
def gaussian_w2(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> float:
    """Return the 2-Wasserstein distance of Gaussians with means of shape (D,) and covariances (D, D).

    Computed as a minimum over orthogonal O, |mean0 - mean1|^2 + min_O |cov0^1/2 - cov1^1/2 O|^2, and not by a
    difference of traces, so that nearly equal Gaussians keep their digits.
    Raises ValueError for shapes that do not match and covariances that are not positive semidefinite.
    """
    moments = [torch.as_tensor(a).detach().to("cpu", torch.float64) for a in (mean0, cov0, mean1, cov1)]
    for name, a in zip(("mean0", "cov0", "mean1", "cov1"), moments, strict=True):
        wanted = moments[0].shape[:1] * (1 if name.startswith("mean") else 2)
        if moments[0].ndim != 1 or a.shape != wanted or not torch.isfinite(a).all():
            raise ValueError(
                f"{name} must be finite with shape {tuple(wanted)}, for mean0 with shape "
                f"{tuple(moments[0].shape)}, got shape {tuple(a.shape)}"
            )
        if a.ndim == 2:
            low, tolerance = float(torch.linalg.eigvalsh(a)[0]), 1e-6 * float(a.abs().max())
            if low < -tolerance or (a - a.T).abs().max() > tolerance:
                raise ValueError(
                    f"{name} must be symmetric and positive semidefinite, got an eigenvalue {low:g}"
                )
    return math.sqrt(float(_squared_gaussian_w2(*(a[None] for a in moments))))


def median_distance(x: Tensor, y: Tensor) -> float:
    """Return the median distance of pooled points, ``x`` with shape (n, *) and ``y`` with shape (m, *).

    Raises ValueError if it is 0.
    """
    sets = [s.flatten(1)[:: -(-len(s) // MEDIAN_POINTS)] for s in (x, y)]
    median = float(torch.nn.functional.pdist(torch.cat(sets)).median())
    if median <= 0:
        raise ValueError("x and y must hold distinct points, got a median distance of 0; give bandwidths")
    return median


def _sorted_subset(values: np.ndarray, indices: np.ndarray, keep: np.ndarray) -> Tensor:
    """Return the part of the sorted ``values`` with shape (P, n) that comes from samples to ``keep``."""
    return torch.from_numpy(values[keep[indices]]).view(len(values), -1)  # several times torch's speed


def _quantile_cost(a: Tensor, b: Tensor, order: int) -> Tensor:
    """Return the mean over rows of W_p^p for sorted ``a`` with shape (P, n) and ``b`` with shape (P, m)."""
    n, m, power = a.shape[1], b.shape[1], torch.abs if order == 1 else torch.square
    if n == m:
        return power(a - b).mean()
    index_a, index_b, weights = _common_steps(n, m)
    return (power(a.index_select(1, index_a) - b.index_select(1, index_b)) @ weights).mean()


@functools.lru_cache(maxsize=16)
def _common_steps(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the quantile functions of n and m points are both constant: indices and lengths."""
    # They jump at multiples of 1/n and 1/m: integers in units of 1/(n m).
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts // m, starts // n, (ends - starts).to(torch.float64) / (n * m)


Kernel = Callable[[Tensor, Tensor], Tensor]
"""Maps points with shapes (n, F) and (m, F) to the values of all pairs, with shape (n, m)."""


def _mean_discrepancy(
    kernel: Kernel, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor, centred: bool = True
) -> Tensor:
    """Return E k(x, x') + E k(y, y') - 2 E k(x, y), with shape (R,), the points moved if ``centred``."""
    x, y = x.flatten(1), y.flatten(1)
    centre = torch.cat([x, y]).mean(0) if centred else torch.zeros_like(x[0])
    x, y = x - centre, y - centre
    within = mean_within(kernel, x, keep_x) + mean_within(kernel, y, keep_y)
    wx, wy = (keep.T.to(torch.float64) for keep in (keep_x, keep_y))
    return within - 2 * _kernel_sums(kernel, x, wx, y, wy, same=False) / (wx.sum(0) * wy.sum(0))


def mean_within(kernel: Kernel, x: Tensor, keep: Tensor) -> Tensor:
    """Return the mean of k(x_i, x_j) over pairs i != j in each subset of ``x`` with shape (n, F)."""
    w = keep.T.to(torch.float64)
    return _kernel_sums(kernel, x, w, x, w, same=True) / (w.sum(0) * (w.sum(0) - 1))


def _kernel_sums(kernel: Kernel, x: Tensor, wx: Tensor, y: Tensor, wy: Tensor, same: bool) -> Tensor:
    """Return sum_ij wx_ir k(x_i, y_j) wy_jr, with shape (R,), without i = j if the sets are the same."""
    total, rows = torch.zeros(wx.shape[1], dtype=torch.float64), max(CHUNK // len(y), 1)
    for start in range(0, len(x), rows):
        k = kernel(x[start : start + rows], y)
        if same:
            k[:, start : start + rows].fill_diagonal_(0)
        total += ((k @ wy) * wx[start : start + rows]).sum(0)
    return total


def _subset_moments(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means (R, F) and unbiased covariances (R, F, F) of subsets of ``x``."""
    x = x.flatten(1)
    centre = x.mean(0)
    x = x - centre
    n = keep.sum(1).to(torch.float64)
    mean = keep.to(torch.float64) @ x / n[:, None]
    outer = torch.stack([x[out].T @ x[out] for out in ~keep])
    outer = x.T @ x - outer - n[:, None, None] * mean[:, :, None] * mean[:, None, :]
    return mean + centre, outer / (n - 1)[:, None, None]


def _squared_gaussian_w2(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> Tensor:
    """Return |mean0 - mean1|^2 + min_O |cov0^1/2 - cov1^1/2 O|^2 over rotations O, with shape (R,)."""
    root0, root1 = (_root(cov) for cov in (cov0, cov1))
    u, _, vt = torch.linalg.svd(root0 @ root1)
    return (mean0 - mean1).square().sum(-1) + (root0 - root1 @ (u @ vt).mT).square().sum((-2, -1))


def _root(cov: Tensor) -> Tensor:
    """Return the symmetric square root of positive semidefinite ``cov`` with shape (R, F, F)."""
    values, vectors = torch.linalg.eigh(cov)
    floor = values[..., -1:] * cov.shape[-1] * torch.finfo(cov.dtype).eps
    values = torch.where(values > floor, values, 0)
    return (vectors * values.sqrt()[..., None, :]) @ vectors.mT
