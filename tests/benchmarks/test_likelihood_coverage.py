"""Intervals of likelihoods hold the exact value as often as they say, and how often is on record."""

import json

import pytest
import torch

from benchmarks import likelihood_coverage as coverage
from benchmarks.record import RESULTS
from sde_toolkit.likelihood import DEFAULT_PROBES, values_only


@pytest.mark.slow
@pytest.mark.parametrize("name", list(coverage.NETWORKS))
def test_intervals_cover(name: str) -> None:
    model, x = coverage.network(name)
    exact = values_only(model, x, divergence=None, solver=coverage.SOLVER, batch_size=100).nats
    hits = []
    for seed in (20, 21):
        found = values_only(model, x, divergence=DEFAULT_PROBES, solver=coverage.SOLVER, seed=seed)
        low, high = found.interval(0.95)
        hits.append(((low <= exact) & (exact <= high)).double())
    covered = float(torch.cat(hits).mean())
    print(f"{name}: {covered:.3f}")
    assert 0.92 <= covered <= 0.98  # 1000 values: a standard error of .007


def test_the_correction_brings_rough_networks_closer_to_the_level() -> None:
    found = json.loads((RESULTS / "likelihood_coverage.json").read_text())["results"]
    assert set(found) == set(coverage.NETWORKS)
    for rows in found.values():
        for name, row in rows.items():
            assert row["interval"] >= row["student"]
            assert row["interval"] > 0.93 or name.endswith(" 4") or row["interval"] > row["student"]
