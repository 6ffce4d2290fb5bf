"""Whitened coordinates: there and back, and the law that they give to Gaussian data."""

import pytest
import torch
from problems import DIAGONAL, GAUSSIAN

from sde_toolkit.models import Moments, Whitening

FLOAT64 = torch.float64


def moments_of(data):
    diagonal = data.components.axes is None
    covariance = data.components.variances[0].reshape(data.event_shape) if diagonal else data.covariance
    return Moments(data.mean, covariance)


@pytest.mark.parametrize("data", [GAUSSIAN, DIAGONAL], ids=["full", "diagonal image"])
@pytest.mark.parametrize("nsr", [torch.tensor(0.3, dtype=FLOAT64), torch.linspace(0, 9, 5, dtype=FLOAT64)])
def test_unwhitening_undoes_whitening(data, nsr):
    whitening, y = Whitening(moments_of(data)), data.sample(5, seed=0)
    u = whitening.whiten(y, nsr)
    assert u.shape == (5, y[0].numel())
    torch.testing.assert_close(whitening.unwhiten(u, nsr), y)


@pytest.mark.parametrize("nsr", [0.0, 0.7])
def test_the_square_of_the_map_is_the_covariance_with_its_noise(nsr):
    whitening, n = Whitening(moments_of(GAUSSIAN)), torch.tensor(nsr, dtype=FLOAT64)
    columns = whitening.unwhiten(torch.eye(3, dtype=FLOAT64), n) - GAUSSIAN.mean
    expected = GAUSSIAN.covariance + nsr**2 * torch.eye(3, dtype=FLOAT64)
    torch.testing.assert_close(columns.mT @ columns, expected)


def test_a_floor_keeps_axes_without_variance_finite():
    flat = Moments(torch.zeros(2, dtype=FLOAT64), torch.tensor([4.0, 0.0]))
    zero = torch.zeros((), dtype=FLOAT64)
    assert Whitening(flat).std(zero).tolist() == [2.0, 0.0]
    floored = Whitening(flat, floor=1e-12)
    torch.testing.assert_close(floored.std(zero), torch.tensor([2.0, 2e-6], dtype=FLOAT64))
    assert bool(floored.whiten(torch.ones(1, 2, dtype=FLOAT64), zero).isfinite().all())
