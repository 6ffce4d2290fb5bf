"""Samplers of other libraries on our models: what the program measures, and what it has recorded."""

import importlib.util
import json

import pytest

from benchmarks import guests
from benchmarks.record import RESULTS


def test_the_order_is_the_slope_at_the_most_steps():
    errors = {n: 3.0 * n**-2 + 50.0 * n**-4 for n in (*guests.STEPS, *guests.FINE)}
    assert guests.order(errors) == pytest.approx(2.0, abs=0.01)


def test_every_pair_of_the_record_is_one_rule():
    rows = json.loads((RESULTS / "guests.json").read_text())["results"]
    known = {(library, guests.name(pair.theirs, pair.options)) for library in guests.PAIRS
             for pair in guests.PAIRS[library]}  # fmt: skip
    assert {(row["library"], row["sampler"]) for row in rows} == known
    for row in rows:
        assert row["apart"] < 1e-12
        assert row["theirs"] == row["ours"]


@pytest.mark.skipif(importlib.util.find_spec("k_diffusion") is not None, reason="k-diffusion is installed")
def test_a_library_that_is_absent_is_named():
    with pytest.raises(ImportError, match="no k_diffusion"):
        guests.k_diffusion_samplers()
