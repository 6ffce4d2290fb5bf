"""Batches as functions of (seed, step): a run needs no position in the data besides its step number.

    batch k  =  positions k B, ..., (k + 1) B - 1  of the endless sequence  epoch 0, epoch 1, epoch 2, ...

with B the batch size.  Epoch e holds the N examples once each, in a random order that is a function of
(seed, e), see ``sde_toolkit.utils.permutation``.  So every batch is full, every example is seen once per
epoch, and a run that was resumed sees the batches that it would have seen anyway.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sde_toolkit.utils import Stream, integer, permutation


def batch_indices(num_data: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Return the examples of batch ``step``, int64 with shape (batch_size,): a function of its arguments.

    Each epoch is a permutation keyed by (seed, epoch); a batch at the end of one continues in the next.
    """
    num_data, batch_size = integer("num_data", num_data, 1), integer("batch_size", batch_size, 1)
    position = integer("step", step, 0) * batch_size
    end, parts = position + batch_size, []
    while position < end:
        epoch, offset = divmod(position, num_data)
        count = min(end - position, num_data - offset)
        parts.append(_epoch_order(num_data, seed, epoch)[offset : offset + count])
        position += count
    return torch.cat(parts)


_epoch_order = functools.lru_cache(maxsize=8)(functools.partial(permutation, stream=Stream.PERMUTATION))
