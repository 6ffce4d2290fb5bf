"""The orderings of samplers: what a row says, and that the committed table follows from its figures."""

import json

import pytest

from benchmarks import orderings
from benchmarks.record import RESULTS
from sde_toolkit import lab, metrics
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE

ROWS = json.loads((RESULTS / "orderings.json").read_text())["results"]


def test_a_row_says_which_is_better(monkeypatch, capsys):
    problem = lab.exact_problem("ring", VPSDE(), 200)
    judges = [lab.Metric("energy", metrics.EnergyDistance(), problem.real)]
    claims = [
        orderings.Claim("steps", ("ddim 20", ddim(20)), ("ddim 2", ddim(2))),
        orderings.Claim("steps", ("ddim 2", ddim(2)), ("ddim 20", ddim(20))),
        orderings.Claim("same", ("ddim 20", ddim(20)), ("ddim again", ddim(20))),
    ]
    monkeypatch.setattr(orderings, "problems", lambda: [(problem, judges)])
    monkeypatch.setattr(orderings, "claims", lambda: iter(claims))
    rows = orderings.measure(100, (0, 1))
    assert [row["verdict"] for row in rows] == ["holds", "the other way round", "cannot be told"]
    assert rows[0]["difference"] == -rows[1]["difference"]
    assert "holds" in capsys.readouterr().out


@pytest.mark.parametrize("row", ROWS, ids=[f"{i}-{row['claim']}" for i, row in enumerate(ROWS)])
def test_the_committed_verdicts_follow_from_the_figures(row):
    clear = abs(row["difference"]) > 2 * row["error"]
    expected = "cannot be told" if not clear else "holds" if row["difference"] < 0 else "the other way round"
    assert row["verdict"] == expected
    one, other = row["values"]
    assert row["difference"] == pytest.approx(one - other, abs=2e-3 * max(abs(one), abs(other)))
