"""Runs: training in a directory, opening what is there, files of samples."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sde_toolkit import runs
from sde_toolkit.config.builders import build_dataset, build_sampler
from sde_toolkit.config.loading import load_config
from sde_toolkit.training.checkpoint import read_checkpoint
from sde_toolkit.utils.files import WorkdirLock

TINY = {
    "model.width": 8,
    "model.depth": 1,
    "data.num_train": 64,
    "data.num_test": 40,
    "training.num_steps": 12,
    "training.batch_size": 16,
    "training.checkpoint_every": 5,
    "training.log_every": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return runs.train_run(workdir, "ring", TINY)


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the trained run, to be changed."""
    return shutil.copytree(trained.workdir, tmp_path / "run")


def weights(run):
    return [parameter.clone() for parameter in run.model.network.parameters()]


def test_training_leaves_checkpoint_config_and_history(trained):
    assert trained.step == 12
    assert json.loads((trained.workdir / "config.json").read_text())["model"]["width"] == 8
    history = runs.read_history(trained.workdir)
    assert [row["step"] for row in history] == [2, 4, 6, 8, 10, 12]
    assert all(row["loss"] > 0 and row["seconds"] > 0 for row in history)
    assert not any(parameter.requires_grad for parameter in trained.model.network.parameters())


def test_opened_run_is_the_trained_one(trained):
    again = runs.open_run(trained.workdir)
    assert again.fingerprint == trained.fingerprint
    assert again.config == trained.config
    assert all(map(torch.equal, weights(again), weights(trained)))
    assert again.model.data_std == pytest.approx(build_dataset(trained.config).data_std)


def test_second_call_reuses_and_more_steps_go_on(workdir, trained):
    starts, steps = [], []
    again = runs.train_run(workdir, None, {}, on_start=starts.append, on_step=steps.append)
    assert (starts[0].step, starts[0].num_steps, steps) == (12, 12, [])
    assert again.fingerprint == trained.fingerprint
    more = runs.train_run(workdir, None, {"training.num_steps": 15}, on_step=steps.append)
    assert [info.step for info in steps] == [13, 14, 15]
    assert more.step == 15
    assert [row["step"] for row in runs.read_history(workdir)] == [2, 4, 6, 8, 10, 12, 14]


def test_interrupted_run_ends_with_the_same_weights(tmp_path, trained):
    def stop(info):
        if info.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train_run(tmp_path / "run", "ring", TINY, on_step=stop)
    assert runs.saved_step(tmp_path / "run") == 8
    whole = runs.train_run(tmp_path / "run", "ring", TINY)
    assert whole.fingerprint == trained.fingerprint


def test_history_cut_short_by_a_kill_is_read(workdir):
    path = workdir / "history.csv"
    path.write_text(path.read_text() + "14,0.5,1")
    assert [row["step"] for row in runs.read_history(workdir)] == [2, 4, 6, 8, 10, 12]
    assert runs.read_history(workdir / "nowhere") == []
    for damage in (b"\xff\xfe,1,2,3,4\n", b"x" * 200_000 + b"\n", b"16,nan,1,1,1\n", b"18,1e999,1,1,1\n"):
        path.write_bytes(path.read_bytes() + b"\n" + damage)
        assert [row["step"] for row in runs.read_history(workdir)] == [2, 4, 6, 8, 10, 12]


def test_only_fields_that_do_not_bear_on_the_weights_may_change(trained):
    run = runs.open_run(trained.workdir, {"sampling.sampler": "heun", "sampling.num_steps": "3"})
    assert build_sampler(run.config).num_steps == 3
    with pytest.raises(ValueError, match=r"trained with another config \(sde.beta_max: 20.0 -> 10.0\)"):
        runs.open_run(trained.workdir, {"sde.beta_max": 10})


def test_run_of_another_config_is_not_resumed(workdir):
    with pytest.raises(ValueError, match=r"model\.width: 8 -> 16"):
        runs.train_run(workdir, "ring", {**TINY, "model.width": 16})


def test_missing_runs_say_how_to_make_one(tmp_path):
    with pytest.raises(
        ValueError, match=r"does not exist; run `sde-toolkit train --config=digits --workdir="
    ):
        runs.open_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no checkpoint; run `sde-toolkit train"):
        runs.open_run(tmp_path)
    with pytest.raises(ValueError, match="config must be given"):
        runs.train_run(tmp_path, None, {})
    with pytest.raises(ValueError, match="no trained checkpoint ships for config 'ring'"):
        runs.open_shipped("ring")


def test_workdir_in_use_is_refused(workdir):
    with WorkdirLock(workdir), pytest.raises(ValueError, match="in use"):
        runs.train_run(workdir, None, {})


def test_no_room_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("sde_toolkit.runs.learning.train.MIN_FREE_BYTES", 2**62)
    steps = []
    with pytest.raises(OSError, match="make room or choose another workdir"):
        runs.train_run(tmp_path, "ring", TINY, on_step=steps.append)
    assert steps == []


def test_exported_checkpoint_holds_the_averaged_weights(trained, tmp_path):
    size = runs.export_run(trained, tmp_path / "new" / "ring.safetensors")
    exported = read_checkpoint(tmp_path / "new" / "ring.safetensors")
    assert exported.kind == "inference"
    assert size < trained.checkpoint.path.stat().st_size
    for name, tensor in trained.checkpoint.part("ema").items():
        assert torch.equal(exported.part("ema")[name], tensor)


def test_samples_survive_the_file(trained, tmp_path):
    samples = build_sampler(trained.config, "ddim", 2).sample(trained.model, 5, seed=3)
    path = tmp_path / "new" / "x.npz"
    runs.save_samples(path, samples, trained.config, trained.fingerprint)
    x, note = runs.load_samples(path)
    assert torch.equal(x, samples.x)
    assert (note["seed"], note["nfe"], note["model"]) == (3, samples.nfe, trained.fingerprint)
    assert note["settings"] == samples.settings
    assert note["config"]["model"]["width"] == 8


def test_pickled_and_broken_samples_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    stream = io.BytesIO()
    np.savez(stream, x=np.array([Trap()], dtype=object), note=np.array("{}"))
    for content in (stream.getvalue(), pickle.dumps([1]), b"", b"PK\x03\x04 cut"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of samples"):
            runs.load_samples(tmp_path / "x.npz")


def test_displayable_images_lie_in_the_unit_interval():
    dataset = build_dataset(load_config("digits"))
    shown = runs.displayable(
        3 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), dataset.scaling
    )
    assert shown.min() == 0
    assert shown.max() == 1
    vectors = torch.randn(4, 2)
    assert np.array_equal(runs.displayable(vectors, dataset.scaling), vectors.numpy())


def test_checkpoint_older_than_a_field_is_opened_and_resumed(workdir, trained):
    path = workdir / "checkpoints" / trained.checkpoint.path.name
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["sde_toolkit"])
    del document["config"]["optimization"]["weight_decay"]
    save_file(load_file(path), path, {"sde_toolkit": json.dumps(document)})
    assert runs.open_run(workdir).fingerprint == trained.fingerprint
    assert runs.train_run(workdir, None, {"training.num_steps": 13}).step == 13


def test_a_class_of_an_opened_run_is_sampled_like_any_model(tmp_path):
    run = runs.train_run(tmp_path, "ring", TINY | {"model.num_classes": 8, "training.num_steps": 2})
    sampler = build_sampler(run.config, "default", 4, run.model.given(3))
    three, five = (sampler.sample(run.model.given(label), 6, seed=1).x for label in (3, 5))
    assert three.shape == (6, 2)
    assert not torch.equal(three, five)
    moments, data = run.model.given(3).moments, build_dataset(run.config)
    torch.testing.assert_close(moments.mean, data.train[data.labels_train == 3].double().mean(0))
    ddim = build_sampler(run.config, "ddim", 3)
    labels = torch.tensor([3, 5, 3, 5])
    mixed = ddim.sample(run.model, 4, condition=labels, seed=1).x
    alone = ddim.sample(run.model.given(5), 4, seed=1).x
    torch.testing.assert_close(mixed[1::2], alone[1::2])


def test_the_shipped_class_configuration_builds_a_network_of_ten_classes():
    config = load_config("digits_classes")
    assert config.model.num_classes == 10
    assert config.training.label_dropout == 0.1
    labels = build_dataset(config).labels_train
    assert labels is not None
    assert set(labels.tolist()) == set(range(10))


def test_the_examples_of_a_class():
    dataset = build_dataset(load_config("digits"))
    threes = runs.examples_of_class(dataset, 3)
    assert set(threes.labels_train.tolist()) == set(threes.labels_test.tolist()) == {3}
    assert len(threes.train) == int((dataset.labels_train == 3).sum())
    assert torch.equal(threes.test, dataset.test[dataset.labels_test == 3])
    assert runs.examples_of_class(dataset, None) is dataset
    with pytest.raises(ValueError, match=r"one of \[0, 1, .*\], got 12"):
        runs.examples_of_class(dataset, 12)
    with pytest.raises(ValueError, match="label must be left out for data without labels"):
        runs.examples_of_class(build_dataset(load_config("checkerboard")), 0)


def test_a_run_is_opened_in_the_number_type_of_its_configuration():
    """Whatever the type of the weights in the checkpoint."""
    double, single = (runs.open_shipped("digits", {"dtype": dtype}).model for dtype in ("float64", "float32"))
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    for a, b in zip(double.network.parameters(), single.network.parameters(), strict=True):
        assert torch.equal(a, b.double())
