"""``sde-toolkit export``: weights, programs and cards by the ending of the output."""

import pytest

from sde_toolkit import cli

TINY = [
    "--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64",
    "--config.data.num_test=32", "--config.training.num_steps=3", "--config.training.batch_size=16",
]  # fmt: skip


@pytest.mark.slow
def test_export_writes_what_the_ending_asks_for(tmp_path, capsys):
    workdir, directory = tmp_path / "run", tmp_path / "card"
    assert cli.main(["train", "--config=ring", f"--workdir={workdir}", *TINY]) == 0
    assert cli.main(["export", f"--workdir={workdir}", f"--output={directory}"]) == 0
    assert "with its card" in capsys.readouterr().out
    assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in directory.iterdir()}
    assert "3 updates" in (directory / "README.md").read_text()
    program = tmp_path / "network.pt2"
    assert cli.main(["export", f"--workdir={workdir}", f"--output={program}", "--part=network"]) == 0
    assert "off the model by" in capsys.readouterr().out
    assert program.stat().st_size > 0
    assert cli.main(["export", f"--workdir={workdir}", f"--output={program}", "--push=a/b"]) != 0
    assert "--push sends a directory" in capsys.readouterr().err
    for wrong in ("weights.onxx", "weights.pt"):
        assert cli.main(["export", f"--workdir={workdir}", f"--output={tmp_path / wrong}"]) == 2
        assert "output must end in .safetensors, .pt2, .onnx" in capsys.readouterr().err
        assert not (tmp_path / wrong).exists()
