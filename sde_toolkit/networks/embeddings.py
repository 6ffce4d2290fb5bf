"""Embeddings of the time and of class labels.

The time enters a network as a feature c with shape (B,), 0 at the data end and 1000 at the prior end.  The
network embeds it through the angle a = c max_angle / 1000:

    [cos(a w_k), sin(a w_k)],    w_k = 10000^(-k / K),    k = 0 .. K - 1                          (2006.11239)

With max_angle = 1000, that paper's choice, the fastest feature oscillates about 160 times between T and 0.
Networks that were trained with it oscillate too, faster than a sampler of fifty steps can resolve.  With an
angle of about 10 the probability flow is smooth and the likelihood is the same.  The price is a network that
tells the lowest noise levels apart less well, which costs the variational bound a little.

A network of K > 0 classes takes labels k with shape (B,), 0 to K - 1, and adds a learned vector for each to
the embedding of the time.  One more vector belongs to the null class K, which stands for "no label".  A call
without labels uses the null class.

References: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239); Ho and Salimans,
"Classifier-Free Diffusion Guidance" (2207.12598) for the null class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_toolkit.models import TIME_SCALE

MAX_PERIOD = 10000.0
MAX_ANGLE = TIME_SCALE
"""Angle of the time features at the prior end, as in 2006.11239: that of the time feature c itself."""


def time_features(c: Tensor, num_frequencies: int) -> Tensor:
    """Return cos(c w_k) and sin(c w_k) with shape (B, 2 num_frequencies), for c with shape (B,)."""
    k = torch.arange(num_frequencies, dtype=c.dtype, device=c.device)
    angles = c[:, None] * torch.exp(-math.log(MAX_PERIOD) / num_frequencies * k)
    return torch.cat([angles.cos(), angles.sin()], 1)


def angle_rate(max_angle: float) -> float:
    """Angle per unit of the time feature."""
    if not 0 < max_angle < math.inf:
        raise ValueError(f"max_angle must be a finite positive number, got {max_angle}")
    return max_angle / TIME_SCALE


def check_event_shape(x: Tensor, event_shape: tuple[int, ...]) -> None:
    """Refuse, with a ValueError, states whose shape is not (B, *event_shape)."""
    if tuple(x.shape[1:]) != event_shape:
        raise ValueError(f"x must have shape (B, {', '.join(map(str, event_shape))}), got {tuple(x.shape)}")


def labels_or_null(labels: Tensor | None, num_classes: int, x: Tensor) -> Tensor | None:
    """The labels with shape (B,), those of the null class where none are given; None without classes."""
    if labels is None:
        return torch.full((x.shape[0],), num_classes, device=x.device) if num_classes else None
    if not num_classes:
        raise ValueError(
            "labels (the condition) must be left out for a network without classes; build it with num_classes"
        )
    if labels.shape != x.shape[:1]:
        raise ValueError(f"labels must have shape ({len(x)},), one per sample, got {tuple(labels.shape)}")
    return labels.to(x.device, torch.int64)
