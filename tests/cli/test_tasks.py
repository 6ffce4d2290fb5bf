"""Inverse problems from the command line."""

import csv
import json

import numpy as np
import pytest

from sde_toolkit import cli

QUICK = ["--num_steps=3", "--draws=3"]


def shell(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


def refused(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run trained on a table for a few steps, and a table with gaps."""
    folder = tmp_path_factory.mktemp("table")
    z = np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 100] + [0, 70, 0]
    with open(folder / "whole.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], *z.tolist()])
    with open(folder / "gaps.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], [0.5, "", 20.0], ["NA", 65.0, 1.0], [1.0, 80.0, 3.0]])
    shell("train", "--config=vectors", f"--data={folder / 'whole.csv'}", f"--workdir={folder / 'run'}",
          "--config.training.num_steps=4", "--config.training.batch_size=8", "--config.model.width=8",
          "--config.model.depth=1")  # fmt: skip
    return folder


def test_gaps_of_a_table_are_filled(table, capsys):
    run, gaps, out = table / "run", table / "gaps.csv", table / "filled.csv"
    shell("impute", f"--workdir={run}", f"--input={gaps}", f"--output={out}", *QUICK)
    assert "2 gaps of 3 rows by 3 draws" in capsys.readouterr().out
    lines = list(csv.reader(out.read_text().splitlines()))
    assert lines[0] == ["a", "b", "c"]
    assert [float(lines[1][0]), float(lines[1][2]), float(lines[2][1])] == [0.5, 20.0, 65.0]
    told = list(csv.DictReader((table / "filled-intervals.csv").read_text().splitlines()))
    assert [(row["row"], row["column"]) for row in told] == [("0", "b"), ("1", "a")]
    assert float(told[0]["low"]) <= float(told[0]["mean"]) <= float(told[0]["high"])
    assert float(told[0]["mean"]) == pytest.approx(float(lines[1][1]))
    shell("impute", f"--workdir={run}", f"--input={gaps}", f"--output={table / 'all.npz'}", *QUICK)
    with np.load(table / "all.npz") as arrays:
        assert arrays["draws"].shape == (3, 3, 3)
        assert json.loads(str(arrays["note"]))["level"] == pytest.approx(0.5)


def test_mistakes_of_impute_are_sentences(table, capsys):
    words = ["impute", f"--workdir={table / 'run'}", f"--output={table / 'o.csv'}"]
    for more, told in (
        ([f"--input={table / 'whole.csv'}"], "input must have missing entries"),
        ([f"--input={table / 'gaps.csv'}", "--method=magic"], "method must be one of"),
        ([f"--input={table / 'gaps.csv'}", "--method=dps(step=1)"], "has no option 'step'"),
        ([f"--input={table / 'gaps.csv'}", "--draws=1"], "draws must be at least 2"),
        ([f"--input={table / 'gaps.csv'}", "--columns=a,b"], "rows must have shape (n, 3)"),
        ([f"--input={table / 'gaps.csv'}", "--output=o.txt"], "must end in .csv or .npz"),
        ([f"--input={table / 'no.csv'}"], "does not exist"),
    ):
        assert told in refused(capsys, *words, *more)
