"""How much samples differ from each other.

    relative diversity   E|x - x'| / E|y - y'|, pairs of two different samples;   1 for a perfect sampler
    Vendi score          exp( - sum_k l_k log l_k ),  l_k eigenvalues of K / n,  K_ij = k(x_i, x_j), K_ii = 1

The Vendi score is an effective number of different samples: n for n samples without any likeness, K for K
equal groups of copies.  k is the Gaussian kernel exp(-|x - x'|^2 / (2 h^2)), or the cosine of the angle
between x and x'.  The score is a plug-in estimate, which grows with n: comparable only at equal n.

Reference: Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning"
(2210.02410).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sde_toolkit.metrics.distances import mean_within
from sde_toolkit.metrics.protocol import Distance, Facts, Statistic, check_choice
from sde_toolkit.utils import check_fields


@dataclass(frozen=True)
class RelativeDiversity(Distance):
    """The mean distance of two samples over that of two real examples."""

    facts: ClassVar[Facts] = Facts("relative diversity", 1.0, "closer")

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: each distance is computed once.  Raises ValueError for equal real data."""
        spread, real = (
            mean_within(torch.cdist, s.flatten(1) - s.flatten(1).mean(0), keep)
            for s, keep in ((x, keep_x), (y, keep_y))
        )
        if not bool((real > 0).all()):
            raise ValueError("y must hold distinct points for a relative diversity, got equal ones")
        return spread / real


@dataclass(frozen=True)
class VendiScore(Statistic):
    """The effective number of different samples; see the module.

    Args:
        kernel: "gaussian" or "cosine".
        bandwidth: h of the Gaussian kernel, a fixed number: the score depends on it.
    """

    facts: ClassVar[Facts] = Facts(
        "Vendi score", None, "higher", needs="samples", cost="spectrum", most_samples=1000
    )

    kernel: Literal["gaussian", "cosine"] = "gaussian"
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("kernel", self.kernel, ("gaussian", "cosine"))
        if not 0 < self.bandwidth < math.inf:
            raise ValueError(f"bandwidth must be positive and finite, got {self.bandwidth}")

    def on_subsets(self, x: Tensor, keep: Tensor) -> Tensor:
        """See ``Statistic``: the matrix is computed once, its eigenvalues for every subset."""
        x = x.flatten(1)
        if self.kernel == "gaussian":
            x = x - x.mean(0)
            k = torch.exp(torch.cdist(x, x).square() / (-2 * self.bandwidth**2)).fill_diagonal_(1.0)
        else:
            length = x.norm(dim=1, keepdim=True)
            if not bool((length > 0).all()):
                raise ValueError("x must hold no zero vectors for the cosine kernel, got some; use gaussian")
            k = (x / length) @ (x / length).T
        values = [torch.linalg.eigvalsh(k[one][:, one] / one.sum()).clamp_min(0) for one in keep]
        return torch.stack([-torch.special.xlogy(v, v).sum() for v in values]).exp()
