"""Checks of arguments that several rooms need: integers n >= minimum."""

from __future__ import annotations

import operator


def integer(name: str, value: int, minimum: int) -> int:
    """Return ``value`` as an int.  Raises ValueError below ``minimum``, TypeError if it is no integer."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer >= {minimum}, got {value!r}") from None
    if whole < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}")
    return whole
