import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sde_toolkit.data.batches import batch_indices
from sde_toolkit.utils.checks import integer
from sde_toolkit.utils.random import Stream, permutation, seed_sequence, step_generator

# False-alarm rate of every statistical test in this file.
ALPHA = 1e-5


@settings(deadline=None)
@given(num_data=st.integers(1, 20), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_batches_cut_the_endless_concatenation_of_epochs(num_data, batch_size, seed):
    num_batches = math.ceil(3 * num_data / batch_size)
    stream = torch.cat([batch_indices(num_data, batch_size, step, seed) for step in range(num_batches)])
    assert stream.shape == (num_batches * batch_size,)
    assert stream.dtype == torch.int64
    for epoch in stream[: 3 * num_data].view(3, num_data):
        assert sorted(epoch.tolist()) == list(range(num_data))


def test_a_batch_is_a_function_of_seed_and_step_alone():
    forwards = [batch_indices(1500, 128, step, 5) for step in range(40)]
    backwards = [batch_indices(1500, 128, step, 5) for step in reversed(range(40))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not torch.equal(forwards[0], batch_indices(1500, 128, 0, 6))
    assert not torch.equal(
        permutation(1500, 5, 0, Stream.PERMUTATION), permutation(1500, 5, 1, Stream.PERMUTATION)
    )


def test_changing_a_returned_batch_leaves_later_batches_alone():
    first = batch_indices(10, 10, 0, 0)
    expected = first.clone()
    first.zero_()
    assert torch.equal(batch_indices(10, 10, 0, 0), expected)


def test_the_bits_of_the_order_are_fixed_for_good():
    # A change here changes every run that is resumed across versions.
    assert batch_indices(5, 12, 0, 1).tolist() == [2, 3, 0, 4, 1, 0, 3, 4, 1, 2, 2, 1]
    assert step_generator(3, 4, Stream.NOISE).initial_seed() == 2627676358293681084


def test_permutations_are_uniform():
    orders = [tuple(permutation(3, 0, step, Stream.PERMUTATION).tolist()) for step in range(3000)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 3000
    assert stats.chisquare(counts).pvalue > ALPHA


def test_step_generators_depend_on_every_part_of_the_key():
    draws = [
        torch.randn(4, generator=step_generator(*key)).tolist()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0), (0, 0, 0)]
    ]
    assert draws[0] == draws[-1]
    assert len({tuple(draw) for draw in draws}) == 5


def test_step_generators_leave_the_global_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    step_generator(0, 0, Stream.TIME)
    batch_indices(10, 3, 7, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_noise_of_neighbouring_steps_is_uncorrelated():
    z = torch.stack(
        [torch.randn(2000, generator=step_generator(0, step, Stream.NOISE)) for step in range(20)]
    )
    correlation = torch.corrcoef(z).numpy()[np.triu_indices(20, 1)] * math.sqrt(2000)
    assert np.abs(correlation).max() < stats.norm.isf(ALPHA / 2 / len(correlation))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 1, 0, 0), "num_data"),
        ((1, 0, 0, 0), "batch_size"),
        ((1, 1, -1, 0), "step"),
        ((1, 1, 0, -1), "seed"),
    ],
)
def test_bad_positions_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= [01], got"):
        batch_indices(*arguments)
    with pytest.raises(TypeError):
        batch_indices(10, 2.5, 0, 0)


def test_integer_and_seed_sequence_check_their_input():
    assert integer("n", np.int64(3), 1) == 3
    with pytest.raises(ValueError, match="n must be an integer >= 1, got 0"):
        integer("n", 0, 1)
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
        seed_sequence(-1, 0, 0)
