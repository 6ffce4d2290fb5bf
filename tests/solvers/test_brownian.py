"""The generator's integers against numpy's Philox; draws as functions of their key alone; the normal law."""

import numpy as np
import pytest
import scipy.stats
import torch
from problems import ALPHA

from solvers import Interval, Normals, StepNormals
from solvers.brownian import (
    AREA,
    Scattered,
    _device_words,
    _host_words,
    _mix,
    _shifted,
    normal_from_bits,
    philox4x64,
)

WORD = 1 << 64
EXTREMES = [0, 1, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, WORD - 1]


def signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


def numpy_words(counter: list[int], key: tuple[int, int]) -> list[int]:
    """numpy's Philox counts up before it makes a block, so it starts one below."""
    number = (sum(word << (64 * i) for i, word in enumerate(counter)) - 1) % (1 << 256)
    start = np.array([(number >> (64 * i)) % WORD for i in range(4)], dtype=np.uint64)
    return np.random.Philox(counter=start, key=np.array(key, dtype=np.uint64)).random_raw(4).tolist()


def our_words(counter: list[int], key: tuple[int, int]) -> list[int]:
    words = philox4x64(torch.tensor([signed(word) for word in counter]), key)
    return [word % WORD for word in words.tolist()]


def test_integers_equal_numpys_philox() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        counter = rng.integers(0, WORD, size=4, dtype=np.uint64).tolist()
        key = tuple(rng.integers(0, WORD, size=2, dtype=np.uint64).tolist())
        assert our_words(counter, key) == numpy_words(counter, key)


def test_integers_equal_numpys_philox_at_extreme_words() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        counter, key = rng.choice(len(EXTREMES), size=4), rng.choice(len(EXTREMES), size=2)
        words, keys = [EXTREMES[i] for i in counter], (EXTREMES[key[0]], EXTREMES[key[1]])
        assert our_words(words, keys) == numpy_words(words, keys)


def test_philox_works_on_any_trailing_shape() -> None:
    counter = torch.arange(24).reshape(4, 2, 3)
    words = philox4x64(counter, (5, 7))
    assert words.shape == (4, 2, 3)
    for i in range(2):
        for j in range(3):
            assert torch.equal(words[:, i, j], philox4x64(counter[:, i, j], (5, 7)))


@pytest.mark.parametrize("seed", [0, 5, 1 << 63, WORD - 1])
def test_words_made_on_the_host_equal_those_made_on_a_device(seed: int) -> None:
    samples = torch.tensor([0, 3, 17, (1 << 63) - 1])
    for first, blocks, stream in [(0, 1, 0), (7, 5, 1), (1 << 40, 2, 3)]:
        host = _host_words(seed, stream, samples, first, blocks)
        assert host.shape == (4, 4 * blocks)
        assert torch.equal(host, _device_words(seed, stream, samples, first, blocks))


@pytest.mark.parametrize("blocks", [1, 5, 40])
@pytest.mark.parametrize("count", [3, 200])
def test_words_do_not_depend_on_the_way_they_are_made(count: int, blocks: int) -> None:
    samples, first = torch.arange(count) * 3, 1 << 45
    host = _host_words(7, 2, samples, first, blocks)
    assert torch.equal(host, _device_words(7, 2, samples, first, blocks))
    for i in (0, 1, count - 1):
        words = numpy_words([first + blocks, 0, int(samples[i]), 2], (7, 0))
        assert [word % WORD for word in host[i, -4:].tolist()] == words


def test_the_key_of_a_draw_is_the_documented_one() -> None:
    z = Normals(9, [4], (6,)).draw(3, stream=2)[0]
    blocks = [numpy_words([1 + 3 * 2 + b, 0, 4, 2], (9, 0)) for b in range(2)]
    words = torch.tensor([signed(w) for block in blocks for w in block][:6])
    assert torch.equal(z, normal_from_bits(words))


@pytest.mark.parametrize("event_shape", [(), (1,), (3,), (5,), (2, 3), (3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_do_not_depend_on_the_batch_split(event_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = Normals(5, 64, event_shape, dtype)
    for size in (1, 7, 64):
        parts = [
            Normals(5, range(start, min(start + size, 64)), event_shape, dtype)
            for start in range(0, 64, size)
        ]
        for index in (0, 1, 2, 5, 31):
            z = whole.draw(index)
            assert z.shape == (64, *event_shape)
            assert z.dtype == dtype
            assert torch.equal(z, torch.cat([part.draw(index) for part in parts]))


def test_some_of_the_samples_keep_their_draws() -> None:
    whole, rows = Normals(5, range(3, 67), (3,), torch.float32), torch.tensor([40, 2, 17])
    expected = [whole.draw(index)[rows] for index in (0, 9)]
    part = whole.take(rows)
    assert part.samples.tolist() == [43, 5, 20]
    for index, z in zip((0, 9), expected, strict=True):
        assert torch.equal(part.draw(index), z)
        assert whole.draw(index).shape == (64, 3)


def test_draws_do_not_depend_on_the_order_of_access() -> None:
    in_order = Normals(1, 3, (5,))
    expected = {
        (index, stream): in_order.draw(index, stream).clone() for index in range(40) for stream in (0, 1)
    }
    keys = list(expected)
    for seed in range(3):
        at_random = Normals(1, 3, (5,))
        for position in np.random.default_rng(seed).permutation(len(keys)):
            index, stream = keys[position]
            assert torch.equal(at_random.draw(index, stream), expected[index, stream])


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = Normals(1, 2, (3,))
    expected = [many.draw(index) for index in range(20)]
    monkeypatch.setattr("solvers.brownian.BLOCK_ELEMENTS", 1)
    single = Normals(1, 2, (3,))
    assert all(torch.equal(single.draw(index), expected[index]) for index in range(20))


def test_seeds_streams_samples_draws_and_elements_differ() -> None:
    z = torch.stack([
        Normals(seed, [sample], (9,)).draw(index, stream)
        for seed in (0, 1, WORD - 1)
        for sample in (0, 1, 1 << 40)
        for index in (0, 1, 2, 1 << 30)
        for stream in (0, 1, 2)
    ])  # fmt: skip
    assert z.unique().numel() == z.numel()


def test_samples_may_be_a_count_a_range_a_list_or_a_tensor() -> None:
    expected = Normals(3, 4, (2,)).draw(1)
    for samples in (range(4), [0, 1, 2, 3], torch.arange(4), np.arange(4)):
        assert torch.equal(Normals(3, samples, (2,)).draw(1), expected)
    assert Normals(3, 0, (2,)).draw(1).shape == (0, 2)


def test_draws_are_standard_normal() -> None:
    z = torch.stack([Normals(2, 500, (10,)).draw(index) for index in (0, 1, 2, 3)]).flatten().numpy()
    assert scipy.stats.kstest(z, "norm").pvalue > ALPHA
    count, quantile = z.size, scipy.stats.norm.isf(ALPHA / 2)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - moment) < quantile * (variance / count) ** 0.5


def test_neighbouring_keys_are_uncorrelated() -> None:
    a, b = Normals(0, 4000, (2,)), Normals(1, 4000, (2,))
    x = a.draw(0)
    bound = scipy.stats.norm.isf(ALPHA / 2) / (x.numel() - 1) ** 0.5
    for y in (a.draw(1), a.draw(0, stream=1), b.draw(0), x.roll(1, 0), x.roll(1, 1)):
        assert abs(float((x * y).mean())) < bound


def test_normals_come_by_inversion_from_the_upper_52_bits() -> None:
    words = [0, (1 << 12) - 1, 1 << 12, WORD // 2, WORD - 1]
    z = normal_from_bits(torch.tensor([signed(w) for w in words]))
    u = (np.array([w >> 12 for w in words], dtype=np.float64) + 0.5) * 2.0**-52
    np.testing.assert_allclose(z.numpy(), scipy.stats.norm.ppf(u), rtol=1e-13)
    assert z[0] == z[1] == -z[-1]
    assert z.abs().max() < 8.3


@pytest.mark.parametrize("seed", [-1, WORD])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(
        ValueError, match=r"seed must be an integer( from 0|, got an integer of more than 64 bits)"
    ):
        Normals(seed, 2, (1,))


def test_a_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError):
        Normals(0.5, 2, (1,))  # type: ignore[arg-type]


@pytest.mark.parametrize("samples", [-1, [0, -3], torch.tensor([-1])])
def test_negative_samples_are_refused(samples: object) -> None:
    with pytest.raises(ValueError, match=r"samples must be a count|must not be negative"):
        Normals(0, samples, (1,))  # type: ignore[arg-type]


def test_scattered_words_are_those_of_splitmix64() -> None:
    """The first outputs of the published generator from the state 1234567."""
    states = np.uint64(1234567) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 6, dtype=np.uint64)
    expected = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip
    there = _mix(torch.from_numpy(states.view(np.int64).copy()), _shifted)
    assert [word % WORD for word in there.tolist()] == expected
    assert _mix(states, lambda x, bits: x >> np.uint64(bits)).tolist() == expected


def test_scattered_draws_are_functions_of_their_key() -> None:
    whole, rows = Scattered(8, torch.arange(5, 105), 6, 3), np.arange(100)[::-1]
    numbers = rows * 7 % 10 + (1 << 39)
    z = whole.draw(rows, numbers)
    assert z.shape == (6, 100)
    assert z.unique().numel() == z.numel()
    for i in (0, 1, 50, 99):
        alone = Scattered(8, torch.tensor([5 + int(rows[i])]), 6, 3)
        for part in (alone, whole.take(rows[i : i + 1])):
            assert torch.equal(part.draw(np.array([0]), numbers[i : i + 1])[:, 0], z[:, i])
    state, step, *_ = (word % WORD for word in numpy_words([1, 0, 7, 3], (8, 0)))
    assert whole._keys[:, 2].tolist() == [state, step | 1]


def test_increments_between_scattered_words_change_often_enough() -> None:
    steps = Scattered(0, torch.arange(2000), 1, 4)._keys[1]
    assert all(bin(c ^ (c >> 1)).count("1") >= 24 and c % 2 == 1 for c in steps.tolist())


@pytest.mark.parametrize("numbers", [np.arange(64), 1 << np.arange(41), (1 << 40) - 1 - np.arange(64)])
def test_scattered_draws_are_independent_normals(numbers: np.ndarray) -> None:
    """Of consecutive numbers and of those down one side of a tree; across draws, numbers and samples."""
    count, n = 20_000, len(numbers)
    rows = np.repeat(np.arange(count), n)
    z = Scattered(3, torch.arange(count), 2, 4).draw(rows, np.tile(numbers, count)).reshape(2, count, n)
    columns = torch.cat([z[0], z[1], z[0].roll(1, 0)], 1)
    eye = torch.eye(3 * n, dtype=torch.float64)
    deviation = (columns.T @ columns / count - eye) / ((1 + eye) / count).sqrt()
    assert float(deviation.abs().max()) < scipy.stats.norm.isf(ALPHA / (3 * n) ** 2)
    assert all(scipy.stats.kstest(column.numpy(), "norm").pvalue > ALPHA for column in columns.T[: 2 * n])
    assert float((z**4).mean()) == pytest.approx(3, abs=scipy.stats.norm.isf(ALPHA) * (96 / z.numel()) ** 0.5)


def test_steps_of_a_fixed_grid_take_one_draw_for_w_and_one_for_h() -> None:
    normals = Normals(8, 3, (2,))
    motion = StepNormals(Normals(8, 3, (2,)))
    t = torch.tensor(0.0)
    interval = Interval(6, t, t, 0.1)
    w, h = motion.increment_and_area(interval)
    assert torch.equal(motion.increment(interval), normals.draw(6))
    assert torch.equal(w, normals.draw(6))
    assert torch.equal(h, normals.draw(6, AREA))
    assert torch.equal(motion.draw(2, 9), normals.draw(2, 9))
    assert not torch.equal(w, h)
