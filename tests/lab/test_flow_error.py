"""The error of a sampler's own map: zero for the flow itself, and paired across samplers."""

import math

import pytest
import torch

from sde_toolkit.guidance import guided
from sde_toolkit.lab import Candidate, FlowEnds, FlowMetric, compare, exact_problem, paired_difference
from sde_toolkit.metrics import FlowError
from sde_toolkit.models import IndexedModel, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import ddim, dopri5, edm, euler_maruyama, gaussian_residual, heun
from sde_toolkit.sdes import VESDE, VPSDE, Chain

RING = exact_problem("ring", VPSDE()).model


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 20.0)])
@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("condition", [None, 3, torch.arange(8)], ids=["none", "one", "each its own"])
def test_a_fine_run_ends_where_the_flow_does(sde, denoise, condition):
    model = exact_problem("ring", sde).model
    sampler = dopri5(rtol=1e-8, atol=1e-8, denoise=denoise)
    x = sampler.sample(model, 8, seed=5, condition=condition).x
    ends = FlowEnds(model, condition).of(sampler, 8, 5)
    assert float((x - ends).abs().max()) < 1e-5


def test_starts_are_the_samplers_own():
    ends = FlowEnds(RING)
    sampler = gaussian_residual(RING, 80)  # starts from the data's moments
    assert sampler.start == "moments"
    assert float((sampler.sample(RING, 8).x - ends.of(sampler, 8, 0)).abs().max()) < 1e-4


def test_ends_are_carried_once():
    ends = FlowEnds(RING)
    assert ends.of(ddim(5), 4, 0) is ends.of(ddim(9), 4, 0)
    assert ends.of(ddim(5), 4, 1) is not ends.of(ddim(5), 4, 0)
    assert ends.of(ddim(5, denoise=False), 4, 0) is not ends.of(ddim(5), 4, 0)


def test_networks_are_held_against_a_fine_run():
    network = MLP((2,), width=8, depth=1)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(0.3 * torch.sin(torch.arange(parameter.numel()) + index).view_as(parameter))
    model = NetworkModel(network, VPSDE(), "velocity", (2,))
    errors = []
    for steps in (20, 40):
        sampler = heun(steps)
        ends = FlowEnds(model).of(sampler, 16, 0)
        errors.append(float((sampler.sample(model, 16).x - ends).square().mean().sqrt()))
    assert errors[1] < errors[0] / 2


def test_guided_samplers_are_held_against_the_guided_flow():
    ends, errors = FlowEnds(RING, 3), []
    for steps in (20, 40, 80):
        sampler = guided(edm(steps), 2.0)
        x = sampler.sample(RING, 8, condition=3).x
        errors.append(float((x - ends.of(sampler, 8, 0)).square().mean().sqrt()))
    assert errors[1] < errors[0] / 2
    assert errors[2] < 5e-3
    assert float((ends.of(sampler, 8, 0) - ends.of(edm(20), 8, 0)).abs().max()) > 0.05


def test_models_of_a_chain_are_held_against_heun_steps():
    indexed = IndexedModel(MLP((2,)), Chain.cosine(50), "noise", (2,))
    assert FlowEnds(indexed).reference.name == "edm"
    assert FlowEnds(NetworkModel(MLP((2,)), VPSDE(), "noise", (2,))).reference.name == "dopri5"


def test_differences_are_paired_though_starts_differ():
    metric = FlowMetric("flow error", FlowError(), ends=FlowEnds(RING))
    candidates = [Candidate.of("ddim", ddim(10)), Candidate.of("default", gaussian_residual(RING, 10))]
    one, other = compare(RING, candidates, [metric], num_samples=40, seeds=(0, 1))
    assert one.value > other.value
    found = paired_difference(one, other)
    assert found.value == pytest.approx(one.value - other.value)
    assert math.isfinite(found.standard_error)


def test_noise_is_part_of_the_error():
    metric = FlowMetric("flow error", FlowError(), ends=FlowEnds(RING))
    (record,) = compare(RING, [Candidate.of("em", euler_maruyama(50))], [metric], num_samples=40)
    assert record.value > 0.3


def test_ends_are_needed():
    with pytest.raises(ValueError, match="must have the ends of the flow"):
        FlowMetric("flow error", FlowError())
