"""The problems for tuning are apart from those that are reported."""

import dataclasses

import torch

from benchmarks import flows, quality, tuning
from sde_toolkit.models import GaussianMixture
from sde_toolkit.samplers.gaussian.grid import CONSTANTS


def test_no_reporting_benchmark_uses_data_for_tuning() -> None:
    reported = [*flows.make_data().values(), quality.mixture()]
    for data in tuning.make_data().values():
        assert isinstance(data, GaussianMixture)
        for other in reported:
            means = getattr(other, "means", None)
            assert means is None or means.shape != data.means.shape or not torch.allclose(means, data.means)


def test_every_constant_is_moved_up_and_down() -> None:
    names = [name.split()[0] for name, _ in tuning.choices()]
    fields = [f.name for f in dataclasses.fields(CONSTANTS) if f.name != "logarithmic"]  # a switch
    assert names == [name for field in fields for name in (field, field)]


def test_constants_in_force_have_the_error_of_the_default_sampler() -> None:
    data = tuning.make_data()["ring5"]
    problem = flows.make_problem("ring5", data, flows.make_processes()["vp"], tuning.SEED)
    few, many = tuning.error(problem, CONSTANTS, 5), tuning.error(problem, CONSTANTS, 20)
    assert many < 0.1 * few < 0.1
    worse = dataclasses.replace(CONSTANTS, nodes=2, corrector_nodes=3)
    assert tuning.error(problem, worse, 20) > many
