"""Normals keyed by what they are for, not by when they are drawn.

A draw is a function of its key (seed, stream, sample index, draw index) alone.  Sample 17 of seed 5 therefore
gets the same bits whatever the batch size, the number of processes or the moment at which a run was resumed.

The generator is Philox4x64-10: a block cipher of ten rounds that turns a counter of four 64-bit words under a
key of two words into four random words.  Here

    counter = (1 + draw index * blocks + block, 0, sample index, stream),   key = (seed, 0),

with ``blocks`` the number of blocks in one draw; block b carries the elements 4b .. 4b + 3 of the event, in C
order. On the host numpy's generator makes the integers, on other devices the same arithmetic in torch does.
A word becomes a uniform u = (w + 1/2) / 2^52 from its upper 52 bits and a normal by inversion, z =
Phi^{-1}(u), computed in float64 element by element, so that the neighbours in a batch leave no trace in a
sample's bits.  Inversion bounds |z| by 8.3.

Reference: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10

BLOCK_ELEMENTS = 1 << 18
"""Up to about this many normals are made at once: draw i is made with up to i draws that follow it."""

_NOTHING = torch.empty(0)

STEPS = 0
"""The stream that a solver draws the increments of its steps from."""


class NoiseSource(Protocol):
    """Whatever hands out standard normals: ``draw(index, stream)`` with shape (B, *)."""

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Draw number ``index`` of ``stream``: independent standard normals with shape (B, *)."""
        ...


def _signed(word: int) -> int:
    """The int64 that has the same 64 bits as an unsigned word."""
    word &= 0xFFFFFFFFFFFFFFFF
    return word - (1 << 64) if word >> 63 else word


def _high_word(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Upper 64 bits of the unsigned product of x with the constant 2^32 high + low."""
    x_low, x_high = x & _MASK32, (x >> 32) & _MASK32
    t = x_high * low + ((x_low * low >> 32) & _MASK32)
    u = x_low * high + (t & _MASK32)
    return x_high * high + ((t >> 32) & _MASK32) + ((u >> 32) & _MASK32)


def philox4x64(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox4x64.

    Args:
        counter: int64 tensor with shape (4, *), the words taken as unsigned.
        key: two integers, taken modulo 2^64.

    Returns:
        Four random words (int64, to be read as unsigned) with shape (4, *).
    """
    column = (2, *[1] * (counter.ndim - 1))

    def constants(words: Sequence[int]) -> Tensor:
        return torch.tensor([_signed(w) for w in words], dtype=torch.int64, device=counter.device).reshape(
            column
        )

    multiplier = constants(_MULTIPLIERS)
    low, high = constants([m & _MASK32 for m in _MULTIPLIERS]), constants([m >> 32 for m in _MULTIPLIERS])
    keys = [constants([key[j] + r * _WEYL[j] for j in range(2)]) for r in range(_ROUNDS)]
    even, odd = counter[0::2], counter[1::2]
    for round_key in keys:
        product_low, product_high = even * multiplier, _high_word(even, low, high)
        even, odd = product_high.flip(0) ^ odd ^ round_key, product_low.flip(0)
    return torch.stack((even[0], odd[0], even[1], odd[1]))


def normal_from_bits(words: Tensor) -> Tensor:
    """Standard normals in float64 from the upper 52 bits of random words, by inversion; any shape."""
    k = (words >> 12) & ((1 << 52) - 1)
    return torch.special.ndtri((k.to(torch.float64) + 0.5) * 2.0**-52)


class Normals:
    """Counter-based standard normals for a set of samples.

    Args:
        seed: any integer from 0 to 2^64 - 1.
        samples: the global indices of the samples in this batch (a count n means 0 .. n - 1).
        event_shape: shape D of one sample.
        dtype, device: of the draws.

    Raises:
        ValueError: a seed out of range, a negative count or sample index.
    """

    def __init__(
        self,
        seed: int,
        samples: int | Sequence[int],
        event_shape: Sequence[int],
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed = operator.index(seed)
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must be an integer from 0 to 2^64 - 1, got {seed}")
        if isinstance(samples, int) and samples < 0:
            raise ValueError(f"samples must be a count of at least 0 or indices, got {samples}")
        indices = range(samples) if isinstance(samples, int) else samples
        self._samples = torch.as_tensor(list(indices), dtype=torch.int64, device=device)
        if self._samples.numel() and int(self._samples.min()) < 0:
            raise ValueError(f"sample indices must not be negative, got {int(self._samples.min())}")
        self._shape = (self._samples.numel(), *event_shape)
        self._dtype = dtype
        self._event = torch.Size(event_shape).numel()
        self._most = max(1, BLOCK_ELEMENTS // max(1, self._samples.numel() * self._event))
        self._made: dict[int, tuple[int, Tensor]] = {}

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Draw number ``index`` of ``stream`` with shape (B, *)."""
        first, made = self._made.get(stream, (0, _NOTHING))
        if not first <= index < first + len(made):
            first, made = index, self._make(index, max(1, min(index, self._most)), stream)
            self._made[stream] = first, made
        return made[index - first]

    def _make(self, first: int, count: int, stream: int) -> Tensor:
        """Draws ``first`` to ``first + count - 1`` with shape (count, B, *)."""
        blocks = -(-self._event // 4)
        words = _host_words if self._samples.device.type == "cpu" else _device_words
        bits = words(self.seed, stream, self._samples, first * blocks, count * blocks)
        bits = bits.reshape(-1, count, 4 * blocks)[..., : self._event].movedim(0, 1)
        return normal_from_bits(bits).to(self._dtype).reshape(count, *self._shape)


def _host_words(seed: int, stream: int, samples: Tensor, first: int, blocks: int) -> Tensor:
    """Random words with shape (B, 4 blocks) from numpy's Philox, which counts up before it makes a block."""
    words = np.empty((samples.numel(), 4 * blocks), dtype=np.uint64)
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
    state = generator.state
    for row, sample in enumerate(samples.tolist()):
        state["state"]["counter"] = np.array([first, 0, sample, stream], dtype=np.uint64)
        generator.state = state
        words[row] = generator.random_raw(4 * blocks)
    return torch.from_numpy(words.view(np.int64))


def _device_words(seed: int, stream: int, samples: Tensor, first: int, blocks: int) -> Tensor:
    """The same words, made where ``samples`` lives."""
    counter = torch.zeros((4, samples.numel(), blocks), dtype=torch.int64, device=samples.device)
    counter[0] = torch.arange(first + 1, first + 1 + blocks, device=samples.device)
    counter[2] = samples[:, None]
    counter[3] = stream
    return philox4x64(counter, (seed, 0)).movedim(0, -1).flatten(1)
