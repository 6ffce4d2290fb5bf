"""What a source holds before any scaling, its digest, and the failures that all sources share.

The digest is SHA-256 over the type, the shape and the bytes of the examples in C order, then the same of the
labels and of the conditions: it depends on the values alone, not on the file that they lie in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sde_toolkit.data.rows import CHUNK_BYTES, Stored, generators_at

MAX_IN_MEMORY = 1 << 28
"""Bytes of examples above which they stay in their file or data set and are read when they are used."""


@dataclass(frozen=True, eq=False)
class Raw:
    """Examples as they lie in a source.

    Attributes:
        examples: with shape (N, *), in memory, or where they are read from when they are used.
        labels: integers with shape (N,), or None.
        classes: names of the labels 0, 1, ..., where the source has names.
        columns: names of the features, where the source has names.
        table: whether the features are columns with units of their own.
        conditions: rows of numbers with shape (N, d) or (N, L, d), or None.
    """

    examples: np.ndarray | Stored = field(repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    table: bool = False
    conditions: np.ndarray | None = field(default=None, repr=False)

    def digest(self) -> str:
        """SHA-256 of the values, 64 hexadecimal digits."""
        found = hashlib.sha256()
        for array in (self.examples, self.labels, self.conditions):
            if array is not None:
                found.update(f"{array.dtype.str} {tuple(array.shape)} ".encode())
                for _, part in chunks_of(array):
                    found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def chunks_of(array: np.ndarray | Stored) -> Iterator[tuple[int, np.ndarray]]:
    """All rows in parts, each with the number of its first row."""
    size = math.prod(array.shape[1:]) * array.dtype.itemsize
    rows = max(1, CHUNK_BYTES // max(1, size))
    for first in range(0, array.shape[0], rows):
        last = min(first + rows, array.shape[0])
        if isinstance(array, np.ndarray):
            yield first, array[first:last]
            continue
        with generators_at(0, first):
            part = array.rows(np.arange(first, last))
        yield first, part


def label_numbers(values: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as integers with shape (N,), and the names of the classes, none where labels are 0, ..., K - 1.

    Args:
        values: with shape (N,), integers, floats that are whole numbers, truth values or strings.
        where: names the labels in errors.

    Raises:
        ValueError: another shape, values that are neither whole numbers nor names, or negative ones.
    """
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{where} must have shape (N,), one label per example, got {values.shape}")
    if values.dtype.kind in "US":
        names, numbers = np.unique(values.astype(str), return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    if values.dtype.kind not in "iufb":
        raise ValueError(f"{where} must be whole numbers or names, got values of type {values.dtype}")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise ValueError(f"{where} must be whole numbers or names, got fractions, nan or inf among them")
    if values.size and (values.min() < 0 or float(values.max()) >= 2**31):
        raise ValueError(f"{where} must lie in 0, ..., K - 1, got {values.min()} to {values.max()}")
    return values.astype(np.int64), ()
