"""The program that measures posterior samplers on Gaussian data without sampling."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import gaussian_posteriors as program
from benchmarks.posteriors import Case
from sde_toolkit import guidance, lab, samplers
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.sdes import VPSDE


@pytest.fixture
def case() -> Case:
    root = torch.tensor([[0.8, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.2, 0.1, 0.4]], dtype=torch.float64)
    model = ExactModel(Gaussian([0.3, -0.5, 0.1], root @ root.mT), VPSDE())
    observation = guidance.LinearObservation([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], 0.2)
    y = torch.tensor([0.4, -0.3], dtype=torch.float64)
    truth = model.posterior(guidance.Observed(observation, y))
    return Case("trial", "projection", 0.2, model, observation, y, truth)


def test_the_law_of_ancestral_steps_is_that_of_its_impulse_response(case: Case) -> None:
    law = lab.gaussian_output(samplers.ancestral(5, denoise=False), case.truth)
    mean, covariance = program.output_law(case.truth, 5)
    torch.testing.assert_close(mean, law.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(covariance, law.covariance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["GaussianInformed", "PiGDM, moments", "TMPD, full", "MMPS"])
def test_exact_covariances_leave_the_error_of_the_steps_alone(case: Case, method: str) -> None:
    model = guidance.PosteriorModel(case.model, case.observation, program.exact_methods()[method], case.y)
    found, exact = (program.distance(case, *program.output_law(one, 8)) for one in (model, case.truth))
    assert found == pytest.approx(exact, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GaussianInformed", "PiGDM, moments", "TMPD, full", "MMPS"])
def test_flows_given_an_observation_have_the_orders_of_their_samplers(case: Case, method: str) -> None:
    model = guidance.PosteriorModel(case.model, case.observation, program.exact_methods()[method], case.y)
    for name, errors in program.flow_errors(case, model).items():
        order = math.log2(errors[-2] / errors[-1])
        assert order == pytest.approx(1 if name == "ddim" else 2, abs=0.1)
