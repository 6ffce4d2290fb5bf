"""The table of the benchmark: its density is that of its draws, gaps are as told, one line is made."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.tables import draw, hidden, log_density, measure


def test_the_density_is_that_of_the_draws():
    """The mean of g / p over draws of p is 1 for any density g with lighter tails: within 4.5 errors."""
    w = draw(200_000, 5)
    laws = (
        stats.lognorm(0.4), stats.beta(4, 4), stats.norm(0.5, 0.5), stats.gamma(3, scale=0.3),
        stats.norm(0.5, 0.4), stats.beta(5, 4),
    )  # fmt: skip
    ratio = np.exp(sum(law.logpdf(w[:, k]) for k, law in enumerate(laws)) - log_density(w))
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(len(w))
    assert ratio.std() < 50


def test_gaps_are_as_they_are_told():
    w = draw(20_000, 1)
    assert not np.isnan(hidden(w, "complete", 2)).any()
    random = np.isnan(hidden(w, "mcar", 2))
    np.testing.assert_allclose(random.mean(0), 0.15, atol=0.015)
    told = np.isnan(hidden(w, "mar", 2))
    assert not told[:, [0, 2]].any()
    np.testing.assert_allclose(told[:, [1, 3, 4, 5]].mean(), 0.17, atol=0.02)
    assert w[told.any(1), 0].mean() > 1.2 * w[~told.any(1), 0].mean()


@pytest.mark.slow
def test_a_line_of_the_table():
    found = measure("mar", rows=2000, steps=3, fresh=40, width=8)
    assert found["kl"] == pytest.approx(found["kl_gaussian"], abs=0.3)  # the network starts as the Gaussian
    assert found["standard_error"] < 0.3
