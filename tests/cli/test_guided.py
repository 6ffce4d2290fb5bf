"""Guidance, and starts from given data, from the command line."""

from pathlib import Path

import torch

from sde_toolkit import cli, runs

WORDS = ["sample", "--config=digits_classes", "--sampler=ddim", "--num_steps=4", "--num_samples=6"]


def made(output: Path) -> tuple[torch.Tensor, dict]:
    (file,) = (output / "samples").glob("*.npz")
    return runs.load_samples(file)


def test_samples_are_guided_towards_a_class(tmp_path: Path) -> None:
    words = ["--label=3", "--guidance_scale=2", "--config.sampling.guidance_max=5", "--format=npz"]
    assert cli.main([*WORDS, *words, f"--output={tmp_path}"]) == 0
    x, told = made(tmp_path)
    assert told["settings"]["guidance"] == "ClassifierFreeGuidance(scale=2.0, interval=(0.0, 5.0))"
    assert told["nfe"] < 10
    plain = tmp_path / "plain"
    assert cli.main([*WORDS, "--label=3", "--format=npz", f"--output={plain}"]) == 0
    assert float((made(plain)[0] - x).abs().max()) > 0.05


def test_a_scale_without_a_class_is_told(tmp_path: Path, capsys) -> None:
    assert cli.main([*WORDS, "--guidance_scale=2", "--format=npz", f"--output={tmp_path}"]) == 0
    assert "guidance_scale has no effect without --label" in capsys.readouterr().err


def test_a_network_without_classes_is_not_guided(tmp_path: Path, capsys) -> None:
    words = ["sample", "--num_samples=2", "--guidance_scale=2", f"--output={tmp_path}"]
    assert cli.main(words) != 0
    assert "guidance needs a model with classes" in capsys.readouterr().err
