"""Functions of time as users write them: t -> alpha(t) or sigma(t), a constant among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.utils import require, shown


@dataclass(frozen=True)
class OfTime:
    """A function of time as it was given, a number that it returns in the shape of t.

    Args:
        name: for messages.
        function: t -> values with the shape of t, or a number.

    Raises:
        TypeError: what is given is no function.
    """

    name: str
    function: Callable[[Tensor], Tensor | float]

    def __post_init__(self) -> None:
        require(self.name, self.function, Callable)

    def __call__(self, t: Tensor) -> Tensor:
        """The values with the shape of t; raises TypeError for what is no tensor and no number."""
        value = self.function(t)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (int, float)):
            return torch.full_like(t, value) + 0 * t
        raise TypeError(f"{self.name}(t) must return a tensor with the shape of t, got {shown(value)}")
