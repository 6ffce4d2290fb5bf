"""Calibrated grids: better where there is room, never worse, the same every time, kept on disk."""

import json

import pytest
import torch
from problems import GAUSSIAN, RING

from sde_toolkit import samplers
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.samplers.calibration import calibrate, calibrated
from sde_toolkit.samplers.grids import uniform
from sde_toolkit.sdes import VPSDE

FINE = samplers.dopri5(rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def model() -> ExactModel:
    return ExactModel(RING, VPSDE())


def test_a_poor_grid_becomes_a_better_one_on_both_batches(model: ExactModel) -> None:
    sampler = samplers.ddim(6, grid=uniform)
    found = calibrate(sampler, model, num_samples=16, sweeps=4)
    assert found.error < 0.6 * found.error_before
    assert found.validation < 0.8 * found.validation_before
    better = calibrated(sampler, model, num_samples=16, sweeps=4)
    third = {"seed": 0, "first_sample": 64}
    exact = FINE.sample(model, 32, **third).x
    errors = [float((s.sample(model, 32, **third).x - exact).norm()) for s in (sampler, better)]
    assert errors[1] < 0.8 * errors[0]
    assert better.sample(model, 4).nfe == sampler.sample(model, 4).nfe == 7


@pytest.mark.parametrize("num_steps", [2, 5, 9])
@pytest.mark.parametrize(
    "make", [samplers.ddim, lambda n: samplers.default(MODEL, n)], ids=["ddim", "default"]
)
def test_a_found_grid_is_never_worse_and_keeps_its_ends(make, num_steps: int) -> None:
    sampler = make(num_steps)
    found = calibrate(sampler, MODEL, num_samples=8, sweeps=1)
    assert found.error <= found.error_before
    assert found.validation <= found.validation_before
    assert (found.times[0], found.times[-1]) == (1.0, 1e-3)
    assert len(found.times) == sampler.num_steps + 1


MODEL = ExactModel(RING, VPSDE())


def test_where_nothing_can_be_gained_the_grid_stays() -> None:
    model = ExactModel(GAUSSIAN, VPSDE())
    sampler = samplers.default(model, 4)
    found = calibrate(sampler, model, num_samples=8, sweeps=1)
    assert found.validation <= found.validation_before < 1e-4


def test_results_are_the_same_again_and_come_from_the_cache(model: ExactModel, tmp_path) -> None:
    sampler = samplers.ddim(3)
    options = {"num_samples": 4, "sweeps": 1, "reference": samplers.ddim(40)}
    first = calibrate(sampler, model, cache=tmp_path / "grids", **options)
    assert calibrate(sampler, model, **options) == first
    (path,) = (tmp_path / "grids").iterdir()
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "evaluations": -1}))
    assert calibrate(sampler, model, cache=tmp_path / "grids", **options).evaluations == -1
    path.write_text("{")
    assert calibrate(sampler, model, cache=tmp_path / "grids", **options) == first


def test_another_model_or_setting_has_another_key(model: ExactModel) -> None:
    options = {"num_samples": 2, "sweeps": 1, "reference": samplers.ddim(5)}
    keys = {
        calibrate(sampler, tried, **(options | more)).key
        for sampler, tried, more in (
            (samplers.ddim(2), model, {}),
            (samplers.ddim(3), model, {}),
            (samplers.ddim(2), ExactModel(RING, VPSDE(), torch.float32), {}),
            (samplers.ddim(2), ExactModel(GAUSSIAN, VPSDE()), {}),
            (samplers.ddim(2), model, {"seed": 1}),
        )
    }
    assert len(keys) == 5


def test_what_cannot_be_calibrated_is_refused(model: ExactModel) -> None:
    for sampler in (samplers.ancestral(5), FINE, samplers.ddim(1)):
        with pytest.raises(ValueError, match="deterministic, on a grid of 2 or more steps"):
            calibrate(sampler, model)
    with pytest.raises(ValueError, match="at least 1, got 0 and 12"):
        calibrate(samplers.ddim(3), model, num_samples=0)
