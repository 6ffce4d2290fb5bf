"""The programs that measure posterior samplers and guidance."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import guidance as law_of_guidance
from benchmarks import posteriors


def test_cases_have_one_posterior_for_every_problem_and_observation() -> None:
    found = list(posteriors.cases(0))
    assert len(found) == 12 * len(posteriors.NOISES)
    for case in found:
        assert math.isfinite(case.truth.log_evidence)
        assert case.truth.event_shape == case.model.event_shape


@pytest.mark.parametrize("method", ["GaussianInformed", "DDRM", "TwistedSMC"])
def test_draws_are_measured_beside_the_posterior(method: str) -> None:
    case = next(posteriors.cases(0))
    x = posteriors.ours()[method](case, 10, 0, 32)
    assert x.shape == (32, 2)
    exact = case.truth.data.sample(64, 1)
    values = posteriors.measured(case, x, exact, 0)
    assert values["W2"] > 0
    assert 0 <= values["coverage"] <= 1
    assert posteriors.measured(case, x * math.nan, exact, 0)["W2"] == math.inf


def test_stages_hold_every_block_once() -> None:
    blocks = [
        block
        for noises, evaluations, names in posteriors.STAGES
        for block in itertools.product(noises, evaluations, names)
    ]
    names = (*posteriors.SMALL, *posteriors.LARGE)
    wanted = itertools.product(posteriors.NOISES, posteriors.EVALUATIONS, names)
    assert sorted(blocks) == sorted(wanted)


def test_a_second_run_goes_on_from_the_blocks_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posteriors, "STAGES", (((0.3,), (4,), ("2-D",)),))
    monkeypatch.setattr(posteriors, "SEEDS", 2)
    monkeypatch.setattr(posteriors, "draws", lambda problem, nfe: 16)
    monkeypatch.setattr(posteriors, "EXACT", 32)
    method = {"GaussianInformed": posteriors.ours()["GaussianInformed"]}
    path = tmp_path / "runs" / "blocks.json"
    posteriors.run(method, posteriors.Store(path))
    first = path.read_bytes()
    found = posteriors.Store(path)
    assert len(found.blocks) == 2 * 3
    posteriors.run(method, found)
    assert path.read_bytes() == first
    del found.blocks["2-D", "mask", 0.3, 4, 1]
    rows = posteriors.rows_of(found)  # the mask lacks a seed
    assert {(row["observation"], row["method"]) for row in rows} == {
        (seen, method) for seen in ("blur", "projection") for method in ("floor", "GaussianInformed")
    }
    posteriors.run(method, found)
    again = posteriors.Store(path).blocks
    assert len(again) == 2 * 3
    assert again == {tuple(key): block for key, block in json.loads(first)}


def test_columns_tell_the_best_of_both() -> None:
    row = {"problem": "2-D", "observation": "mask", "noise": 0.1, "nfe": 20}
    rows = [
        row | {"method": m, "W2": w} for m, w in (("floor", 0.1), ("A", 0.2), ("B", 0.4), ("azula C", 0.8))
    ]
    (column,) = posteriors.columns(rows)
    assert (column["best of ours"], column["best of azula"], column["ratio"]) == ("A", "azula C", 0.25)
    assert posteriors.overall(rows)["B"] == {"2-D": 0.4}


def test_means_are_over_what_every_column_has() -> None:
    def row(problem: str, noise: float, nfe: int) -> dict[str, object]:
        return {"problem": problem, "observation": "mask", "noise": noise, "nfe": nfe}

    rows = [row("2-D", 0.3, 20), row("2-D", 0.3, 50), row("8-D", 0.3, 20), row("8-D", 0.1, 50)]
    assert posteriors.common(rows) == [rows[0], rows[2]]
    assert posteriors.common([]) == []


def test_the_tilted_law_is_the_conditional_one_at_scale_one() -> None:
    data = law_of_guidance.law()
    found = law_of_guidance.tilted_quantiles(data, 1.0, 2001)
    component = data.component(law_of_guidance.LABEL)
    wanted = component.mean + component.std * torch.special.ndtri((torch.arange(2001).double() + 0.5) / 2001)
    torch.testing.assert_close(found, wanted.flatten(), rtol=0, atol=1e-3)
