"""Several processes that share the samples of one computation.

Batch k of a fixed size is the work of process k mod P.  The batches are the same for every P, and with them
the bits of the result; nothing is exchanged before the end, so no process waits for the steps of another.  At
the end every process gets all rows, as sums in which one summand is not zero.  A process that fails says so
there, instead of leaving the others to wait.

``torchrun --nproc-per-node P`` sets the environment variables that ``launched`` reads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Processes:
    """This process among P of them.

    Args:
        rank: 0 .. P - 1.
        count: P.
    """

    rank: int = 0
    count: int = 1

    def map(self, function: Callable[[int, Tensor], Rows], x: Tensor, batch_size: int) -> Rows:
        """``function(first, x[first : first + batch_size])`` for all batches, its results row below row.

        Args:
            function: gives a named tuple of tensors with the rows of its batch.
            x: with shape (B, *).
            batch_size: rows of a batch.

        Raises:
            RuntimeError: another process failed.  What ``function`` raises here, is raised here.
        """
        mine = range(self.rank * batch_size, len(x), self.count * batch_size)
        if self.count == 1:
            parts = [function(first, x[first : first + batch_size]) for first in mine]
            return type(parts[0])(*(torch.cat(column) for column in zip(*parts, strict=True)))
        failure: Exception | None = None
        parts = []
        try:
            parts = [function(first, x[first : first + batch_size]) for first in mine]
        except Exception as error:
            failure = error
        if self._any(failure is not None):
            raise failure or RuntimeError("another process failed; its message tells why")
        if not parts:  # more processes than batches: one row gives shapes and types
            parts, mine = [function(0, x[:1])], range(0)
        return type(parts[0])(
            *(self._gather(column, mine, batch_size, len(x)) for column in zip(*parts, strict=True))
        )

    def _any(self, here: bool) -> bool:
        flag = torch.tensor([float(here)])
        dist.all_reduce(flag)
        return bool(flag > 0)

    def _gather(self, parts: Sequence[Tensor], mine: range, batch_size: int, count: int) -> Tensor:
        whole = parts[0].new_zeros(count, *parts[0].shape[1:])
        for first, part in zip(mine, parts, strict=False):
            whole[first : first + batch_size] = part
        host = whole.cpu()
        dist.all_reduce(host)
        return host.to(whole.device)


ALONE = Processes()


def leading() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def launched() -> Iterator[Processes]:
    """The processes that torchrun has started, ``ALONE`` without it; a group over gloo while it lasts."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    dist.init_process_group("gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
