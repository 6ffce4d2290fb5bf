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

import operator


def integer(name: str, value: int, minimum: int) -> int:
    """Return ``value`` as an int.  Raises ValueError below ``minimum``, TypeError if it is no integer."""
    if operator.index(value) < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}")
    return operator.index(value)
