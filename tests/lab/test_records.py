"""Means over seeds and paired differences: their values, error bars and refusals."""

import math
from dataclasses import replace

import pytest
import torch

from sde_toolkit.lab import Metric, Record, compare, paired_difference, pooled_records
from sde_toolkit.lab.experiment import Candidate
from sde_toolkit.lab.records import over_all_seeds
from sde_toolkit.metrics import EnergyDistance, Estimate
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE

MODEL = ExactModel(Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.25]))), VPSDE())
METRIC = Metric("energy distance", EnergyDistance(), MODEL.data.sample(300, seed=9))


def run(*steps, seeds=(0, 1), num_samples=100):
    candidates = [Candidate.of("ddim", ddim(n)) for n in steps]
    return compare(MODEL, candidates, [METRIC], num_samples=num_samples, seeds=seeds, problem="gaussian")


def test_the_mean_of_single_seeds_is_the_record_of_both():
    (both,) = run(4)
    single = [run(4, seeds=(seed,))[0] for seed in (0, 1)]
    found = over_all_seeds(single)
    assert found.value == pytest.approx((single[0].value + single[1].value) / 2)
    for name in ("value", "standard_error", "estimates", "seeds", "settings", "nfe", "problem"):
        assert getattr(found, name) == getattr(both, name)
    assert pooled_records(single) == [found]
    assert pooled_records([*single, single[0]]) == [found]
    with pytest.raises(ValueError, match="different seeds"):
        over_all_seeds([single[0], single[0]])
    with pytest.raises(ValueError, match="in their seeds alone"):
        over_all_seeds([single[0], replace(single[1], sampler="heun")])


def test_a_paired_difference_is_that_of_the_values_with_a_far_smaller_error():
    coarse, fine = run(8, 10)
    found = paired_difference(coarse, fine)
    assert found.value == pytest.approx(coarse.value - fine.value)
    assert 0 < found.standard_error < math.hypot(coarse.standard_error, fine.standard_error) / 3
    assert paired_difference(fine, coarse).value == -found.value


def test_differences_of_different_things_are_refused():
    a, b = run(3, 5, seeds=(0,))
    for changes, message in (
        ({"num_samples": 7}, "num_samples of a, 100, got 7"),
        ({"seeds": (3,)}, "seeds of a"),
        ({"problem": "ring"}, "problem of a"),
        ({"metric": "mmd"}, "metric of a"),
        ({"settings": {**b.settings, "model": "xyz"}}, "setting model of a"),
        ({"estimates": ()}, "must keep the estimate of every seed"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_difference(a, replace(b, **changes))


def test_without_replicates_the_seeds_are_paired():
    def record(*values):
        estimates = tuple(Estimate(v, 1.0, "by hand") for v in values)
        return Record(
            "s", 1, 1.0, "m", sum(values) / len(values), 1.0, 0.0, 10, (0, 1, 2)[: len(values)], {},
            estimates=estimates,
        )  # fmt: skip

    found = paired_difference(record(1.0, 2.0, 3.0), record(0.5, 1.6, 2.4))
    assert found.value == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert paired_difference(record(1.0), record(0.5)).standard_error == pytest.approx(math.sqrt(2))


def test_what_a_run_costs_is_recorded():
    (record,) = run(5, seeds=(0,))
    assert 0 < record.network_seconds < record.seconds
    assert record.solver_seconds == pytest.approx(record.seconds - record.network_seconds)
    assert record.made_by["versions"]["torch"] == torch.__version__
    assert record.made_by["hardware"]["device"] == "cpu"
    assert record.peak_memory is None or record.peak_memory > 1 << 20
