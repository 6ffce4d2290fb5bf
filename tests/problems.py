"""Exact problems that the tests share: data in closed form, and every forward process.

GAUSSIAN     3-D, full covariance with unequal scales
DIAGONAL     images (1, 2, 2), diagonal covariance
MIXTURE      8-D, five Gaussians with full covariances, from a fixed seed
RING         2-D, eight round Gaussians on a circle
LINE         1-D, two Gaussians far apart and unequal
"""

import math

import torch

from sde_toolkit.models import Wrapper
from sde_toolkit.models.exact import ExactData, Gaussian, GaussianMixture
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, CustomSDE, ForwardSDE, LinearBeta, SubVPSDE

ALPHA = 1e-5
"""False-alarm rate of every statistical test."""


def mixture(num_components: int, num_features: int, seed: int) -> GaussianMixture:
    """A mixture with unequal weights, means of order one and full covariances of order a tenth to a half."""
    generator = torch.Generator().manual_seed(seed)

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = (0.5 * normals(num_components)).softmax(0)
    means = 1.2 * normals(num_components, num_features)
    factors = 0.35 * normals(num_components, num_features, num_features) / math.sqrt(num_features)
    covariances = factors @ factors.mT + 0.02 * torch.eye(num_features, dtype=torch.float64)
    return GaussianMixture(weights, means, covariances)


def ring(num_components: int = 8, radius: float = 1.0, std: float = 0.15) -> GaussianMixture:
    """Equal round Gaussians at equal distances on a circle."""
    angles = torch.arange(num_components, dtype=torch.float64) * (2 * math.pi / num_components)
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    weights = torch.full((num_components,), 1 / num_components, dtype=torch.float64)
    return GaussianMixture(weights, means, torch.full((num_components,), std**2, dtype=torch.float64))


GAUSSIAN = Gaussian(
    mean=[0.5, -1.0, 0.2],
    covariance=[[1.0, 0.3, -0.1], [0.3, 0.5, 0.05], [-0.1, 0.05, 0.08]],
)
DIAGONAL = Gaussian(mean=[[[0.3, -0.2], [0.1, 0.6]]], covariance=[[[0.25, 0.04], [0.5, 0.09]]])
MIXTURE = mixture(num_components=5, num_features=8, seed=0)
RING = ring()
LINE = GaussianMixture(weights=[0.3, 0.7], means=[[-1.5], [0.8]], covariances=[0.04, 0.16])

DATA: dict[str, ExactData] = {
    "gaussian": GAUSSIAN,
    "diagonal": DIAGONAL,
    "mixture": MIXTURE,
    "ring": RING,
    "line": LINE,
}

SDES: dict[str, ForwardSDE] = {
    "vp-linear": VPSDE(LinearBeta()),
    "vp-cosine": VPSDE(CosineBeta()),
    "sub-vp": SubVPSDE(LinearBeta()),
    "ve": VESDE(),
    # Straight paths (rectified flow), stopped short of the end where alpha vanishes.
    "custom": CustomSDE(alpha=lambda t: 1 - t, sigma=lambda t: t, T=0.99),
}


class RowByRow(Wrapper):
    """A model that evaluates one sample at a time, so that its bits cannot depend on the batch."""

    def raw(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        times = t.expand(len(x_t))
        rows = [slice(i, i + 1) for i in range(len(x_t))]
        given = [None if condition is None else condition[row] for row in rows]
        parts = [self.model.raw(x_t[row], times[row], c) for row, c in zip(rows, given, strict=True)]
        return torch.cat(parts)
