"""Randomness and batches that are functions of the step: a run has no data position but its step number.

Epoch e visits the N examples in the order of N 64-bit Philox words keyed by (seed, e); batch k of size B
takes positions k B, ..., (k + 1) B - 1 of the endless concatenation of the epochs.  So every batch is full,
every example is seen once per epoch, and resuming is exact.  Whatever else a step draws comes from
``step_generator(seed, step, stream)``: numpy's SeedSequence mixes the key into the generator's seed.

Not promised: torch's CPU generator keeps 32 bits of its seed, so some two of n steps share their draws with
probability about n^2 / 2^33 (a coincidence over a long run, not a correlation within a step).

Reference: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011) for Philox.
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
