"""Processes, samplers, models and results are values: equal by parts, copied, pickled, told in a line."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sde_toolkit import data, likelihood
from sde_toolkit.data.dataset import from_array
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.guidance import ClassifierFreeGuidance, StaticThreshold, guided, thresholded
from sde_toolkit.models.exact import ExactModel, Gaussian, GaussianMixture
from sde_toolkit.models.indexed import IndexedModel
from sde_toolkit.models.moments import Moments
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.networks.unet import UNet
from sde_toolkit.runs import open_shipped
from sde_toolkit.samplers import (
    PRESETS,
    Langevin,
    Restart,
    Samples,
    ddim,
    default,
    edm,
    grids,
    predictor_corrector,
    restarting,
    sa_solver,
)
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, CustomSDE, LinearBeta, SubVPSDE
from sde_toolkit.sdes.chain import Chain
from sde_toolkit.sdes.chain_sde import ChainSDE
from sde_toolkit.training.description import describe_model
from sde_toolkit.training.loop import fit
from sde_toolkit.training.model_file import load_model, save_model
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import TrainState
from sde_toolkit.utils.values import Partial, same_values

PUBLISHED = {"score_sde_ve": VESDE(), "score_sde_subvp": SubVPSDE()}
"""The process of presets that are for one alone, where it is not VP."""


def exact(name=""):
    data = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])
    return ExactModel(data, PUBLISHED.get(name, VPSDE()))


def pickled(value):
    return pickle.loads(pickle.dumps(value))


COPIES = [copy.copy, copy.deepcopy, pickled]


def betas(last=0.2):
    return torch.linspace(0.01, last, 12, dtype=torch.float64)


def alpha(t):
    return (-t).exp()


def sigma(t):
    return t + 0.01


def processes():
    return [
        VPSDE(), VPSDE(LinearBeta(0.1, 12.0)), VPSDE(LinearBeta(0.1, 20.0, T=0.9)), VPSDE(CosineBeta()),
        SubVPSDE(), VESDE(), VESDE(0.02), ChainSDE(Chain.from_betas(betas())),
        ChainSDE(Chain.from_betas(betas(0.3))), CustomSDE(alpha, sigma), CustomSDE(alpha, sigma, T=2.0),
        CustomSDE(alpha, lambda t: 1 + t**3),
    ]  # fmt: skip


def test_processes_are_equal_by_value():
    for i, a in enumerate(processes()[:-1]):
        assert [a == b for b in processes()].index(True) == i
        assert sum(a == b for b in processes()) == 1
        for again in COPIES:
            assert again(a) == a
            assert hash(again(a)) == hash(a)
    lambdas = processes()[-1]
    assert copy.deepcopy(lambdas) == lambdas
    assert lambdas != processes()[-1]
    assert VPSDE() != "VPSDE()"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_value(name):
    """Made twice, for two models of equal data, copied and pickled: equal, with the same samples."""
    preset = PRESETS[name]
    sampler, twin = (preset.make(4, exact(name)) for _ in range(2))
    assert sampler == twin
    assert hash(sampler) == hash(twin)
    for again in COPIES:
        assert again(sampler) == sampler
        assert hash(again(sampler)) == hash(sampler)
    assert pickled(sampler).settings == sampler.settings
    if preset.kind == "fixed":
        assert preset.make(5, exact(name)) != sampler
    if not name.startswith(("scipy", "torchsde")):
        x, y = (s.sample(exact(name), 3, seed=1).x for s in (sampler, pickled(sampler)))
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", PRESETS)
def test_every_option_of_a_preset_makes_another_value(name):
    preset = PRESETS[name]
    values = {bool: [False, True], float: [0.25, 0.5], str: []}
    for option in preset.options.values():
        made = set()
        corrected = "corrections" in preset.options and option.name in ("snr", "batch_mean_norms")
        needed = {"corrections": 1} if corrected else {}
        for value in values.get(type(option.default), []):
            made.add(preset.make(4, exact(), **needed, **{option.name: value}))
        assert len(made) == len(values.get(type(option.default), []))


def test_wrapped_samplers_are_values():
    def some():
        return [
            predictor_corrector(ddim(4), Langevin(0.16, 2)), predictor_corrector(ddim(4), Langevin(0.2, 2)),
            restarting(ddim(4), Restart(0.1, 1.0, 2, 1)), thresholded(ddim(4), StaticThreshold(1.5)),
            guided(ddim(4), 2.0), guided(ddim(4), 3.0), edm(4, s_churn=3.0), edm(4, s_churn=4.0),
            ddim(4, grid=grids.Explicit([1.0, 0.5, 0.1, 0.05, 0.01])), ddim(4, grid=grids.Karras(5.0)),
            sa_solver(4, tau=0.5), sa_solver(4, tau=0.6), ddim(4, eta=1.0), ddim(4, grid=grids.karras),
        ]  # fmt: skip

    assert len(set(some())) == len(some())
    for a, b in zip(some(), some(), strict=True):
        assert a == b
        for again in COPIES:
            assert again(a) == a
    assert ClassifierFreeGuidance(2.0) == ClassifierFreeGuidance(2.0)


def network_model():
    moments = Moments([0.1, 0.2], [[1.0, 0.3], [0.3, 0.5]])
    network = MLP((2,), 8, 1)
    torch.nn.init.constant_(network.last.weight, 0.1)
    return NetworkModel(network, VPSDE(), "noise", (2,), moments=moments)


def test_a_sampler_serves_the_copies_and_the_reloaded_twin_of_its_model(tmp_path):
    model = network_model()
    sampler = default(model, 5)
    twins = [copy.deepcopy(model), pickled(model), load_model(save_model(model, tmp_path / "a.safetensors"))]
    for twin in twins:
        assert describe_model(twin)[0] == describe_model(model)[0]
        assert twin.moments == model.moments
        assert twin.sde == model.sde
        assert default(twin, 5) == sampler
        assert torch.equal(sampler.sample(twin, 3).x, sampler.sample(model, 3).x)
    prepared = sampler.prepare(model)
    assert torch.equal(pickled(prepared.sampler).prepare(twins[0]).sample(3).x, prepared.sample(3).x)


@pytest.mark.slow
def test_models_states_and_data_are_copied_and_pickled():
    chain = Chain.from_betas(betas())
    unet = UNet((1, 4, 4), (8, 8), num_groups=4)
    shipped = open_shipped("digits_classes").model
    for model in (network_model(), exact(), IndexedModel(MLP((2,), 8, 1), chain, "noise", (2,)),
                  NetworkModel(unet, VESDE(), "noise", (1, 4, 4)), shipped, shipped.given(3)):  # fmt: skip
        x = ddim(2).sample(model, 2).x
        for again in COPIES:
            assert torch.equal(ddim(2).sample(again(model), 2).x, x)
    for dataset in (data.ring(64, 16), data.digits(), from_array(torch.randn(20, 3))):
        for again in COPIES:
            assert torch.equal(again(dataset).batch(3, 4, 0), dataset.batch(3, 4, 0))
            assert again(dataset).scaling == dataset.scaling
    state = TrainState(network_model())
    fit(state, data.ring(64, 16), DenoisingLoss(), 2, 8)
    for again in (copy.deepcopy, pickled):
        other, same = again(state), copy.deepcopy(state)
        for one in (other, same):
            fit(one, data.ring(64, 16), DenoisingLoss(), 4, 8)
        for name, tensor in same.tensors().items():
            assert torch.equal(other.tensors()[name], tensor)


def test_results_are_copied_and_pickled():
    model, sampler = exact(), ddim(3)
    samples, seen = sampler.sample(model, 6, callback=None), []
    sampler.sample(model, 2, callback=seen.append)
    solver = likelihood.FlowSolver(rtol=1e-3, atol=1e-3)
    found = likelihood.log_likelihood(model, samples.x, solver=solver)
    bound = likelihood.continuous_bound(model, samples.x, draws=likelihood.BoundDraws(num_draws=2))
    latents = likelihood.encode(model, samples.x, solver=solver)
    for result in (samples, seen[0], found, bound, latents, Scaling.grey(5), Gaussian([0.0], [[1.0]])):
        for again in COPIES:
            other = again(result)
            assert type(other) is type(result)
            if hasattr(result, "nats"):
                assert torch.equal(other.nats, result.nats)
    assert torch.equal(pickled(samples).x, samples.x)


def test_moments_scalings_and_exact_data_are_equal_by_value():
    def some():
        w = torch.tensor([[1.0, 5.0], [3.0, 4.0]])
        full = Moments([0.1, 0.2], [[1.0, 0.3], [0.3, 0.5]])
        return [
            full, full.diagonal(), full.scalar(), Scaling.grey(17), Scaling.grey(256), Scaling.identity(),
            Scaling.standard(w), Scaling.standard(w, per_coordinate=True), exact().data,
            Gaussian([0.0, 0.0], torch.eye(2)), Gaussian([0.0, 1.0], torch.eye(2)), Chain.from_betas(betas()),
        ]  # fmt: skip

    assert len(set(some() + some())) == len(some())


LEAVES = st.integers(-2, 2) | st.floats(-1, 1) | st.text(max_size=2) | st.none()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        | st.lists(st.floats(-1, 1), max_size=3).map(torch.tensor)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=100)
@given(value=VALUES, other=VALUES)
def test_same_values_is_an_equality(value, other):
    assert same_values(value, copy.deepcopy(value))
    assert same_values(value, other) == same_values(other, value)
    assert Partial(sigma, value) == Partial(sigma, copy.deepcopy(value))
    assert (Partial(sigma, value) == Partial(sigma, other)) == same_values(value, other)
    assert Partial(sigma, value) != Partial(alpha, value)


def test_what_is_shown_says_what_it_is_in_a_line():
    state = TrainState(network_model())
    shipped = open_shipped("digits")
    samples = ddim(2).sample(shipped.model, 5, first_sample=3)
    shown = {
        repr(samples): "Samples(5 of shape (1, 8, 8) from index 3 by ddim, 3 evaluations each",
        repr(state): "TrainState(step 0, seed 0, NetworkModel(MLP with ",
        repr(state.ema): "NetworkModel(MLP with 882 parameters, VPSDE(",
        repr(exact()): "ExactModel(GaussianMixture(2 components of shape (2,)), VPSDE(",
        repr(data.digits()): "Dataset('digits', 1,500 training and 297 test examples of shape (1, 8, 8), "
        "Scaling(17 grey levels), with labels)",
        repr(
            from_array(torch.randn(20, 3))
        ): "Dataset('array', 18 training and 2 test examples of shape (3,), Scaling(x = ",
        repr(
            ddim(3, eta=0.5)
        ): "Sampler('ddim', t_min=0.001, denoise=True, num_steps=3, grid=uniform, eta=0.5)",
        repr(Chain.from_betas(betas())): "Chain(num_steps=12, sigmas from 0 to ",
        repr(shipped): "Run('",
    }
    for text, start in shown.items():
        assert text.startswith(start)
        assert len(text) < 300
        assert "\n" not in text


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_that_are_images_are_shown_in_notebooks(channels):
    scaling = Scaling.grey(256)
    x = torch.rand(10, channels, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn = Samples(x, 1.0, 0.0, 0, 0, {}, scaling)._repr_png_()
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        zoom = picture.width // (4 * 6)
        assert picture.size == (4 * 6 * zoom, 4 * 7 * zoom)
        v = scaling.to_levels(x).double()
        wanted = ((v - v.amin()) / (v.amax() - v.amin()) * 255).round()
        for i, j in ((0, 0), (5, 2), (9, 4)):
            pixel = picture.getpixel((zoom * (i % 4 * 6 + j), zoom * (i // 4 * 7 + 3)))
            assert list(pixel if channels == 3 else [pixel]) == wanted[i, :, 3, j].tolist()
    assert Samples(torch.zeros(3, 2), 1.0, 0.0, 0, 0, {})._repr_png_() is None
