"""Checks of arguments that several rooms need: integers n >= minimum."""

from __future__ import annotations

import operator

from solvers.annotations import shown


def integer(name: str, value: int, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` as an int.  Raises ValueError below ``minimum`` or above ``maximum``, TypeError if it
    is no integer."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer >= {minimum}, got {shown(value)}") from None
    if whole < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}")
    if maximum is not None and whole > maximum:
        raise ValueError(f"{name} must be an integer of at most {maximum}, got {value}")
    return whole
