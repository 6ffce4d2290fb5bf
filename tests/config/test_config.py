"""Configurations: names become objects, values keep their types, mistakes are refused with a hint."""

import inspect
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from sde_toolkit import config as c
from sde_toolkit import networks, training
from sde_toolkit.lab import Problem
from sde_toolkit.likelihood import Endpoint, ExactDivergence, Hutchinson, HutchPlusPlus
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, LinearBeta, RectifiedFlow, SubVPSDE
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import Optimization
from solvers import AB4


@pytest.fixture(scope="module")
def tiny():
    return c.load_config(
        "ring", {"model.width": 8, "model.depth": 1, "data.num_train": 64, "data.num_test": 32}
    )


@pytest.mark.parametrize("name", c.config_names())
def test_every_shipped_config_builds_its_objects(name, tmp_path):
    own = {
        "images": np.zeros((40, 3, 8, 8), np.uint8),
        "vectors": np.random.default_rng(0).normal(size=(40, 3)),
    }
    if name in own:
        np.save(tmp_path / "own.npy", own[name])
    config = c.load_config(name, {"data.source": str(tmp_path / "own.npy")} if name in own else {})
    dataset = c.build_dataset(config)
    model = c.build_model(config, dataset.event_shape, dataset.data_std)
    x = c.held_out(config, dataset)[:2]
    assert model.score(x, torch.tensor(0.5)).shape == x.shape
    assert c.build_loss(config)(model, x, torch.Generator().manual_seed(0)).shape == (2,)
    assert c.build_optimization(config).learning_rate == config.optimization.learning_rate
    assert [candidate.name for candidate in c.build_candidates(config, model)]
    assert c.config_from_json(c.config_json(config)) == config


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        (c.SCHEMA["model"].fields["unet"], networks.UNet),
        (c.SCHEMA["model"].fields["mlp"], networks.MLP),
        (c.SCHEMA["model"].fields["dit"], networks.DiT),
        (c.SCHEMA["model"].fields["ncsnpp"], networks.NCSNpp),
        (c.SCHEMA["model"].fields["unet1d"], networks.UNet1D),
        (c.SCHEMA["loss"].fields["denoising"], DenoisingLoss),
        (c.SCHEMA["optimization"], Optimization),
    ],
)
def test_fields_and_defaults_are_those_of_the_object(fields, made):
    options = {
        p.name: p.default for p in inspect.signature(made).parameters.values() if p.name != "event_shape"
    }
    for built in ("seed", "noise_level", "ema_traces"):  # they follow from the rest of the configuration
        options.pop(built, None)
    of_model = ("predicts", "self_conditioning")  # the network is made, and then read or wrapped
    assert {name: value for name, value in fields.items() if name not in of_model} == options


def test_fourier_features_are_told_the_noise_in_their_input():
    config = c.load_config("digits_likelihood", {"sde.name": "ve"})
    network = c.build_network(config, (1, 8, 8), data_std=0.5)
    t, sde = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), c.build_sde(config)
    model = c.build_model(config, (1, 8, 8), data_std=0.5)
    c_in = (0.5**2 + sde.sigma(t).square()).rsqrt()  # what the model scales its states by
    torch.testing.assert_close(network.noise_level(1000 * t), c_in * sde.sigma(t))
    torch.testing.assert_close(model.network.noise_level(1000 * t), c_in * sde.sigma(t))


@pytest.mark.parametrize(
    ("name", "kind", "beta"),
    [
        ("vp", VPSDE, LinearBeta),
        ("vp_cosine", VPSDE, CosineBeta),
        ("subvp", SubVPSDE, LinearBeta),
        ("ve", VESDE, None),
        ("rectified", RectifiedFlow, None),
    ],
)
def test_process_by_name(name, kind, beta):
    sde = c.build_sde(c.load_config("digits", {"sde.name": name}))
    assert type(sde) is kind
    assert beta is None or type(sde.beta) is beta


def test_parameters_of_the_process_arrive(tiny):
    sde = c.build_sde(c.override_config(tiny, {"sde.name": "ve", "sde.sigma_max": "20"}))
    assert (sde.sigma_min, sde.sigma_max) == (0.01, 20.0)


def test_values_keep_the_type_of_the_default():
    config = c.load_config(
        "digits",
        {
            "training.batch_size": "64",
            "optimization.learning_rate": 1,
            "sampling.denoise": "off",
            "comparison.num_steps": "(3, 7)",
            "comparison.samplers": "ddim, edm(s_churn=4, grid=karras)",
            "model.attention_levels": [1],
        },
    )
    assert config.training.batch_size == 64
    assert type(config.optimization.learning_rate) is float
    assert config.sampling.denoise is False
    assert config.comparison.num_steps == (3, 7)
    assert config.comparison.samplers == ("ddim", "edm(s_churn=4, grid=karras)")
    assert config.model.attention_levels == (1,)


def test_variant_fields_come_with_the_name_in_any_order():
    a = c.load_config("digits", {"sde.sigma_max": 9.0, "sde.name": "ve"})
    b = c.load_config("digits", {"sde.name": "ve", "sde.sigma_max": 9.0})
    assert a == b
    assert a.sde.to_dict() == {"name": "ve", "sigma_min": 0.01, "sigma_max": 9.0}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trainin.batch_size", 1, "no section 'trainin'; did you mean 'training'"),
        ("training.batchsize", 1, "no field 'batchsize'; did you mean 'batch_size'"),
        (
            "sde.sigma_min",
            1,
            "no field 'sigma_min' when its name is 'vp'; it is a field of ve, smld; valid here: beta_",
        ),
        ("dtype", "half", "config.dtype 'half' is unknown; valid: float32, float64"),
        ("sampling.etta", 1, "no field 'etta' when its sampler is 'default'; did you mean 'eta'"),
        ("sampling.s_churn", 1, "it is a field of edm; valid here: atol"),
        ("sampling.sampler", "ddim(0.5)", "must be a name, with options as in ddim(eta=0.5)"),
        ("sampling.sampler", "ddim(eta=[x])", "eta must be a number or a name"),
        ("sampling.sampler", "heun(eta=1)", "no field 'eta' when its sampler is 'heun'"),
        ("comparison.samplers", "ddim(etta=1)", "sampler 'ddim' has no option 'etta'; did you mean 'eta'"),
        ("comparison.samplers", "ddim(eta=much)", "eta of ddim must be a finite number"),
        (
            "comparison.samplers",
            "deis(clock=lamda)",
            "sampler 'deis': clock 'lamda' is unknown; did you mean 'lam'",
        ),
        ("comparison.samplers", "ddim,(", "must be a name, with options"),
        ("sde.name", "vpp", "sde.name 'vpp' is unknown; did you mean 'vp'"),
        ("model.name", "unett", "did you mean 'unet'"),
        ("model.predicts", "nois", "did you mean 'noise'"),
        ("sampling.sampler", "dimm", "did you mean 'ddim'"),
        ("comparison.samplers", "ddim,euler_maruyana", "did you mean 'euler_maruyama'"),
        ("comparison.metrics", "frechett", "did you mean 'frechet'"),
        ("training.log_every", "many", "training.log_every must be an integer (default 10), got 'many'"),
        ("training.batch_size", 1.5, "must be an integer"),
        ("training.batch_size", True, "must be an integer"),
        ("sampling.rtol", "nan", "must be a finite number"),
        ("sampling.denoise", "maybe", "must be true or false"),
        ("sampling.denoise", 2, "must be true or false"),
        ("model.predicts", 3, "must be a string"),
        ("comparison.num_steps", "5,x", "must be an integer"),
        ("comparison.num_steps", "", "got an empty one"),
        ("sde", "ve", "is a section, give one of its fields"),
        ("seed.value", "1", "single value"),
    ],
)
def test_mistakes_are_refused_with_a_hint(field, value, message):
    with pytest.raises(ValueError) as error:
        c.load_config("digits", {field: value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("nowhere.py", "does not exist"),
        ("nowhere.json", "does not exist"),
        ("digits.yaml", "give the path of a .py or .json file"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(ValueError, match=message):
        c.load_config(source)


def test_python_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from sde_toolkit.config import base_config\n"
        "def get_config():\n"
        "    config = base_config(data='moons', model='mlp')\n"
        "    config.training.num_steps = 7\n"
        "    return config\n"
    )
    config = c.load_config(str(path), {"training.batch_size": "3"})
    assert (config.data.name, config.training.num_steps, config.training.batch_size) == ("moons", 7, 3)
    path.write_text(
        "from sde_toolkit.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.sampling.sampler, config.sde.name = 'heun', 've'\n"
        "    config.sampling.t_min = 0.01\n"
        "    return config\n"
    )
    config = c.load_config(str(path))
    assert (config.sampling.sampler, config.sampling.t_min, config.sde.sigma_max) == ("heun", 0.01, 50.0)
    assert "eta" not in config.sampling
    path.write_text(path.read_text().replace("t_min = 0.01", "eta = 0.5"))
    with pytest.raises(ValueError, match="no field 'eta' when its sampler is 'heun'"):
        c.load_config(str(path))
    path.write_text("get = 3\n")
    with pytest.raises(ValueError, match="must define get_config"):
        c.load_config(str(path))
    path.write_text("def get_config():\n    return {'training': {'steps': 3}}\n")
    with pytest.raises(ValueError, match="no field 'steps'"):
        c.load_config(str(path))


def test_json_file_may_hold_a_part(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"seed": 5, "data": {"name": "ring"}, "model": {"name": "mlp", "width": 16}}))
    config = c.load_config(str(path))
    assert (config.seed, config.data.name, config.model.width, config.sde.name) == (5, "ring", 16, "vp")
    for text, message in (
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"sed": 1}', "'sed'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            c.load_config(str(path))


def test_loaded_config_is_frozen():
    config = c.load_config("digits")
    with pytest.raises(AttributeError):
        config.training.batch_size = 3
    assert isinstance(c.base_config(), ConfigDict)
    c.base_config().training.batch_size = 3


def test_likelihood_options(tiny):
    dataset = c.build_dataset(tiny)
    assert c.likelihood_options(tiny)["divergence"] == ExactDivergence()
    by_size = c.override_config(tiny, {"likelihood.divergence": "auto", "likelihood.target_se": 0.1})
    assert (c.likelihood_options(by_size)["divergence"], c.likelihood_options(by_size)["target_se"]) == (
        "auto",
        0.1,
    )
    probed = c.override_config(tiny, {"likelihood.divergence": "probes", "likelihood.num_probes": 3})
    assert "target_se" not in c.likelihood_options(probed)
    assert c.likelihood_options(probed)["divergence"] == Hutchinson(3)
    sketched = {"likelihood.divergence": "hutch++", "likelihood.method": "ab4", "likelihood.num_steps": 12}
    options = c.likelihood_options(c.override_config(tiny, sketched | {"likelihood.endpoint": "tweedie"}))
    assert (options["endpoint"], options["num_diagnostic_samples"]) == (Endpoint("tweedie"), 8)
    assert options["divergence"] == HutchPlusPlus(1)
    assert (options["solver"].method, options["solver"].num_steps) == (AB4, 12)
    with pytest.raises(ValueError, match="did you mean 'tweedie'"):
        c.override_config(tiny, {"likelihood.endpoint": "twedie"})
    with pytest.raises(ValueError, match="num_diagnostic_samples must be at least 0, got -1"):
        c.likelihood_options(c.override_config(tiny, {"likelihood.num_diagnostic_samples": "-1"}))
    few = c.override_config(tiny, {"likelihood.num_examples": 5, "likelihood.split": "all"})
    assert len(c.held_out(few, dataset)) == 5
    assert len(c.raw_examples(few, dataset)) == 5
    with pytest.raises(ValueError, match=r"config\.likelihood\.bounds 'elbo' is unknown"):
        c.override_config(tiny, {"likelihood.bounds": "elbo"})
    assert len(c.held_out(c.override_config(few, {"likelihood.num_examples": 0}), dataset)) == 96


def test_metrics_by_name(tiny):
    problem = Problem("ring", c.build_model(tiny, (2,), 1.0), c.build_dataset(tiny).scaled_test())
    made = c.build_metrics(tiny, problem, problem.real)
    assert [metric.name for metric in made] == ["energy distance", "sliced Wasserstein", "squared MMD"]
    assert all(len(metric.real) == 32 for metric in made)
    frechet = c.override_config(tiny, {"comparison.metrics": "frechet"})
    with pytest.raises(ValueError, match="only the digits have"):
        c.build_metrics(frechet, problem, problem.real)


FIELDS = (
    "training.batch_size",
    "sampling.rtol",
    "sampling.denoise",
    "comparison.num_steps",
    "sde.name",
    "sampling.sampler",
    "comparison.samplers",
    "x.y",
)


VALUES = (st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.integers()))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FIELDS), st.one_of(*VALUES))
def test_any_value_is_taken_or_refused_with_a_sentence(field, value):
    base, message = c.load_config("digits"), ""
    section, name = field.split(".")
    try:
        changed = c.override_config(base, {field: value})
    except ValueError as error:
        message = str(error)
    if message:
        assert name in message or "no section 'x'" in message
    else:
        assert type(changed[section][name]) is type(base[section][name])


@pytest.mark.parametrize(
    ("theirs", "ours"), [("epsilon", "noise"), ("sample", "data"), ("v_prediction", "velocity")]
)
def test_predictions_may_have_the_names_of_diffusers(tiny, theirs, ours):
    assert c.override_config(tiny, {"model.predicts": theirs}).model.predicts == ours
    assert c.parse_config({"model": {"predicts": theirs}}).model.predicts == ours


def test_device_and_number_type_are_those_of_the_network(tiny):
    assert c.resolve_device(tiny).type in ("cpu", "cuda", "mps")
    config = c.override_config(tiny, {"device": "cpu", "dtype": "float64"})
    model = c.build_model(config, (2,), 1.0)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float64)
    single = c.build_model(c.override_config(tiny, {"device": "cpu"}), (2,), 1.0)
    for a, b in zip(model.network.parameters(), single.network.parameters(), strict=True):
        assert torch.equal(a.float(), b)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"config.device '{device}' is not usable on this machine"):
            c.resolve_device(c.override_config(tiny, {"device": device}))


def test_a_checkpoint_of_an_older_layout_still_gives_what_was_trained():
    old = {"seed": 3, "sde": {"name": "ve"}, "sampling": {"sampler": "ddim", "predictor": "x"},
           "comparison": {"samplers": ["heun"]}}  # fmt: skip
    trained = c.trained_sections(old)
    assert (trained.seed, trained.sde.name, trained.comparison.samplers) == (3, "ve", ("ddim",))
    with pytest.warns(UserWarning, match=r"config.sampling is not used: .* no field 'predictor'"):
        config = c.checkpoint_config(old)
    assert (config.sampling.sampler, config.comparison.samplers) == ("default", ("heun",))


def test_weights_and_laws_of_the_times_take_options():
    def loss(**fields):
        return c.build_loss(c.load_config("digits", {f"loss.{k}": v for k, v in fields.items()}))

    assert loss(weighting="min_snr(gamma=3.0)").weighting == training.MinSNR(3.0)
    assert loss(weighting="p2").weighting == "p2"
    found = loss(time_sampling="log_normal(mean=-0.4, std=1.0)").time_sampling
    assert found == training.LogNormal(-0.4, 1.0)
    assert loss(time_sampling="logit_normal(std=0.5)").time_sampling == training.logit_normal(0.0, 0.5)
    for text, said in {
        "noise(gamma=3)": "config.loss.weighting: 'noise' has no options; those with options are edm, ",
        "min_snr(k=3)": "config.loss.weighting: 'min_snr' has no option 'k'; valid: gamma",
        "min_snr(gamma=0.0)": "gamma must be a finite positive number, got 0",
        "min_snr(3)": "must be a name, with options as in",
        "simple": "weighting must be one of noise",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            loss(weighting=text)


@pytest.mark.parametrize(
    ("name", "shape", "small"),
    [
        ("dit", (1, 8, 8), {"width": 8, "depth": 1, "num_heads": 2}),
        ("ncsnpp", (1, 8, 8), {"channels": (8, 8), "layers_per_block": 1, "time_embedding": "positional"}),
        ("unet1d", (2, 8), {"channels": (8, 8)}),
    ],
)
def test_networks_by_name(name, shape, small):
    changes = {"model.name": name, "model.num_classes": 2, "seed": 5}
    config = c.load_config("digits", changes | {f"model.{key}": value for key, value in small.items()})
    network = c.build_model(config, shape, 0.5).network
    assert type(network).__name__.lower() == name
    wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in small.items()}
    assert wanted.items() <= network.arguments.items()
    assert (network.num_classes, network.arguments["seed"]) == (2, 5)


def test_an_unknown_time_embedding_is_told_the_valid_ones():
    config = c.load_config("digits", {"model.name": "ncsnpp", "model.time_embedding": "sine"})
    with pytest.raises(ValueError, match=r"time_embedding must be one of .*'fourier', 'positional'"):
        c.build_network(config, (1, 8, 8))
