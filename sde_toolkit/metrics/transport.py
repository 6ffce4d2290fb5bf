"""The Wasserstein distance of two sets of equal size, exactly: a linear assignment problem.

    W_p^p = min over permutations s of  (1/n) sum_i |x_i - y_s(i)|^p
          = max over f_i + g_j <= |x_i - y_j|^p  of  (1/n) sum_i f_i + (1/n) sum_j g_j

The assignment is found by scipy (a shortest augmenting path method, time n^3, memory n^2), the potentials f
and g from it by Bellman and Ford's relaxation, in the middle of the set of all optimal ones.

Subsets are computed to first order: f and g restricted to a subset remain feasible, so the mean of f and of
g over it is a lower bound of its distance, and the derivative of the whole one.  The error bar covers the
spread of W_p over repetitions around its expected value at this n (del Barrio and Loubes), not the bias: W_p
of two finite sets of one law is of order n^(-1/D) in D > 2 dimensions, far above 0, and can be compared only
at equal n.  For equal laws the error bar is up to 1.5 times too large.  Where the error is small beside the
bias, as for differences in many dimensions, intervals held the expected value in 82% to 94% of cases
(benchmarks).

References: Crouse, "On implementing 2D rectangular assignment algorithms" (IEEE Trans. Aerosp. Electron.
Syst. 52, 2016); del Barrio and Loubes, "Central limit theorems for empirical transportation cost in general
dimension" (Ann. Probab. 47, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.metrics.exact import subset_means
from sde_toolkit.metrics.protocol import Distance, Facts
from sde_toolkit.utils import check_fields

EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True)
class Wasserstein(Distance):
    """The exact W_p distance, p = ``order``, of two sets with equal numbers of samples."""

    facts: ClassVar[Facts] = Facts("Wasserstein distance", cost="assignment", most_samples=3000)

    order: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order}")

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: to first order, from the potentials.  Raises ValueError for unequal numbers."""
        if len(x) != len(y):
            raise ValueError(
                f"y must hold as many samples as x for the {self.facts.title}, {len(x)}, got {len(y)}; give "
                "equal numbers"
            )
        from scipy.optimize import linear_sum_assignment

        cost = torch.cdist(x.flatten(1), y.flatten(1), compute_mode=EXACT)
        c = (cost**self.order).numpy()
        rows, columns = linear_sum_assignment(c)
        if len(keep_x) == 1:
            return torch.tensor([c[rows, columns].mean()]) ** (1 / self.order)
        f, g = (torch.from_numpy(v) for v in potentials(c, columns))
        power = subset_means(f, keep_x) + subset_means(g, keep_y)
        return power.clamp_min(0) ** (1 / self.order)


def potentials(cost: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return optimal (f, g) for a cost with shape (n, n) and its best assignment, i to ``columns[i]``."""
    a = cost[:, columns]  # row i is assigned to column i
    matched = a.diagonal()
    low = _relaxed(a - matched)  # f_i - f_j <= a_ij - a_jj
    high = matched - _relaxed(a.T - matched)  # the same for g, from the other side
    f = ((low - low.mean()) + (high - high.mean())) / 2
    g = np.empty_like(f)
    g[columns] = matched - f
    return f, g


def _relaxed(w: np.ndarray) -> np.ndarray:
    """Return the largest f <= 0 with f_i - f_j <= w_ij, by Bellman and Ford's relaxation."""
    f, slack = np.zeros(len(w)), 1e-13 * np.abs(w).max()
    for _ in range(len(w)):
        lower = (w + f).min(1)
        if (lower >= f - slack).all():
            break
        f = np.minimum(f, lower)
    return f
