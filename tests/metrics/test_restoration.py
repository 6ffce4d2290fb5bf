"""PSNR, and intervals of draws: they hold the truth as often as they say, for any number of draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.metrics import coverage, interval, mean_psnr, psnr


@given(st.integers(2, 40), st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_an_exact_posterior_covers_what_its_intervals_say(count, level):
    n = 20_000
    draws = torch.rand(count + 1, n, 1, generator=torch.Generator().manual_seed(count))
    found = coverage(draws[1:], draws[0], level)
    told = interval(draws[1:], level).level
    assert abs(found.value - told) < 5 * math.sqrt(0.25 / n)  # ALPHA = 1e-6 each
    assert told >= level - 1e-9 or told == pytest.approx((count - 1) / (count + 1))


def test_nineteen_draws_are_the_least_for_ninety_percent():
    assert interval(torch.rand(19, 1, 1)).level == pytest.approx(0.9)
    assert interval(torch.rand(18, 1, 1)).level < 0.9


def test_psnr_is_that_of_the_mean_square():
    x, truth = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    truth[1] *= 10
    assert psnr(x, truth, 100.0).tolist() == pytest.approx([40, 20, 40])
    found = mean_psnr(x, truth, 100.0)
    assert (found.value, found.standard_error) == pytest.approx((100 / 3, 20 / 3))
    assert math.isinf(psnr(x, x, 1.0)[0])


def test_features_that_do_not_count_are_left_out():
    draws, truth = torch.rand(19, 4, 3), torch.full((4, 3), 2.0)
    truth[:, 0] = draws[0, :, 0]
    assert coverage(draws, truth, where=torch.tensor([False, True, True])).value == 0
    for where in (torch.zeros(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool), torch.ones(3)):
        with pytest.raises(ValueError, match="where must"):
            coverage(draws, truth, where=where)
    with pytest.raises(ValueError, match="draws must have shape"):
        interval(draws[:1])
