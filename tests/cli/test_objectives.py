"""Objectives that a configuration names, from the shell: train, resume, export, sample, likelihoods."""

import pytest
import torch

from sde_toolkit import cli
from sde_toolkit.runs import open_run
from sde_toolkit.training import read_checkpoint

SMALL = ["--config=ring", "--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64",
         "--config.data.num_test=16", "--config.training.batch_size=16",
         "--config.training.checkpoint_every=2", "--config.model.predicts=velocity",
         "--config.training.evaluate_every=2"]  # fmt: skip
CHAIN = ["--config.sde.name=ddpm_cosine", "--config.sde.num_steps=12"]
HYBRID = [*CHAIN, "--config.loss.name=hybrid", "--config.loss.index_sampling=importance"]


def shell(*words):
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.parametrize(
    "fields",
    [
        HYBRID,
        pytest.param([*CHAIN, "--config.loss.name=discrete"], marks=pytest.mark.slow),
        pytest.param(["--config.loss.name=sliced"], marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_the_whole_way(tmp_path, fields, capsys):
    whole, parts, file = tmp_path / "whole", tmp_path / "parts", tmp_path / "one.safetensors"
    shell("train", f"--workdir={whole}", *SMALL, *fields, "--config.training.num_steps=4")
    shell("train", f"--workdir={parts}", *SMALL, *fields, "--config.training.num_steps=2")
    shell("train", f"--workdir={parts}", *SMALL, *fields, "--config.training.num_steps=4")
    runs = [open_run(workdir) for workdir in (whole, parts)]
    assert runs[0].fingerprint == runs[1].fingerprint
    learned = fields is HYBRID
    assert runs[0].model.learned_variance == learned
    if not learned:  # blocks may be evaluated again from any step on
        again = ["--config.training.num_steps=6", "--config.training.checkpointing=true"]
        shell("train", f"--workdir={parts}", *SMALL, *fields, *again)
    shell("export", f"--workdir={whole}", f"--output={file}")
    exported = read_checkpoint(file).part("ema")
    assert all(torch.equal(exported[name], tensor) for name, tensor in runs[0].checkpoint.part("ema").items())
    sampler = "ddpm(variance='learned')" if learned else "ddim"
    shell("sample", f"--workdir={whole}", f"--sampler={sampler}", "--num_steps=4", "--num_samples=3")
    bounds = "both" if learned else "none"
    shell("likelihood", f"--workdir={whole}", "--num_examples=3", "--config.likelihood.method=heun",
          "--config.likelihood.num_steps=2", "--config.likelihood.num_diagnostic_samples=0",
          f"--config.likelihood.bounds={bounds}")  # fmt: skip
    shown = capsys.readouterr().out
    assert "test data: " in shown
    assert ("discrete bound" in shown) == learned
