"""Several processes that share the samples of one computation, or the batch of one update.

    batch k of a fixed size  ->  process k mod P,      result = sum over processes of its rows, 0 elsewhere

The batches are the same for every number of processes P, and so are the bits of the result.  Processes
exchange nothing before the end, so that none waits for the steps of another.  At the end every process
receives all rows.  If a process fails, all processes raise an error at that point instead of waiting.  One
that ends without a word closes its connections, and whoever waits for it raises ``LostProcessError``.

``torchrun --nproc-per-node P`` sets the environment variables that ``launched`` reads.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", bound=tuple[Tensor, ...])


class LostProcessError(RuntimeError):
    """Another process has ended, or cannot be reached."""


def _about_connections(error: RuntimeError) -> bool:
    """Whether an exchange between processes failed, and not what one of them computed."""
    text = str(error).lower()
    words = ("connection", "gloo", "nccl", "timed out", "timeout", "process group")
    return isinstance(error, dist.DistError) or any(word in text for word in words)


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
        """Apply ``function(first, x[first : first + batch_size])`` to all batches and join the results.

        Args:
            function: returns a named tuple of tensors with the rows of its batch.
            x: with shape (B, *).
            batch_size: rows of a batch.

        Raises:
            RuntimeError: another process failed.  An error that ``function`` raises in this process is
                raised as it is.
        """
        if self.count == 1 and len(x) <= batch_size:
            return function(0, x)
        mine = range(self.rank * batch_size, len(x), self.count * batch_size)
        failure: Exception | None = None
        rows: Rows | None = None
        try:
            rows = _joined(function, x, batch_size, mine)
        except Exception as error:
            failure = error
        if self.any(failure is not None) or rows is None:
            raise failure or RuntimeError("another process failed; its message tells why")
        return type(rows)(*map(self._summed, rows))

    def wait(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def any(self, here: bool) -> bool:
        """Whether this is so in one process at least.

        Raises:
            LostProcessError: a process has ended.
        """
        return here if self.count == 1 else bool(self.sum(torch.tensor([float(here)])) > 0)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of the tensors of all processes, in place of x, on its own device.

        Raises:
            LostProcessError: a process has ended.
        """
        if self.count > 1:
            with self.noticing():
                dist.all_reduce(x)
        return x

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        """Say of a failed exchange inside the ``with`` that a process was lost."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _about_connections(error):
                raise
            raise LostProcessError(
                f"process {self.rank} of {self.count} waited for the others, and one of them has ended or "
                "cannot be reached; its own message says why"
            ) from error

    def _summed(self, column: Tensor) -> Tensor:
        """The sum over processes, on the host in pieces: an exchange takes as much memory as it sums."""
        if self.count == 1:
            return column
        whole = column.cpu()
        for piece in whole.reshape(-1).split(_PIECE):
            self.sum(piece)
        return whole.to(column.device)


_PIECE = 1 << 18
"""Numbers that are exchanged at once."""

_PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the others; torchrun ends all when one fails."""


def _joined(function: Callable[[int, Tensor], Rows], x: Tensor, batch_size: int, mine: range) -> Rows:
    """The rows of the batches that begin at ``mine``, each put in place when it is made; 0 elsewhere."""
    if not mine:  # more processes than batches: one row shows shapes and types
        rows = function(0, x[:1])
        return type(rows)(*(column.new_zeros(len(x), *column.shape[1:]) for column in rows))
    rows = function(mine[0], x[mine[0] : mine[0] + batch_size])
    whole = [column.new_zeros(len(x), *column.shape[1:]) for column in rows]
    for first in mine:
        rows = rows if first == mine[0] else function(first, x[first : first + batch_size])
        for column, part in zip(whole, rows, strict=True):
            column[first : first + batch_size] = part
    return type(rows)(*whole)


ALONE = Processes()
"""This process without others."""


def leading() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def launched() -> Iterator[Processes]:
    """The processes that torchrun has started, joined inside the ``with``; else ``ALONE``.

    Tensors of the host go by gloo, those of GPUs by NCCL; each process on a machine takes a GPU of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
