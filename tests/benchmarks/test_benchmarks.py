"""The benchmark programs: found by name, recorded with their environment, drawn."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.__main__ import main, programs
from benchmarks.convergence import PANELS, figure, table
from benchmarks.orders import cases, measure
from benchmarks.record import RESULTS, write_result
from solvers import EULER_MARUYAMA, HEUN, RECURSION


@dataclass
class Row:
    sampler: str
    error: float


def test_programs_are_the_modules_with_a_main() -> None:
    assert "convergence" in programs()
    assert not {"__main__", "record", "orders"} & set(programs())


def test_an_unknown_program_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"unknown benchmark speeed; choose from .*convergence"):
        main(["convergence", "speeed"])


def test_a_result_is_written_with_settings_versions_and_machine(tmp_path: Path) -> None:
    results = [Row("ddim", 0.5), torch.tensor([1.0, 2.0])]
    path = write_result("trial", {"seed": 3}, results, tmp_path / "deeper")
    record = json.loads(path.read_text())
    assert path.name == "trial.json"
    assert record["settings"] == {"seed": 3}
    assert record["results"] == [{"sampler": "ddim", "error": 0.5}, [1.0, 2.0]]
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == torch.get_num_threads()


def test_results_that_are_no_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="results must be JSON, records or arrays, got object"):
        write_result("trial", {}, object(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_figure_of_orders_has_a_line_and_a_label_for_every_case(tmp_path: Path) -> None:
    methods = [HEUN, EULER_MARUYAMA, RECURSION]
    measurements = [measure(case, halvings=1) for case in cases(methods) if case.problem != "logistic"]
    drawn = figure(measurements)
    drawn.savefig(tmp_path / "orders.png")
    parts = [part for part in drawn.subfigs if part.axes]
    titles = {part.axes[0].get_title("left").split(",")[0] for part in parts}
    assert titles == set(PANELS.values())
    assert sum(len(part.legends[0].get_texts()) for part in parts) == len(measurements) == 7
    lines = table(measurements).splitlines()
    assert len(lines) == 8
    assert lines[1].startswith("heun, replicator                          deterministic          2")


def test_the_committed_orders_are_those_of_today() -> None:
    """The recorded cases are the current ones, and each observed order is within its tolerance."""
    record = json.loads((RESULTS / "convergence.json").read_text())
    rows = {(row["method"], row["problem"], row["kind"]): row for row in record["results"]}
    assert set(rows) == {(case.method.name, case.problem, case.kind) for case in cases()}
    for case in cases():
        row = rows[case.method.name, case.problem, case.kind]
        assert row["declared"] == case.declared
        assert abs(row["observed"] - case.declared) <= case.tolerance


def test_speeds_are_medians_in_turns_and_errors_are_matched() -> None:
    calls: list[str] = []
    seconds = speed.medians(lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * (speed.REPEATS + 1)
    assert all(0 <= s < 1 for s in seconds)
    truth = torch.ones(4)
    tolerance, error = speed.at_error(lambda tolerance: truth * (1 + 10 * tolerance), truth, 1e-7 * 10)
    assert tolerance == pytest.approx(1e-7)
    assert error == pytest.approx(1e-6, rel=0.2)
    lines = speed.table([speed.Comparison("uniform", "peer", 0.5, 1.0, 1e-6, 2e-6)]).splitlines()
    assert "2.00" in lines[1]


def test_the_problems_of_the_speed_comparison_fit_their_fields() -> None:
    for field, args, y0, _ in speed.problems().values():
        assert field(torch.zeros(len(y0), dtype=y0.dtype), y0, *args).shape == y0.shape
