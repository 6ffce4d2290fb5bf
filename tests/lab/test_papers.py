"""Files for a paper: what is written, that it is right, and that no text is obeyed by LaTeX."""

import csv
import re

import numpy as np
import pytest
from comparison_page import make_records
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.lab import Reference, latex_table, load_records, write_papers
from sde_toolkit.lab.papers import FORMATS, latex_text

REFERENCES = [Reference("energy", "halves", 0.0, 0.02)]


@pytest.mark.slow
def test_every_format_is_written(tmp_path):
    rows = make_records()
    cells = {("ddim", "5 steps"): np.zeros((10, 2)), ("heun", "5 steps"): np.ones((10, 2))}
    paths = write_papers(tmp_path, rows, REFERENCES, FORMATS, {"ring": cells})
    assert len({path.name for path in paths}) == len(paths) == 2 * ((2 * 2 + 1) * 2 + 1) + 4
    assert all(path.stat().st_size > 100 for path in paths)
    names = {path.name for path in paths}
    assert {"table.tex", "records.csv", "records.parquet", "records.json", "samples.pdf"} <= names
    assert {"quality-ring-energy-nfe.pdf", "quality-digits-frechet-seconds.svg"} <= names
    assert load_records(tmp_path / "records.json") == (rows, REFERENCES)
    with open(tmp_path / "records.csv", newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [r.value for r in rows]


@pytest.mark.slow
def test_every_problem_has_a_figure_of_samples(tmp_path):
    cells = {("ddim", "5 steps"): np.zeros((10, 2))}
    paths = write_papers(tmp_path, make_records(), (), ["svg"], {"ring": cells, "a/b": cells, "a b": cells})
    names = {path.name for path in paths if path.name.startswith("samples")}
    assert names == {"samples-ring.svg", "samples-a-b.svg", "samples-a-b-n2.svg"}


@pytest.mark.slow
def test_equal_records_are_equal_files(tmp_path):
    rows = make_records()[:4]
    first, second = (
        write_papers(tmp_path / name, rows, formats=("pdf", "svg", "latex")) for name in ("a", "b")
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_table_has_errors_and_the_best_in_bold():
    rows = [r for r in make_records() if r.problem == "ring" and r.metric != "coverage"]
    text = latex_table(rows, REFERENCES)
    lines = text.splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrrrrr}", r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert text.count(r"\mathbf") == 2
    best = min((r for r in rows if r.metric == "Frechet"), key=lambda r: r.value)
    (line,) = (line for line in lines if line.startswith(best.sampler) and r"\mathbf{0.5" in line)
    assert r"\pm" in line
    assert {line.count("&") for line in lines if "&" in line} == {5}
    assert "halves" in text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_no_text_is_obeyed(text):
    plain = latex_text(text)
    for word in ("textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater"):
        plain = plain.replace(rf"\{word}{{}}", "")
    assert not re.search(r"(?<!\\)[{}$&#%_^~<>]", plain)
    assert "\n" not in plain


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="records must hold at least one record"):
        write_papers(tmp_path, [])
    with pytest.raises(ValueError, match=r"formats must be of pdf, .*, got 'docx'"):
        write_papers(tmp_path, make_records(), formats=["docx"])
