"""Checkpoints of score_sde: networks that give its outputs, files that are read as data, refusals."""

import math
import os
import pickle
from pathlib import Path

import pytest
import score_sde_files as files
import torch

from sde_toolkit import samplers
from sde_toolkit.interop import (
    ForeignModel,
    ScoreSDEConfig,
    ScoreSDENetwork,
    from_score_sde,
    read_score_sde_config,
)
from sde_toolkit.interop.score_sde.keys import entries_of
from sde_toolkit.likelihood import BoundDraws, FlowSolver, continuous_bound, discrete_bound, log_likelihood
from sde_toolkit.models import IndexedModel
from sde_toolkit.sdes import VESDE, VPSDE, LinearBeta, SubVPSDE

NAMES = tuple(files.FIELDS)

DEFAULTS = """
import ml_collections
import torch


def get_default_configs():
  config = ml_collections.ConfigDict()
  config.training = training = ml_collections.ConfigDict()
  config.training.batch_size = 128
  training.continuous = True
  config.data = data = ml_collections.ConfigDict()
  data.image_size, = 32,
  config.device = torch.device('cuda:0') if torch.cuda.is_available() else torch.device('cpu')
  return config
"""
CONFIG = '''
"""A configuration."""
from configs.default_cifar10_configs import get_default_configs


def get_config():
  config = get_default_configs()
  training = config.training
  training.sde = 'vesde'
  data = config.data
  data.image_size = 64 // 2 if False else 8
  data.num_channels = 3
  return config
'''


def lines(name):
    """A configuration file with the fields of a network."""
    fields = files.FIELDS[name]
    text = ["import ml_collections, torch", "", "def get_config():", "  config = ml_collections.ConfigDict()"]
    for section, values in fields.items():
        text.append(f"  config.{section} = {section} = ml_collections.ConfigDict()")
        text += [f"  {section}.{field} = {value!r}" for field, value in values.items()]
    text += ["  config.device = torch.device('cuda:0') if torch.cuda.is_available() else torch.device('cpu')"]
    return "\n".join([*text, "  return config", ""])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("score_sde")
    for name in NAMES:
        files.write(made, name)
        (made / f"{name}.py").write_text(lines(name))
    return made


def network_of(model):
    return getattr(model.network, "network", model.network)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_and_shapes_are_the_published_ones_in_their_order(name):
    entries = entries_of(read_score_sde_config(files.FIELDS[name]))
    assert [(entry.key, entry.shape) for entry in entries] == files.keys(name)
    assert [e.key for e in entries if not e.averaged] == [
        e.key for e in entries if e.key == "all_modules.0.W"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_the_outputs_of_the_published_code(folder, name):
    """From its moving averages, by a configuration file that is parsed."""
    model = from_score_sde(folder / f"{name}.pth", folder / f"{name}.py")
    labels, places, size = files.OUTPUTS[name]
    network = network_of(model).double()
    with torch.no_grad():
        y = network(files.INPUT, labels)
        narrow = network_of(from_score_sde(folder / f"{name}.pth", files.FIELDS[name]))
        y32 = narrow(files.INPUT.float(), labels.float())
    assert y[:, :, 0, 5].flatten().tolist() == pytest.approx(places, rel=1e-10)
    assert float(y.abs().mean()) == pytest.approx(size, rel=1e-10)
    assert (y32.double() - y).abs().max() < 1e-5 * y.abs().max()


def test_the_published_network_has_as_many_parameters_as_it_is_said_to_have():
    fields = files.FIELDS["NCSNPP"]
    wide = {"nf": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 4, "attn_resolutions": (16,)}
    config = {
        **fields,
        "data": fields["data"] | {"image_size": 32},
        "model": fields["model"] | wide,
    }
    entries = entries_of(read_score_sde_config(config))
    # without the random frequencies
    assert sum(math.prod(entry.shape) for entry in entries if entry.averaged) == 62_758_787


def test_models_have_the_processes_labels_and_data_of_score_sde(folder):
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    x = files.INPUT.float()
    ve = from_score_sde(folder / "NCSNPP.pth", files.FIELDS["NCSNPP"])
    assert isinstance(ve, ForeignModel)
    assert (ve.sde.sigma_min, ve.sde.sigma_max) == (0.01, 50.0)
    assert isinstance(ve.sde, VESDE)
    state, label = ve.arguments(x, t)
    assert state is x
    assert label.tolist() == pytest.approx((0.01 * 5000**t).tolist(), rel=1e-6)
    assert torch.equal(ve.score(x, t), network_of(ve)(x, label))
    sub = from_score_sde(folder / "DDPMPP.pth", files.FIELDS["DDPMPP"])
    assert isinstance(sub.sde, SubVPSDE)
    assert sub.sde.beta == LinearBeta(0.1, 20.0)
    label = sub.arguments(x, t)[1]
    assert label.tolist() == pytest.approx((999 * t).tolist(), rel=1e-6)
    std = sub.sde.sigma(t).float().reshape(2, 1, 1, 1)
    torch.testing.assert_close(sub.score(x, t), -network_of(sub)(x, label) / std)
    # grey levels: [0, 1] and [-1, 1]
    assert ve.scaling.to_data(torch.tensor([0.0, 0.999])).tolist() == [0, 255]
    assert sub.scaling.to_data(torch.tensor([-1.0, 0.999])).tolist() == [0, 255]


def test_a_model_of_indices_is_asked_at_its_labels(folder):
    model = from_score_sde(folder / "DDPM.pth", files.FIELDS["DDPM"])
    assert isinstance(model, IndexedModel)
    chain = model.sde.chain
    betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)
    torch.testing.assert_close(chain.betas, betas)
    x = files.INPUT.float()
    assert model.arguments(x, chain.times[733])[1].tolist() == pytest.approx([732.0] * 2)
    # under VE labels count from the largest noise level
    fields = files.FIELDS["DDPM"] | {"training": {"sde": "vesde", "continuous": False}}
    ve = from_score_sde(folder / "DDPM.pth", fields)
    levels = ve.sde.chain.sigmas
    assert (float(levels[0]), float(levels[1]), float(levels[-1])) == pytest.approx((0, 0.01, 50.0))
    torch.testing.assert_close(
        ve.network(x, torch.tensor([0, 3])), network_of(ve)(x, torch.tensor([999, 996]))
    )
    scaled = fields | {"model": fields["model"] | {"scale_by_sigma": True}}
    divided = from_score_sde(folder / "DDPM.pth", scaled).network(x, torch.tensor([0, 3]))
    std = levels[[1, 4]].float().reshape(2, 1, 1, 1)
    torch.testing.assert_close(divided * std, ve.network(x, torch.tensor([0, 3])))


@pytest.mark.parametrize("name", ["NCSNPP", "DDPMPP", "DDPM"])
def test_samplers_run_on_a_loaded_model(folder, name):
    model = from_score_sde(folder / f"{name}.pth", files.FIELDS[name])
    for sampler in (samplers.dpm_solver_pp(3), samplers.reverse_diffusion(3)):
        found = sampler.sample(model, 2, seed=1)
        assert found.x.shape == (2, 3, 8, 8)
        assert bool(found.x.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NCSNPP", "DDPMPP", "DDPM"])
def test_likelihoods_and_bounds_run_on_a_loaded_model(folder, name):
    model, x = from_score_sde(folder / f"{name}.pth", files.FIELDS[name]), torch.full((1, 3, 8, 8), 0.25)
    found = log_likelihood(model, x, solver=FlowSolver(num_steps=4), divergence=1)
    assert bool(found.nats.isfinite().all())
    draws = BoundDraws(num_draws=2)
    if name == "DDPM":
        bound = discrete_bound(model, x, model.sde.chain, draws=draws)
    else:
        bound = continuous_bound(model, x, draws=draws)
    assert bool(bound.nats.isfinite().all())


def test_the_last_weights_are_others_than_the_averages(folder):
    model = from_score_sde(folder / "DDPM.pth", files.FIELDS["DDPM"], ema=False)
    averaged = from_score_sde(folder / "DDPM.pth", files.FIELDS["DDPM"])
    a, b = (network_of(m).state_dict() for m in (model, averaged))
    for key in a:
        shift = 0.0 if key == "sigmas" else 0.5
        torch.testing.assert_close(a[key], b[key] + shift)
    assert not any(p.requires_grad for p in averaged.parameters())
    assert not averaged.training


def test_a_configuration_is_read_with_its_defaults_and_never_run(tmp_path):
    home = tmp_path / "configs" / "ve"
    home.mkdir(parents=True)
    (home / "mine.py").write_text(CONFIG + "\nraise SystemExit('it was run')\n")
    with pytest.raises(FileNotFoundError, match=r"configs/default_cifar10_configs.py \(line 7\)"):
        read_score_sde_config(home / "mine.py")
    (tmp_path / "configs" / "default_cifar10_configs.py").write_text(DEFAULTS)
    with pytest.raises(ValueError, match="sets something else than a name or a field"):
        read_score_sde_config(home / "mine.py")
    (tmp_path / "configs" / "default_cifar10_configs.py").write_text(
        DEFAULTS.replace("image_size, = 32,", "x = 1")
    )
    with pytest.raises(ValueError, match="must have the section 'model'"):
        read_score_sde_config(home / "mine.py")
    more = "  config.model = ml_collections.ConfigDict()\n  return config"
    (home / "mine.py").write_text(CONFIG.replace("  return config", more))
    with pytest.raises(
        ValueError, match=r"data.image_size must be written as a number.*the fields as a dict"
    ):
        read_score_sde_config(home / "mine.py")
    (home / "mine.py").write_text(
        CONFIG.replace("64 // 2 if False else 8", "4 * 2").replace("  return config", more)
    )
    with pytest.raises(ValueError, match=r"config must set model.name|config must set training|must set"):
        read_score_sde_config(home / "mine.py")


def test_fields_keep_their_values(folder):
    config = read_score_sde_config(folder / "PYRAMIDS.py")
    assert config == read_score_sde_config(files.FIELDS["PYRAMIDS"])
    assert isinstance(config, ScoreSDEConfig)
    assert (config.sigma_max, config.num_scales, config.ch_mult) == (1348.0, 2000, (1, 2))
    assert (config.fir, config.progressive, config.event_shape) == (True, "output_skip", (3, 8, 8))


def changed(section, network="NCSNPP", **values):
    fields = files.FIELDS[network]
    return fields | {section: fields[section] | values}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (changed("model", name="ncsnv2_64"), ValueError, "model.name must be one of ncsnpp, ddpm, got"),
        ({"training": {}, "data": {}, "model": {"name": "ncsn"}, "sampling": {}}, ValueError, "got 'ncsn'"),
        (changed("model", nf=None), TypeError, "config: model.nf must be of type int, got None"),
        (changed("model", nf=6), ValueError, "model.nf by 4, got 8 and 6"),
        (changed("model", nf=0), ValueError, "model.nf must lie in 1 to"),
        (changed("model", dropout=1.0), ValueError, "model.dropout must lie in"),
        (changed("model", conditional=False), ValueError, "model.conditional must be True"),
        (changed("model", fir_kernel=[1, 2, 1]), ValueError, "model.fir_kernel must be"),
        (changed("model", fir=False, progressive="output_skip"), ValueError, "model.fir must be True"),
        (changed("model", progressive="residual"), ValueError, "model.progressive must be one of none, out"),
        (changed("model", embedding_type="positional"), ValueError, 'model.embedding_type must be "fourier"'),
        (changed("training", sde="vpsde"), ValueError, 'model.embedding_type must be "positional"'),
        (changed("model", ch_mult=()), ValueError, "model.ch_mult must hold positive integers"),
        (changed("model", sigma_max=0.001), ValueError, "0 < sigma_min < sigma_max"),
        (changed("data", image_size=9), ValueError, "data.image_size must be divisible by 2"),
        (changed("training", sde="vp"), ValueError, "training.sde must be one of vpsde, subvpsde, vesde"),
        ({"model": {}}, ValueError, "config must have the section 'training'"),
        ("nowhere.py", FileNotFoundError, r"config must be a configuration of score_sde.*no such file"),
        (".", FileNotFoundError, "a folder"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused_with_a_sentence(config, error, message):
    with pytest.raises(error, match=message):
        read_score_sde_config(config)


def test_channels_that_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="the groups of their normalisation divide, got 132 channels in 32"):
        ScoreSDENetwork(read_score_sde_config(changed("model", nf=132)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "is no Python"),
        ("x = 1", "has no function get_config"),
        ("def get_config():\n  return 3", "line 2 of .* returns something else"),
        ("def get_config():\n  pass", "returns nothing"),
        ("def get_config():\n  for i in range(3): x = i\n", "line 2 of .* is no plain assignment: for i in"),
        ("def get_config():\n  config.x = 1\n  return config", "sets something else than a name"),
        ("def a():\n  return a()\ndef get_config():\n  c = a()\n  return c", "must not take a from itself"),
        (
            "def get_config():\n  c = ConfigDict()\n  c.x = c.y\n  return c",
            "reads the field 'y', which was not",
        ),
        (
            "def get_config():\n  return " + "-" * 5000 + "1",
            "is no Python|nests too deeply|returns something",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_with_a_sentence(tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_score_sde_config(tmp_path / "config.py")


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["zip", "pickle", "inside"])
def test_a_malicious_checkpoint_is_refused_and_nothing_runs(tmp_path, how):
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    else:
        saved = files.checkpoint("DDPM")
        torch.save(Hostile(mark) if how == "zip" else saved | {"step": Hostile(mark)}, path)
    with pytest.raises(ValueError, match=r"asks for .*system, which weights do not need; nothing was run"):
        from_score_sde(path, files.FIELDS["DDPM"])
    assert not mark.exists()


def broken(kind):
    saved = files.checkpoint("DDPM")
    model, shadows = saved["model"], saved["ema"]["shadow_params"]
    first = "module.all_modules.0.weight"
    if kind == "shape":
        shadows[0] = shadows[0][:, 1:]
    elif kind == "missing":
        del model[first]
    elif kind == "more":
        model["module.all_modules.99.weight"] = model[first]
    elif kind == "count":
        shadows.pop()
    elif kind == "levels":
        model["module.sigmas"] = model["module.sigmas"] * 2
    elif kind == "nan":
        shadows[3][0] = torch.nan
    elif kind == "no averages":
        del saved["ema"]
    elif kind == "integers":
        model[first] = model[first].long()
    elif kind == "other":
        saved = {"state_dict": {}}
    elif kind == "list":
        saved = [1]
    return saved


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"all_modules.0.weight has shape \(128, 31\) and not \(128, 32\)"),
        ("missing", "lacks all_modules.0.weight; give the configuration"),
        ("more", "has all_modules.99.weight"),
        ("count", "133 moving averages for 134 parameters"),
        ("levels", "1000 from 100 to 0.02, and a config with 1000 from 50 to 0.01"),
        ("nan", "nan or inf in all_modules"),
        ("no averages", "without moving averages; ema=False"),
        ("integers", "holds Tensor for 'module.all_modules.0.weight', not a tensor of real numbers"),
        ("other", r"which holds \['state_dict'\]"),
        ("list", "which holds list"),
    ],
)
def test_another_models_file_is_refused_with_a_sentence(tmp_path, kind, message):
    torch.save(broken(kind), tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        from_score_sde(tmp_path / "file.pth", files.FIELDS["DDPM"])


def test_files_that_are_no_checkpoints_are_refused_with_a_sentence(tmp_path, folder):
    for content in (b"", b"hello" * 100, (folder / "DDPM.pth").read_bytes()[:5000]):
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"path must be a checkpoint.*cannot be read as weights"):
            from_score_sde(tmp_path / "file.pth", files.FIELDS["DDPM"])
    for path, wrong in ((tmp_path, "a folder"), (tmp_path / "none.pth", "no such file")):
        with pytest.raises(FileNotFoundError, match=wrong):
            from_score_sde(path, files.FIELDS["DDPM"])
    with pytest.raises(ValueError, match=r"lacks all_modules.0.W.*and has|has .* and lacks|lacks"):
        from_score_sde(folder / "DDPM.pth", files.FIELDS["NCSNPP"])


def test_the_table_of_noise_levels_may_be_missing(tmp_path):
    saved = files.checkpoint("PYRAMIDS")
    levels = saved["model"].pop("module.sigmas")
    torch.save(saved, tmp_path / "file.pth")
    network = network_of(from_score_sde(tmp_path / "file.pth", files.FIELDS["PYRAMIDS"]))
    torch.testing.assert_close(network.sigmas, levels, rtol=1e-12, atol=0)


def test_a_process_keeps_the_rates_of_its_configuration(folder):
    fields = changed("model", "DDPM", beta_min=0.2, beta_max=10.0)
    fields["training"] = {"sde": "vpsde", "continuous": True}
    model = from_score_sde(folder / "DDPM.pth", fields)
    assert isinstance(model.sde, VPSDE)
    assert model.sde.beta == LinearBeta(0.2, 10.0)
