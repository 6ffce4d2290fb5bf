"""Whether draws are draws of the posterior: ranks of the truth, and tests that they are uniform.

Truths x_i and observations y_i are drawn from their joint law, and K draws given y_i by the method on trial.
If these are independent draws of p(x | y_i), the rank of the truth among them,

    SBC     in one feature:        #{k : x_k < x_i},                    one test per feature
    TARP    in distance from a reference:   #{k : |x_k - r_i| < |x_i - r_i|},  one test for all features

is uniform on 0, ..., K, exactly.  As references the truths of the next pairs are taken, which are independent
of all that is compared with them.  Ranks are gathered in bins, and Pearson's chi-square with exact expected
counts gives a p-value; with several features the smallest, times their number (Bonferroni).

Draws that depend on each other, such as those of one group of particles, are not uniform for that alone.  A
method that ignores y and draws from the prior passes both.

References: Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based Calibration"
(1804.06788); Lemos et al., "Sampling-Based Accuracy Testing of Posterior Estimators for General Inference"
(2302.03026).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.utils import checked, integer

_PER_BIN = 20
"""Ranks expected in a bin, at least."""

_MOST_BINS = 20


class RankTest(NamedTuple):
    """A test that ranks are uniform.

    Attributes:
        statistics: chi-square of every feature, with shape (n,).
        p_value: the probability of a smallest p-value as small, for uniform ranks (an upper bound).
        counts: of ranks by bin and feature, with shape (bins, n).
        expected: counts by bin, with shape (bins,).
    """

    statistics: Tensor
    p_value: float
    counts: Tensor
    expected: Tensor


@checked
def truth_ranks(truths: Tensor, draws: Tensor) -> Tensor:
    """Ranks 0 .. K of the truths among draws, with shape (N, *D), in every feature (SBC).

    Args:
        truths: with shape (N, *D).
        draws: K for every truth, with shape (K, N, *D).

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    _check(truths, draws)
    return (draws < truths).sum(0)


@checked
def tarp_ranks(truths: Tensor, draws: Tensor, references: Tensor | None = None) -> Tensor:
    """Ranks 0 .. K of the distances of the truths from references, with shape (N,) (TARP).

    Args:
        truths: with shape (N, *D).
        draws: K for every truth, with shape (K, N, *D).
        references: with shape (N, *D), drawn without knowledge of the truth; those of the next pairs when
            None.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    _check(truths, draws)
    r = truths.roll(1, 0) if references is None else references
    if r.shape != truths.shape or not r.is_floating_point():
        raise ValueError(
            f"references must be numbers with the shape {tuple(truths.shape)} of truths, got {r.dtype} "
            f"{tuple(r.shape)}"
        )
    far = (truths - r).flatten(1).square().sum(1)
    return ((draws - r).flatten(2).square().sum(2) < far).sum(0)


@checked
def rank_test(ranks: Tensor, draws: int) -> RankTest:
    """Whether ranks are uniform on 0, ..., ``draws``.

    Args:
        ranks: with shape (N, *D), as from ``truth_ranks``, or (N,), as from ``tarp_ranks``; N at least 40.
        draws: K, those that they are ranks among.

    Raises:
        ValueError: fewer ranks, or ranks outside 0 to K.
    """
    from scipy.stats import chi2

    integer("draws", draws, 1)
    count = len(ranks) if ranks.ndim else 0
    if count < 2 * _PER_BIN or ranks.numel() == 0:
        raise ValueError(f"ranks must be at least {2 * _PER_BIN}, got {count}")
    if ranks.is_floating_point() or ranks.is_complex() or not bool(((ranks >= 0) & (ranks <= draws)).all()):
        raise ValueError(f"ranks must be integers from 0 to draws = {draws}, got {ranks.dtype} outside of it")
    flat = ranks.reshape(count, -1).long()
    bins = min(draws + 1, _MOST_BINS, count // _PER_BIN)
    bin_of = torch.arange(draws + 1, device=ranks.device) * bins // (draws + 1)
    expected = torch.bincount(bin_of, minlength=bins).double() * (count / (draws + 1))
    counts = torch.stack([torch.bincount(bin_of[column], minlength=bins) for column in flat.unbind(1)], 1)
    statistics = ((counts - expected[:, None]).square() / expected[:, None]).sum(0)
    least = float(chi2.sf(float(statistics.amax()), bins - 1))
    return RankTest(statistics, min(1.0, least * flat.shape[1]), counts, expected)


def _check(truths: Tensor, draws: Tensor) -> None:
    if draws.ndim < 3 or draws.shape[1:] != truths.shape or not draws.numel():
        raise ValueError(
            f"draws must have shape (K, N, *D) for truths with shape (N, *D), K of them for every truth, "
            f"got {tuple(draws.shape)} for {tuple(truths.shape)}"
        )
    for name, x in (("truths", truths), ("draws", draws)):
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ValueError(f"{name} must be finite floating-point numbers, got {x.dtype}, or nan or inf")
