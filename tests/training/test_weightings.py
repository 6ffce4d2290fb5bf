"""Weights and laws of the times with parameters, and functions in their place."""

import math

import pytest
import torch

from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.objective import (
    P2,
    DenoisingLoss,
    EDMWeight,
    LogitNormalWeight,
    LogNormal,
    MinSNR,
    SigmoidWeight,
    SoftMinSNR,
)
from tests.training.test_loss import Recorder, generator, normals


def test_weights_with_parameters_and_functions():
    sde, x0 = VPSDE(), normals(32, 3)

    def of(weighting, **more):
        return DenoisingLoss(weighting, 0.01, "uniform", **more)(Recorder(sde), x0, generator())

    torch.testing.assert_close(of(MinSNR(5.0)), of("min_snr"), rtol=0, atol=0)
    torch.testing.assert_close(of(MinSNR(1e9)), of("noise"), rtol=1e-12, atol=0)
    torch.testing.assert_close(of(SoftMinSNR(1e9)), of("noise"), rtol=1e-4, atol=0)
    torch.testing.assert_close(of(P2(1e-12, 1.0)), of("data"), rtol=1e-6, atol=0)
    torch.testing.assert_close(of(P2(1.0, 1e-9)), of("noise"), rtol=1e-6, atol=0)
    torch.testing.assert_close(of(SigmoidWeight(60.0)), of("likelihood"), rtol=1e-12, atol=0)
    torch.testing.assert_close(of(EDMWeight()), of("edm"), rtol=0, atol=0)
    torch.testing.assert_close(of(LogitNormalWeight()), of("logit_normal"), rtol=0, atol=0)
    torch.testing.assert_close(of(lambda model, t: model.sde.nsr(t) ** 2), of("data"), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MinSNR(0.0), "gamma must be a finite positive number, got 0"),
        (lambda: SoftMinSNR(-1.0), "gamma must be a finite positive number, got -1"),
        (lambda: P2(gamma=0.0), "gamma must be a finite positive number, got 0"),
        (lambda: EDMWeight(std=0.0), "std must be a finite positive number, got 0"),
        (lambda: LogitNormalWeight(std=-1.0), "std must be a finite positive number, got -1"),
        (lambda: LogNormal(data_std=-1.0), "data_std must be a (finite )?number >= 0, got -1"),
        (lambda: SigmoidWeight(math.inf), "bias must be a finite number, got inf"),
        (lambda: _loss(weighting=lambda model, t: 1.0), r"weighting\(model, t\) must return a tensor"),
        (
            lambda: _loss(time_sampling=lambda model, t: 1.0),
            r"time_sampling\(model, t\) must return a tensor",
        ),
        (lambda: _loss(time_sampling=lambda model, t: -t), "must be a density of t, finite and not negative"),
        (lambda: _loss(time_sampling=lambda model, t: 0 * t), "and not 0 everywhere"),
    ],
)
def test_bad_weights_and_laws_get_a_sentence(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def _loss(**arguments):
    return DenoisingLoss(**arguments)(Recorder(VPSDE()), normals(4, 3), generator())
