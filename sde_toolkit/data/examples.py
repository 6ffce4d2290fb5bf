"""What examples and conditions must be: real numbers, finite or missing, and grey levels in range."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.missing import check_incomplete
from sde_toolkit.utils import UNSIGNED, shown


def as_numbers(name: str, value: Tensor | np.ndarray) -> Tensor:
    """A tensor of the values; raises TypeError for arrays that hold no numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "iufb":
        raise TypeError(f"{name} must hold real numbers, got {shown(value)}")
    return torch.as_tensor(value)


def signed(x: Tensor) -> Tensor:
    """Unsigned integers of 16 bits and more, with which torch does not compute, as int64."""
    if x.dtype not in UNSIGNED:
        return x
    if x.dtype == torch.uint64 and x.numel() and bool((x.view(torch.int64) < 0).any()):
        raise ValueError("x must hold grey levels below 2^63, got larger integers; scale them to floats")
    return x.to(torch.int64)


def check_examples(
    name: str, x: Tensor, levels: int | None, missing: bool = False, all_columns: bool = False
) -> None:
    """Refuse, with a ValueError, examples that are empty, not finite or no grey levels."""
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{name} must have shape (N, *), N >= 1 and at least one event dimension, got {tuple(x.shape)}; "
            "give scalars the shape (N, 1)"
        )
    if missing:
        check_incomplete(name, x, levels, all_columns)
        return
    if levels is None:
        if not x.dtype.is_floating_point:
            raise ValueError(
                f"{name} must be floating point, got {x.dtype}; integers need scaling=Scaling.grey(levels)"
            )
        if not torch.isfinite(x).all():
            raise ValueError(
                f"{name} must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values; "
                'missing="mask" takes NaN for entries that are missing'
            )
        return
    if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
        raise ValueError(
            f"{name} must hold integer grey levels, got {x.dtype}; convert it, or drop the levels"
        )
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise ValueError(
            f"{name} must hold grey levels 0, ..., {levels - 1}, got values from {low} to {high}"
        )


def check_conditions(train: Tensor | None, test: Tensor | None, num_train: int, num_test: int) -> None:
    """Refuse, with a ValueError, conditions that are not one row of real numbers for every example."""
    for name, rows, count in (("conditions_train", train, num_train), ("conditions_test", test, num_test)):
        if rows is None:
            continue
        if rows.ndim not in (2, 3) or len(rows) != count or not rows.is_floating_point() or 0 in rows.shape:
            raise ValueError(
                f"{name} must be real numbers with shape ({count}, d) or ({count}, L, d), got {rows.dtype} "
                f"with shape {tuple(rows.shape)}"
            )
        none = rows.isnan().all(-1, keepdim=True)
        if not bool((rows.isfinite() | none).all()):
            raise ValueError(
                f"{name} must be finite, or nan throughout a row or token for none, got nan or inf among "
                "numbers"
            )
    if train is not None and test is not None and train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"conditions_test must have rows of the shape of conditions_train, {tuple(train.shape[1:])}, got "
            f"{tuple(test.shape[1:])}"
        )


def split_conditions(
    given: Tensor | np.ndarray | None, train: Tensor, test: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The conditions of the training and of the test examples, whose numbers are given; None for none.

    Raises:
        ValueError: not one row of real numbers for every example.
    """
    if given is None:
        return None, None
    rows, count = as_numbers("conditions", given), len(train) + len(test)
    if rows.shape[:1] != (count,) or not rows.is_floating_point():
        raise ValueError(
            f"conditions must be real numbers in {count} rows, one per example, got {rows.dtype} with shape "
            f"{tuple(rows.shape)}"
        )
    return rows[train], rows[test]
