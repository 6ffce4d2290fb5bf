"""Batches that are finished, kept when a computation is asked to stop, and taken up by the next one.

A computation that is given again makes the same calls with the same batches, so the numbers of the call and
of the first row say which batch it is:

    (call k, first row i)  ->  tensors of the rows i, ..., i + batch size - 1

The file belongs to a key, all that decides what the batches hold.  One with another key, and a damaged one,
count as none.  It is written when the process is asked to stop, and removed once the result is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sde_toolkit.training import read_tensors, write_tensors
from sde_toolkit.utils import Processes

_KIND = "parts"

Rows = TypeVar("Rows", bound=tuple[Tensor, ...])


@dataclass
class Parts:
    """The finished batches of one computation.

    Args:
        path: of their file.
        key: what they belong to.
    """

    path: Path
    key: str
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def find(self, call: int, first: int) -> list[Tensor] | None:
        """The tensors of a batch, None if it is not finished."""
        found = (self.tensors.get(f"{call}.{first}.{k}") for k in itertools.count())
        return list(itertools.takewhile(lambda tensor: tensor is not None, found)) or None  # type: ignore[arg-type]

    def add(self, call: int, first: int, tensors: tuple[Tensor, ...]) -> None:
        """Keep a finished batch."""
        self.tensors |= {f"{call}.{first}.{k}": tensor for k, tensor in enumerate(tensors)}


def parts_path(result: Path) -> Path:
    """Where the finished batches of a result are kept, beside it."""
    return result.with_name(f"{result.name}.parts")


@contextlib.contextmanager
def kept_parts(result: Path, key: Mapping[str, Any]) -> Iterator[Parts]:
    """The batches of ``result`` that an earlier computation finished; those of this one are kept if it is
    interrupted.

    Args:
        result: the file that the computation is for.
        key: what decides its values, as JSON holds it.
    """
    parts = Parts(
        parts_path(result), hashlib.sha256(json.dumps(key, sort_keys=True, default=repr).encode()).hexdigest()
    )
    with contextlib.suppress(OSError, ValueError):
        document, tensors = read_tensors(parts.path, "file of finished batches")
        if document.get("kind") == _KIND and document.get("key") == parts.key:
            parts.tensors.update(tensors)
    try:
        yield parts
    except KeyboardInterrupt:
        if parts.tensors:
            parts.path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(parts.path, {"kind": _KIND, "key": parts.key}, parts.tensors)
        raise


def forget_parts(result: Path) -> None:
    """Remove the finished batches of a result that has been written."""
    parts_path(result).unlink(missing_ok=True)


@dataclass(frozen=True)
class KeepingProcesses(Processes):
    """This process alone, with the finished batches of every call of ``map``.

    Args:
        parts: where they are found and kept.
    """

    parts: Parts | None = None
    calls: Iterator[int] = field(default_factory=itertools.count)

    def map(self, function: Callable[[int, Tensor], Rows], x: Tensor, batch_size: int) -> Rows:
        """``Processes.map``; batches after the first, whose type is that of all, are computed once."""
        call, kinds = next(self.calls), list[Rows]()

        def kept(first: int, rows: Tensor) -> Rows:
            found = self.parts.find(call, first) if self.parts is not None and kinds else None
            if found is not None:
                like = kinds[0]
                return type(like)(*(part.to(own) for part, own in zip(found, like, strict=True)))
            made = function(first, rows)
            kinds.append(made)
            if self.parts is not None and len(x) > batch_size:
                self.parts.add(call, first, made)
            return made

        return super().map(kept, x, batch_size)
