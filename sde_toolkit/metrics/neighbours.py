"""Precision, recall, density and coverage: samples against the k-nearest-neighbour balls of the other set.

B(y_j) is the ball around y_j whose radius is the distance to the k-th nearest other y; B(x_i) likewise.

    precision   (1/n) sum_i 1[ x_i in B(y_j) for some j ]          recall   the same with x and y exchanged
    density     (1/(k n)) sum_i sum_j 1[ x_i in B(y_j) ]
    coverage    (1/m) sum_j 1[ x_i in B(y_j) for some i ]

A perfect sampler has density 1 and coverage about 1 - 2^-k at equal numbers; its precision and recall depend
on the data and on n.  All four are plug-in estimates: comparable only at equal n, m and k.  One outlier of
the real data has a large ball, which makes precision too large; density and coverage were made for that.

Error bars are by halves and quarters: whether a point is in a ball depends on its neighbours at any n, so
that the jackknife, which counts interactions twice, would be too wide however large the sets are.  Fewer than
4 (k + 1) points are too few for that.  Precision, recall and coverage are counts.

References: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models"
(1904.06991); Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (2002.09797).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_toolkit.metrics.protocol import Distance, Facts, check_choice
from sde_toolkit.utils import check_fields, integer

MOST_SAMPLES = 5000


@dataclass(frozen=True)
class NeighbourMetric(Distance):
    """One of the four metrics of balls; see the module.

    Args:
        measure: which.
        num_neighbours: k.
    """

    measure: Literal["precision", "recall", "density", "coverage"]
    num_neighbours: int = 5

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("measure", self.measure, ("precision", "recall", "density", "coverage"))
        integer("num_neighbours", self.num_neighbours, 1)
        ideal = {"density": 1.0, "coverage": 1 - 2.0**-self.num_neighbours}.get(self.measure)
        better: Literal["higher", "closer"] = "closer" if self.measure == "density" else "higher"
        counted: Literal["", "x", "y"] = "y" if self.measure in ("recall", "coverage") else "x"
        facts = Facts(
            self.measure, ideal, better, most_samples=MOST_SAMPLES,
            resampling="local",
            counted="" if self.measure == "density" else counted, steps=True,
        )  # fmt: skip
        object.__setattr__(self, "facts", facts)

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: distances are computed once.

        Raises ValueError for a subset with no more than k points, whose balls have no radius.
        """
        centre = torch.cat([x, y]).flatten(1).mean(0)
        x, y = x.flatten(1) - centre, y.flatten(1) - centre
        if self.measure == "recall":
            x, y, keep_x, keep_y = y, x, keep_y, keep_x
        each, kept = self._terms(x, y, keep_x, keep_y)
        return (each * kept).sum(1) / kept.sum(1)

    def _terms(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> tuple[Tensor, Tensor]:
        """What the value is the mean of, with shape (R, n or m), under every mask; and the masks of these."""
        between = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        radii = _radii(y, keep_y, self.num_neighbours)
        i, j = (between <= radii.amax(0)).nonzero(as_tuple=True)  # few pairs are in a ball under any mask
        inside = between[i, j] <= radii[:, j]
        if self.measure == "coverage":
            inside &= keep_x[:, i]
            place, count, kept = j, len(y), keep_y
        else:
            inside &= keep_y[:, j]
            place, count, kept = i, len(x), keep_x
        hits = torch.zeros(len(kept), count, dtype=torch.float64)
        hits.index_add_(1, place, inside.double())
        return (hits / self.num_neighbours if self.measure == "density" else (hits > 0).double()), kept


def _radii(y: Tensor, keep: Tensor, k: int) -> Tensor:
    """Return the distance of every y_j to its k-th nearest other point in each subset, with shape (R, m); to
    the farthest one in parts with fewer."""
    whole, fewest = int(keep[0].sum()), int(keep.sum(1).min())
    if whole <= k or fewest < 2:
        raise ValueError(f"num_neighbours must be below the number of points, {whole}, got {k}")
    within = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    share = -(-len(y) // fewest)  # of the smallest part: 1 in so many
    some = min(len(y) - 1, k + int((~keep).sum(1).max()), share * (2 * k + 8))
    near = within.topk(some, largest=False)
    order = keep[:, near.indices].cumsum(-1, dtype=torch.int16)  # (R, m, some): how many are kept so far
    place = (order < k).sum(-1)  # of the k-th kept one
    radii = near.values.expand(len(keep), -1, -1).gather(-1, place.clamp_max(some - 1)[..., None])[..., 0]
    for row, j in (place == some).nonzero().tolist():  # the list was too short
        others = int(keep[row].sum() - keep[row, j].int())
        radii[row, j] = within[j, keep[row]].kthvalue(min(k, others)).values
    return radii
