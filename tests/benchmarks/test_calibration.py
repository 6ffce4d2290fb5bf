"""The benchmark of calibration: exact posteriors pass, and the table that quotes it."""

import json
from pathlib import Path

from benchmarks.calibration import exact, problems, ways
from benchmarks.record import RESULTS


def test_exact_posteriors_are_calibrated():
    row = exact(*problems()["2-D"])
    assert min(row["SBC p"], row["TARP p"]) > 1e-5
    assert abs(row["coverage"] - 0.9) < 4.42 * row["coverage error"]


def test_the_table_is_that_of_the_results():
    rows = json.loads((RESULTS / "calibration.json").read_text())["results"]
    text = (Path(RESULTS).parent / "README.md").read_text(encoding="utf-8")
    assert {row["method"] for row in rows} == {"exact", *ways()}
    for name in ("exact", *ways()):
        assert line(name, [row for row in rows if row["method"] == name]) in text


def line(name, rows):
    """The line of a method: evaluations, then coverage and p-values of every problem."""
    cells = [f"{rows[0]['nfe']:.0f}"]
    for row in rows:
        covered = f"{row['coverage']:.3f} +- {row['coverage error']:.3f}"
        cells += [covered, f"{row['SBC p']:.2g}", f"{row['TARP p']:.2g}"]
    return f"| {name} | {' | '.join(cells)} |"
