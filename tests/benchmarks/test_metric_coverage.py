"""Intervals of metrics, and of paired differences, hold the expected value as often as they say."""

import json

import pytest

from benchmarks import metric_coverage as coverage
from benchmarks.record import RESULTS

REPETITIONS = 120
LOWEST = 0.87
"""Below it by chance once in 10,000 cells whose intervals hold in 95% of cases."""


@pytest.mark.slow
@pytest.mark.parametrize("law", list(coverage.LAWS))
@pytest.mark.parametrize("name", ["energy", "mmd", "kid", "frechet", "nll", "diversity", "density"])
def test_intervals_cover(law: str, name: str) -> None:
    for key, cell in coverage.measure(coverage.LAWS[law](), name, REPETITIONS).items():
        print(f"{law} {name} {key}: {cell['covered']:.3f} ({cell['ratio']})")
        assert cell["covered"] >= LOWEST, key
        assert 0.7 < cell["ratio"] < 2.0, key


def test_samplers_share_their_noise() -> None:
    sets = coverage.samples(coverage.LAWS["mixture8"](), 200, seed=3)
    assert (sets["slight"] == 1.05 * sets["perfect"]).all()
    assert not (sets["real"] == sets["perfect"]).any()
    moved = (sets["bad"] - 0.3) / 1.3 - sets["perfect"]
    assert float((moved.abs() < 1e-9).all(1).double().mean()) > 0.5  # most keep their component


def test_every_cell_is_on_record() -> None:
    found = json.loads((RESULTS / "metric_coverage.json").read_text())["results"]
    assert set(found) == set(coverage.LAWS)
    for rows in found.values():
        assert set(rows) == set(coverage.METRICS)
        for row in rows.values():
            assert "bad - slight" in row
            assert all(cell["constant"] or cell["ratio"] is not None for cell in row.values())
