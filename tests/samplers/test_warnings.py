"""What a sampler warns of, with a number, and what it refuses, before a run."""

import pytest
import torch

from sde_toolkit.models import ExactModel, Gaussian, IndexedModel
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import ddim, euler, grids, pndm
from sde_toolkit.sdes import VESDE, VPSDE, Chain

EXACT = ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE())


def cosine_table(steps: int = 1000) -> Chain:
    """The table of 2102.09672, eq. 17, with its betas clipped at 0.999."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    squares = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    return Chain.from_betas((1 - squares[1:] / squares[:-1]).clamp(max=0.999))


def indexed(predicts: str) -> IndexedModel:
    """A network at the indices of that table."""
    return IndexedModel(MLP((2,), width=4, depth=1), cosine_table(), predicts, (2,))


def test_pndm_on_the_cosine_table_is_warned_of():
    for predicts in ("noise", "velocity"):
        with pytest.warns(UserWarning, match=r"pndm multiplies errors of the predicted noise by \d+"):
            pndm(20).sample(indexed(predicts), 2)


def test_a_noise_network_on_it_is_warned_of_and_others_are_not():
    with pytest.warns(UserWarning, match="ddim multiplies errors"):
        ddim(20).sample(indexed("noise"), 2)
    ddim(20).sample(indexed("velocity"), 2)  # warnings are errors in tests
    pndm(20).sample(EXACT, 2)


def test_a_grid_that_begins_among_the_data_is_warned_of():
    with pytest.warns(UserWarning, match=r"ddim begins at t = 0.2, where the noise is 0.\d+ times"):
        ddim(2, grid=grids.Explicit([0.2, 0.1, 0.001])).sample(EXACT, 2)
    with pytest.warns(UserWarning, match="starts from a Gaussian; let the grid begin at T = 1"):
        ddim(2, grid=grids.Explicit([0.2, 0.1, 0.001])).sample(EXACT, 2, start="moments")
    with pytest.warns(UserWarning, match="starts from noise alone; take a process with more noise at T"):
        ddim(2).sample(ExactModel(EXACT.data, VESDE(0.01, 0.5)), 2)


def test_a_grid_must_end_at_t_min():
    def short(sde, num_steps, t_min, t_max=None):
        return torch.linspace(sde.T, 0.1, num_steps + 1, dtype=torch.float64)

    with pytest.raises(ValueError, match=r"grid short must end at t_min = 0.001, got 0.1; give t_min=0.1"):
        euler(3, grid=short).sample(EXACT, 2)
    assert euler(3, grid=short, t_min=0.1).sample(EXACT, 2).nfe == 4
