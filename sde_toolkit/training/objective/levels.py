"""The mean noise given grey levels: what is known of the noise where data are uniform in bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from solvers.terms import expand_like


def noise_given_levels(x0: Tensor, z: Tensor, nsr: Tensor, levels: int) -> Tensor:
    """E[z | x_t, v] with shape (B, *): the mean noise given the noised state and the grey levels v of x0.

    Args:
        x0: levels of bins of equal width on [-1, 1] with uniform noise inside their bins, shape (B, *).
        z: the noise in x_t = alpha (x0 + nsr z), with shape (B, *).
        nsr: with shape (B,).
        levels: number of grey levels.
    """
    n, x = expand_like(nsr, x0.double()), x0.double()
    low = ((x + 1) * (levels / 2)).floor().clamp(0, levels - 1) * (2 / levels) - 1
    y = x + n * z.double()
    a, b = (low - y) / n, (low + 2 / levels - y) / n
    # on the side where both tails are small; a shift of sign exchanges the ends and the sign of the mean
    flip = a + b > 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    mean = torch.exp(-0.5 * b.square()) - torch.exp(-0.5 * a.square())
    mean = mean / (math.sqrt(2 * math.pi) * (torch.special.ndtr(b) - torch.special.ndtr(a)))
    return torch.where(flip, -mean, mean).to(z)
