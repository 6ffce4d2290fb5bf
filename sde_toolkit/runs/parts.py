"""Finished batches of a computation, kept beside its result, and taken up by whoever goes on with it.

A computation that is given again makes the same calls with the same batches, so the numbers of the call and
of the first row say which batch it is:

    (call k, first row i)  ->  tensors of the rows i, ..., i + batch size - 1

They lie in the folder <result>.parts, in files that are written whole or not at all: every ``INTERVAL``
seconds, when the process is asked to stop, and at the end of a shard.  So a run that is killed loses seconds
of work, and processes that write at once do not disturb each other.  The files belong to a key, all that
decides what the batches hold; those of another key, and damaged ones, count as none.  The folder is removed
once the result is written.

    shard i of n          makes batches k with k mod n = i - 1, and no result
    the call without      takes what the shards have made, and makes what is missing

Not promised: the batches of a sharded computation may not depend on the results of others.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sde_toolkit.training import read_tensors, write_tensors
from sde_toolkit.utils import Processes

INTERVAL = 2.0
"""Seconds between two files of finished batches."""

MOST_BYTES = 1 << 22
"""Of finished batches in memory: more are written at once."""

_KIND = "parts"

Rows = TypeVar("Rows", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Shard:
    """Which of ``count`` parts of the batches is made, from 1."""

    index: int
    count: int

    def holds(self, number: int) -> bool:
        """Whether the batch of this number belongs to the shard."""
        return number % self.count == self.index - 1


class ShardFinishedError(Exception):
    """A shard has made all its batches: there is no result to go on with."""


@dataclass
class Parts:
    """The finished batches of one computation.

    Args:
        folder: of their files.
        key: what they belong to.
    """

    folder: Path
    key: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _new: dict[str, Tensor] = field(default_factory=dict)
    _owner: str = field(default_factory=lambda: secrets.token_hex(4))
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _written: float = field(default_factory=time.monotonic)

    def find(self, call: int, first: int) -> list[Tensor] | None:
        """The tensors of a batch, None if it is not finished."""
        found = (self.tensors.get(f"{call}.{first}.{k}") for k in itertools.count())
        return list(itertools.takewhile(lambda tensor: tensor is not None, found)) or None  # type: ignore[arg-type]

    def add(self, call: int, first: int, tensors: tuple[Tensor, ...]) -> None:
        """Keep a finished batch."""
        named = {f"{call}.{first}.{k}": tensor.detach() for k, tensor in enumerate(tensors)}
        self.tensors |= named
        self._new |= named
        size = sum(tensor.nbytes for tensor in self._new.values())
        if time.monotonic() - self._written > INTERVAL or size > MOST_BYTES:
            self.write()

    def write(self) -> None:
        """Write what has been added since the last file."""
        if self._new:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self._owner}-{next(self._numbers):06d}.safetensors"
            write_tensors(path, {"kind": _KIND, "key": self.key}, self._new)
            for name in self._new:  # they are in the result, and now on the disk
                del self.tensors[name]
            self._new = {}
        self._written = time.monotonic()

    def read(self) -> None:
        """Take up all that is there."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            with contextlib.suppress(OSError, ValueError):
                document, tensors = read_tensors(path, "file of finished batches")
                if document.get("kind") == _KIND and document.get("key") == self.key:
                    self.tensors.update(tensors)


def parts_path(result: Path) -> Path:
    """The folder of the finished batches of a result, beside it."""
    return result.with_name(f"{result.name}.parts")


@contextlib.contextmanager
def kept_parts(result: Path, key: Mapping[str, Any]) -> Iterator[Parts]:
    """The batches of ``result`` that earlier computations finished; those of this one are kept if it is
    interrupted, or is a shard.

    Args:
        result: the file that the computation is for.
        key: what decides its values, as JSON holds it.
    """
    text = json.dumps(key, sort_keys=True, default=repr)
    parts = Parts(parts_path(result), hashlib.sha256(text.encode()).hexdigest())
    parts.read()
    try:
        yield parts
    except (KeyboardInterrupt, ShardFinishedError):
        parts.write()
        raise


def forget_parts(result: Path) -> None:
    """Remove the finished batches of a result that has been written."""
    place = parts_path(result)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class KeepingProcesses(Processes):
    """Processes that keep the finished batches of every call of ``map``, and take up those that are there.

    Args:
        parts: where they are found and kept.
        shard: make the batches of this shard alone.
        merging: refuse to make a batch that is missing.
    """

    parts: Parts | None = None
    calls: Iterator[int] = field(default_factory=itertools.count)
    shard: Shard | None = None
    merging: bool = False

    def map(self, function: Callable[[int, Tensor], Rows], x: Tensor, batch_size: int) -> Rows:
        """``Processes.map``; batches after the first, whose type is that of all, are made once."""
        call, kinds = next(self.calls), list[Rows]()

        def kept(first: int, rows: Tensor) -> Rows:
            found = self.parts.find(call, first) if self.parts is not None else None
            if found is not None and kinds:
                like = kinds[0]
                return type(like)(*(part.to(own) for part, own in zip(found, like, strict=True)))
            if self.merging and found is None:
                folder = "" if self.parts is None else self.parts.folder
                raise ValueError(
                    f"the batch from row {first} is missing in {folder}; run the shard that lacks it "
                    "again, or leave --merge out to make what is missing here"
                )
            made = function(first, rows)
            kinds[:] = [made]
            if self.parts is not None and (len(x) > batch_size or self.shard is not None):
                self.parts.add(call, first, made)
            return made

        if self.shard is None:
            return super().map(kept, x, batch_size)
        return self._map_shard(kept, x, batch_size)

    def _map_shard(self, kept: Callable[[int, Tensor], Rows], x: Tensor, batch_size: int) -> Rows:
        """The rows of the shard, zeros elsewhere."""
        assert self.shard is not None
        starts = range(0, len(x), batch_size)
        mine = [first for number, first in enumerate(starts) if self.shard.holds(number)]
        parts = [kept(first, x[first : first + batch_size]) for first in mine]
        shapes = parts[0] if parts else kept(0, x[:batch_size])  # more shards than batches
        whole = [column.new_zeros(len(x), *column.shape[1:]) for column in shapes]
        for first, part in zip(mine, parts, strict=True):
            for column, rows in zip(whole, part, strict=True):
                column[first : first + batch_size] = rows
        return type(shapes)(*whole)


def cost_rows(count: int, nfe: float, seconds: float) -> tuple[Tensor, Tensor]:
    """The cost of a batch, row by row, so that it can be joined like samples: float32 with shape (count,)."""
    return torch.full((count,), nfe), torch.full((count,), seconds / count)
