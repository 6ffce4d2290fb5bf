"""Watching a run changes nothing; a run changes nothing but the run."""

import torch
from torch import nn

from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.loop import fit
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import TrainState


class Restless(nn.Module):
    """Batch normalisation and dropout around a linear map."""

    def __init__(self, width=2):
        super().__init__()
        self.norm, self.dropout, self.out = nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, width)

    def forward(self, x, c):
        return self.out(self.dropout(self.norm(x)))


def trained(on_step=None, num_steps=4):
    torch.manual_seed(0)
    state = TrainState(NetworkModel(Restless(), VPSDE(), "velocity", (2,)))
    dataset = gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=64, num_test=8)
    fit(state, dataset, DenoisingLoss(), num_steps, 16, on_step=None if on_step is None else on_step(state))
    return state


def same(one, other):
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_looking_from_on_step_changes_nothing():
    def look(state):
        def on_step(info):
            for model in (state.model, state.ema):
                ddim(2).sample(model, 8)
                model.score(torch.randn(8, 2), torch.tensor(0.5))
            state.model.network(torch.randn(8, 2), torch.zeros(8)).sum().backward()
            state.model.eval()

        return on_step

    watched = trained(look)
    assert same(watched, trained())
    assert all(module.training for module in watched.model.network.modules())


def test_looking_draws_the_same_sample_twice():
    pairs = []

    def look(state):
        return lambda info: pairs.append([ddim(2).sample(state.model, 4, seed=3).x for _ in range(2)])

    trained(look, 2)
    assert len(pairs) == 2
    assert all(torch.equal(*pair) for pair in pairs)
