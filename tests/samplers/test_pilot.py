"""Moments of a model that has none, from a pilot run of its own."""

import pytest
import torch

from sde_toolkit.models import ExactModel, GaussianMixture, Moments, isotropic
from sde_toolkit.samplers import dopri5, gaussian_residual, sampled_moments
from sde_toolkit.sdes import VPSDE


def test_a_model_without_moments_samples_its_own() -> None:
    thin = torch.diag(torch.tensor([0.3, 0.1, 0.02], dtype=torch.float64))
    data = GaussianMixture([0.4, 0.6], [[1.0, 0.2, 0.0], [-1.0, 0.0, 0.1]], [thin, thin])
    model = ExactModel(data, VPSDE())
    unknown = isotropic(model.event_shape, model.data_std)
    found = sampled_moments(model, 1000, seed=1)
    fine = dopri5(rtol=1e-8, atol=1e-8, denoise=False).sample(model, 64, seed=2).x

    def error(moments: Moments) -> float:
        sampler = gaussian_residual(model, 10, moments=moments)
        x = sampler.sample(model, 64, seed=2, start="prior").x
        return float((x - fine).square().mean().sqrt())

    assert error(found) < 0.2 * error(unknown)
    torch.testing.assert_close(found.mean, model.moments.mean, rtol=0, atol=0.3 * model.moments.std)
    assert found.std == pytest.approx(model.moments.std, rel=0.1)
    assert found == sampled_moments(model, 1000, seed=1)
    with pytest.raises(ValueError, match="num_samples must be an integer >= 2"):
        sampled_moments(model, 1)
