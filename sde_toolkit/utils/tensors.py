"""Numbers, arrays and lists where tensors go: they become tensors; what is no number is refused by name."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.annotations import shown

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types with which torch does not compute."""


def as_tensor(name: str, value: Any, dtype: torch.dtype | None = torch.float64, device: Any = None) -> Tensor:
    """A tensor as it is; a number, an array or a list of numbers as a tensor of ``dtype`` on ``device``, with
    None as int64 or float64, whichever they are.

    Raises:
        TypeError: what holds no real numbers.
        ValueError: lists of unequal lengths.
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name} must hold real numbers, got {shown(value)}")
        return value.to(torch.int64) if value.dtype in UNSIGNED else value
    if not isinstance(value, (numbers.Real, np.ndarray, list, tuple)):
        raise TypeError(f"{name} must be a tensor, an array or a number, got {shown(value)}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a list of equally long lists of numbers ({error})") from None
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold real numbers of at most 64 bits, got {shown(value)}")
    kind = np.float64 if dtype is not None or array.dtype.kind == "f" else np.int64
    return torch.as_tensor(array.astype(kind), dtype=dtype, device=device)


def host_tensor(name: str, value: Any) -> Tensor:
    """``as_tensor`` in float64 on the host; raises ValueError also for tensors without values."""
    tensor = as_tensor(name, value)
    if tensor.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device; give one with data")
    return tensor.to("cpu", torch.float64)


def as_times(name: str, value: Any) -> Tensor:
    """``as_tensor`` in float64; raises ValueError for numbers that are nan."""
    times = as_tensor(name, value).double()
    if not isinstance(value, Tensor) and bool(times.isnan().any()):
        raise ValueError(f"{name} must be a number, got nan")
    return times


def takes_numbers(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A method of one tensor that also takes numbers, arrays and tensors of integers, as float64."""
    signature = inspect.signature(method)
    name = list(signature.parameters)[1]

    @functools.wraps(method)
    def call(self: Any, *given: Tensor, **named: Tensor) -> Tensor:
        if named or len(given) != 1:
            return call(self, *signature.bind(self, *given, **named).args[1:])
        value = given[0]
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            value = as_times(name, value)
        return method(self, value)

    return call


def as_device(name: str, device: torch.device | str) -> torch.device:
    """The device of this name; raises ValueError for one that cannot be used on this machine."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{name} {str(device)!r} is not usable on this machine ({reason}); take cpu, cuda, cuda:1 or mps"
        ) from None
    return found


def per_sample(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """One finite number for all samples, with shape (), or one for each, with shape (B,), in float64.

    Args:
        name: for the errors.
        value: the number or numbers.
        x: the samples with shape (B, *), on the device of the result.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    found = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    if found.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} must be one number or one for every sample, with shape ({len(x)},), got shape "
            f"{tuple(found.shape)}"
        )
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return found
