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
    both = method | {"DDNM": posteriors.ours()["DDNM"]}
    posteriors.run(both, posteriors.Store(path))  # one that old blocks lack: the others stay as they are
    for key, block in posteriors.Store(path).blocks.items():
        assert block.keys() == {"floor", "GaussianInformed", "DDNM"}
        assert {name: block[name] for name in again[key]} == again[key]


def _store(path: Path, values: dict[str, list[float]]) -> posteriors.Store:
    """W2 of methods by seed; each worse by .1 given a blur, and in 8-D."""
    store = posteriors.Store(path)
    for k, (problem, seen) in enumerate(itertools.product(("2-D", "8-D"), ("mask", "blur"))):
        for seed in range(posteriors.SEEDS):
            store.blocks[problem, seen, 0.3, 20, seed] = {
                m: {"W2": w[seed] + 0.1 * k, "energy": 0.0, "coverage": 0.9} for m, w in values.items()
            }
    return store


def test_columns_tell_the_best_of_both(tmp_path: Path) -> None:
    values = {"floor": [0.1] * 3, "A": [0.1, 0.2, 0.3], "B": [0.4] * 3, "azula C": [0.8] * 3}
    store = _store(tmp_path / "blocks.json", values)
    store.blocks["2-D", "mask", 0.1, 20, 0] = store.blocks["2-D", "mask", 0.3, 20, 0]  # not in all columns
    assert posteriors.cells_of_all(store) == {(0.3, 20)}
    first, *_ = posteriors.best_of(posteriors.columns_of(store, "W2"), "W2")
    assert (first["problem"], first["observation"]) == ("2-D", "mask")
    assert (first["best of ours"], first["best of azula"]) == ("A", "azula C")
    assert first["ratio"] == pytest.approx(0.25)
    assert first["W2 error"] == pytest.approx(0.1 / math.sqrt(3), abs=1e-3)
    found = posteriors.overall(posteriors.columns_of(store, "W2"))["B"]
    assert found["8-D"]["W2"] == pytest.approx(0.4 + 0.25)


def test_orderings_compare_on_the_same_observations(tmp_path: Path) -> None:
    """Values that differ by seed more than methods do; a difference that is everywhere the same holds."""
    values = {"floor": [0.1] * 3, "A": [0.1, 1.0, 3.0], "B": [0.2, 1.1, 3.1], "C": [3.0, 1.0, 0.3]}
    rows = posteriors.orderings(posteriors.columns_of(_store(tmp_path / "blocks.json", values), "W2"))
    found = {(row["ahead"], row["behind"]): row for row in rows}
    assert found["A", "B"]["difference"] == pytest.approx(-0.1)
    assert found["A", "B"]["holds"]
    assert found["A", "B"]["columns"] == "4 of 4"
    assert not found["A", "C"]["holds"]
    wanted = torch.tensor([-2.9, 0.0, 2.7]).std() / math.sqrt(3) / math.sqrt(2)  # two problems
    assert found["A", "C"]["error"] == pytest.approx(float(wanted), rel=1e-3)


def test_the_tilted_law_is_the_conditional_one_at_scale_one() -> None:
    data = law_of_guidance.law()
    found = law_of_guidance.tilted_quantiles(data, 1.0, 2001)
    component = data.component(law_of_guidance.LABEL)
    wanted = component.mean + component.std * torch.special.ndtri((torch.arange(2001).double() + 0.5) / 2001)
    torch.testing.assert_close(found, wanted.flatten(), rtol=0, atol=1e-3)
