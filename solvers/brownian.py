"""Counter-based normals: keyed by what they are for, not by when they are drawn.

    z  =  function of (seed, stream, sample index, draw index)

Sample 17 of seed 5 therefore gets the same random bits whatever the batch size, the number of processes or
the moment at which a run was resumed.

The generator is Philox4x64-10: a block cipher of ten rounds that turns a counter of four 64-bit words under a
key of two words into four random words.  Here

    counter = (1 + draw index * blocks + block, 0, sample index, stream),   key = (seed, 0),

with ``blocks`` the number of blocks in one draw; block b holds the elements 4b .. 4b + 3 of the event, in C
order.  Long rows of integers come from numpy's generator, short ones and those on other devices from the same
arithmetic on whole arrays.

Where single draws of many samples are wanted, scattered over a long range of indices (``Scattered``), ten
rounds of Philox cost more than all else.  There the first block of a stream gives every sample the state a
and the odd increment c of a generator SplitMix64, whose word number k is, modulo 2^64,

    mix(a + k c),       mix: x ^= x >> 30, x *= m_1, x ^= x >> 27, x *= m_2, x ^= x >> 31.

An increment with fewer than 24 changes between adjacent bits is xored with 0xaaaa...a, as its authors advise.

The upper 52 bits w of a word give a uniform u = (w + 1/2) / 2^52, and a normal by inversion, z = Phi^{-1}(u).
That is computed in float64 element by element, so that a sample's bits do not depend on the other samples of
its batch.  Inversion bounds |z| by 8.3.

Noise belongs to an interval.  Over a step of length |h| that starts at t a Brownian motion W, counted in the
direction of the run, has the increment W_h and the space-time Levy area

    H_h = (1/|h|) int_0^|h| (W_r - W_0 - (r/|h|) W_h) dr,

independent of each other, with variances |h| and |h| / 12.  A ``BrownianMotion`` returns both in units of
their standard deviations.  On a fixed grid they are two draws per step (``StepNormals``).  Where steps are
rejected and tried again, they belong to one path (``solvers.tree``).

References: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011); Steele, Lea and Flood,
"Fast Splittable Pseudorandom Number Generators" (OOPSLA 2014), for SplitMix64; Foster, Lyons and Oberhauser,
"An optimal polynomial approximation of Brownian motion" (1904.06998), for W and H.
"""

from __future__ import annotations

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from solvers.annotations import shown
from solvers.arguments import checked
from solvers.interval import Interval

_MASK32 = 0xFFFFFFFF
_HALF = np.uint64(32)
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10

_MIXERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64, both above 2^63
_FEWEST_CHANGES = 24

_LAST = (1 << 63) - 1

BLOCK_ELEMENTS = 1 << 18
"""About the largest number of normals made at once; draw i is made together with up to i later draws."""

_LONG_ROW = 16  # from so many blocks per row on numpy's generator, row by row, is faster,
_FEW_ROWS = 64  # and up to so many rows
_NOTHING = torch.empty(0)

STEPS = 0
"""The stream of the increments of a solver's steps."""

AREA = 7
"""The stream of the space-time Levy areas of steps."""


class NoiseSource(Protocol):
    """A source of standard normals: ``draw(index, stream)`` with shape (B, *)."""

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Draw number ``index`` of ``stream``: independent standard normals with shape (B, *)."""
        ...


class BrownianMotion(ABC):
    """A Brownian motion as the steps of a solver use it; also a ``NoiseSource``."""

    @abstractmethod
    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Normals with shape (B, *), independent of the path, for start values and correctors."""

    @abstractmethod
    def increment(self, interval: Interval) -> Tensor:
        """W / sqrt|h| over the interval, with shape (B, *)."""

    @abstractmethod
    def increment_and_area(self, interval: Interval) -> tuple[Tensor, Tensor]:
        """W / sqrt|h| and H / sqrt(|h| / 12) over the interval, each with shape (B, *)."""


class StepNormals(BrownianMotion):
    """A path of independent draws, keyed by the number of the step, for runs that reject no step.

    Args:
        source: where the normals come from.
    """

    @checked
    def __init__(self, source: NoiseSource) -> None:
        self._source = source

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """The source's own draw, with shape (B, *)."""
        return self._source.draw(index, stream)

    def increment(self, interval: Interval) -> Tensor:
        """Draw number ``interval.number`` of the stream STEPS, with shape (B, *)."""
        return self._source.draw(interval.number, STEPS)

    def increment_and_area(self, interval: Interval) -> tuple[Tensor, Tensor]:
        """Draw number ``interval.number`` of the streams STEPS and AREA, each with shape (B, *)."""
        return self._source.draw(interval.number, STEPS), self._source.draw(interval.number, AREA)


class HeldInterval(BrownianMotion):
    """A path that returns its values over one fixed interval, whatever interval is asked for."""

    def __init__(self, path: BrownianMotion, interval: Interval) -> None:
        self._path, self._interval = path, interval

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """The path's own draw, with shape (B, *)."""
        return self._path.draw(index, stream)

    def increment(self, interval: Interval) -> Tensor:
        """W over the held interval, with shape (B, *)."""
        return self._path.increment(self._interval)

    def increment_and_area(self, interval: Interval) -> tuple[Tensor, Tensor]:
        """W and H over the held interval, each with shape (B, *)."""
        return self._path.increment_and_area(self._interval)


def _rounds(even: Any, odd: Any, constants: Any, upper: Any, swap: Any) -> tuple[Any, Any]:
    """Ten rounds on the words 0 and 2 (even) and 1 and 3 (odd), each with shape (2, *).

    Words are int64 in torch and uint64 in numpy, which agree in the low 64 bits of sums and products.
    ``upper`` gives the upper halves of words, ``swap`` the two words of a tensor in reverse order.
    """
    multiplier, low, high = constants[:3]
    for r in range(_ROUNDS):
        x_low, x_high = even & _MASK32, upper(even)
        t = upper(x_low * low)
        t += x_high * low
        x_low *= high
        x_low += t & _MASK32
        x_high *= high
        x_high += upper(t)
        x_high += upper(x_low)
        even, odd = swap(x_high) ^ odd, swap(even * multiplier)
        even ^= constants[3 + r]
    return even, odd


def _constants(key: tuple[int, int], ndim: int) -> np.ndarray:
    """Multipliers, their lower and upper halves, and the keys of the rounds: uint64, (13, 2, 1, ...)."""
    rows = [_MULTIPLIERS, [m & _MASK32 for m in _MULTIPLIERS], [m >> 32 for m in _MULTIPLIERS]]
    rows += [[(key[j] + r * _WEYL[j]) & 0xFFFFFFFFFFFFFFFF for j in range(2)] for r in range(_ROUNDS)]
    return np.array(rows, dtype=np.uint64).reshape(-1, 2, *[1] * (ndim - 1))


def _upper(words: Tensor) -> Tensor:
    """The upper halves of words (int64, to be read as unsigned), with their shape."""
    return (words >> 32) & _MASK32


def philox4x64(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox4x64, on the device of ``counter``.

    Args:
        counter: int64 tensor with shape (4, *), the words taken as unsigned.
        key: two integers, taken modulo 2^64.

    Returns:
        Four random words (int64, to be read as unsigned) with shape (4, *).
    """
    constants = torch.from_numpy(_constants(key, counter.ndim).view(np.int64)).to(counter.device)
    even, odd = _rounds(counter[0::2], counter[1::2], constants.unbind(), _upper, lambda x: x.flip(0))
    return torch.stack((even[0], odd[0], even[1], odd[1]))


def normal_from_bits(words: Tensor) -> Tensor:
    """Standard normals in float64 from the upper 52 bits of random words, by inversion; any shape."""
    return _normal(((words >> 12) & ((1 << 52) - 1)).to(torch.float64))


def _normal(numbers: Any) -> Any:
    """Standard normals, in place, from whole numbers below 2^52 in an array or a tensor."""
    numbers += 0.5
    numbers *= 2.0**-52
    u = torch.as_tensor(numbers)
    torch.special.ndtri(u, out=u)
    return numbers


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

    @checked
    def __init__(
        self,
        seed: int,
        samples: int | Sequence[int] | Tensor,
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
        if not isinstance(indices, Tensor):
            indices = torch.as_tensor(list(indices), dtype=torch.int64)
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"samples must be integers, got {indices.dtype}")
        try:
            self.samples = indices.to(device, torch.int64)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device {str(device)!r} is not usable on this machine ({reason})") from None
        if self.samples.numel() and int(self.samples.min()) < 0:
            raise ValueError(f"sample indices must not be negative, got {int(self.samples.min())}")
        self.event_shape, self.dtype = torch.Size(event_shape), dtype
        self._event = self.event_shape.numel()
        self._most = max(1, BLOCK_ELEMENTS // max(1, self.samples.numel() * self._event))
        self._made: dict[int, tuple[int, Tensor]] = {}

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Draw number ``index`` of ``stream`` with shape (B, *).

        Raises:
            TypeError, ValueError: an index or a stream that is no integer from 0 to 2^63 - 1.
        """
        if not (isinstance(index, int) and isinstance(stream, int) and 0 <= index <= _LAST >= stream >= 0):
            index, stream = _counter("index", index), _counter("stream", stream)
        first, made = self._made.get(stream, (0, _NOTHING))
        if not first <= index < first + len(made):
            first, made = index, self._make(index, max(1, min(index, self._most)), stream)
            self._made[stream] = first, made
        return made[index - first]

    def take(self, rows: Tensor) -> Normals:
        """The normals of the samples in ``rows`` (indices with shape (n,)) alone."""
        part = copy.copy(self)
        part.samples, part._made = self.samples[rows], {}
        return part

    def _make(self, first: int, count: int, stream: int) -> Tensor:
        """Draws ``first`` to ``first + count - 1`` with shape (count, B, *)."""
        blocks = -(-self._event // 4)
        bits = _words(self.seed, stream, self.samples, first * blocks, count * blocks)
        bits = bits.reshape(-1, count, 4 * blocks)[..., : self._event].movedim(0, 1)
        z = normal_from_bits(bits).to(self.dtype)
        return z.reshape(count, self.samples.numel(), *self.event_shape)


def _counter(name: str, value: int) -> int:
    """An integer that fits a word of the counter; raises TypeError or ValueError for others."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {shown(value)}") from None
    if not 0 <= number <= _LAST:
        raise ValueError(f"{name} must be an integer from 0 to 2^63 - 1, got {shown(value)}")
    return number


class Scattered:
    """Normals by number: ``count`` for every number of every sample, keyed by (seed, stream, sample, number).

    Args:
        seed, samples: as for ``Normals``.
        count: normals per number.
        stream: of the draws.

    Attributes:
        on_host: whether the words are made by numpy; the others are made where the samples are.
    """

    def __init__(self, seed: int, samples: Tensor, count: int, stream: int) -> None:
        self.count, self._device = count, samples.device
        self.on_host = samples.device.type == "cpu"
        words = _host_words(seed, stream, samples.cpu(), 0, 1).numpy().view(np.uint64)
        steps = words[:, 1] | np.uint64(1)
        changes = np.unpackbits((steps ^ (steps >> np.uint64(1))).view(np.uint8)).reshape(-1, 64).sum(1)
        steps[changes < _FEWEST_CHANGES] ^= np.uint64(0xAAAAAAAAAAAAAAAA)
        self._keys = np.stack((words[:, 0], steps))

    def draw(self, rows: np.ndarray, numbers: np.ndarray) -> Tensor:
        """The normals of the numbers i of the samples in the rows i, float64 with shape (count, n).

        Args:
            rows, numbers: int64 with shape (n,).
        """
        starts, steps = self._keys[:, rows]
        starts += steps * (numbers * self.count).view(np.uint64)
        each = np.arange(self.count, dtype=np.uint64)[:, None]
        if self.on_host:
            words = _mix(starts + steps * each, lambda x, bits: x >> np.uint64(bits)) >> np.uint64(12)
            return torch.from_numpy(_normal(words.view(np.int64).astype(np.float64)))
        keys = torch.from_numpy(np.stack((starts, steps)).view(np.int64)).to(self._device)
        each_there = torch.arange(self.count, device=self._device)[:, None]
        return normal_from_bits(_mix(keys[0] + keys[1] * each_there, _shifted))

    def take(self, rows: np.ndarray) -> Scattered:
        """The normals of the samples in ``rows`` alone."""
        part = copy.copy(self)
        part._keys = self._keys[:, rows]
        return part


def _mix(x: Any, shifted: Any) -> Any:
    """SplitMix64's words from its states, in place: uint64 in numpy, int64 in torch."""
    first, second = _MIXERS if isinstance(x, np.ndarray) else (m - (1 << 64) for m in _MIXERS)
    x ^= shifted(x, 30)
    x *= first
    x ^= shifted(x, 27)
    x *= second
    x ^= shifted(x, 31)
    return x


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Words (int64, to be read as unsigned) shifted to the right."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _words(seed: int, stream: int, samples: Tensor, first: int, blocks: int) -> Tensor:
    """Random words with shape (B, 4 blocks): for each sample the ``blocks`` blocks after block ``first``."""
    make = _host_words if samples.device.type == "cpu" else _device_words
    return make(seed, stream, samples, first, blocks)


def _host_words(seed: int, stream: int, samples: Tensor, first: int, blocks: int) -> Tensor:
    """The words by numpy: long rows from its generator, which increments its counter before every block."""
    if blocks < _LONG_ROW and samples.numel() > _FEW_ROWS:
        counter = _counters(stream, samples, first, blocks).numpy().view(np.uint64)
        even, odd = _rounds(
            counter[0::2], counter[1::2], _constants((seed, 0), 3), lambda x: x >> _HALF, lambda x: x[::-1]
        )
        return torch.from_numpy(np.stack((even[0], odd[0], even[1], odd[1]), -1).view(np.int64)).flatten(1)
    words = np.empty((samples.numel(), 4 * blocks), dtype=np.uint64)
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
    state = generator.state
    for row, sample in enumerate(samples.tolist()):
        state["state"]["counter"] = np.array([first, 0, sample, stream], dtype=np.uint64)
        generator.state = state
        words[row] = generator.random_raw(4 * blocks)
    return torch.from_numpy(words.view(np.int64))


def _device_words(seed: int, stream: int, samples: Tensor, first: int, blocks: int) -> Tensor:
    """The same words, computed on the device of ``samples``."""
    return philox4x64(_counters(stream, samples, first, blocks), (seed, 0)).movedim(0, -1).flatten(1)


def _counters(stream: int, samples: Tensor, first: int, blocks: int) -> Tensor:
    """Counters with shape (4, B, blocks)."""
    counter = torch.zeros((4, samples.numel(), blocks), dtype=torch.int64, device=samples.device)
    counter[0] = first + torch.arange(1, 1 + blocks, device=samples.device)
    counter[2] = samples[:, None]
    counter[3] = stream
    return counter
