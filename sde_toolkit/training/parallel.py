"""One batch shared by processes, and by parts that one process takes one after the other.

    mean loss  =  1 / B  sum over parts s = 0 .. S - 1 of  sum over rows b of part s of  loss_b

With P processes and K parts of each, S = P K, part s has the rows floor(B s / S) .. floor(B (s + 1) / S) - 1,
and process r takes the parts r K .. r K + K - 1.  All draws are those of the whole batch, as functions of
(seed, step): every process has the batch, its times, noises, dropped labels and dropout masks, and evaluates
the network at its own rows (``OwnRows``), the costly part; of examples that stay on the disk it reads those
rows alone.  So 1, 2 or 8 processes train on the same draws,
and their weights differ by the rounding of sums alone.  A loss of yours needs nothing for it, as long as
the loss of a row depends on the network's output in that row.

The gradients are summed by ``DistributedDataParallel``.  With ``shard`` every process keeps 1 / P of every
parameter, average and moment of the optimiser instead (``fully_shard``), and has the whole of a block of
the network only while it computes with it.

Not promised: equal draws of networks that do not use torch's dropout modules; batch normalisation over the
whole batch.

References: Li et al., "PyTorch Distributed" (2006.15704); Zhao et al., "PyTorch FSDP" (2304.11277).
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde_toolkit.models import IndexedModel, NetworkModel, OwnRows, full_precision
from sde_toolkit.training.averages import is_narrow
from sde_toolkit.utils import ALONE, Processes, check_fields, integer


@dataclass(frozen=True)
class Parallel:
    """How the batches of a run are shared; a run may go on under another sharing.

    Args:
        processes: this process among P of them, as ``launched()`` joins them.
        accumulate: parts K of the batch that a process takes one after the other; their gradients are added.
            Each takes the memory of B / (P K) rows.
        shard: whether each process keeps a part of every parameter only.

    Raises:
        ValueError: ``accumulate`` below 1, or ``shard`` with one process.
    """

    processes: Processes = ALONE
    accumulate: int = 1
    shard: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        integer("accumulate", self.accumulate, 1)
        if self.shard and self.processes.count == 1:
            raise ValueError(
                "shard must be False with one process, got True; start several: torchrun --nproc-per-node=2"
            )

    def parts(self, batch_size: int) -> list[slice]:
        """The rows of each part of this process.

        Raises:
            ValueError: fewer rows than parts.
        """
        count = self.processes.count * self.accumulate
        if batch_size < count:
            raise ValueError(
                f"batch_size must be at least {count}, one row for each of {self.accumulate} parts of "
                f"{self.processes.count} processes, got {batch_size}"
            )
        first = self.processes.rank * self.accumulate
        edges = [batch_size * s // count for s in range(first, first + self.accumulate + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(edges)]

    def own(self, batch_size: int) -> slice | None:
        """The rows of all parts of this process; None for one process, whose rows are all."""
        if self.processes.count == 1:
            return None
        parts = self.parts(batch_size)
        return slice(parts[0].start, parts[-1].stop)


class SharedNetwork:
    """The network of a run, evaluated in parts.

    Args:
        parallel: how.
        network: with its parameters sharded already where they are to be.
    """

    def __init__(self, parallel: Parallel, network: nn.Module) -> None:
        self.parallel, self._network = parallel, network
        self._synchronised: nn.parallel.DistributedDataParallel | None = None

    def gradients(
        self, model: NetworkModel | IndexedModel, batch_size: int, loss: Callable[[], Tensor]
    ) -> Tensor:
        """Put the gradients of the mean loss into place, and return all losses with shape (B,).

        Args:
            model: of this network.
            batch_size: B.
            loss: gives the losses of the batch with ``model``, with the same draws in every call.

        Raises:
            ValueError: fewer rows than parts, or a loss without one number for each row.
            LostProcessError: another process has ended.
        """
        if self.parallel == Parallel():
            losses = loss()
            _backward(losses.mean())
            return losses.detach()
        parts, count = self.parallel.parts(batch_size), self.parallel.processes.count
        found = torch.zeros(batch_size, device=model.device, dtype=torch.float64)
        with self.parallel.processes.noticing():
            if count > 1 and not self.parallel.shard and self._synchronised is None:
                self._synchronise(model, parts[0], loss)
            for rows in parts:
                with self._evaluating(model, rows, rows is parts[-1]):
                    losses = loss()
                    if tuple(losses.shape) != (batch_size,):
                        raise ValueError(
                            f"loss must return a number for each of {batch_size} examples where batches "
                            f"are shared, got shape {tuple(losses.shape)}"
                        )
                    _backward(losses[rows].sum() * (count / batch_size))
                found[rows] = losses[rows].detach().to(found)
            return self.parallel.processes.sum(found)

    def _synchronise(
        self, model: NetworkModel | IndexedModel, rows: slice, loss: Callable[[], Tensor]
    ) -> None:
        """Wrap the network; an evaluation before it shows whether parameters are left without gradient."""
        with self._evaluating(model, rows, True):
            _backward(loss()[rows].sum())
        trained = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        unused = any(parameter.grad is None for parameter in trained)
        for parameter in trained:
            parameter.grad = None
        self._synchronised = nn.parallel.DistributedDataParallel(self._network, find_unused_parameters=unused)

    @contextlib.contextmanager
    def _evaluating(self, model: NetworkModel | IndexedModel, rows: slice, last: bool) -> Iterator[None]:
        """Inside, the model's network is evaluated at these rows; the last part exchanges gradients."""
        whole, synchronised = model.network, self._synchronised
        waiting = contextlib.nullcontext() if synchronised is None or last else synchronised.no_sync()
        if self.parallel.shard:
            whole.set_requires_gradient_sync(last)  # type: ignore[operator]
        model.network = OwnRows(whole if synchronised is None else synchronised, rows)
        try:
            with waiting, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # changes in place; we make none
                yield
        finally:
            model.network = whole


def _backward(loss: Tensor) -> None:
    with full_precision(loss):
        loss.backward()


def shard(networks: list[nn.Module], device: torch.device) -> None:
    """Leave this process its part of every parameter of these networks, which is then a ``DTensor``.

    The blocks are the members of lists of modules.

    Raises:
        ValueError: parameters of less than 32 bits, which the optimiser widens.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if any(map(is_narrow, networks[0].parameters())):
        raise ValueError(
            "network must have parameters of 32 bits or more to be sharded, got narrower ones; use autocast"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for network in networks:
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
        for part in reversed(list(network.modules())):
            for block in part if isinstance(part, nn.ModuleList) else ():
                if not isinstance(block, nn.ModuleList) and next(block.parameters(), None) is not None:
                    fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each whole; where they are sharded, every process has to call this."""
    return {name: whole_tensor(tensor).detach() for name, tensor in tensors.items()}


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one; then every process has to call this."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
