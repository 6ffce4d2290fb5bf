"""Thresholding: clean predictions kept inside the range of the data, for any sampler.

    static      x0_hat -> clip(x0_hat, -limit, limit)
    dynamic     s = max(limit, the q-quantile of |x0_hat| over a sample's elements), at most ``most``,
                x0_hat -> limit / s clip(x0_hat, -s, s)

A ``Thresholded`` model predicts the thresholded clean data, and its noise, score and velocity are those of
that prediction, so that a sampler needs no option of its own.  The result is no score any more: thresholding
is for guided and poorly trained networks, and biases a good one.

Reference: Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
(2205.11487), section 2.3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.guidance.shifts import guided_by
from sde_toolkit.models import ScoreModel, Wrapper
from sde_toolkit.samplers import Sampler
from sde_toolkit.utils import check_fields, checked
from solvers import expand_like


class Threshold(ABC):
    """A rule for clean predictions, sample by sample."""

    @abstractmethod
    def __call__(self, x0_hat: Tensor) -> Tensor:
        """The prediction inside the range, with shape (B, *)."""


def _check_limit(limit: float) -> None:
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be a finite positive number, got {limit}")


@dataclass(frozen=True)
class StaticThreshold(Threshold):
    """Clip every element to [-limit, limit]."""

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_limit(self.limit)

    def __call__(self, x0_hat: Tensor) -> Tensor:
        """The clipped prediction, with shape (B, *)."""
        return x0_hat.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class DynamicThreshold(Threshold):
    """Clip to the q-quantile of a sample's elements where that exceeds the limit, then scale to the limit.

    Args:
        quantile: q.
        limit: of the range.
        most: largest s, as some code has it; no bound by default.
    """

    quantile: float = 0.995
    limit: float = 1.0
    most: float = math.inf

    def __post_init__(self) -> None:
        check_fields(self)
        _check_limit(self.limit)
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile must lie in (0, 1], got {self.quantile}")
        if not self.most >= self.limit:
            raise ValueError(f"most must be at least limit = {self.limit}, got {self.most}")

    def __call__(self, x0_hat: Tensor) -> Tensor:
        """The prediction in [-limit, limit], with shape (B, *)."""
        size = _quantile(x0_hat.abs().flatten(1), self.quantile)
        s = expand_like(size.clamp(min=self.limit, max=self.most), x0_hat)
        return self.limit / s * x0_hat.clamp(-s, s)


def _quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of every row of (B, n) with shape (B,), linear between two values; for any n, where
    ``torch.quantile`` ends at 2^24."""
    place = q * (values.shape[1] - 1)
    low = math.floor(place)
    ordered = values.sort(dim=1).values
    return torch.lerp(ordered[:, low], ordered[:, min(low + 1, values.shape[1] - 1)], place - low)


class Thresholded(Wrapper):
    """A model whose clean predictions pass a threshold."""

    predicts = "data"

    @checked
    def __init__(self, model: ScoreModel, threshold: Threshold) -> None:
        super().__init__(model)
        self._threshold = threshold

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The thresholded E[x0 | x_t] with shape (B, *)."""
        return self._threshold(self.model.denoise(x_t, t, condition))


@dataclass(frozen=True)
class Thresholding:
    """model -> the model whose clean predictions pass ``threshold``."""

    threshold: Threshold

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: ScoreModel) -> Thresholded:
        """The thresholded model."""
        return Thresholded(model, self.threshold)


@checked
def thresholded(sampler: Sampler, threshold: Threshold) -> Sampler:
    """Any sampler with its clean predictions, guided as they are, kept inside the range of the data
    (2205.11487, section 2.3)."""
    return guided_by(sampler, Thresholding(threshold))
