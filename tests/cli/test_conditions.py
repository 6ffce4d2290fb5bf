"""Conditions that are no classes: from a file of the user's to samples, records, pictures and the page."""

import json
import re

import numpy as np
import pytest
import torch

from sde_toolkit import cli, runs
from sde_toolkit.lab import NamedCondition, load_records

MINE = '''"""p(x | c) = N(c, .3^2 I): a model with vector conditions whose score is known."""
import torch
from torch import nn
from sde_toolkit import VPSDE, NetworkModel
from sde_toolkit.lab import Problem

STD = 0.3


class Posterior(nn.Module):
    def __init__(self):
        super().__init__()
        self.sde, self.none = VPSDE(), nn.Parameter(torch.zeros(1))

    def forward(self, x, t, c):
        t = t.double() / 1000
        a, s = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        return (s * (x.double() - a * c.double()) / (a**2 * STD**2 + s**2)).to(x.dtype)


MODEL = NetworkModel(Posterior(), VPSDE(), "noise", (2,), condition_shape=(2,))


def real(c):
    return c + STD * torch.randn(500, 2, generator=torch.Generator().manual_seed(1))


def problem():
    return Problem("posterior", MODEL, fingerprint="p1", real_of_condition=real)


def bare():
    return Problem("bare", MODEL)


def odd():
    return Problem("odd", MODEL, real_of_condition=lambda c: torch.zeros(5, 3))


rows = torch.tensor([[1.0, 0.0], [-2.0, 1.0]])
named = {"left <b>": [-1.0, 0.0], "right": [1.0, 0.0]}
wrong, text, none, ragged = torch.zeros(3, 5), "abc", torch.zeros(0, 2), {"a": [1.0], "b": [1.0, 2.0]}


def function():
    return {"right": [1.0, 0.0]}


def failing():
    raise KeyError("x")
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("conditions") / "mine.py"
    path.write_text(MINE)
    return str(path)


def words(mine, folder, conditions="rows", metrics="energy"):
    return ["compare", f"--problems={mine}:problem", f"--conditions={mine}:{conditions}", "--samplers=ddim",
            "--num_steps=10,20", "--num_samples=60",
            f"--metrics={metrics}", f"--output={folder}"]  # fmt: skip


def test_conditions_of_every_kind(mine):
    rows = runs.open_conditions(f"{mine}:rows")
    assert [condition.name for condition in rows] == ["rows[0]", "rows[1]"]
    named = runs.open_conditions(f"{mine}:named")
    assert [condition.name for condition in named] == ["left <b>", "right"]
    (alone,) = runs.open_conditions(f"{mine}:function")
    assert str(alone) == str(named[1]) == f"right ({rows[0].digest})"  # equal values, equal digests
    assert rows[0].digest != rows[1].digest
    assert torch.equal(alone.rows(3), torch.tensor([[1.0, 0.0]]).expand(3, 2))
    assert NamedCondition("a", torch.zeros(2, 1)).digest != NamedCondition("a", torch.zeros(1, 2)).digest


@pytest.mark.slow
def test_compare_measures_each_condition_by_its_own_data(mine, tmp_path, capsys):
    assert cli.main(words(mine, tmp_path, metrics="energy,vendi")) == 0
    records, references = load_records(tmp_path / "records.json")
    conditions = list(map(str, runs.open_conditions(f"{mine}:rows")))
    assert [r.settings["condition"] for r in records] == [c for c in conditions for _ in range(4)]
    assert {r.settings["condition"] for r in references} == set(conditions)
    for record in records:  # the real data are the condition's own: means are 1 and 2.2 away from others
        assert record.metric != "energy distance" or record.value < 0.1
    assert cli.main(words(mine, tmp_path, metrics="energy,vendi")) == 0
    assert "reused 4 of 4" in capsys.readouterr().err
    page = (tmp_path / "report.html").read_text()
    found = re.findall(r'class="sample" [^>]*data-condition="([^"]*)"', page)
    assert sorted(found) == sorted(conditions * 3)  # real data and two step counts
    assert cli.main(["report", f"--workdir={tmp_path}", "--format=html,svg"]) == 0
    assert len(list((tmp_path / "report").glob("samples-*.svg"))) == 2
    page = (tmp_path / "report" / "report.html").read_text()
    assert sorted(re.findall(r'class="sample" [^>]*data-condition="([^"]*)"', page)) == sorted(conditions * 2)


def test_other_values_under_a_name_are_another_condition(mine, tmp_path):
    for value in (1.0, 2.0):
        path = tmp_path / f"values{value:g}.py"
        path.write_text(f"bright = {{'bright': [{value}, 0.0]}}")
        line = words(mine, tmp_path / "out")
        line[2] = f"--conditions={path}:bright"
        assert cli.main(line) == 0
    records, _ = load_records(tmp_path / "out" / "records.json")
    names = {r.settings["condition"] for r in records}
    assert len(names) == 2
    assert {name.partition(" (")[0] for name in names} == {"bright"}


def test_sample_takes_conditions_in_turn(mine, tmp_path):
    line = ["sample", f"--problem={mine}:problem", "--sampler=ddim", "--num_steps=50", "--num_samples=400",
            f"--output={tmp_path}", "--format=npz"]  # fmt: skip
    assert cli.main([*line, f"--conditions={mine}:rows"]) == 0
    (path,) = (tmp_path / "samples").iterdir()
    with np.load(path) as arrays:
        x, told = arrays["x"], json.loads(str(arrays["note"]))["condition"]
    assert told == list(map(str, runs.open_conditions(f"{mine}:rows")))
    error = 4.5 * 0.3 / 200**0.5  # false alarms: 7e-6 for each mean
    assert np.abs(x[::2].mean(0) - [1, 0]).max() < error
    assert np.abs(x[1::2].mean(0) - [-2, 1]).max() < error
    assert cli.main([*line, f"--conditions={mine}:function"]) == 0
    (one,) = (tmp_path / "samples").glob("*right*.npz")
    with np.load(one) as arrays:
        assert json.loads(str(arrays["note"]))["condition"].startswith("right (")


@pytest.mark.parametrize(
    ("problem", "conditions", "said"),
    [
        ("problem", "wrong", "condition must be a tensor with shape (1, 2), one row per sample"),
        ("bare", "rows", "does not know for condition rows[0]"),
        ("odd", "rows", "real_of_condition must return a tensor with shape (M, 2), got shape (5, 3)"),
        ("problem", "text", "must be an array with shape (K, *c) or a dict of arrays, got str"),
        ("problem", "none", "with 1 to 1000 conditions, got 0"),
        ("problem", "ragged", "must have one shape, got [(1,), (2,)]"),
        ("problem", "failing", "failed: KeyError"),
        ("problem", "rowz", "did you mean 'rows'?"),
        ("problem", "rows --labels=1", "give config.comparison.labels, .conditions or .prompts"),
        ("problem", "rows --label=1", "give --label, --conditions or --prompts, one of them"),
    ],
)
def test_mistakes_are_told_before_the_work(mine, tmp_path, capsys, problem, conditions, said):
    name, *more = conditions.split()
    line = words(mine, tmp_path, name)
    line[1] = f"--problems={mine}:{problem}"
    assert cli.main([*line, *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "records.sqlite").exists()


def test_a_model_without_conditions_refuses_them(mine, tmp_path, capsys):
    line = ["sample", "--problem=gaussian", f"--conditions={mine}:rows", f"--output={tmp_path}"]
    assert cli.main(line) == 2
    assert "condition must be left out for a model without conditions" in capsys.readouterr().err


@pytest.mark.parametrize("value", [torch.tensor([float("nan")]), torch.tensor([1j])])
def test_values_that_are_no_conditions(value):
    with pytest.raises(ValueError, match="must be finite real numbers"):
        NamedCondition("odd", value)
    with pytest.raises(ValueError, match="name must be a word for tables"):
        NamedCondition(" ", torch.zeros(2))
