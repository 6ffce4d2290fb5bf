"""``sde-toolkit ema``: from a run in the shell to averages that every verb opens."""

import re

import pytest
import torch

from sde_toolkit import cli, runs
from sde_toolkit.training import load_model

TINY = [
    *("--config=ring", "--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64"),
    *("--config.data.num_test=40", "--config.training.batch_size=16", "--config.training.num_steps=60"),
    *("--config.training.checkpoint_every=30", "--config.training.snapshot_every=3"),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("ema") / "ring"
    assert cli.main(["train", f"--workdir={path}", *TINY]) == 0
    return path


def test_training_says_what_the_snapshots_take(tmp_path, capsys):
    assert cli.main(["train", f"--workdir={tmp_path}", *TINY, "--config.training.num_steps=4"]) == 0
    assert "snapshots of averages still to be stored: 1, 0.0 MiB in all" in capsys.readouterr().err
    assert cli.main(["train", f"--workdir={tmp_path}", *TINY, "--config.training.num_steps=8"]) == 0
    assert "snapshots of averages still to be stored: 1" in capsys.readouterr().err
    assert len(list((tmp_path / "snapshots").iterdir())) == 2


def test_averages_are_written_measured_and_opened(workdir, capsys):
    assert cli.main(["ema", f"--workdir={workdir}", "--sigma_rel=.05,.08"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == ["sigma_rel", "0.05", "0.08", "run's", "next"]
    assert all(re.search(r"\d ± \d", line) for line in lines[1:4])
    assert shown.err == ""
    place = workdir / "averages" / "sigma_rel-0.08-step-60"
    run = runs.open_run(place)
    model = load_model(place / "checkpoints" / "step-00000060.safetensors")
    for name, parameter in run.model.network.named_parameters():
        assert torch.equal(parameter, model.network.get_parameter(name))
    assert run.fingerprint != runs.open_run(workdir).fingerprint
    words = ["--sampler=ddim", "--num_steps=2", "--num_samples=3"]
    assert cli.main(["sample", f"--workdir={place}", *words]) == 0
    assert (place / "samples" / "ddim-2-seed0.npz").is_file()


def test_what_the_snapshots_cannot_give_is_said(workdir, tmp_path, capsys):
    words = ["ema", f"--workdir={workdir}", f"--output={tmp_path}", "--sigma_rel=.08", "--step=44"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    far = r"at step 44 is far from .* (\d+)% of its profile is missing; .* is 45\n"
    found = re.search(far, shown.err)
    assert found is not None
    assert 5 < int(found[1]) < 100
    assert (tmp_path / "sigma_rel-0.08-step-44").is_dir()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sigma_rel=a"], "must be lengths as in .05,.1,.15, got 'a'"),
        (["--sigma_rel=.5"], "sigma_rel must be between 0.0001 and 0.2887"),
        (["--step=61"], "step must be at most 60"),
        (["--step=0"], "step must be an integer >= 1, got 0"),
    ],
)
def test_wrong_words_get_a_sentence(workdir, words, sentence, capsys):
    try:
        code = cli.main(["ema", f"--workdir={workdir}", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_a_run_without_snapshots_is_told_how_to_have_them(tmp_path, capsys):
    few = ["--config.training.num_steps=2", "--config.training.snapshot_every=0"]
    assert cli.main(["train", f"--workdir={tmp_path}", *TINY, *few]) == 0
    assert not (tmp_path / "snapshots").exists()
    assert cli.main(["ema", f"--workdir={tmp_path}"]) == 2
    assert "--config.training.snapshot_every=100" in capsys.readouterr().err
    words = ["train", f"--workdir={tmp_path}", *TINY, "--config.training.num_steps=4"]
    assert cli.main(words) == 2
    assert "optimization.ema_traces: [] -> [0.05, 0.1]" in capsys.readouterr().err


def test_a_run_trained_from_python_has_averages_without_losses(tmp_path, capsys):
    import sde_toolkit as sde

    torch.manual_seed(0)
    network = sde.networks.MLP((2,), width=8, depth=1)
    model = sde.NetworkModel(network, sde.VPSDE(), "velocity", (2,))
    state = sde.TrainState(model, sde.Optimization(ema_traces=(0.05, 0.1)))
    sde.fit(state, torch.randn(64, 2), sde.DenoisingLoss(), 30, 16, tmp_path, snapshot_every=3)
    assert cli.main(["ema", f"--workdir={tmp_path}", "--sigma_rel=.07"]) == 0
    assert "held-out losses are left out" in capsys.readouterr().err
    assert runs.open_run(tmp_path / "averages" / "sigma_rel-0.07-step-30").step == 30
