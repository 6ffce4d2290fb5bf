"""Network models are modules like any other, and say what is wrong with a network's output."""

import copy
import shutil

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sde_toolkit.likelihood import log_likelihood
from sde_toolkit.models import IndexedModel, Moments, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, TrainState, fit, load_model, save_model

X, T = torch.linspace(-1, 1, 8).reshape(4, 2), torch.tensor([0.1, 0.3, 0.5, 0.9])


def mlp(num_classes: int = 0) -> NetworkModel:
    network = MLP((2,), width=8, depth=1, num_classes=num_classes)
    nn.init.normal_(network.last.weight)
    return NetworkModel(network, VPSDE(), "noise", (2,), moments=Moments([0.0, 0.0], 1.0))


def test_state_and_device_and_type_are_those_of_the_network() -> None:
    model = mlp()
    assert set(model.state_dict()) == {f"network.{name}" for name in model.network.state_dict()}
    other = mlp()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score(X, T), model.score(X, T))
    assert model.double().dtype == torch.float64
    assert model.score(X.double(), T).dtype == torch.float64
    assert model.to("cpu").device.type == "cpu"
    assert "MLP" in repr(model)
    assert "VPSDE" in repr(model)


def test_a_deep_copy_is_independent() -> None:
    model = mlp()
    before, other = model.score(X, T), copy.deepcopy(model)
    nn.init.zeros_(other.network.last.weight)
    assert torch.equal(model.score(X, T), before)
    assert not torch.equal(other.score(X, T), before)
    assert other.moments is not None


def test_another_network_in_the_same_model() -> None:
    model = mlp()
    other = model.with_network(MLP((2,), width=4, depth=1))
    assert isinstance(other.network, MLP)
    assert other.moments is model.moments
    assert model.network is not other.network


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_inductor_trains_samples_and_saves_and_tells_why_it_has_no_likelihood(tmp_path) -> None:
    plain = mlp()
    before = ddim(3).sample(plain, 4).x
    compiled = plain.with_network(torch.compile(plain.network))
    torch.testing.assert_close(ddim(3).sample(compiled, 4).x, before, rtol=1e-4, atol=1e-5)
    state = TrainState(compiled, seed=0)
    assert len(fit(state, torch.randn(40, 2, generator=torch.Generator()), DenoisingLoss(), 2)) == 2
    save_model(state.ema, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").event_shape == (2,)
    with pytest.raises(ValueError, match=r"model must allow several derivatives .*donated_buffer = False"):
        log_likelihood(compiled, X, divergence=2)


def test_compiled_models_give_the_same_predictions() -> None:
    model = mlp()
    before = model.score(X, T)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(X, T), model.raw(X, T))
    model.compile(backend="eager")
    torch.testing.assert_close(model.score(X, T), before)


def test_gradients_under_distributed_data_parallel(tmp_path) -> None:
    model = mlp()
    (expected,) = torch.autograd.grad(model(X, T).square().mean(), [model.network.last.weight])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(X, T).square().mean().backward()
        parallel = model.with_network(nn.parallel.DistributedDataParallel(model.network))
        save_model(parallel, tmp_path / "m.safetensors")
        assert torch.equal(parallel.score(X, T), model.score(X, T))
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(model.network.last.weight.grad, expected)
    assert torch.equal(load_model(tmp_path / "m.safetensors").score(X, T), model.score(X, T))


class Returns(nn.Module):
    """A network that returns what a function makes of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, c: Tensor, *condition: Tensor):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x[:, :1], r"shape \(4, 2\).*got shape \(4, 1\)"),
        (lambda x: x[:1], r"got shape \(1, 2\)"),
        (lambda x: x.double(), r"type torch.float32, got .*torch.float64"),
        (lambda x: None, "got NoneType; does its forward lack a return"),
        (lambda x: (x, x), "got a tuple of 2; return the prediction alone"),
        (lambda x: {"sample": x}, "got dict; return the tensor inside"),
    ],
)
def test_outputs_of_another_shape_or_type_get_a_sentence(function, words) -> None:
    for model in (
        NetworkModel(Returns(function), VPSDE(), "noise", (2,)),
        IndexedModel(Returns(function), VPSDE().discretize(10), "noise", (2,)),
    ):
        with pytest.raises(TypeError, match=words):
            model.score(X, T)


def test_a_function_is_a_network_with_the_type_that_is_given() -> None:
    model = NetworkModel(lambda x, c: -x, VPSDE(), "noise", (2,), dtype=torch.float64, device="cpu")
    assert (model.dtype, str(model.device)) == (torch.float64, "cpu")
    assert ddim(3).sample(model, 4).x.dtype == torch.float64
    assert model.float().dtype == torch.float32
    assert model.with_network(lambda x, c: x).dtype == torch.float32


def test_a_type_that_is_not_the_networks_own_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"dtype must be the network's own, torch.float32, got torch.float64"
    ):
        NetworkModel(MLP((2,), width=4, depth=1), VPSDE(), "noise", (2,), dtype=torch.float64)
    with pytest.raises(ValueError, match="device 'nowhere' is not usable"):
        NetworkModel(MLP((2,), width=4, depth=1), VPSDE(), "noise", (2,), device="nowhere")


def test_something_that_is_no_network_is_refused() -> None:
    with pytest.raises(TypeError, match=r"network must be a Module or a function, got 3"):
        NetworkModel(3, VPSDE(), "noise", (2,))


class Shifted(nn.Module):
    """x plus the condition."""

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        return x if condition is None else x + condition


def test_conditions_of_any_shape() -> None:
    model = NetworkModel(Shifted(), VPSDE(), "noise", (2,), condition_shape=(2,))
    condition = torch.arange(8.0).reshape(4, 2)
    shift = model.noise(X, T, model.conditions(condition, 4)) - model.noise(X, T)
    torch.testing.assert_close(shift, condition)
    one = model.given(condition[1])
    torch.testing.assert_close(one.noise(X, T) - model.noise(X, T), condition[1].expand(4, 2))
    with pytest.raises(ValueError, match=r"condition must be a tensor with shape \(3, 2\), .*got \(4, 2\)"):
        model.conditions(condition, 3)
    with pytest.raises(ValueError, match="got 5"):
        model.conditions(5, 3)
