"""The exact law of a sampler's output on Gaussian data: against closed forms, draws, and what is refused."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sde_toolkit.guidance import DDNM, DDRM, DPS, LinearObservation, Observed, RePaint, Replacement
from sde_toolkit.lab import Candidate, GaussianMetric, compare, exact_problem, gaussian_kl, gaussian_output
from sde_toolkit.metrics import gaussian_w2
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.samplers import (
    Langevin,
    ancestral,
    ddim,
    dopri5,
    euler_maruyama,
    gaussian_residual,
    heun,
    predictor_corrector,
)
from sde_toolkit.sdes import VESDE, VPSDE

ILL = exact_problem("gaussian_ill", VPSDE()).model
SEEN = LinearObservation(torch.eye(8)[:4] + 0.5 * torch.eye(8)[2:6], 0.3)
Y = torch.tensor([0.3, -0.5, 0.2, 0.7])


@pytest.mark.parametrize(
    "sampler", [ddim(6), ddim(6, eta=1.0), euler_maruyama(8), heun(5)], ids=lambda s: s.name
)
def test_draws_have_this_law(sampler):
    law = gaussian_output(sampler, ILL)
    x = sampler.sample(ILL, 20_000, seed=3).x
    error = (law.covariance.diagonal() / len(x)).sqrt()
    assert float(((x.mean(0) - law.mean) / error).abs().max()) < 5
    ratio = torch.linalg.solve(law.covariance, torch.cov(x.mT, correction=1))
    assert float((torch.linalg.eigvals(ratio).real - 1).abs().max()) < 0.08  # 5 standard errors of a variance


def test_ddim_in_one_dimension_is_its_recursion():
    """x' = alpha' x0 + sigma' z_hat, both linear in x for N(0, s^2)."""
    s, sampler = 0.5, ddim(7, denoise=False)
    model = ExactModel(Gaussian(torch.zeros(1), torch.tensor([s**2])), VESDE(0.01, 20.0))
    grid = sampler.grid(model.sde, sampler.num_steps, sampler.t_min)
    sigma = model.sde.sigma(grid)
    factor = float(model.sde.prior_std)
    for now, then in itertools.pairwise(sigma):
        slope = float(now / (s**2 + now**2))  # z_hat = slope x
        factor *= 1 + slope * float(then - now)
    assert float(gaussian_output(sampler, model).covariance) == pytest.approx(factor**2, rel=1e-9)


def test_the_gaussian_sampler_is_exact_and_heun_has_its_order():
    model = exact_problem("gaussian", VPSDE()).model
    metric = GaussianMetric("W2", gaussian_w2, model=model)
    runs = [replace(heun(n, t_min=1e-5, denoise=False), start="moments") for n in (80, 160)]  # no error at T
    candidates = [Candidate.of("heun", run) for run in runs]
    candidates += [Candidate.of("gaussian", gaussian_residual(model, 3, t_min=1e-5))]
    coarse, fine, exact = compare(model, candidates, [metric], num_samples=10)
    assert 3 < coarse.value / fine.value < 5.5
    assert exact.value < 2e-6  # the noise at t_min
    assert exact.standard_error == 0


@pytest.mark.parametrize("method", [None, DDNM(), Replacement(), DDRM(), RePaint(2)], ids=repr)
def test_given_an_observation_draws_have_this_law(method):
    observed = Observed(SEEN, Y, method)
    law = gaussian_output(ancestral(5), ILL, observed)
    x = ancestral(5).sample(ILL, 20_000, seed=3, observation=observed).x
    error = (law.covariance.diagonal() / len(x)).sqrt()
    assert float(((x.mean(0) - law.mean) / error).abs().max()) < 5
    ratio = torch.linalg.solve(law.covariance, torch.cov(x.mT, correction=1))
    assert float((torch.linalg.eigvals(ratio).real - 1).abs().max()) < 0.08


def test_the_exact_method_has_the_law_of_the_posterior_in_the_same_steps():
    found = gaussian_output(ancestral(5), ILL, Observed(SEEN, Y))
    exact = gaussian_output(ancestral(5), ILL.posterior(Observed(SEEN, Y)))
    torch.testing.assert_close(found.mean, exact.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.covariance, exact.covariance, rtol=0, atol=1e-10)


def test_kl_of_gaussians():
    zero, one = torch.zeros(2), torch.eye(2)
    assert gaussian_kl(zero, one, zero, one) == pytest.approx(0, abs=1e-12)
    found = gaussian_kl(zero + 1, 2 * one, zero, 4 * one)
    assert found == pytest.approx(0.5 * (2 * 0.5 - 2 + 2 / 4 + 2 * math.log(2)))
    with pytest.raises(ValueError, match="cov1 must be positive definite"):
        gaussian_kl(zero, one, zero, torch.diag(torch.tensor([1.0, 0.0])))


def test_what_has_no_gaussian_law_is_refused():
    with pytest.raises(ValueError, match="must have a fixed grid"):
        gaussian_output(dopri5(), ILL)
    with pytest.raises(ValueError, match="affine in its noise"):
        gaussian_output(predictor_corrector(ddim(4), Langevin(0.16, 1)), ILL)
    with pytest.raises(ValueError, match="affine in its noise"):
        gaussian_output(ancestral(4), ILL, Observed(SEEN, Y, DPS()))
    with pytest.raises(ValueError, match="one y with shape"):
        gaussian_output(ancestral(4), ILL, Observed(SEEN, Y.expand(2, 4)))
    ring = exact_problem("ring", VPSDE()).model
    with pytest.raises(ValueError, match="of a Gaussian"):
        gaussian_output(ddim(4), ring)
    with pytest.raises(ValueError, match="needs Gaussian data"):
        GaussianMetric("W2", gaussian_w2, model=ring)
