"""A run looks at a model and leaves it as it was."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sde_toolkit.likelihood.bounds import continuous_bound
from sde_toolkit.likelihood.flow import FlowSolver, differentiable_log_likelihood, log_likelihood
from sde_toolkit.likelihood.latent import decode, encode
from sde_toolkit.models.modes import evaluating, modules_of
from sde_toolkit.models.moments import Moments
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.models.wrappers import Wrapper
from sde_toolkit.samplers import calibrate, ddim, heun
from sde_toolkit.sdes import VPSDE
from solvers import HEUN

GRID = FlowSolver(HEUN, num_steps=3)


class Restless(nn.Module):
    """A network whose output depends on its mode, and whose statistics move in training mode."""

    def __init__(self, num_classes=0):
        super().__init__()
        self.num_classes = num_classes
        self.norm, self.dropout = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.frozen, self.out = nn.BatchNorm1d(2), nn.Linear(2, 2)

    def forward(self, x, c, condition=None):
        return self.out(self.frozen(self.dropout(self.norm(x))))


def make_model(num_classes=0):
    torch.manual_seed(0)
    moments = Moments(torch.zeros(2), 1.0)
    model = NetworkModel(Restless(num_classes).train(), VPSDE(), "velocity", (2,), moments=moments)
    model.network.frozen.eval()
    return model


def snapshot(model):
    modes = [module.training for module in model.modules()]
    return modes, [x.clone() for x in model.state_dict().values()]


def same(before, after):
    return before[0] == after[0] and all(map(torch.equal, before[1], after[1]))


X = torch.tensor([[0.1, -0.2], [0.4, 0.3], [1.0, -1.0]])

RUNS = {
    "sample": lambda model: ddim(3).sample(model, 4).x,
    "prepared": lambda model: heun(3).prepare(model).sample(4).x,
    "calibrate": lambda model: calibrate(ddim(3), model, reference=heun(6), num_samples=4, sweeps=1).times,
    "log_likelihood": lambda model: log_likelihood(model, X, solver=GRID).nats,
    "differentiable": lambda model: differentiable_log_likelihood(model, X, solver=GRID),
    "encode": lambda model: encode(model, X, solver=GRID).z,
    "decode": lambda model: decode(model, X, solver=GRID),
    "bound": lambda model: continuous_bound(model, X).nats,
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_in_evaluation_mode_and_put_every_mode_back(name):
    model = make_model()
    before = snapshot(model)
    found = RUNS[name](model)
    assert same(before, snapshot(model))
    model.eval()
    expected = RUNS[name](model)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_gradients_of_a_likelihood_leave_a_training_network_as_it_was():
    model = make_model()
    before, x = snapshot(model), X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(differentiable_log_likelihood(model, x, solver=GRID).sum(), x)
    assert same(before, snapshot(model))
    model.eval()
    (again,) = torch.autograd.grad(differentiable_log_likelihood(model, x, solver=GRID).sum(), x)
    assert torch.equal(slope, again)


def test_modes_come_back_after_an_error():
    model = make_model()
    before = snapshot(model)

    def stop(info):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ddim(3).sample(model, 4, callback=stop)
    assert same(before, snapshot(model))


def test_a_network_inside_guidance_is_in_evaluation_mode_too():
    class Shifted(Wrapper):
        def __init__(self, model, network):
            super().__init__(model)
            self.parts = [network]

        def raw(self, x_t, t, condition=None):
            return self.model.raw(x_t, t, condition) + self.parts[0](x_t, t)

    model, other = make_model(), Restless().train()
    sampler = replace(ddim(3), guidance=lambda inner: Shifted(inner, other))
    found = sampler.sample(model, 4).x
    assert other.training
    assert other.dropout.training
    assert int(other.norm.num_batches_tracked) == 0
    other.eval()
    assert torch.equal(found, sampler.sample(model, 4).x)


def test_modules_are_found_once_and_cycles_end():
    model = make_model()
    wrapper = Wrapper(model)
    wrapper.itself = [wrapper, {"again": wrapper}]
    found = modules_of(wrapper)
    assert len(found) == len({id(module) for module in found}) == len(list(model.modules()))
    with evaluating(wrapper):
        assert not any(module.training for module in model.modules())
    assert model.network.norm.training
    assert not model.network.frozen.training
