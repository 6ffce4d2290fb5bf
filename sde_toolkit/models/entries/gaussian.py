"""Gaussian vectors that are known in part: the law of the other entries, and moments from incomplete rows.

Rows x with shape (B, D) have nan where an entry is missing.  With O the given and M the missing entries of a
row, and data of mean m and covariance S,

    x_M | x_O  ~  N(m_M + K (x_O - m_O), C C^T),    K = S_MO S_OO^{-1},   C C^T = S_MM - K S_OM

and r = C^{-1} (x_M - its mean) are whitened coordinates of what is missing, standard normal for Gaussian
data.

Moments from incomplete rows are those of the Gaussian that is likeliest given all that was observed, found by
EM: with the moments so far, every row is completed by its conditional mean, and the conditional covariance of
its missing entries is added,

    m <- mean of xhat,      S <- mean of (xhat - m)(xhat - m)^T + C C^T

which raises the likelihood of the observed entries in every round.  For this estimate entries may be missing
completely at random, or depending on entries of the same row that are observed (missing at random); means
over the observed entries of a column would be biased in the second case.

References: Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm" (1977);
Little and Rubin, "Statistical Analysis with Missing Data" (2002), chapter 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.models.moments import Moments
from sde_toolkit.utils import Stream, checked, permutation

LEAST_PART = 1e-6
"""The smallest conditional variance, in units of the mean variance: entries that others determine."""

MOST_ROUNDS = 200
CHANGE = 1e-6
"""EM ends after so many rounds, or where no moment moves by more than this, in standard deviations."""

MOST_PATTERNS = 1024
SAMPLE = 8192
"""With more patterns of missing entries than that, EM looks at so many rows, chosen at random."""


@dataclass(frozen=True, eq=False)
class GivenEntries:
    """Rows in part known, and whitened coordinates of what is missing, in float64.

    Attributes:
        given: which entries are known, with shape (B, D), bool.
        mean: with shape (B, D): known entries themselves, and the conditional mean of the others.
        factor: C with shape (B, D, D), lower triangular, the identity along known entries.
    """

    given: Tensor
    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, moments: Moments, x: Tensor, given: Tensor | None = None) -> GivenEntries:
        """Of rows x with shape (B, D), known where they are not nan, or as ``given`` says."""
        given = ~x.isnan() if given is None else given
        patterns, which = torch.unique(given, dim=0, return_inverse=True)
        gain, factor = (part.to(x.device) for part in _conditionals(moments, patterns.cpu()))
        mean = moments.mean.to(x.device)
        known = torch.where(given, x.double() - mean, 0.0)
        expected = mean + torch.einsum("bij,bj->bi", gain[which], known)
        return cls(given, torch.where(given, x.double(), expected), factor[which])

    def whiten(self, x: Tensor) -> Tensor:
        """r with shape (B, D), 0 where entries are known, for complete rows x with shape (B, D)."""
        apart = torch.where(self.given, 0.0, x.double() - self.mean)
        return torch.linalg.solve_triangular(self.factor, apart[..., None], upper=False)[..., 0]

    def unwhiten(self, r: Tensor) -> Tensor:
        """Complete rows with shape (B, D), for r with shape (B, D)."""
        moved = torch.einsum("bij,bj->bi", self.factor, torch.where(self.given, 0.0, r.double()))
        return torch.where(self.given, self.mean, self.mean + moved)

    @property
    def log_scale(self) -> Tensor:
        """log |dx_M / dr| with shape (B,)."""
        return self.factor.diagonal(dim1=1, dim2=2).log().sum(1)


def _conditionals(moments: Moments, patterns: Tensor) -> tuple[Tensor, Tensor]:
    """The gain that maps x_O - m_O to the conditional mean less m, zero for known entries, and C, of every
    pattern of known entries (P, D), each with shape (P, D, D)."""
    n, full = patterns.shape[1], moments.axes
    S = torch.diag(moments.variances) if full is None else (full * moments.variances) @ full.mT
    S = S + LEAST_PART * moments.std**2 * torch.eye(n, dtype=S.dtype)
    given = patterns.double()
    both, unit = given[:, :, None] * given[:, None, :], torch.eye(n, dtype=S.dtype)
    of_given = S * both + unit * (1 - given)[:, :, None]
    cross = (1 - given)[:, :, None] * S * given[:, None, :]
    gain = torch.cholesky_solve(cross.mT, torch.linalg.cholesky(of_given)).mT
    missing = (1 - given)[:, :, None] * (1 - given)[:, None, :]
    rest = S * missing - gain @ cross.mT
    floor = LEAST_PART * moments.std**2 * (1 - given) + given
    return gain, torch.linalg.cholesky(0.5 * (rest + rest.mT) + torch.diag_embed(floor))


@checked
def gaussian_moments(x: Tensor) -> Moments:
    """The moments of vectors from rows with missing entries, by EM.

    Args:
        x: with shape (N, D), nan where an entry is missing; no column is missing throughout.

    Raises:
        ValueError: another shape, infinite values, or a column without any observed entry.
    """
    if x.ndim != 2 or not x.is_floating_point() or not x.numel() or bool(x.isinf().any()):
        raise ValueError(
            f"x must be numbers or nan with shape (N, D), got {x.dtype} with shape {tuple(x.shape)}"
        )
    if bool(x.isnan().all(0).any()):
        raise ValueError("x must have an observed entry in every column, got a column without; leave it out")
    if not bool((x != x.nan_to_num().sum(0) / (~x.isnan()).sum(0)).logical_and(~x.isnan()).any()):
        raise ValueError("x must vary, got rows that are equal where they were observed")
    x = x.double()
    patterns = torch.unique(~x.isnan(), dim=0)
    if len(patterns) > MOST_PATTERNS and len(x) > SAMPLE:
        x = x[permutation(len(x), 0, 0, Stream.SKETCH)[:SAMPLE]]
    mean = x.nanmean(0)
    spread = (x - mean).square().nanmean(0)
    covariance = torch.diag(torch.where(spread > 0, spread, spread.mean()))
    for _ in range(MOST_ROUNDS):
        before = mean, covariance
        mean, covariance = _round(x, Moments(mean, covariance))
        scale = covariance.diagonal().clamp(min=LEAST_PART * float(covariance.diagonal().mean())).sqrt()
        moved = ((mean - before[0]) / scale).abs().amax()
        moved = torch.maximum(moved, ((covariance - before[1]) / scale / scale[:, None]).abs().amax())
        if float(moved) < CHANGE:
            break
    return Moments(mean, 0.5 * (covariance + covariance.mT))


def _round(x: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean and covariance after one round of EM over the rows."""
    total, second, rest = (
        torch.zeros(n, dtype=x.dtype) for n in ((x.shape[1],), x.shape[1:] * 2, x.shape[1:] * 2)
    )
    for part in x.split(SAMPLE):
        known = GivenEntries.of(moments, part)
        apart = known.mean - moments.mean
        total, second = total + apart.sum(0), second + apart.mT @ apart
        hidden = torch.where(known.given[:, :, None], 0.0, known.factor)
        rest = rest + torch.einsum("bij,bkj->ik", hidden, hidden)
    shift = total / len(x)
    return moments.mean + shift, (second + rest) / len(x) - torch.outer(shift, shift)
