"""Rectified flow: straight lines between data and noise.

    x_t = (1 - t) x0 + t z,       f = -1 / (1 - t),     g^2 = 2 t / (1 - t),     nsr = t / (1 - t)

The velocity of the probability flow, which flow matching regresses on, is E[z - x0 | x_t].  At t = 1 nothing
of the data is left and the rates are infinite, so the process ends at T < 1, where the signal scale is 1 - T.

References: Liu, Gong and Liu, "Flow Straight and Fast" (2209.03003); Lipman et al., "Flow Matching for
Generative Modeling" (2210.02747); Albergo and Vanden-Eijnden, "Building Normalizing Flows with Stochastic
Interpolants" (2209.15571).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_toolkit.sdes.sde import ForwardSDE
from sde_toolkit.utils import checked


class RectifiedFlow(ForwardSDE):
    """The process of straight lines, x_t = (1 - t) x0 + t z.

    Other linear interpolants, x_t = alpha(t) x0 + sigma(t) z, are made by ``CustomSDE``.

    Args:
        T: end of the process, below 1; the largest noise-to-signal ratio is T / (1 - T).

    Raises:
        ValueError: unless 0 < T < 1.
    """

    @checked
    def __init__(self, T: float = 0.999) -> None:
        if not 0 < T < 1:
            raise ValueError(
                f"T must be between 0 and 1, where nothing of the data is left, got {T}; try 0.999"
            )
        self.T = self.prior_std = float(T)

    def __repr__(self) -> str:
        return f"RectifiedFlow(T={self.T})"

    def log_alpha(self, t: Tensor) -> Tensor:
        """log(1 - t), with the shape of t."""
        return torch.log1p(-t)

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t, with the shape of t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t itself."""
        return 1 * t

    def f(self, t: Tensor) -> Tensor:
        """-1 / (1 - t), with the shape of t."""
        return -1 / (1 - t)

    def g_squared(self, t: Tensor) -> Tensor:
        """2 t / (1 - t), with the shape of t."""
        return 2 * t / (1 - t)

    def noise_rate(self, t: Tensor) -> Tensor:
        """1 / (1 - t), with the shape of t."""
        return 1 / (1 - t)

    def nsr(self, t: Tensor) -> Tensor:
        """t / (1 - t), with the shape of t."""
        return t / (1 - t)

    def inverse_nsr(self, nsr: Tensor) -> Tensor:
        """nsr / (1 + nsr)."""
        return nsr / (1 + nsr)
