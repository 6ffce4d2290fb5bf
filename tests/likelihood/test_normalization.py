"""Densities of trained networks are densities, and no code is shorter than the entropy."""

import math

import pytest
import torch

from sde_toolkit import data
from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.likelihood import FlowSolver, log_likelihood
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VESDE, VPSDE
from sde_toolkit.training.loop import fit
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import Optimization, TrainState
from solvers import AB4


def trained(dataset: Dataset, sde, num_steps: int) -> NetworkModel:
    network = MLP(dataset.event_shape, width=64, depth=2, seed=0)
    model = NetworkModel(network, sde, "velocity", dataset.event_shape, dataset.data_std, dataset.moments)
    state = TrainState(model, Optimization(learning_rate=3e-3, ema_decay=0.99), seed=0)
    fit(state, dataset, DenoisingLoss(), num_steps, 256)
    return state.ema


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0)], ids=["vp", "ve"])
def test_the_density_of_a_trained_model_integrates_to_one(sde):
    model = trained(data.ring(), sde, 400)
    side, reach = 151, 4.0
    axis = torch.linspace(-reach, reach, side)
    points = torch.cartesian_prod(axis, axis)
    found = log_likelihood(model, points, batch_size=2048, solver=FlowSolver(method=AB4, num_steps=40))
    total = float(found.nats.exp().sum()) * (2 * reach / (side - 1)) ** 2
    print(f"{type(sde).__name__}: integral {total:.5f}")
    assert abs(total - 1) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("levels", [4, 17])
def test_no_code_for_uniform_noise_is_shorter_than_its_entropy(levels):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, levels, (4096, 2), generator=generator, dtype=torch.uint8)
    dataset = Dataset("noise", noise[:3584], noise[3584:], Scaling.grey(levels))
    model = trained(dataset, VPSDE(), 400)
    found = log_likelihood(
        model,
        dataset.scaled_test(),
        log_det_per_dim=dataset.scaling.log_det_per_dim,
        solver=FlowSolver(rtol=0.001, atol=0.001),
    )
    bits = found.bits_per_dim
    mean, error = float(bits.mean()), float(bits.std()) / math.sqrt(len(bits))
    print(f"{levels} levels: {mean:.4f} +- {error:.4f} bits/dim, entropy {math.log2(levels):.4f}")
    assert mean > math.log2(levels)
    assert mean < math.log2(levels) + 0.3
