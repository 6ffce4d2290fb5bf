"""The default sampler on networks that predict the noise, whose residual does not vanish at high noise."""

import copy
import dataclasses
from collections.abc import Iterator

import pytest

from benchmarks import predictions
from benchmarks.flows import ring
from sde_toolkit import MLP, samplers
from sde_toolkit.models import ExactModel, NetworkModel
from sde_toolkit.models.wrappers import Wrapper
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.gaussian.grid import (
    CONSTANTS,
    NETWORK_CONSTANTS,
    NOISY_CONSTANTS,
    ROUGH_CONSTANTS,
    Constants,
    ResidualGrid,
)
from sde_toolkit.samplers.gaussian.method import ResidualAdams
from sde_toolkit.sdes import VPSDE


def constants_of(sampler: samplers.Sampler) -> Constants:
    assert isinstance(sampler.grid, ResidualGrid)
    assert isinstance(sampler.method, ResidualAdams)
    assert sampler.grid.constants is sampler.method.constants
    return sampler.grid.constants


@pytest.mark.parametrize("predicts", ["noise", "score", "velocity", "data", "edm", "residual"])
def test_the_rule_depends_on_what_a_network_predicts(predicts: str) -> None:
    model = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), predicts, (2,), 1.0)
    expected = NETWORK_CONSTANTS if predicts in ("noise", "score") else ROUGH_CONSTANTS
    assert constants_of(samplers.default(model)) is expected
    assert constants_of(samplers.default(Wrapper(model))) is expected
    assert constants_of(samplers.default(model, eta=1.0)) is NOISY_CONSTANTS


def test_the_score_of_known_data_has_no_error_of_a_network() -> None:
    model = ExactModel(ring(), VPSDE())
    assert model.exact
    assert Wrapper(model).exact
    assert constants_of(samplers.default(Wrapper(model))) is CONSTANTS


def presets(num_steps: int) -> Iterator[samplers.Sampler]:
    """The usual multistep samplers on the usual grids."""
    for grid in (grids.log_snr, grids.karras, grids.quadratic):
        for make in (samplers.unipc, samplers.dpm_solver_pp, samplers.deis, samplers.ddim):
            yield make(num_steps, grid=grid, denoise=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has moments that are not")  # of a network trained for seconds
@pytest.mark.parametrize("name", ["ring", "mixture"])
def test_on_a_noise_network_it_is_within_twice_the_best_preset(name: str, monkeypatch) -> None:
    monkeypatch.setattr(predictions, "STEPS", 4000)
    data = ring(6, 0.18) if name == "ring" else predictions.scales()
    trained = predictions.train(data, "noise", predictions.LEGACY, 3)
    network = copy.deepcopy(trained.network).double()
    model = NetworkModel(
        network, trained.sde, "noise", trained.event_shape, trained.data_std, trained.moments
    )
    fine = samplers.dopri5(rtol=1e-8, atol=1e-8, denoise=False)
    end = fine.sample(model, 256, seed=5, start="prior").x

    def error(sampler: samplers.Sampler) -> float:
        x = sampler.sample(model, 256, seed=5, start="prior").x
        return float((x - end).square().mean().sqrt() / end.square().mean().sqrt())

    for nfe in (10, 20, 50):
        ours = samplers.default(model, nfe)
        best = min(error(sampler) for sampler in presets(nfe))
        assert error(ours) < 2 * best
        moments = trained.moments
        assert moments is not None
        usual = dataclasses.replace(
            ours, method=ResidualAdams(moments, CONSTANTS), grid=ResidualGrid(moments, CONSTANTS)
        )
        assert error(ours) < error(usual)  # what it replaces skips the network's error where noise dominates
