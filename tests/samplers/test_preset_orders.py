"""Declared orders of all presets, measured without sampling."""

import json

import pytest

from benchmarks.orders import TOLERANCE
from benchmarks.preset_orders import DETERMINISTIC, HALVINGS, MAKERS, cases, measure
from benchmarks.record import RESULTS

QUICK = [case for case in cases() if case.problem != "Gaussian" and case.first < 256]


def label(case):
    return f"{case.name}, {case.kind}, {case.problem}"


def test_every_preset_has_its_cases():
    found = cases()
    assert {case.name for case in found} == set(MAKERS)
    assert len([c for c in found if c.kind == "deterministic"]) == 2 * len(DETERMINISTIC)


@pytest.mark.parametrize("case", QUICK, ids=label)
def test_observed_order_and_cost_are_the_declared_ones(case):
    measured = measure(case, halvings=1)
    assert measured.complaints() == []
    assert measured.errors[-1] < 0.05


def test_the_committed_orders_are_those_of_today():
    rows = json.loads((RESULTS / "preset_orders.json").read_text())["results"]
    found = {(row["sampler"], row["kind"], row["problem"]): row for row in rows}
    assert set(found) == {(case.name, case.kind, case.problem) for case in cases()}
    for case in cases():
        row = found[case.name, case.kind, case.problem]
        assert row["declared"] == case.declared
        assert abs(row["observed"] - case.declared) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=label)
def test_observed_order_holds_over_more_halvings(case):
    assert measure(case, HALVINGS).complaints() == []
