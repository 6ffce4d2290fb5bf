"""The discrete chain (stub, being written)."""

from __future__ import annotations

from torch import Tensor


class Chain:
    """A forward process seen at N + 1 times."""

    def __init__(self, alphas: Tensor, sigmas: Tensor, times: Tensor) -> None:
        self.alphas, self.sigmas, self.times = alphas, sigmas, times
