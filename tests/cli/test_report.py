"""``sde-toolkit report``: it shows what is there, and measures nothing."""

import json
import re

import pytest

from sde_toolkit import cli
from sde_toolkit.lab import load_records, pooled_records


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    words = ["compare", "--config=digits", "--samplers=ddim,heun", "--num_steps=2,3", "--num_samples=20",
             "--seeds=0,1", "--metrics=energy", f"--output={folder}"]  # fmt: skip
    assert cli.main(words) == 0
    return folder


@pytest.mark.slow
def test_report_writes_what_is_asked_and_leaves_the_rest(compared, tmp_path, capsys):
    kept = [path for path in compared.rglob("*") if path.suffix in (".json", ".csv", ".npz", ".html", ".png")]
    before = {path: path.read_bytes() for path in kept}
    words = ["report", f"--workdir={compared}", f"--output={tmp_path}", "--format=html,pdf,csv,latex,json"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert "samples of 4 candidates" in shown.err
    written = {line.split()[-1].rpartition("/")[2] for line in shown.out.splitlines()}
    assert {"report.html", "records.csv", "records.json", "table.tex", "samples.pdf"} <= written
    assert {path.name for path in tmp_path.iterdir()} == written
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'class="sample"', page)) == 4
    records, _ = load_records(compared / "records.json")
    assert load_records(tmp_path / "records.json")[0] == pooled_records(records)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_pictures_of_every_problem(tmp_path, capsys):
    """In the pages of compare and report, and in the figures, each on the scale of its own data."""
    problems = ("ring", "mixture8", "digits")
    words = ["compare", f"--problems={','.join(problems)}", "--samplers=ddim", "--grids=own,karras",
             "--num_steps=2,3", "--num_samples=20", "--metrics=energy", f"--output={tmp_path}"]  # fmt: skip
    assert cli.main(words) == 0
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {f"samples-{problem}.png" for problem in problems} <= figures
    assert cli.main(["report", f"--workdir={tmp_path}", "--format=html,svg"]) == 0
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {f"samples-{problem}.svg" for problem in problems} <= written
    facets = r'class="sample" data-sampler="([^"]*)" data-grid="([^"]*)" data-problem="([^"]*)"'
    for path, real in ((tmp_path / "report.html", 1), (tmp_path / "report" / "report.html", 0)):
        found = re.findall(facets, path.read_text())
        assert len(found) == 3 * (4 + real)
        for problem in problems:
            mine = [(sampler, grid) for sampler, grid, other in found if other == problem]
            two = [("ddim", "uniform"), ("ddim(grid=karras)", "Karras")]
            assert sorted(mine) == sorted([("", "")] * real + two * 2)


def test_the_page_is_the_default(compared, capsys):
    assert cli.main(["report", f"--workdir={compared}"]) == 0
    assert (compared / "report" / "report.html").is_file()
    assert [path.name for path in (compared / "report").iterdir()] == ["report.html"]


def test_samples_of_other_weights_are_left_out(compared, tmp_path, capsys):
    text = json.loads((compared / "records.json").read_text())
    for row in text["records"]:
        row["settings"]["model"] = "others"
    (tmp_path / "records.json").write_text(json.dumps(text))
    (tmp_path / "samples").symlink_to(compared / "samples")
    assert cli.main(["report", f"--workdir={tmp_path}"]) == 0
    assert "samples of 0 candidates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workdir=/nowhere/at/all"], "workdir must hold records of a comparison"),
        (["--workdir=.", "--format=docx"], "must be one or more of html, pdf"),
        (["--workdir=.", "--config.seed=1"], "report has no configuration"),
        ([], "the following arguments are required: --workdir"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, said, capsys):
    try:
        code = cli.main(["report", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in capsys.readouterr().err
