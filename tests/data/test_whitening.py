"""Whitened vectors: covariance, log-determinant, floor, checkpoints, files, likelihoods in own units."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sde_toolkit.data import Scaling, Support, from_array, open_data, scaling_from_tensors
from sde_toolkit.likelihood import FlowSolver, log_likelihood
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.sdes import VPSDE

MIX = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.3, 0.0], [-4.0, 0.2, 0.1]], dtype=torch.float64)


def rows(count: int = 500) -> torch.Tensor:
    z = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return z @ MIX.mT + torch.tensor([1.0, -3.0, 10.0], dtype=torch.float64)


def test_white_data_have_covariance_one_and_the_map_inverts():
    w = rows()
    scaling = Scaling.whitening(w)
    x = scaling.to_model(w, torch.float64)
    torch.testing.assert_close(torch.cov(x.T, correction=0), torch.eye(3).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(scaling.from_model(x), w, rtol=1e-9, atol=1e-9)
    slope = torch.autograd.functional.jacobian(
        lambda v: scaling.to_model(v[None], torch.float64)[0], w[0]
    ).slogdet()
    torch.testing.assert_close(scaling.log_det(x[:1])[0], slope.logabsdet)
    assert scaling.log_det_per_dim == pytest.approx(float(slope.logabsdet) / 3)
    assert scaling_from_tensors(scaling.tensors()) == scaling


def test_with_a_support_the_log_determinant_is_that_of_both_maps():
    w = rows().clamp(-30, 30)
    w[:, 0] = w[:, 0].sigmoid()
    support = Support(torch.tensor([0.0, -math.inf, -math.inf]), torch.tensor([1.0, math.inf, math.inf]))
    scaling = Scaling.whitening(w, support)
    x = scaling.to_model(w, torch.float64)
    assert scaling_from_tensors(scaling.tensors()) == scaling
    for k in range(3):
        slope = torch.autograd.functional.jacobian(
            lambda v: scaling.to_model(v[None], torch.float64)[0], w[k]
        ).slogdet()
        torch.testing.assert_close(scaling.log_det(x)[k], slope.logabsdet)


def test_the_likelihood_of_gaussian_data_is_in_their_own_units():
    w = rows(8)
    law = stats.multivariate_normal([1.0, -3.0, 10.0], (MIX @ MIX.mT).numpy())
    mean = torch.tensor([1.0, -3.0, 10.0], dtype=torch.float64)
    scaling = Scaling.whitened(mean, MIX @ MIX.mT)
    x = scaling.to_model(w, torch.float64)
    model = ExactModel(Gaussian(torch.zeros(3), torch.eye(3)), VPSDE())
    found = log_likelihood(model, x, solver=FlowSolver(rtol=1e-8, atol=1e-8)).nats + scaling.log_det(x)
    torch.testing.assert_close(found, torch.from_numpy(law.logpdf(w.numpy())), rtol=0, atol=1e-5)


def test_axes_without_variance_are_floored_and_constant_data_refused():
    w = torch.cat([rows(), rows()[:, :1]], 1)  # one column twice
    scaling = Scaling.whitening(w)
    x = scaling.to_model(w, torch.float64)
    variances = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    torch.testing.assert_close(variances[1:], torch.ones(3).double(), rtol=0, atol=1e-6)
    assert float(variances[0]) < 1e-6
    torch.testing.assert_close(scaling.from_model(x), w, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="w must vary"):
        Scaling.whitening(torch.ones(5, 2))
    with pytest.raises(ValueError, match="w must be finite"):
        Scaling.whitening(torch.full((5, 2), math.nan))
    for bad in (torch.zeros(3, 3).double(), torch.eye(3), torch.eye(3).double()[:2]):
        with pytest.raises(ValueError, match="matrix must be"):
            Scaling(torch.ones(()), torch.zeros(3), matrix=bad)


def test_files_are_whitened_on_request(tmp_path):
    path = tmp_path / "rows.csv"
    np.savetxt(path, rows().numpy(), delimiter=",", header="a,b,c", comments="")
    found = open_data(path, scaling="whiten")
    torch.testing.assert_close(found.covariance, torch.eye(3).double(), rtol=0, atol=1e-5)
    again = from_array(rows(), Scaling.whitening(rows()))
    assert again.event_shape == (3,)
    gaps = rows()
    gaps[0, 0] = math.nan
    np.save(tmp_path / "gaps.npy", gaps.numpy())
    with pytest.raises(ValueError, match=r"must hold complete vectors .* data\.scaling=whiten"):
        open_data(tmp_path / "gaps.npy", scaling="whiten", missing="mask")
