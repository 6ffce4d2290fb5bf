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

import enum
import functools
import operator

import numpy as np
import torch
from torch import Tensor


class Stream(enum.IntEnum):
    """What a draw is for; different streams are independent.  The numbers fix the bits of every run."""

    PERMUTATION = 0
    DEQUANTIZATION = 1
    TIME = 2
    NOISE = 3
    DROPOUT = 4
    EXAMPLES = 5
    SPLIT = 6
    WEIGHTS = 7
    PROJECTIONS = 8
    LABELS = 9
    RESAMPLING = 10


def integer(name: str, value: int, minimum: int) -> int:
    """Return ``value`` as an int.  Raises ValueError below ``minimum``, TypeError if it is no integer."""
    if operator.index(value) < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}")
    return operator.index(value)


def seed_sequence(seed: int, stream: int, step: int) -> np.random.SeedSequence:
    """Return numpy's well-mixed seed of (seed, stream, step), integers >= 0."""
    key = (integer("stream", stream, 0), integer("step", step, 0))
    return np.random.SeedSequence(integer("seed", seed, 0), spawn_key=key)


def step_generator(seed: int, step: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator whose state is a well-mixed function of (seed, step, stream) alone."""
    low, high = seed_sequence(seed, stream, step).generate_state(2, np.uint32).tolist()
    return torch.Generator(device).manual_seed(high << 32 | low)


def permutation(num_data: int, seed: int, step: int, stream: int) -> Tensor:
    """Return a uniform random order of 0, ..., num_data - 1 that is a function of its arguments."""
    # Raw words, not Generator.permutation: their stream is fixed for good; ties have probability n^2 / 2^65.
    words = np.random.Philox(seed_sequence(seed, stream, step)).random_raw(num_data)
    return torch.from_numpy(np.argsort(words, kind="stable"))


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
