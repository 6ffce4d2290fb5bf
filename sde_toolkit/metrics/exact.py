"""Metrics that hold samples against what is known exactly: a density, a mixture, the flow's own end points.

    negative log-likelihood   mean of -log p(x_i), nats;  its ideal is the entropy of p
    share of modes            share of the modes k that got at least least n w_k samples, n_k >= least n w_k
    total variation           1/2 sum_k |n_k / n - w_k|
    KL of the masses          sum_k n_k / n log( n_k / (n w_k) )
    flow error                sqrt( mean |x_i - e_i|^2 ),  relative: over sqrt( mean |e_i|^2 )

A sample belongs to the mode of the largest responsibility w_k p_k(x), or of the nearest mean; ``soft`` masses
are the mean responsibilities themselves, which have the true weights as their expected values under p.

Bias: the negative log-likelihood and the squared flow error are means, unbiased.  Total variation and KL are
plug-in estimates, about sum_k sqrt(w_k (1 - w_k) / (2 pi n)) and (K - 1) / (2 n) for a perfect sampler.  The
share of modes is a step function of the samples, total variation has kinks: their error bars are by halves
(``sde_toolkit.metrics.errors.schemes``), and no error bar is below the change by one sample.  So two samplers
that agree in every sample have a difference of 0 with an interval that is wider than it.

References: Srivastava et al., "VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning"
(1705.07761) for the modes that samples hit; Cover and Thomas, "Elements of Information Theory" (1991) for the
rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sde_toolkit.metrics.protocol import Distance, Facts, Statistic, check_choice
from sde_toolkit.models import GaussianMixture
from sde_toolkit.utils import check_fields

BLOCK = 1 << 16
"""Samples whose densities, modes and sums are computed at once, which bounds the memory that they take."""


@dataclass(frozen=True)
class NegativeLogLikelihood(Statistic):
    """The mean of -log p over the samples, in nats: E_q[-log p] = entropy of q + KL(q, p).

    ``log_density`` maps samples with shape (B, *) to log p with shape (B,), as ``GaussianMixture.log_prob``
    does.  Neither low nor high is good: samples that all sit on the highest mode have the lowest value.  The
    ideal is the entropy of p, which real samples have.
    """

    facts: ClassVar[Facts] = Facts(
        "negative log-likelihood", None, "closer", unbiased=True, needs="density", cost="linear"
    )

    log_density: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        check_fields(self)

    def on_subsets(self, x: Tensor, keep: Tensor) -> Tensor:
        """See ``Statistic``: the density is computed once.

        Raises ValueError for a density with another shape or without finite logarithm at a sample.
        """
        log_p = in_blocks(self._log_p, x)
        if log_p.shape != x.shape[:1]:
            raise ValueError(
                f"log_density must return shape ({len(x)},) for {len(x)} samples, got {tuple(log_p.shape)}"
            )
        if not torch.isfinite(log_p).all():
            count = int((~torch.isfinite(log_p)).sum())
            raise ValueError(f"log_density must be finite at every sample, got {count} values that are not")
        return -subset_means(log_p, keep)

    def _log_p(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.log_density(x)).detach().to("cpu", torch.float64)


@dataclass(frozen=True)
class ModeCoverage(Statistic):
    """How the samples are spread over the modes of a ``GaussianMixture``.

    Args:
        mixture: the exact law.
        measure: "share" of the modes that were hit, "tv" or "kl" of the masses against the weights.
        assign: a sample to the mode of the largest "responsibility" or the "nearest" mean, or in parts by
            "soft" responsibilities.
        least: a mode is hit by at least this part of the samples that it should get, and by one.
    """

    mixture: GaussianMixture
    measure: Literal["share", "tv", "kl"] = "tv"
    assign: Literal["responsibility", "nearest", "soft"] = "responsibility"
    least: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("measure", self.measure, ("share", "tv", "kl"))
        check_choice("assign", self.assign, ("responsibility", "nearest", "soft"))
        if not 0 <= self.least <= 1:
            raise ValueError(f"least must be from 0 to 1, a part of the samples of a mode, got {self.least}")
        title = {"share": "share of modes", "tv": "total variation of modes", "kl": "KL of modes"}
        ideal, better = (1.0, "higher") if self.measure == "share" else (0.0, "lower")
        found = Facts(
            title[self.measure], ideal, better, needs="mixture", cost="linear",  # type: ignore[arg-type]
            resampling="groups" if self.measure == "kl" else "kinks",
            counted="x" if self.measure == "share" else "", steps=self.assign != "soft",
        )  # fmt: skip
        object.__setattr__(self, "facts", found)

    def on_subsets(self, x: Tensor, keep: Tensor) -> Tensor:
        """See ``Statistic``: samples are assigned once."""
        weights = self.mixture.components.weights.to("cpu", torch.float64)
        n = sizes(keep)[:, None]
        mass = subset_means(in_blocks(self._parts, x), keep).clamp_min(0)  # not -1e-17
        if self.measure == "share":
            wanted = (self.least * n * weights).clamp_min(1)
            return (mass * n >= wanted - 1e-9 * n).double().mean(1)
        if self.measure == "tv":
            return (mass - weights).abs().sum(1) / 2
        return torch.special.xlogy(mass, mass / weights).sum(1)

    def _parts(self, x: Tensor) -> Tensor:
        """To which mode a sample belongs, one-hot or in parts, with shape (n, K)."""
        modes = [self.mixture.component(k) for k in range(len(self.mixture.components.weights))]
        if self.assign == "nearest":
            score = torch.stack([-(x - mode.mean.to(x)).flatten(1).norm(dim=1) for mode in modes], 1)
        else:
            log_w = self.mixture.components.weights.to("cpu", torch.float64).log()
            score = torch.stack([mode.log_prob(x) for mode in modes], 1) + log_w
        if self.assign == "soft":
            return score.softmax(1)
        return torch.nn.functional.one_hot(score.argmax(1), len(modes)).double()


@dataclass(frozen=True)
class FlowError(Distance):
    """The RMS distance of samples x_i and the exact results e_i from the same starts, row by row.

    Called with (x, e), both with shape (n, *); ``relative`` divides by the RMS length of the exact results.
    """

    relative: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        title = f"{'relative ' if self.relative else ''}flow error"
        object.__setattr__(self, "facts", Facts(title, needs="pairs", cost="linear"))

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: the lengths are computed once.  Raises ValueError where all results are 0."""
        square = subset_means((x - y).flatten(1).square().sum(1), keep_x)
        if not self.relative:
            return square.sqrt()
        size = subset_means(y.flatten(1).square().sum(1), keep_y)
        if not bool((size > 0).all()):
            raise ValueError("y must not be 0 everywhere for a relative error, got zeros; use relative=False")
        return (square / size).sqrt()


def subset_means(values: Tensor, keep: Tensor) -> Tensor:
    """Return the means, with shape (R, *), of the parts of ``values`` with shape (n, *) that masks keep."""
    centre = values.mean(0)
    blocks = zip(values.split(BLOCK), keep.split(BLOCK, dim=1), strict=True)
    sums = sum(kept.to(torch.float64) @ (part - centre) for part, kept in blocks)
    return centre + sums / sizes(keep).reshape(-1, *[1] * (values.ndim - 1))


def sizes(keep: Tensor) -> Tensor:
    """How many samples masks with shape (R, n) keep, with shape (R,); ``keep.sum(1)`` takes 8 R n bytes."""
    return torch.stack([kept.sum(1) for kept in keep.split(BLOCK, dim=1)]).sum(0)


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The values of a function of samples, shape (B, *) -> (B, *), computed for ``BLOCK`` samples at once."""
    return function(x) if len(x) <= BLOCK else torch.cat([function(part) for part in x.split(BLOCK)])
