"""Opening runs whose checkpoints anyone may have written, and runs that were trained from Python."""

import json
import resource
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from sde_toolkit import cli, runs
from sde_toolkit.data.dataset import from_array
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.runs.trust import _doubt
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE, CustomSDE
from sde_toolkit.training.checkpoint import checkpoint_paths
from sde_toolkit.training.loop import fit
from sde_toolkit.training.model_file import load_model
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import TrainState
from sde_toolkit.training.tensor_file import write_tensors
from sde_toolkit.utils.files import WorkdirLock

TINY = {
    "model.width": 8, "model.depth": 1, "data.num_train": 64, "data.num_test": 40, "training.num_steps": 2,
    "training.batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return runs.train_run(workdir, "ring", TINY).workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def rewrite(workdir, change_document=lambda d: None, change_tensors=lambda t: None):
    """The newest checkpoint, changed by someone who can compute a digest."""
    path = checkpoint_paths(workdir)[-1]
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["sde_toolkit"])
    tensors = load_file(path)
    change_document(document)
    change_tensors(tensors)
    write_tensors(path, document, tensors)


def test_a_width_that_a_file_claims_takes_no_memory(workdir):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rewrite(workdir, lambda d: d["config"]["model"].update(width=12000, depth=8))
    with pytest.raises(ValueError, match=r"tensor 'ema.embed.0.weight' must have shape \(12000, 64\)"):
        runs.open_run(workdir)
    rewrite(workdir, lambda d: d["config"]["model"].update(width=8, depth=9999))
    with pytest.raises(ValueError, match="depth must be at most the number of tensors"):
        runs.open_run(workdir)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_directory_that_a_file_names_is_not_written_to(workdir, tmp_path):
    outside = tmp_path / "outside"
    rewrite(
        workdir, lambda d: d["config"]["sampling"].update(calibration_cache=str(outside), grid="calibrated")
    )
    with pytest.warns(UserWarning, match=r"calibration_cache = .*no path in a file is written to"):
        run = runs.open_run(workdir)
    assert run.config.sampling.calibration_cache == ""
    mine = runs.open_run(workdir, {"sampling.calibration_cache": str(outside)})
    assert mine.config.sampling.calibration_cache == str(outside)


def test_a_module_that_a_file_names_is_not_imported(workdir):
    rewrite(workdir, lambda d: d["config"]["sampling"].update(sampler="antigravity.sampler"))
    with pytest.warns(UserWarning, match="nothing that a file names is imported"):
        assert runs.open_run(workdir).config.sampling.sampler == "default"
    rewrite(workdir, lambda d: d["config"]["sampling"].update(sampler="default"))
    rewrite(workdir, lambda d: d["config"]["comparison"].update(samplers=["antigravity.a(b=1)"]))
    with pytest.warns(UserWarning, match=r"config\.comparison\.samplers"):
        runs.open_run(workdir)
    assert "antigravity" not in sys.modules


def test_the_size_of_data_that_a_file_claims_wants_to_be_confirmed(workdir, capsys):
    rewrite(workdir, lambda d: d["config"]["data"].update(num_train=10**8))
    run = runs.open_run(workdir)
    assert ddim(2).sample(run.model, 3).x.shape == (3, 2)
    with pytest.raises(ValueError, match=r"confirm it with --config.data.num_train=100000000"):
        run.dataset()
    assert cli.main(["likelihood", f"--workdir={workdir}"]) == 2
    assert "confirm it" in capsys.readouterr().err
    assert runs.open_run(workdir, {"data.num_train": "100000000"}).unconfirmed == ()


def test_numbers_of_the_use_that_a_file_claims_are_left_at_their_defaults(workdir):
    rewrite(workdir, lambda d: d["config"]["sampling"].update(num_samples=10**15, seed=10**12))
    with pytest.warns(UserWarning, match="counts only when it is given with the call"):
        config = runs.open_run(workdir).config
    assert (config.sampling.num_samples, config.sampling.seed) == (64, 10**12)


def test_a_run_is_resumed_with_the_same_distrust(workdir):
    rewrite(workdir, lambda d: d["config"]["model"].update(width=12000))
    with pytest.raises(ValueError, match=r"must have shape \(12000, 64\)"):
        runs.train_run(workdir, None, {"training.num_steps": 3})
    rewrite(workdir, lambda d: d["config"]["model"].update(width=8))
    rewrite(workdir, lambda d: d["config"]["data"].update(num_train=10**8))
    with pytest.raises(ValueError, match="confirm it"):
        runs.train_run(workdir, None, {"training.num_steps": 3})
    rewrite(workdir, lambda d: d["config"]["data"].update(num_train=64))
    assert runs.train_run(workdir, None, {"training.num_steps": 3}).step == 3


@pytest.mark.parametrize(
    ("value", "believed"),
    [("antigravity:thing", False), ("a.b:c", False), ("hf:mnist", True), ("a/b.npy", True), ("digits", True)],
)
def test_a_function_that_makes_data_is_not_imported(value, believed):
    assert (_doubt("data.source", value) is None) is believed


def drop(name):
    return lambda tensors: tensors.pop(name, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("data.")], "must have \"mean\""),
        (drop("data.mean"), "must have \"mean\""),
        (drop("data.scaling_shift"), "scaling must have a float64 scale and shift"),
        (lambda t: t.update({"data.mean": torch.full((2,), torch.nan)}), "must be finite"),
        (lambda t: t.update({"data.mean": torch.zeros(3)}), "covariance must be"),
        (lambda t: t.update({"data.mean": torch.tensor(1.0)}), "covariance must be"),
        (lambda t: t.update({"data.class_mean": torch.tensor(1.0)}), "one row for every class"),
        (lambda t: t.update({"data.class_mean": torch.zeros(2, 2)}), "must have \"mean\""),
        (drop("ema.last.bias"), "must hold the tensor 'ema.last.bias'"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("ema.")], "number of tensors, 0"),
    ],
)  # fmt: skip
def test_missing_and_broken_tensors_are_named(workdir, change, words, capsys):
    rewrite(workdir, change_tensors=change)
    with pytest.raises(ValueError, match=words) as caught:
        runs.open_run(workdir)
    assert "step-00000002" in str(caught.value)
    assert cli.main(["sample", f"--workdir={workdir}"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(step=-1), lambda d: d.update(step=1.5), lambda d: d.update(step=None),
        lambda d: d.update(config=None), lambda d: d["config"].update(model=None),
        lambda d: d["config"].update(data=[1]), lambda d: d["config"]["sde"].update(beta_max=10**400),
        lambda d: d["config"]["model"].update(width=10**30), lambda d: d["config"]["model"].update(width=-1),
        lambda d: d.update(kind="other"), lambda d: d["config"]["sde"].update(name=["vp"]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_broken_documents_are_refused_with_a_sentence(workdir, change):
    rewrite(workdir, change)
    with pytest.raises(ValueError):
        runs.open_run(workdir)


def by_hand(workdir, network=None, sde=None, **options):
    w = 100 + 20 * np.random.default_rng(0).standard_normal((200, 2))
    state = TrainState(NetworkModel(network or MLP((2,), 8, 1), sde or VPSDE(), "data", (2,)), **options)
    with WorkdirLock(workdir) as lock:
        fit(state, from_array(w), DenoisingLoss(), 5, 16, lock)
    return state


@pytest.mark.parametrize("config", [None, {"note": "mine", "model": {"width": 8}}])
def test_a_run_that_was_trained_from_python_is_opened(tmp_path, config, capsys):
    state = by_hand(tmp_path, config=config)
    run = runs.open_run(tmp_path)
    assert run.step == 5
    assert not run.has_config
    for sampler in (ddim(4), ddim(4, eta=1.0)):
        a, b = (sampler.sample(model, 6, seed=2) for model in (state.ema, run.model))
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.data, b.data)
    assert 20 < float(a.data.mean()) < 180
    with pytest.raises(ValueError, match="known to its maker alone"):
        run.dataset()
    with pytest.raises(
        ValueError, match=r"config.sde.name must be left out for a run that was trained from Pyth"
    ):
        runs.open_run(tmp_path, {"sde.name": "ve"})
    assert cli.main(["sample", f"--workdir={tmp_path}", "--num_samples=4", "--sampler=ddim"]) == 0
    assert cli.main(["likelihood", f"--workdir={tmp_path}"]) == 2
    assert "known to its maker alone" in capsys.readouterr().err
    assert runs.export_run(run, tmp_path / "a.safetensors") > 0
    exported = load_model(tmp_path / "a.safetensors")
    assert torch.equal(ddim(4, eta=1.0).sample(exported, 6, seed=2).data, a.data)
    with pytest.raises(ValueError, match=r"got one of kind 'training'.*open_run\(workdir\)"):
        load_model(checkpoint_paths(tmp_path)[-1])


@pytest.mark.parametrize("name", ["digits", "digits_classes", "mnist"])
def test_the_shipped_checkpoints_are_files_of_one_model(name):
    run = runs.open_shipped(name)
    model = load_model(runs.shipped_path(name))
    assert model.moments == run.model.moments
    assert model.scaling == run.model.scaling
    condition = 3 if model.num_classes else None
    x, y = (ddim(3).sample(m, 2, condition=condition).x for m in (model, run.model))
    assert torch.equal(x, y)


class Own(nn.Module):
    """A network of a user."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, c):
        return self.layer(x)


def test_a_run_with_a_network_or_a_process_of_yours_says_what_to_pass(tmp_path, trained):
    state = by_hand(tmp_path / "network", Own())
    with pytest.raises(ValueError, match=r"network must be given .*network= \(an argument of open_run\)"):
        runs.open_run(tmp_path / "network")
    run = runs.open_run(tmp_path / "network", network=Own())
    assert torch.equal(ddim(3).sample(run.model, 4).x, ddim(3).sample(state.ema, 4).x)
    sde = CustomSDE(lambda t: (-t).exp(), lambda t: t + 0.01)
    by_hand(tmp_path / "sde", sde=sde)
    with pytest.raises(ValueError, match=r"sde must be given .*sde= \(an argument of open_run\)"):
        runs.open_run(tmp_path / "sde")
    assert runs.open_run(tmp_path / "sde", sde=sde).model.sde is sde
    with pytest.raises(ValueError, match="network and sde must be left out"):
        runs.open_run(trained, network=Own())
