"""A forward process of the user's by its path: trained, resumed, sampled, never imported by a checkpoint."""

import pytest

from sde_toolkit import cli
from sde_toolkit import config as c
from sde_toolkit.runs import open_run
from sde_toolkit.sdes import CustomSDE

MINE = """
import pathlib
import torch
from sde_toolkit.sdes import CustomSDE

pathlib.Path(__file__).with_suffix(".ran").touch()


def cosine():
    return CustomSDE(lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t))


made, number = cosine(), 3


def broken():
    raise RuntimeError("no process today")
"""
SMALL = ["--config=ring", "--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64",
         "--config.data.num_test=16", "--config.training.batch_size=16", "--config.model.predicts=velocity",
         "--config.loss.weighting=noise", "--config.loss.time_sampling=stratified"]  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_paths_lead_to_processes_or_are_refused(mine):
    for name in ("cosine", "made"):
        assert isinstance(c.build_sde(c.load_config("ring", {"sde.name": f"{mine}:{name}"})), CustomSDE)
    config = c.load_config("ring", {"sde.name": f"{mine}:cosine"})
    assert c.config_from_json(c.config_json(config)) == config
    for name, said in (
        ("number", "must be a ForwardSDE, .*, got int"),
        ("broken", "failed: RuntimeError: no process today"),
        ("cosin", "has no function 'cosin'; did you mean 'cosine'"),
    ):
        with pytest.raises(ValueError, match=said):
            c.build_sde(c.load_config("ring", {"sde.name": f"{mine}:{name}"}))
    with pytest.raises(ValueError, match="'subv' is unknown; did you mean 'subvp'"):
        c.load_config("ring", {"sde.name": "subv"})


def test_a_run_goes_on_and_a_checkpoint_alone_imports_nothing(mine, tmp_path, capsys):
    workdir, own = tmp_path / "run", f"--config.sde.name={mine}:cosine"
    for steps in (2, 4):
        words = ["train", f"--workdir={workdir}", *SMALL, own, f"--config.training.num_steps={steps}"]
        assert cli.main(words) == 0
    brief = [f"--workdir={workdir}", "--num_steps=3", "--num_samples=2", "--sampler=ddim"]
    assert cli.main(["sample", *brief, own]) == 0
    mine.with_suffix(".ran").unlink()
    capsys.readouterr()
    assert cli.main(["sample", *brief]) == 2
    assert f"give it yourself with {own}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nothing that a file names is imported; give it yourself"):
        open_run(workdir)
    assert not mine.with_suffix(".ran").exists()
    assert open_run(workdir, {"sde.name": f"{mine}:cosine"}).model.sde.T == 1.0
