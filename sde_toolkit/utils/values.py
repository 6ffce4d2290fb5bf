"""Values: what is equal when it is made of equal parts, whichever object it is.

same_values(a, b)         tensors by type, shape and bits, containers part by part, the rest by ==
Partial(function, *last)  a function with its last arguments given, like a closure, but with equality by
                          value, and a name, so that it can be copied, hashed and pickled
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Result = TypeVar("Result")


def same_values(a: object, b: object) -> bool:
    """Whether two objects are equal by value."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_values(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same_values, a, b))
    return bool(a == b)


class Partial(Generic[Result]):
    """A function with its last arguments given: ``Partial(f, b, c)(a)`` is ``f(a, b, c)``.

    Args:
        function: of a module, so that it has a name.
        last: its last arguments.
    """

    def __init__(self, function: Callable[..., Result], *last: Any) -> None:
        self.function, self.last = function, last

    def __call__(self, *first: Any) -> Result:
        """The function's result."""
        return self.function(*first, *self.last)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partial):
            return NotImplemented
        return self.function == other.function and same_values(self.last, other.last)

    def __hash__(self) -> int:
        return hash((self.function, len(self.last)))

    def __repr__(self) -> str:
        return f"{self.function.__name__}({', '.join(map(repr, self.last))})"
