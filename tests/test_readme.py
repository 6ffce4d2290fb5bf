"""The README is true: its Python blocks run, its commands parse, its public names exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import sde_toolkit
from sde_toolkit import cli
from sde_toolkit.lab import Store

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^    (sde-toolkit .*)$", README, flags=re.M)]


def test_there_is_something_to_check():
    assert len(BLOCKS) == 19
    assert len(COMMANDS) == 27


@pytest.mark.parametrize(
    "block",
    BLOCKS,
    ids=[
        "processes",
        "own",
        "tables",
        "vectors",
        "given",
        "conditions",
        "objectives",
        "variances",
        "digits",
        "file",
        "exact",
        "samplers",
        "likelihoods",
        "metrics",
        "solvers",
        "inverse",
        "compared-given",
        "calibration",
        "guests",
    ],
)
def test_block_runs_in_fifteen_lines(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 15
    before = torch.random.get_rng_state()
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out
    assert torch.equal(torch.random.get_rng_state(), before), "the global random state was used"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command):
    arguments = shlex.split(command)[1:]
    if arguments == ["--help"]:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
    else:
        plain, overrides = cli.split_overrides(arguments)
        assert cli.build_parser().parse_args(plain).run is not None
        assert all(value for value in overrides.values())


def test_images_and_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).is_file(), target


def test_every_public_name_exists_and_is_documented():
    for name in sde_toolkit.__all__:
        assert getattr(sde_toolkit, name).__doc__, name
        assert name in dir(sde_toolkit)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sde_toolkit.no_such_name


def test_block_on_exact_models_is_as_accurate_as_it_says():
    scope: dict = {}
    (block,) = (block for block in BLOCKS if "mixture" in block)
    exec(block, scope)
    assert float((scope["result"].nats - scope["mixture"].log_prob(scope["x"])).abs().max()) < 1e-3


@pytest.mark.slow
def test_own_parts_are_compared_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```py\n(.*?)```", README, flags=re.S)
    (tmp_path / "mine.py").write_text(block)
    (command,) = (command for command in COMMANDS if "mine.py" in command)
    few = ["--num_steps=3", "--num_samples=20", "--output=out"]
    assert cli.main([*shlex.split(command)[1:], *few]) == 0
    records = Store("out/records.sqlite").records()
    assert {record.sampler for record in records} == {"ddim", "mine.py.half_noisy"}
    assert {record.metric for record in records} == {"shift", "KID (features=mine.py:moments)"}
