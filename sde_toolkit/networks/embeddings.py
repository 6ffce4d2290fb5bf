"""Networks: a residual MLP for vectors and a U-Net for images.

A network maps the scaled state x with shape (B, *) and a time feature c with shape (B,), 0 at the data
end and 1000 at the prior end, to the shape of x.  What its output means (noise, clean data, ...) is not
its business: that is said by ``sde_toolkit.score.NetworkModel``, which also scales the input.  The time
enters through the angle a = c max_angle / 1000,

    [cos(a w_k), sin(a w_k)],    w_k = 10000^(-k / K),    k = 0 .. K - 1                          (2006.11239)

With max_angle = 1000, that paper's choice, a network may change a hundred and sixty times on the way from T
to 0, and one that was trained that way does ripple: a sampler of fifty steps cannot see what it integrates.
With an angle of about 10 its probability flow is smooth and as likely, but it knows the noise levels next to
the data less well, which costs the variational bound a little.

A network of K > 0 classes also takes labels k with shape (B,), 0 to K - 1, and adds a learned vector for
each to the embedding of the time.  There is one more such vector, for the null class K: it stands for "no
label", which is also what a call without labels means.

Weights are drawn from ``seed`` alone; the global generator is left as it was.  The last layer starts at
zero, so that an untrained network puts out 0: the posterior mean of the noise at t = 0 and of centred
data at t = T.

References: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239); He et al.,
"Identity Mappings in Deep Residual Networks" (1603.05027); Ronneberger, Fischer and Brox, "U-Net"
(1505.04597); Ho and Salimans, "Classifier-Free Diffusion Guidance" (2207.12598) for the null class; Kingma et
al., "Variational Diffusion Models" (2107.00630) for Fourier features of the state.
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


def _turn(max_angle: float) -> float:
    """Angle per unit of the time feature."""
    if not 0 < max_angle < math.inf:
        raise ValueError(f"max_angle must be a finite positive number, got {max_angle}")
    return max_angle / TIME_SCALE


def _check_state(x: Tensor, event_shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != event_shape:
        raise ValueError(f"x must have shape (B, {', '.join(map(str, event_shape))}), got {tuple(x.shape)}")


def _labels(labels: Tensor | None, num_classes: int, x: Tensor) -> Tensor | None:
    """The labels with shape (B,), those of the null class where none are given; None without classes."""
    if labels is None:
        return torch.full((len(x),), num_classes, device=x.device) if num_classes else None
    if not num_classes:
        raise ValueError("labels must be left out for a network without classes; build it with num_classes")
    if labels.shape != x.shape[:1]:
        raise ValueError(f"labels must have shape ({len(x)},), one per sample, got {tuple(labels.shape)}")
    return labels.to(x.device, torch.int64)
