"""``compare`` on exact problems and on what the user brings: cells, budgets, own parts, the plan file."""

import json

import pytest

from sde_toolkit import cli
from sde_toolkit.lab import Store

MINE = '''
import torch
from sde_toolkit.lab import exact_problem
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE

def metric(x, y):
    return float((x.mean(0) - y.mean(0)).norm())

def sampler(num_steps, *, eta: float = 0.5):
    """Mine."""
    return ddim(num_steps, eta=eta)

def features(x):
    return torch.cat([x, x.square()], 1)

def problem():
    return exact_problem("scales", VPSDE())

def pair():
    problem = exact_problem("ring", VPSDE())
    return problem.model, problem.real

def broken():
    raise KeyError("oops")
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def run(tmp_path, *words):
    return cli.main(
        ["compare", f"--output={tmp_path / 'out'}", "--num_samples=20", "--num_steps=2,4", *words]
    )


def records(tmp_path):
    return Store(tmp_path / "out" / "records.sqlite").records()


@pytest.mark.slow
def test_exact_problems_grids_and_classes(tmp_path, capsys):
    words = ["--problems=ring,scales", "--samplers=ddim,default", "--grids=own,karras", "--labels=0,2"]
    assert run(tmp_path, *words, "--metrics=energy,nll,flow_error,precision") == 0
    shown = capsys.readouterr()
    assert "ring, class 0" in shown.out
    assert "scales, class 2" in shown.out
    found = records(tmp_path)
    assert len(found) == 2 * 2 * 3 * 2 * 4
    assert {r.problem for r in found} == {"ring", "scales"}
    assert {r.sampler for r in found} == {"ddim", "ddim(grid=karras)", "default"}
    assert {r.settings["metric.better"] for r in found if r.metric == "precision"} == {"higher"}
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(list((tmp_path / "out" / "samples" / "ring").glob("*.npz"))) == 2 * 3 * 2
    assert run(tmp_path, *words, "--metrics=energy,nll,flow_error,precision") == 0
    assert "reused 24 of 24 entries" in capsys.readouterr().err


@pytest.mark.slow
def test_exact_laws_on_gaussian_problems(tmp_path):
    words = ["--problems=gaussian", "--samplers=ddim,default", "--metrics=exact_w2,exact_kl", "--seeds=0,1"]
    assert run(tmp_path, *words) == 0
    values = {(r.sampler, r.num_steps, r.metric): r.value for r in records(tmp_path)}
    assert (
        values["default", 4, "exact W2"]
        < 1e-3
        < values["ddim", 4, "exact W2"]
        < values["ddim", 2, "exact W2"]
    )
    assert {r.standard_error for r in records(tmp_path)} == {0.0}


@pytest.mark.slow
def test_parts_of_the_users_own(mine, tmp_path, capsys):
    words = [
        f"--problems={mine}:problem,{mine}:pair", f"--samplers=ddim,{mine}:sampler,{mine}:sampler(eta=1)",
        f"--metrics=energy,{mine}:metric,kid(features='{mine}:features')",
    ]  # fmt: skip
    assert run(tmp_path, *words) == 0
    found = records(tmp_path)
    assert {r.problem for r in found} == {"scales", "mine.py:pair"}
    assert len({r.sampler for r in found}) == 3
    assert {r.metric for r in found} == {"energy distance", "metric", "KID (features=mine.py:features)"}
    assert "wrote" in capsys.readouterr().out


def test_a_dry_run_measures_nothing(tmp_path, capsys):
    words = ["--problems=ring", "--samplers=ddim,dopri5", "--seeds=0,1"]
    assert run(tmp_path, *words, "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "ddim-2" in shown
    assert "adaptive" in shown
    assert "3 cells, about" in shown
    assert not (tmp_path / "out" / "records.sqlite").exists()
    assert run(tmp_path, *words, "--max_nfe=3", "--samplers=ddim") == 0
    assert [r.num_steps for r in records(tmp_path)] == [2, 2]
    capsys.readouterr()
    assert run(tmp_path, *words, "--dry_run") == 0
    assert "measured already" in capsys.readouterr().out


def test_a_budget_of_time_leaves_out_and_says_so(tmp_path, capsys):
    assert run(tmp_path, "--problems=ring", "--samplers=ddim", "--time_budget=0.000001s") == 0
    assert "left out, over the time budget: ddim-2, ddim-4" in capsys.readouterr().err
    assert run(tmp_path, "--problems=ring", "--samplers=ddim", "--time_budget=10m") == 0
    assert len(records(tmp_path)) == 2


def test_a_plan_is_a_file(tmp_path, capsys):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"comparison": {"problems": ["ring"], "samplers": ["ddim"], "seeds": [3]}}))
    assert run(tmp_path, f"--plan={plan}") == 0
    assert {(r.problem, r.seeds) for r in records(tmp_path)} == {("ring", (3,))}
    plan.write_text("{}")
    assert run(tmp_path, f"--plan={plan}") == 2
    assert "the plan must name its problems" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problems=rings"], "problem 'rings' is unknown; it must be model, one of gaussian"),
        (["--problems=none.py:problem"], "there is no file 'none.py'"),
        (["--problems={mine}:broken"], "failed: KeyError: 'oops'"),
        (["--problems={mine}:metric"], "failed: TypeError"),
        (["--problems=ring", "--metrics=frechet"], "needs features, which only the digits have"),
        (["--problems=ring", "--metrics=exact_w2"], "needs Gaussian data"),
        (["--problems={mine}:pair", "--metrics=exact_kl(a=1)"], "has no option 'a'"),
        (["--problems=ring", "--metrics=energies"], "metric 'energies' is unknown; did you mean 'energy'?"),
        (["--problems=ring", "--metrics=energy(depth=3)"], "metric 'energy' has no option 'depth'"),
        (["--problems={mine}:pair", "--metrics=nll"], "needs the exact density of the data"),
        (["--problems={mine}:pair", "--labels=1"], "must know its data by class"),
        (["--problems=gaussian", "--labels=1"], "a class needs a network with classes"),
        (["--problems=ring", "--labels=9"], "9"),
        (["--problems=ring", "--grids=carras"], "did you mean 'karras'?"),
        (["--problems=ring", "--time_budget=soon"], "must be a time, as in 90s, 10m or 2h, got 'soon'"),
        (["--problems=ring", "--workdir={mine}"], "--workdir is of no use"),
        (["--plan=x.json", "--config=digits"], "not both"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence_before_any_work(mine, tmp_path, capsys, words, message):
    try:
        status = run(tmp_path, "--samplers=ddim", *(word.format(mine=mine) for word in words))
    except SystemExit as stop:
        status = stop.code
    shown = capsys.readouterr().err
    assert status == 2, shown
    assert message in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.slow
def test_shards_join_to_the_undivided_comparison(tmp_path, capsys):
    words = ["--problems=ring", "--samplers=ddim,heun", "--seeds=0,1"]
    assert run(tmp_path, *words, "--shard=1/3") == 0
    assert run(tmp_path, *words, "--shard=2/3") == 0
    assert "records-shard2of3.sqlite" in capsys.readouterr().err
    assert run(tmp_path, *words, "--merge") == 2
    assert "1 cells are missing" in capsys.readouterr().err
    assert run(tmp_path, *words, "--shard=3/3") == 0
    assert run(tmp_path, *words, "--merge") == 0
    assert "reused 4 of 4 entries" in capsys.readouterr().err
    joined = records(tmp_path)
    assert not list((tmp_path / "out").glob("records-shard*"))
    assert (
        cli.main(["compare", f"--output={tmp_path / 'whole'}", "--num_samples=20", "--num_steps=2,4", *words])
        == 0
    )
    whole = Store(tmp_path / "whole" / "records.sqlite").records()

    def values(rows):
        return {(r.sampler, r.num_steps, r.seeds): (r.value, r.estimates) for r in rows}

    assert values(joined) == values(whole)
    assert len(joined) == 8


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_shards_that_are_none(tmp_path, capsys, text):
    with pytest.raises(SystemExit):
        run(tmp_path, "--problems=ring", f"--shard={text}")
    assert "must be I/N with 1 <= I <= N, as in 3/16" in capsys.readouterr().err
