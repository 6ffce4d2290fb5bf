"""The comparison: what a record holds, when it is reused, and what its error bar is."""

import json
import math

import pytest
import torch

from sde_toolkit.data.toy import ring, ring_components
from sde_toolkit.lab import (
    Candidate,
    Metric,
    Record,
    Reference,
    Store,
    compare,
    load_records,
    save_records,
)
from sde_toolkit.metrics.distances import EnergyDistance
from sde_toolkit.metrics.errors import bootstrap, pooled
from sde_toolkit.models.exact import ExactModel, GaussianMixture
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.samplers.presets.adaptive_steps import dopri5
from sde_toolkit.samplers.presets.one_step import ddim
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils.random import Stream, permutation


@pytest.fixture(scope="module")
def model():
    means, std = ring_components()
    return ExactModel(GaussianMixture(torch.full((8,), 1 / 8), means, torch.full((8,), std**2)), VPSDE())


@pytest.fixture(scope="module")
def metric():
    return Metric("energy distance", EnergyDistance(), ring(8, 200).test, {"real": "test"})


def candidates(*steps):
    return [Candidate("ddim", n, ddim(n), ddim(n).settings) for n in steps]


def run(model, metric, steps=(2, 8), **options):
    options = {"num_samples": 40, "fingerprint": "abc", **options}
    return compare(model, candidates(*steps), [metric], **options)


def test_record_holds_what_was_measured(model, metric):
    (record,) = run(model, metric, (3,), seeds=(4,))
    samples = ddim(3).sample(model, 40, seed=4)
    expected = bootstrap(EnergyDistance(), samples.x, metric.real)
    assert (record.value, record.standard_error) == (expected.value, expected.standard_error)
    assert (record.sampler, record.num_steps, record.nfe) == ("ddim", 3, samples.nfe)
    assert (record.num_samples, record.seeds, record.metric) == (40, (4,), "energy distance")
    assert record.settings["model"] == "abc"
    assert record.settings["metric.real"] == "test"
    assert record.seconds > 0


def test_more_steps_are_better_on_the_exact_score(model, metric):
    coarse, fine = run(model, metric, (2, 30), num_samples=200)
    assert fine.value < coarse.value - 3 * math.hypot(fine.standard_error, coarse.standard_error)


def test_error_over_seeds_is_that_of_the_mean(model, metric):
    (record,) = run(model, metric, (3,), seeds=(0, 1, 2))
    each = [bootstrap(EnergyDistance(), ddim(3).sample(model, 40, seed=s).x, metric.real) for s in (0, 1, 2)]
    values = torch.tensor([e.value for e in each], dtype=torch.float64)
    assert record.value == pytest.approx(float(values.mean()), rel=1e-12)
    assert record.standard_error == pytest.approx(pooled(each).standard_error, rel=1e-12)
    assert record.estimates == tuple(each)


def test_only_missing_seeds_are_computed(model, metric, tmp_path):
    store, drawn = Store(tmp_path / "records.sqlite"), []
    run(model, metric, (3,), seeds=(0, 1), store=store)
    options = {"store": store, "on_samples": lambda c, s: drawn.append(s.seed)}
    (record,) = run(model, metric, (3,), seeds=(0, 1, 2), **options)
    assert drawn == [2]
    assert record.seeds == (0, 1, 2)
    assert [r.seeds for r in store.records()] == [(0,), (1,), (2,)]
    assert run(model, metric, (3,), seeds=(0, 1, 2), **options) == [record]
    assert drawn == [2]


def test_reuse_needs_the_same_model_samples_seeds_and_settings(model, metric):
    calls = []

    def reused(**options):
        calls.clear()
        run(model, metric, previous=before, on_records=lambda c, r, old: calls.append(old), **options)
        return list(calls)

    before = run(model, metric)
    assert reused() == [True, True]
    assert reused(steps=(2, 9)) == [True, False]
    assert reused(num_samples=41) == [False, False]
    assert reused(seeds=(1,)) == [False, False]
    assert reused(fingerprint="abd") == [False, False]


def test_reused_records_cost_no_evaluation_and_are_equal(model, metric):
    before, drawn = run(model, metric), []
    after = run(model, metric, previous=before, on_samples=lambda c, s: drawn.append(s))
    assert after == before
    assert not drawn


def test_records_survive_the_file(model, metric, tmp_path):
    records, references = run(model, metric, seeds=(0, 1)), [metric.halves(3)]
    save_records(tmp_path / "records.json", records, references)
    assert load_records(tmp_path / "records.json") == (records, references)
    assert [
        c for c in run(model, metric, seeds=(0, 1), previous=load_records(tmp_path / "records.json")[0])
    ] == records
    json.loads((tmp_path / "records.json").read_text())


def test_missing_and_broken_files(tmp_path):
    assert load_records(tmp_path / "none.json") == ([], [])
    for text in ("{", "[]", '{"records": [{}], "references": []}', '{"records": 3}'):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ValueError, match="is not a file of records"):
            load_records(tmp_path / "broken.json")


def test_adaptive_candidate_is_labelled_by_its_tolerance():
    sampler = dopri5(rtol=1e-2)
    assert Candidate("dopri5", None, sampler, sampler.settings).label == "dopri5-rtol0.01"
    assert candidates(5)[0].label == "ddim-5"


def test_halves_of_real_data_are_near_zero(metric):
    reference = metric.halves(num_splits=20)
    assert reference == metric.halves(num_splits=20)
    assert isinstance(reference, Reference)
    assert abs(reference.value) < 5 * reference.standard_error  # unbiased, over 20 splits
    assert reference.settings == {"real": "test", "num_examples": 100}
    assert reference.label == "two halves of real data"


def test_real_examples_are_compared_with_the_others(metric):
    two, three = (metric.real_examples(30, num_splits=k) for k in (2, 3))
    order = permutation(200, 0, 2, Stream.SPLIT)
    third = metric.distance(metric.real[order[:30]], metric.real[order[30:]])
    assert three.label == "30 real examples"
    assert 3 * three.value - 2 * two.value == pytest.approx(third)
    with pytest.raises(ValueError, match="num_splits must be an integer >= 2"):
        metric.real_examples(30, num_splits=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds must hold at least one"),
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"num_samples": 9}, "num_samples must be at least 10"),
        ({"seeds": (0, -1)}, "seeds must be an integer >= 0, got -1"),
        ({"steps": ()}, "candidates must hold at least one"),
    ],
)
def test_bad_arguments(model, metric, options, message):
    with pytest.raises(ValueError, match=message):
        run(model, metric, **options)
    with pytest.raises(ValueError, match="metrics must hold"):
        compare(model, candidates(2), [], num_samples=10)


def test_record_is_frozen():
    record = Record("a", 1, 1.0, "m", 0.0, 0.0, 0.0, 2, (0,), {})
    with pytest.raises(AttributeError):
        record.value = 2


@pytest.fixture(scope="module")
def conditional():
    network = MLP((2,), width=8, depth=1, num_classes=3)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(0.3 * torch.sin(torch.arange(parameter.numel()) + index).view_as(parameter))
    return NetworkModel(network, VPSDE(), "noise", (2,))


def test_a_condition_reaches_the_samples_and_the_settings(conditional, metric):
    drawn = []
    labels = torch.arange(40) % 3
    for condition in (1, 2, labels, None):
        (record,) = run(
            conditional, metric, (3,), condition=condition, on_samples=lambda c, s: drawn.append(s.x)
        )
        shown = labels.tolist() if condition is labels else condition
        assert record.settings.get("condition") == shown
    one, two, mixed, none = drawn
    torch.testing.assert_close(mixed[labels == 1], one[labels == 1])
    torch.testing.assert_close(mixed[labels == 2], two[labels == 2])
    assert not torch.allclose(one, two)
    assert not torch.allclose(one, none)


def test_records_of_another_condition_are_not_reused(conditional, metric, tmp_path):
    before, calls = run(conditional, metric, (3,), condition=1), []
    save_records(tmp_path / "records.json", before)
    before, _ = load_records(tmp_path / "records.json")
    for condition in (1, 2, None):
        options = {"condition": condition, "on_records": lambda c, r, old: calls.append(old)}
        run(conditional, metric, (3,), previous=before, **options)
    assert calls == [True, False, False]


def test_a_model_without_conditions_refuses_one(metric):
    model = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "noise", (2,))
    with pytest.raises(ValueError, match="condition"):
        run(model, metric, (3,), condition=1)
