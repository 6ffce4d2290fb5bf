"""Classifier-free guidance: away from the prediction without a condition, along that with it.

With the predictions of one network given a condition c and given none, and the scale w,

    raw(x_t, t) + w (raw(x_t, t, c) - raw(x_t, t)),        w = 1 for the conditional model, 0 for the other.

Every prediction is linear in x0_hat at a given state, so it does not matter which of them is combined.  For
classes both are found in one call of the network, on twice as many rows; for vectors and tokens in two calls,
the second one without a condition, so that a network of yours needs no row that means "none".  Either way an
evaluation counts as two.

Not promised: the guided prediction is no score of a forward process, unless w is 0 or 1.

Reference: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2207.12598), eq. 6, where w is 1 + w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, Wrapper
from sde_toolkit.samplers import Sampler
from sde_toolkit.utils import check_fields, checked


class ClassifierFree(Wrapper):
    """A model whose prediction given a condition is guided by that without one.

    Args:
        model: of K classes, with label K for "no class"; or of rows of ``condition_shape``, whose network can
            be called without one.
        scale: w.

    Raises:
        ValueError: a model without conditions, or a scale that is not finite.
    """

    @checked
    def __init__(self, model: ScoreModel, scale: float) -> None:
        super().__init__(model)
        if not model.num_classes and model.condition_shape is None:
            raise ValueError(
                "guidance needs a model with classes or other conditions, got one without; build its "
                "network with num_classes or condition_shape"
            )
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}; 1 is no guidance")
        self.scale = float(scale)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction with shape (B, *); that without a condition for none."""
        if condition is None:
            return self.model.raw(x_t, t)
        if not self.model.num_classes:
            free = self.model.raw(x_t, t)
            return free + self.scale * (self.model.raw(x_t, t, condition) - free)
        null = torch.full_like(condition, self.model.num_classes)
        times = t if t.ndim == 0 else torch.cat([t, t])
        both = self.model.raw(torch.cat([x_t, x_t]), times, torch.cat([condition, null]))
        given, free = both.chunk(2)
        return free + self.scale * (given - free)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """model -> the model guided with ``scale``."""

    scale: float

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: ScoreModel) -> ClassifierFree:
        """The guided model."""
        return ClassifierFree(model, self.scale)


@checked
def guided(sampler: Sampler, scale: float) -> Sampler:
    """Any sampler on the guided prediction (2207.12598); give ``sample`` a condition.

    Args:
        sampler: what to guide.
        scale: w; 1 is no guidance.

    Raises:
        ValueError: when sampling: a model without conditions, or a scale that is not finite.
    """
    return replace(sampler, guidance=ClassifierFreeGuidance(scale))
