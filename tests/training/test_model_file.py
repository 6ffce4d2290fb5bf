"""One file for one model: what goes in comes out, and a file is not trusted."""

import json
import os
import resource

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sde_toolkit.data.dataset import from_array
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.data.toy import ring
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.models.indexed import IndexedModel
from sde_toolkit.models.moments import Moments
from sde_toolkit.models.network import NetworkModel, NoiseLevel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.networks.unet import UNet
from sde_toolkit.samplers import ddim, default
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, CustomSDE, LinearBeta, RectifiedFlow, SubVPSDE
from sde_toolkit.sdes.chain import Chain
from sde_toolkit.training.loop import fit
from sde_toolkit.training.model_file import load_model, save_model
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import TrainState

PROCESSES = [VPSDE(), VPSDE(LinearBeta(0.2, 12, T=2.0)), VPSDE(CosineBeta(0.01)), SubVPSDE(), VESDE(0.02, 9)]
PROCESSES += [RectifiedFlow(0.99)]


class Own(nn.Module):
    """A network of a user, with a part called "module" and buffers."""

    def __init__(self, width=5):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))

    def forward(self, x, c):
        return self.module(torch.cat([x, c[:, None] / 1000], 1))


class Fixed(nn.Module):
    """A network without parameters."""

    def __init__(self, buffers):
        super().__init__()
        if buffers:
            self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x, c):
        return getattr(self, "scale", 0.5) * x


def randomised(network, seed=0):
    """The network with weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def assert_twins(a, b, **options):
    """Samples are equal bit for bit."""
    for sampler in (ddim(4), default(a, 4)):
        x, y = (sampler.sample(m, 5, seed=3, **options) for m in (a, b))
        assert torch.equal(x.x, y.x)
        assert x.settings == y.settings


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_a_model_comes_back_equal_by_value(tmp_path, sde):
    moments = Moments([0.1, 0.2], [[1.0, 0.3], [0.3, 0.5]])
    model = NetworkModel(randomised(MLP((2,), 8, 2)), sde, "velocity", (2,), 0.7, moments).eval()
    model.scaling = Scaling.standard(torch.tensor([[1.0, 5.0], [3.0, 4.0]]), per_coordinate=True)
    again = load_model(save_model(model, tmp_path / "a.safetensors"))
    assert (again.predicts, again.event_shape, again.data_std) == ("velocity", (2,), 0.7)
    assert repr(again.sde) == repr(sde).replace("12", "12.0").replace("=9)", "=9.0)")
    assert again.moments.kind == "full"
    assert torch.equal(again.scaling.scale, model.scaling.scale)
    assert again.scaling.levels is None
    assert not again.training
    assert_twins(model, again)


def test_a_u_net_with_classes_and_fourier_features(tmp_path):
    sde = VPSDE()
    network = UNet(
        (1, 4, 4), (8, 8), num_groups=4, fourier=(1,), num_classes=3, noise_level=NoiseLevel(sde, 0.5)
    )
    model = NetworkModel(randomised(network), sde, "noise", (1, 4, 4), 0.5).eval()
    model.scaling = Scaling.grey(17)
    again = load_model(save_model(model, tmp_path / "a.safetensors"))
    assert again.scaling.levels == 17
    assert_twins(model, again, condition=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_number_types_are_kept(tmp_path, dtype):
    model = NetworkModel(randomised(MLP((2,), 8, 1)).to(dtype), VPSDE(), "noise", (2,))
    again = load_model(save_model(model, tmp_path / "a.safetensors"))
    assert again.dtype == dtype
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_moments_of_every_kind(tmp_path, kind):
    full = Moments([0.1, 0.2], [[1.0, 0.3], [0.3, 0.5]])
    moments = full if kind == "full" else getattr(full, kind)()
    model = NetworkModel(MLP((2,), 8, 1), VPSDE(), "noise", (2,), moments=moments)
    again = load_model(save_model(model, tmp_path / "a.safetensors")).moments
    assert again.kind == kind
    torch.testing.assert_close(again.covariance, moments.covariance, rtol=1e-15, atol=0)


def test_a_network_of_yours_is_given_again(tmp_path):
    model = NetworkModel(randomised(Own()), VPSDE(), "noise", (2,)).eval()
    path = save_model(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"network must be given .*Own; build it and pass it as network="):
        load_model(path)
    given = Own()
    again = load_model(path, network=given)
    assert again.network is given
    assert_twins(model, again)
    wrong, before = Own(7), None
    before = [p.clone() for p in wrong.parameters()]
    with pytest.raises(ValueError, match=r"'module.0.weight' must have shape \(7, 3\)"):
        load_model(path, network=wrong)
    assert all(map(torch.equal, before, wrong.parameters()))
    with pytest.raises(ValueError, match="without module"):
        load_model(path, network=Fixed(False))
    with pytest.raises(TypeError, match="network must be a Module or None, got a function"):
        load_model(path, network=lambda x, c: x)


def compiled(network):
    return torch.compile(network, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda n: compiled(nn.DataParallel(n))])
def test_wrapped_networks_are_saved_under_their_plain_names(tmp_path, wrap):
    plain, own = randomised(MLP((2,), 8, 1)), randomised(Own())
    for network in (plain, own):
        path = save_model(NetworkModel(wrap(network), VPSDE(), "noise", (2,)), tmp_path / "a.safetensors")
        names = {name.removeprefix("network.") for name in safetensors.torch.load_file(path)}
        assert names == set(network.state_dict())
    path = save_model(NetworkModel(wrap(plain), VPSDE(), "noise", (2,)), path)
    assert_twins(NetworkModel(plain, VPSDE(), "noise", (2,)), load_model(path))
    into = MLP((2,), 8, 1)
    load_model(path, network=wrap(into))
    assert torch.equal(into.last.weight, plain.last.weight)


@pytest.mark.parametrize("buffers", [False, True])
def test_networks_without_parameters(tmp_path, buffers):
    model = NetworkModel(Fixed(buffers), VPSDE(), "noise", (2,))
    assert model.dtype == (torch.float64 if buffers else torch.float32)
    again = load_model(save_model(model, tmp_path / "a.safetensors"), network=Fixed(buffers))
    assert_twins(model, again)


def alpha(t):
    return (-t).exp()


def sigma(t):
    return t + 0.01


def test_a_process_of_yours_is_given_again(tmp_path):
    sde = CustomSDE(alpha, sigma)
    model = NetworkModel(randomised(MLP((2,), 8, 1)), sde, "noise", (2,)).eval()
    path = save_model(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"sde must be given .*pass it as sde="):
        load_model(path)
    assert_twins(model, load_model(path, sde=CustomSDE(alpha, sigma)))
    for other in (CustomSDE(alpha, lambda t: t + 0.02), VPSDE(), CustomSDE(alpha, sigma, T=2.0)):
        with pytest.raises(ValueError, match="sde must be the process of the model"):
            load_model(path, sde=other)


def test_a_model_of_a_chain(tmp_path):
    chain = Chain.from_betas(torch.linspace(0.01, 0.2, 12, dtype=torch.float64))
    for fractional in (False, True):
        model = IndexedModel(randomised(Own()), chain, "noise", (2,), fractional, 0.9).eval()
        again = load_model(save_model(model, tmp_path / "a.safetensors"), network=Own())
        assert isinstance(again, IndexedModel)
        assert again.fractional is fractional
        assert torch.equal(again.sde.chain.sigmas, chain.sigmas)


def test_a_trained_model_gives_samples_on_the_scale_of_the_data(tmp_path):
    w = 100 + 20 * np.random.default_rng(0).standard_normal((200, 2))
    state = TrainState(NetworkModel(MLP((2,), 8, 1), VPSDE(), "noise", (2,)))
    fit(state, from_array(w), DenoisingLoss(), 20, 16)
    again = load_model(save_model(state.ema, tmp_path / "a.safetensors"))
    samples = ddim(5).sample(again, 50)
    torch.testing.assert_close(again.scaling.to_model(samples.data), samples.x, rtol=1e-5, atol=1e-4)
    zero = again.scaling.to_data(torch.zeros(1, 2))
    torch.testing.assert_close(zero[0], torch.from_numpy(w.mean(0)).float(), rtol=0.02, atol=0)
    assert_twins(state.ema, again)


def test_classes_have_their_moments(tmp_path):
    state = TrainState(NetworkModel(MLP((2,), 8, 1, num_classes=8), VPSDE(), "noise", (2,)))
    fit(state, ring(256, 16), DenoisingLoss(), 2, 16)
    again = load_model(save_model(state.ema, tmp_path / "a.safetensors"))
    torch.testing.assert_close(again.given(3).moments.mean, state.ema.given(3).moments.mean, rtol=0, atol=0)


def test_other_models_and_bad_places_are_refused(tmp_path):
    exact = ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE())
    with pytest.raises(
        TypeError, match="model must be a ModuleModel, got a ExactModel; model is a NetworkModel"
    ):
        save_model(exact, tmp_path / "a.safetensors")
    model = NetworkModel(MLP((2,), 8, 1), VPSDE(), "noise", (2,))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    for place in ("", tmp_path, "/dev/null", tmp_path / "link", tmp_path / "pipe", "a\0b", "/proc/a",
                  tmp_path / "pipe" / "a", tmp_path / ("x" * 300)):  # fmt: skip
        with pytest.raises(ValueError, match="path must"):
            save_model(model, place)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.safetensors")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="model file must be an ordinary file"):
            load_model(place)


def rewritten(path, change):
    """The file with a changed document, the tensors as they were."""
    with safetensors.safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["sde_toolkit"])
    change(document)
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"sde_toolkit": json.dumps(document)})
    return path


@pytest.fixture
def saved(tmp_path):
    model = NetworkModel(MLP((2,), 8, 1), VPSDE(), "noise", (2,), moments=Moments([0.0, 0.0], 1.0))
    return save_model(model, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 10**6),
        ("depth", 10**9),
        ("num_frequencies", 10**9),
        ("width", 10**40),
        ("num_classes", 10**8),
    ],
)
def test_sizes_that_a_file_claims_take_no_memory(saved, name, value):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rewritten(saved, lambda d: d["model"]["network"]["arguments"].update({name: value}))
    with pytest.raises(ValueError, match=r"a.safetensors cannot be loaded"):
        load_model(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_nothing_that_a_file_names_is_imported(saved):
    rewritten(saved, lambda d: d["model"]["network"].update(name="antigravity.thing"))
    with pytest.raises(ValueError, match="network must be given"):
        load_model(saved)
    assert "antigravity" not in __import__("sys").modules


def test_changed_tensors_are_noticed(saved):
    data = bytearray(saved.read_bytes())
    data[-3] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="whose digest differs"):
        load_model(saved)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WORDS = """
kind model digest libraries format_version model.class model.predicts model.event_shape model.process
model.data_std model.condition_shape model.fractional model.process.name model.process.known
model.process.rate model.process.rate.name model.process.rate.beta_min model.process.levels
model.process.text model.network model.network.name model.network.arguments model.network.arguments.width
model.network.arguments.event_shape model.network.arguments.max_angle model.network.arguments.new
model.network.noise_level
"""
PLACES = [place.split(".") for place in WORDS.split()]


@pytest.mark.slow
@settings(
    deadline=None, max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_at_any_place_is_read_or_refused_with_a_sentence(saved, place, value):
    whole = saved.read_bytes()

    def change(document):
        for name in place[:-1]:
            document = document[name]
        document[place[-1]] = value

    try:
        load_model(rewritten(saved, change))
    except ValueError as error:
        assert len(str(error)) > 20  # noqa: PT017
    finally:
        saved.write_bytes(whole)
