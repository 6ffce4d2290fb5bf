"""The committed comparison with score_sde's own code."""

import json

import pytest

from benchmarks.record import RESULTS
from benchmarks.score_sde import CASES, FULL, OTHER, PAIRS

ROWS = json.loads((RESULTS / "score_sde.json").read_text())["results"]
LIMITS = {"float32": 1e-5, "float64": 1e-10}


def test_every_case_is_there_in_both_types_and_at_full_size_once():
    found = {(row["case"], row["type"]) for row in ROWS}
    small = [*CASES, *OTHER, *PAIRS]
    assert found == {(case, kind) for case in small for kind in LIMITS} | {(case, "float32") for case in FULL}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['case']}, {row['type']}")
def test_outputs_steps_and_runs_are_those_of_its_code(row):
    limit = LIMITS[row["type"]]
    assert row["output"] < limit
    assert row.get("step", 0) < limit
    assert row.get("run", 0) < limit


def test_single_steps_are_compared_under_every_process_predictor_and_corrector():
    names = {row["case"] for row in ROWS if "step" in row}
    assert set(PAIRS) <= names
    assert {"ddpm, VP, discrete", "NCSN++, VE, discrete", "NCSN++, VP, discrete", "DDPM++, sub-VP"} <= names
