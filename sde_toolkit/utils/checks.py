"""Checks of arguments that several rooms need: integers n >= minimum."""

from __future__ import annotations

import operator


def integer(name: str, value: int, minimum: int) -> int:
    """Return ``value`` as an int.  Raises ValueError below ``minimum``, TypeError if it is no integer."""
    if operator.index(value) < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}")
    return operator.index(value)
