"""Calibration: exact methods pass, biased ones are found out."""

import pytest
import torch

from sde_toolkit import samplers
from sde_toolkit.guidance import (
    DDNM,
    GaussianInformed,
    LinearObservation,
    Observed,
    TwistedSMC,
    calibrate,
    entries,
    inpaint,
    restore,
)
from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture, GivenModel
from sde_toolkit.sdes import VPSDE

ALPHA = 1e-5
"""Probability that an exact method is rejected."""

LAW = Gaussian([0.5, -1.0, 0.0], [[1.0, 0.3, 0.0], [0.3, 0.5, 0.2], [0.0, 0.2, 2.0]])
MODEL = ExactModel(LAW, VPSDE())
MASK = torch.tensor([True, False, True])
SMC = TwistedSMC(10, 4)


def test_an_exact_method_is_calibrated_and_a_biased_one_is_found_out() -> None:
    seen = LinearObservation([[1.0, 0.5, -1.0]], 0.4)
    fine = samplers.ancestral(100)
    exact = calibrate(MODEL, seen, method=GaussianInformed(), sampler=fine, num_pairs=600)
    assert exact.p_value > ALPHA, exact.sentence
    assert exact.level == 0.9
    assert abs(exact.coverage.value - exact.level) < 4.42 * exact.coverage.standard_error
    levels, shares, errors = exact.curve()
    assert float(((shares - levels) / errors).abs().max()) < 5
    tied = ExactModel(Gaussian([0.0, 0.0], [[1.0, 0.95], [0.95, 1.0]]), VPSDE())
    seen = LinearObservation(torch.tensor([True, False]), 0.1)
    biased = calibrate(
        tied, seen, method=DDNM(), sampler=samplers.ddim(30), num_pairs=200
    )  # forgets the noise
    assert biased.coverage.value < 0.6
    assert biased.p_value < ALPHA, biased.sentence
    assert biased.sentence.startswith("200 pairs by 19 draws: coverage ")


def test_known_features_are_left_out_and_truths_may_be_given() -> None:
    found = calibrate(
        GivenModel(ExactModel(GaussianMixture([0.5, 0.5], [[0.0] * 3, [1.0] * 3], [1.0, 2.0]), VPSDE()), 0),
        LinearObservation(MASK, 0.0), truths=Gaussian([0.0] * 3, 1.0).sample(60, 0), num_draws=4,
        sampler=samplers.ddim(10), level=0.5,
    )  # fmt: skip
    assert found.ranks.shape == (60, 1)
    assert found.level == pytest.approx(0.6)


@pytest.mark.slow
def test_particles_are_calibrated_on_a_mixture() -> None:
    law = GaussianMixture([0.4, 0.6], [[-1.5, 0.0], [1.0, 1.0]], [0.3, 0.5])
    seen = LinearObservation([[1.0, -0.5]], 0.5)
    found = calibrate(
        ExactModel(law, VPSDE()), seen, sampler=TwistedSMC(20, 8), num_pairs=40, num_draws=4, level=0.5
    )
    assert found.p_value > ALPHA, found.sentence
    assert found.settings["method"].startswith("TwistedSMC")


def test_examples_are_restored_by_particles() -> None:
    """Draws of an example are the same, whatever else is restored; the mean is that of the posterior."""
    seen, y = LinearObservation([[1.0, 0.5, -1.0]], 0.4), torch.tensor([[0.3], [1.0]], dtype=torch.float64)
    found = restore(MODEL, seen, y, sampler=TwistedSMC(20, 64), num_draws=64, level=0.5)
    again = restore(MODEL, seen, y[:1], sampler=TwistedSMC(20, 64), num_draws=64, level=0.5)
    assert torch.equal(found.x[:, :1], again.x)
    for i in range(2):
        truth = MODEL.posterior(Observed(seen, y[i])).data
        error = (found.mean[i] - truth.mean) / truth.variance.sqrt()
        assert float(error.abs().max()) < 0.7
    images = torch.where(MASK, LAW.sample(2, 0), torch.nan)
    held = inpaint(MODEL, images, MASK, std=0.1, sampler=SMC, num_draws=3)
    assert held.draws.shape == (3, 2, 3)


def test_what_cannot_be_calibrated_is_refused() -> None:
    seen = LinearObservation(MASK, 0.1)
    with pytest.raises(ValueError, match="num_pairs must be at least 40, got 39"):
        calibrate(MODEL, seen, num_pairs=39)
    with pytest.raises(ValueError, match="truths must be given for a model whose data are not known"):
        calibrate(GivenModel(ExactModel(GaussianMixture([1.0], [[0.0] * 3], [1.0]), VPSDE()), 0), seen)
    with pytest.raises(ValueError, match="got all of them without noise"):
        calibrate(MODEL, LinearObservation(torch.ones(3, dtype=torch.bool), 0.0))
    with pytest.raises(ValueError, match="one mask for all pairs"):
        calibrate(MODEL, LinearObservation(entries((3,)), 0.1))
    with pytest.raises(ValueError, match="method must be left out for TwistedSMC"):
        calibrate(MODEL, seen, method=GaussianInformed(), sampler=SMC)
    with pytest.raises(ValueError, match="num_draws must be at least 2"):
        calibrate(MODEL, seen, num_draws=1)
