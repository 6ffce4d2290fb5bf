"""The covariance of examples: in full, or of low rank in two passes, and shrunk where they are few; or as the
factors and the variances of the features' own that make the likeliest Gaussian.

With many features the covariance S is not formed.  For a random matrix G with shape (n, k) one pass makes
S G, whose columns span about the widest axes, and with the basis Q = qr(S G) a second one makes S Q; then

    S Q (Q^T S Q)^{-1} (S Q)^T  =  V diag(l) V^T

lies below S and keeps the largest variances l with the accuracy of two passes of subspace iteration (the
Nystrom approximation).  The trace that V does not hold is spread over the other axes
(``sde_toolkit.models.low_rank``).  Axes are told apart up to ``EXPLAINED`` of the variance, at most
``MAX_RANK`` of them and one for ``EXAMPLES_PER_AXIS`` examples; the others take the rest.

Where N examples with n features are fewer than ``FEW`` n, sample covariances are too wide along some axes and
too narrow, or nothing, along others.  Ledoit and Wolf's estimate moves them towards mu I, mu = tr S / n:

    (1 - delta) S + delta mu I,    delta = min(b^2, d^2) / d^2,    d^2 = |S - mu I|^2,
                                   b^2 = (mean |x - m|^4 - |S|^2) / N

Shrinkage adds delta mu to every variance, which would hide thin axes that many examples do show: so with
more examples S is left as it is.

Factors F and own variances d (``models.Factors``) take little room in a file however many features there are,
and leave thin axes along single features thin.  They begin as the r widest axes and what these leave of the
diagonal, and take steps of the EM algorithm: with S = F F^T + diag(d) on the right,

    B = F^T S^{-1},    C = the examples',    F' = C B^T (1 - B F + B C B^T)^{-1},    d' = diag(C - F' B C)

References: Rubin and Thayer, "EM Algorithms for ML Factor Analysis" (1982); Halko, Martinsson and Tropp,
"Finding Structure with Randomness" (0909.4061); Tropp et al., "Fixed-Rank Approximation of a
Positive-Semidefinite Matrix from Streaming Data" (1706.05736); Ledoit and Wolf, "A Well-Conditioned Estimator
for Large-Dimensional Covariance Matrices" (2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sde_toolkit.models import MAX_RANK, Factors, LowRank, leading
from sde_toolkit.utils import Stream, step_generator

FEW = 10
"""Fewer examples than so many times the features are few."""

EXAMPLES_PER_AXIS = 4
"""Examples that there must be for every axis of low rank."""

_OVERSAMPLING = 64
_ROUNDING = 1e-12

_FLOOR = 0.01
"""Variances are compared down to this part of their mean."""

EXAMPLES_PER_FACTOR = 16
"""Examples that there must be for every factor."""

_EM_STEPS = 10

Centred = Callable[[], Iterable[Tensor]]
"""A new pass over the examples less their mean, parts with shape (B, n), in float64."""


def shrunk(covariance: Tensor, centred: Centred, count: int) -> Tensor:
    """Ledoit and Wolf's estimate with shape (n, n), from the covariance S of ``count`` examples."""
    n = len(covariance)
    fourth, seen = 0.0, 0
    for part in centred():
        fourth += float(part.square().sum(1).square().sum())
        seen += len(part)
    mu = float(covariance.trace()) / n
    squared = float(covariance.square().sum())
    distance = squared - n * mu**2
    if distance <= _ROUNDING * squared:
        return covariance
    delta = min(max((fourth / seen - squared) / count, 0.0), distance) / distance
    return (1 - delta) * covariance + delta * mu * torch.eye(n, dtype=covariance.dtype)


def low_rank(
    centred: Centred, variance: Tensor, count: int, noise: float = 0.0, most: int = MAX_RANK
) -> LowRank | None:
    """The covariance of many features; None where a diagonal one describes the examples better.

    Both have the trace of the examples, so the one with the smaller determinant is the likelier Gaussian.

    Args:
        centred: the examples.
        variance: of the features, with shape (n,).
        count: examples that are independent.
        noise: a variance that is added along every axis.
        most: the largest rank.
    """
    n, total = len(variance), float(variance.sum())
    most = min(most, count // EXAMPLES_PER_AXIS, n - 1)
    if most < 1 or total == 0:
        return None
    axes, variances = _widest(centred, n, min(most + _OVERSAMPLING, n))
    rank = leading(variances, total, most + 1)
    axes, variances = axes[:, :rank], variances[:rank]
    rest = max(total - float(variances.sum()), 0.0) / (n - rank)
    found = LowRank(axes.contiguous(), variances + noise, rest + noise)
    floor = _FLOOR * (total / n + noise)
    log_det, of_diagonal = (float(x.clamp(min=floor).log().sum()) for x in (found.spectrum, variance + noise))
    return found if log_det < of_diagonal else None


def factors(covariance: Tensor, most: int, count: int, floor: float = 0.0) -> Factors:
    """The factors of a covariance with shape (n, n), in float64.

    Args:
        covariance: of the examples, C.
        most: the largest number of factors.
        count: examples that are independent.
        floor: what no feature's own variance is below.

    Raises:
        ValueError: too few examples for one factor.
    """
    rank = min(most, count // EXAMPLES_PER_FACTOR, len(covariance))
    if rank < 1:
        raise ValueError(
            f"factors need at least {EXAMPLES_PER_FACTOR} training examples, of every class too, got {count}"
            "; use factors=0"
        )
    variances, axes = torch.linalg.eigh(covariance)
    loadings = axes[:, -rank:] * variances[-rank:].clamp(min=0).sqrt()
    own = covariance.diagonal()
    floor = max(floor, _ROUNDING * float(own.amax()))
    specific = (own - loadings.square().sum(1)).clamp(min=floor)
    eye = torch.eye(rank, dtype=covariance.dtype)
    for _ in range(_EM_STEPS):
        scaled = loadings / specific[:, None]
        left = torch.linalg.inv(eye + loadings.mT @ scaled)  # 1 - B F
        regression = left @ scaled.mT
        image = covariance @ regression.mT
        loadings = torch.linalg.solve(left + regression @ image, image.mT).mT
        specific = (own - (loadings * image).sum(1)).clamp(min=floor)
    return Factors(loadings.contiguous(), specific)


def _widest(centred: Centred, n: int, width: int) -> tuple[Tensor, Tensor]:
    """V with shape (n, k) and l with shape (k,), decreasing, k at most ``width``; two passes."""
    generator = step_generator(0, 0, Stream.SKETCH)
    basis = torch.randn(n, width, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(_times(centred, basis)).Q
    image = _times(centred, basis)
    values, vectors = torch.linalg.eigh(basis.mT @ image)
    used = values > _ROUNDING * values[-1]
    root = image @ (vectors[:, used] * values[used].rsqrt())
    axes, stds, _ = torch.linalg.svd(root, full_matrices=False)
    return axes, stds.square()


def _times(centred: Centred, factor: Tensor) -> Tensor:
    """S times ``factor`` with shape (n, k): one pass."""
    total, seen = torch.zeros_like(factor), 0
    for part in centred():
        total += part.mT @ (part @ factor)
        seen += len(part)
    return total / seen
