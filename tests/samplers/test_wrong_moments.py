"""Moments that are not the data's: what is told, and what is lost."""

import pytest
import torch

from benchmarks.flows import mixture
from sde_toolkit import samplers
from sde_toolkit.models import ExactModel, GaussianMixture, Moments
from sde_toolkit.sdes import VPSDE


def relative(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def test_moments_that_are_not_those_of_the_samples_are_told() -> None:
    data = GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.5]], [0.05, 0.1])
    model = ExactModel(data, VPSDE())
    right = model.moments
    samplers.default(model, 5).sample(model, 300)
    for wrong in (Moments(right.mean, 4 * right.covariance), Moments(right.mean + 1.0, right.covariance)):
        sampler = samplers.gaussian_residual(model, 5, moments=wrong)
        with pytest.warns(UserWarning, match=r"300 samples have .* times the variance"):
            sampler.sample(model, 300, start="prior")
        sampler.sample(model, 100, start="prior")  # too few to tell
        # a run that a callback, a class or a t_min far from the data changes has other moments by right
        sampler.sample(model, 300, start="prior", callback=lambda info: None)
    samplers.gaussian_residual(model, 5, t_min=0.3).sample(model, 300)
    far = GaussianMixture([0.5, 0.5], [[5.0, 0.0], [4.0, 0.5]], [0.05, 0.1])
    samplers.sampled_moments(ExactModel(far, VPSDE()), 256)  # whose pilot knows nothing of the mean


@pytest.mark.parametrize("num_examples", [10, 12, 25])
def test_a_covariance_without_full_rank_converges(num_examples: int) -> None:
    data = mixture(16, seed=55)
    model = ExactModel(data, VPSDE())
    x = data.sample(num_examples, 3)
    moments = Moments(x.mean(0), torch.cov(x.mT))
    fine = samplers.dopri5(rtol=1e-9, atol=1e-9, denoise=False).sample(model, 64, seed=2, start="prior").x

    def error(num_steps: int) -> float:
        sampler = samplers.gaussian_residual(model, num_steps, moments=moments)
        return relative(sampler.sample(model, 64, seed=2, start="prior").x, fine)

    assert error(50) < 0.02
    assert error(400) < 5e-4
