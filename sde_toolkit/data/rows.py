"""Examples that stay where they are and are read when they are asked for, and batches read ahead of use.

    batch k  =  rows of the examples of ``batch_indices(k)``,      a function of (seed, k)

A data set of the user's own may draw random numbers when it is read (crops, jitter).  Before batch k is read
the generators of torch, numpy and Python are set from (seed, k), and put back afterwards.  So the batch is
the same from any number of worker processes, and after any resume.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.batches import batch_indices
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.utils import Stream, integer, seed_sequence, step_generator

CHUNK_BYTES = 1 << 24
"""About as many bytes are read at once when all examples are gone through."""


class Stored(Protocol):
    """Where rows lie: an array on disk, or a data set whose items are read one by one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *)."""

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""

    @property
    def fixed(self) -> bool:
        """Whether a row is the same in every reading, whatever rows are read with it."""

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The rows of these indices, with shape (len(indices), *)."""


@dataclass(frozen=True, eq=False)
class MappedArray:
    """An array in an .npy file that is mapped into memory: pages are read when they are used.

    It pickles as its path.
    """

    path: Path
    fixed = True

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *)."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self._array.dtype

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The rows of these indices, read from the disk."""
        return self._array[indices]


class Rows:
    """Examples of a store, some of them, in an order, read when they are indexed.

    Args:
        store: where they lie.
        arrange: from rows as they lie there to examples (B, D) or (B, C, H, W) of the type of ``dtype``.
        event_shape: the shape of one example.
        dtype: of the examples.
        indices: which rows, int64 with shape (N,).
        scaling: to model scale; None leaves the examples as they are.
    """

    def __init__(
        self,
        store: Stored,
        arrange: Callable[[np.ndarray], np.ndarray],
        event_shape: tuple[int, ...],
        dtype: torch.dtype,
        indices: np.ndarray,
        scaling: Scaling | None = None,
    ) -> None:
        self.store, self.arrange, self.indices, self.scaling = store, arrange, indices, scaling
        self.shape, self.dtype = torch.Size((len(indices), *event_shape)), dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Rows({tuple(self.shape)}, {self.dtype}, read when used)"

    @property
    def ndim(self) -> int:
        """Number of dimensions, that of the examples included."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of values."""
        return self.shape.numel()

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        """The examples of these indices or truth values, or of a slice, with shape (B, *)."""
        return self.read(which, 0, 0)

    def read(self, which: Tensor | slice, seed: int, step: int) -> Tensor:
        """The same, with what reading them draws as a function of (seed, step)."""
        chosen = self.indices[which if isinstance(which, slice) else which.numpy()]
        order = np.argsort(chosen, kind="stable")  # the disk is read from front to back
        found = np.empty((len(chosen), *self.store.shape[1:]), self.store.dtype)
        with generators_at(seed, step):
            found[order] = self.store.rows(chosen[order])
        examples = torch.from_numpy(np.ascontiguousarray(self.arrange(found)))
        return examples if self.scaling is None else self.scaling.to_model(examples, self.dtype)

    def split(self, count: int) -> Iterator[Tensor]:
        """All examples in parts of at most ``count``, and of not much more than ``CHUNK_BYTES``."""
        size = self.shape[1:].numel() * 8
        count = max(1, min(count, CHUNK_BYTES // size))
        for first in range(0, len(self), count):
            yield self.read(slice(first, first + count), 0, first)

    def take(self, indices: np.ndarray) -> Rows:
        """Some of these rows, in the order of the indices, not read yet."""
        event = tuple(self.shape[1:])
        return Rows(self.store, self.arrange, event, self.dtype, self.indices[indices], self.scaling)

    def scaled(self, scaling: Scaling, dtype: torch.dtype = torch.float32) -> Rows:
        """The same rows in model scale."""
        return Rows(self.store, self.arrange, tuple(self.shape[1:]), dtype, self.indices, scaling)


@contextlib.contextmanager
def generators_at(seed: int, step: int) -> Iterator[None]:
    """Set the generators of torch, numpy and Python from (seed, step), and put them back at the end."""
    words = seed_sequence(seed, Stream.AUGMENTATION, step).generate_state(4, np.uint32)
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(step_generator(seed, step, Stream.AUGMENTATION).get_state())
        random.setstate(random.Random(words.tobytes()).getstate())
        np.random.set_state(np.random.RandomState(words).get_state())  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def read_batch(
    examples: Tensor | Rows, step: int, batch_size: int, seed: int, own: slice | None = None
) -> Tensor:
    """The examples of batch ``step`` with shape (batch_size, *), a function of the arguments alone.

    Of a store whose rows are fixed, those outside ``own`` are not read, and are 0.
    """
    indices = batch_indices(len(examples), batch_size, step, seed)
    if isinstance(examples, Tensor):
        return examples[indices]
    if own is None or not examples.store.fixed:
        return examples.read(indices, seed, step)
    batch = torch.zeros(batch_size, *examples.shape[1:], dtype=examples.dtype)
    batch[own] = examples.read(indices[own], seed, step)
    return batch


@dataclass(frozen=True, eq=False)
class _Batches(torch.utils.data.Dataset):
    """Batches of one run by their step, as a map-style data set for a ``DataLoader``."""

    examples: Tensor | Rows
    batch_size: int
    seed: int
    own: slice | None

    def __getitem__(self, step: int) -> Tensor:
        return read_batch(self.examples, step, self.batch_size, self.seed, self.own)


@dataclass(frozen=True)
class _StepsFrom(torch.utils.data.Sampler):
    first: int

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


@dataclass(eq=False)
class ReadAhead:
    """Batches from worker processes of a ``DataLoader``, which read the next ones while one is used.

    A request for another batch than the next one starts them anew, so every answer is that of ``read_batch``.
    """

    examples: Tensor | Rows
    workers: int
    _next: tuple[int, int, int, slice | None] | None = field(default=None, repr=False)
    _batches: Iterator[Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        integer("workers", self.workers, 1)

    def __getstate__(self) -> dict[str, object]:
        return replace(self, _next=None, _batches=None).__dict__

    def batch(self, step: int, batch_size: int, seed: int, own: slice | None = None) -> Tensor:
        """The examples of batch ``step`` with shape (batch_size, *), as ``read_batch`` reads them."""
        if self._next != (step, batch_size, seed, own) or self._batches is None:
            loader = torch.utils.data.DataLoader(
                _Batches(self.examples, batch_size, seed, own),
                batch_size=None,
                sampler=_StepsFrom(step),
                num_workers=self.workers,
                generator=torch.Generator(),
            )
            self._batches = iter(loader)
        found = next(self._batches)
        self._next = (step + 1, batch_size, seed, own)
        return found
