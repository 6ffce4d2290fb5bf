"""The rate beta(t) of a variance-preserving process, its integral B(t), and the inverse of B.

    linear    beta = beta_min + t (beta_max - beta_min)
    cosine    exp(-B/2) = cos(w (t + s)) / cos(w s),    w = pi / (2 (1 + s))

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456); Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.utils import check_fields


class Beta(ABC):
    """The rate beta(t) of a variance-preserving process on [0, T], its integral B(t), and B's inverse."""

    T: float

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """beta(t), per unit of time, with the shape of t."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t, with the shape of t."""

    @abstractmethod
    def inverse_integral(self, b: Tensor) -> Tensor:
        """The time at which B has the given value, any shape."""


@dataclass(frozen=True)
class LinearBeta(Beta):
    """beta(t) = beta_min + t (beta_max - beta_min) on [0, 1] (2011.13456, eq. 32)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    T: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"the linear rate needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}"
            )
        require_positive("T", self.T)

    def rate(self, t: Tensor) -> Tensor:
        """beta_min + t (beta_max - beta_min), with the shape of t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """beta_min t + (beta_max - beta_min) t^2 / 2, with the shape of t."""
        return t * (self.beta_min + t * (0.5 * (self.beta_max - self.beta_min)))

    def inverse_integral(self, b: Tensor) -> Tensor:
        """The positive root of the quadratic B(t) = b, in the form that does not cancel."""
        slope = self.beta_max - self.beta_min
        return 2 * b / (self.beta_min + (self.beta_min**2 + 2 * slope * b).sqrt())


@dataclass(frozen=True)
class CosineBeta(Beta):
    """alpha(t) = cos(w (t + s)) / cos(w s), w = pi / (2 (1 + s)) (2102.09672, eq. 17).

    The rate diverges at t = 1, so the process stops at T = 0.9946, as in DPM-Solver (2206.00927).
    """

    s: float = 0.008
    T: float = 0.9946

    def __post_init__(self) -> None:
        check_fields(self)
        if not (0 < self.s <= 1 and 0 < self.T < 1):
            raise ValueError(
                f"the cosine rate needs s > 0, s <= 1 and 0 < T < 1, got s = {self.s} and T = {self.T}"
            )

    @property
    def _w(self) -> float:
        return math.pi / (2 * (1 + self.s))

    def rate(self, t: Tensor) -> Tensor:
        """2 w tan(w (t + s)), with the shape of t."""
        return 2 * self._w * torch.tan(self._w * (t + self.s))

    def integral(self, t: Tensor) -> Tensor:
        """-2 log alpha(t), with the shape of t, written so that it is exact near t = 0."""
        # cos(w(t+s)) / cos(ws) = cos(wt) - tan(ws) sin(wt) = 1 - [2 sin^2(wt/2) + tan(ws) sin(wt)]
        wt = self._w * t
        return -2 * torch.log1p(
            -(2 * torch.sin(0.5 * wt).square() + math.tan(self._w * self.s) * torch.sin(wt))
        )

    def inverse_integral(self, b: Tensor) -> Tensor:
        """The time at which alpha = exp(-b/2)."""
        # 1 - exp(-b/2) = 1 - cos(wt) + tan(ws) sin(wt): a quadratic in tan(wt/2) without cancellation
        a = -torch.expm1(-0.5 * b)
        k = math.tan(self._w * self.s)
        return 2 * torch.atan(a / (k + (k**2 + a * (2 - a)).sqrt())) / self._w


def require_positive(name: str, value: float) -> None:
    """Refuse, with a ValueError, what is no finite positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite positive number, got {value}")
