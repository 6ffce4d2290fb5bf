"""Guidance, and starts from given data, from the command line."""

from pathlib import Path

import numpy as np
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


def test_samples_start_from_pictures_and_from_noised_states(tmp_path: Path, capsys) -> None:
    images = np.random.default_rng(0).integers(0, 17, size=(2, 8, 8))
    np.save(tmp_path / "x.npy", images)
    words = [*WORDS, "--format=npz", f"--x_start={tmp_path / 'x.npy'}"]
    assert cli.main([*words, "--t_start=.05", f"--output={tmp_path / 'near'}"]) == 0
    x, told = made(tmp_path / "near")
    assert told["settings"]["t_start"] == 0.05
    assert told["settings"]["x_start"].startswith("clean ")
    with np.load(next((tmp_path / "near" / "samples").glob("*-from-clean-*-t0.05-*.npz"))) as arrays:
        raw = arrays["data"]
    assert (
        np.abs(raw - images[[0, 1, 0, 1, 0, 1], None]).mean() < 2
    )  # little noise: near their starts, in turn
    model = runs.open_shipped("digits_classes").model
    np.save(tmp_path / "x_t.npy", runs.open_states(str(tmp_path / "x.npy"), model).numpy())
    noised = [*WORDS, "--format=npz", f"--x_start={tmp_path / 'x_t.npy'}", "--t_start=.05", "--noised"]
    assert cli.main([*noised, f"--output={tmp_path / 'noised'}"]) == 0
    other, _ = made(tmp_path / "noised")
    assert torch.equal(other[0], other[2])  # a deterministic sampler from one state
    assert not torch.equal(x[0], x[2])
    capsys.readouterr()
    assert cli.main([*words, f"--output={tmp_path}"]) == 2
    assert "give --x_start and --t_start together" in capsys.readouterr().err
    assert cli.main([*words, "--t_start=3", f"--output={tmp_path}"]) == 2
    assert "t_start must lie above" in capsys.readouterr().err
    np.save(tmp_path / "wide.npy", np.zeros((2, 9, 8)))
    assert cli.main([*WORDS, f"--x_start={tmp_path / 'wide.npy'}", "--t_start=.5"]) == 2
    assert "must hold examples with shape (n, 1, 8, 8)" in capsys.readouterr().err
    np.save(tmp_path / "bright.npy", 255 * np.ones((1, 8, 8), np.uint8))
    assert cli.main([*WORDS, f"--x_start={tmp_path / 'bright.npy'}", "--t_start=.5"]) == 2
    assert "must hold grey levels 0 .. 16" in capsys.readouterr().err


def test_classes_are_composed(tmp_path: Path, capsys) -> None:
    words = [*WORDS, "--format=npz", f"--output={tmp_path}"]
    assert cli.main([*words, "--compose=3,8:-.5"]) == 0
    x, told = made(tmp_path)
    assert told["settings"]["guidance"] == "Composition([3, 8], [1.0, -0.5])"
    assert len(list((tmp_path / "samples").glob("*-composed-3x1-8x-0.5-seed0.npz"))) == 1
    assert told["nfe"] == 15  # three branches
    assert bool(x.isfinite().all())
    for more, sentence in (
        (["--compose=3", "--label=1"], "give --compose alone"),
        (["--compose=77"], "class labels must be among 0 .. 9"),
        (["--compose=3:nan"], "weights must be finite"),
    ):
        assert cli.main([*words, *more]) == 2
        assert sentence in capsys.readouterr().err
