"""Declared orders of all presets, measured without sampling."""

import pytest

from benchmarks.preset_orders import DETERMINISTIC, PRESETS, cases, measure

QUICK = [case for case in cases() if case.problem != "Gaussian" and case.first < 256]


def label(case):
    return f"{case.name}, {case.kind}, {case.problem}"


def test_every_preset_has_its_cases():
    found = cases()
    assert {case.name for case in found} == set(PRESETS)
    assert len([c for c in found if c.kind == "deterministic"]) == 2 * len(DETERMINISTIC)


@pytest.mark.parametrize("case", QUICK, ids=label)
def test_observed_order_and_cost_are_the_declared_ones(case):
    measured = measure(case, halvings=1)
    assert measured.complaints() == []
    assert measured.errors[-1] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=label)
def test_observed_order_holds_over_four_halvings(case):
    assert measure(case, halvings=4 if case.first < 512 else 2).complaints() == []
