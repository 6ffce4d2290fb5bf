"""torch's global state: inference mode, no_grad, autocast, another default type, deterministic algorithms."""

import contextlib

import pytest
import torch

from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.likelihood.flow import FlowSolver, differentiable_log_likelihood, log_likelihood
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.models.moments import Moments
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.samplers import ddim, default
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.loop import fit
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import TrainState
from solvers import HEUN

DATA = gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=64, num_test=8)
COVARIANCE = torch.tensor([[1.0, 0.3], [0.3, 1.0]])
X = torch.tensor([[0.1, -0.2], [0.4, 0.3], [1.0, -1.0]])
GRID = FlowSolver(HEUN, num_steps=3)


@contextlib.contextmanager
def default_type(dtype):
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SAME = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "float64": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "deterministic": deterministic,
}
AUTOCAST = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16)}


def network():
    torch.manual_seed(0)
    moments = Moments(torch.zeros(2), COVARIANCE)
    return NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "velocity", (2,), moments=moments)


def exact():
    return ExactModel(Gaussian(torch.zeros(2), COVARIANCE), VPSDE(), dtype=torch.float32)


def trained(model):
    state = TrainState(model)
    fit(state, DATA, DenoisingLoss(), 3, 8)
    return torch.cat([p.detach().flatten() for p in state.ema.network.parameters()])


RUNS = {
    "default": lambda model: default(model, 4).sample(model, 4).x,
    "ddim": lambda model: ddim(3).sample(model, 4).x,
    "likelihood": lambda model: log_likelihood(model, X, solver=GRID).nats,
    "fit": trained,
}


@pytest.mark.slow
@pytest.mark.parametrize("make", [network, exact])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("state", SAME)
def test_results_do_not_depend_on_it_and_gradients_work_afterwards(make, run, state):
    if make is exact and run == "fit":
        return
    model, again = make(), make()
    with SAME[state]():
        found = RUNS[run](model)
    assert run == "fit" or not found.is_inference()
    assert torch.equal(found, RUNS[run](again))
    x = X.clone().requires_grad_()
    differentiable_log_likelihood(model, x, solver=GRID).sum().backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("run", RUNS)
def test_networks_run_under_autocast_and_states_keep_their_type(run):
    with AUTOCAST["autocast"]():
        found = RUNS[run](network())
    expected = RUNS[run](network())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("run", ["default", "ddim", "likelihood"])
def test_exact_models_are_not_cast(run):
    with AUTOCAST["autocast"]():
        found = RUNS[run](exact())
    assert torch.equal(found, RUNS[run](exact()))


def test_training_under_one_autocast_uses_the_weights_of_every_update():
    def watched(autocast):
        losses, state = [], TrainState(network())
        with autocast:
            fit(
                state,
                DATA,
                DenoisingLoss(),
                5,
                8,
                on_step=lambda i: default(state.model, 2).sample(state.model, 2),
            )
            losses.append(sum(float(p.detach().double().sum()) for p in state.model.network.parameters()))
        return losses

    low, high = watched(AUTOCAST["autocast"]()), watched(contextlib.nullcontext())
    assert low == pytest.approx(high, abs=5e-3)


def test_an_exact_model_built_in_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        model = exact()
    x = X.clone().requires_grad_()
    differentiable_log_likelihood(model, x, solver=GRID).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_a_network_built_in_inference_mode_is_refused_for_training():
    with torch.inference_mode():
        model = network()
    with pytest.raises(ValueError, match="build the network outside"):
        TrainState(model)


def test_a_network_without_tensors_is_refused_for_training():
    model = network().to("meta")
    with pytest.raises(ValueError, match="meta device"):
        TrainState(model)
