"""A model that is trained in Python is as good as the same run on the command line."""

import pytest
import torch

from sde_toolkit import cli, samplers
from sde_toolkit.config import build_loss, build_model, build_optimization, load_config
from sde_toolkit.data import Scaling, from_array, ring
from sde_toolkit.metrics import energy_distance
from sde_toolkit.models import Moments, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.runs import open_run
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, TrainState, fit

OVERRIDES = {"training.num_steps": "1500", "training.batch_size": "256", "optimization.decay_steps": "1500"}


def test_fit_sets_the_moments_of_the_model_and_of_its_average() -> None:
    data = ring(num_train=512)
    state = TrainState(NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "noise", (2,)))
    assert state.model.moments is None
    fit(state, data, DenoisingLoss(), num_steps=2, batch_size=16)
    for model in (state.model, state.ema):
        assert isinstance(model.moments, Moments)
        assert torch.equal(model.moments.covariance, data.moments.covariance)
        assert samplers.default(model, 5).settings["moments"] == "full"


@pytest.mark.slow
def test_training_from_an_array_equals_training_by_the_command_line(tmp_path) -> None:
    """Five evaluations of the recommended sampler: the same distance to held-out data as through the CLI."""
    words = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    assert cli.main(["train", "--config=ring", f"--workdir={tmp_path}", *words]) == 0
    by_cli = open_run(tmp_path).model

    config, everything = load_config("ring", OVERRIDES), ring()
    x = torch.cat([everything.train, everything.test])
    data = from_array(x, Scaling.identity(), test_fraction=0.2)
    model = build_model(config, data.event_shape, data.data_std)
    state = TrainState(model, build_optimization(config), config.seed)
    fit(state, data, build_loss(config), config.training.num_steps, config.training.batch_size)

    held_out = everything.test
    by_command, by_hand = (
        energy_distance(samplers.default(m, 5).sample(m, 4000, seed=1).x, held_out)
        for m in (by_cli, state.ema)
    )
    assert by_hand < 1.25 * by_command + 2e-3
    assert by_hand < 0.02
