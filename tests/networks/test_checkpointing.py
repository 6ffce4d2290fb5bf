"""Blocks that are evaluated again in the backward pass: gradients, masks of dropout, evaluation, refusals."""

import copy

import pytest
import torch
from torch import nn

from sde_toolkit.models import NetworkModel, OwnRows
from sde_toolkit.networks import MLP, checkpoint_blocks
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, Parallel, TrainState, fit
from tests.networks.kinds import KINDS, awake, batch, build

DROPOUT = {"unet", "ncsnpp", "unet1d"}


def calls_of(network):
    """Counts the calls of every linear and convolution layer."""
    calls = []
    for part in network.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            part.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def gradients(network, kind, rows=None):
    x, c = batch(kind, dtype=torch.float64)
    torch.manual_seed(7)
    out = network(x, c) if rows is None else OwnRows(network, rows)(x, c)
    out.square().sum().backward()
    return out.detach(), [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, slice(1, 4)])
def test_gradients_are_the_same_and_blocks_are_evaluated_twice(kind, rows):
    options = {"dropout": 0.4} if kind in DROPOUT else {}
    plain = awake(build(kind, **options).double())
    again = copy.deepcopy(plain)
    assert checkpoint_blocks(again) > 1
    calls = [calls_of(network) for network in (plain, again)]
    (out, expected), (other, found) = (gradients(network, kind, rows) for network in (plain, again))
    assert torch.equal(out, other)
    assert len(calls[1]) > len(calls[0])
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_changes_without_gradients_and_copies_have_their_own_weights():
    network = awake(build("mlp").double())
    x, c = batch("mlp", dtype=torch.float64)
    before = network(x, c).detach()
    checkpoint_blocks(network)
    calls = calls_of(network)
    with torch.no_grad():
        assert torch.equal(network(x, c), before)
    once = len(calls)
    network.eval()
    network(x, c).sum().backward()
    assert len(calls) == 2 * once
    other = copy.deepcopy(network)
    nn.init.zeros_(other.blocks[0].second.weight)
    assert torch.equal(network(x, c).detach(), before)
    assert not torch.equal(other(x, c).detach(), before)


@pytest.mark.parametrize("parallel", [None, Parallel(accumulate=2)])
@pytest.mark.parametrize("loss", [DenoisingLoss(), DenoisingLoss("noise", 1e-3, second_order=0.1)])
def test_runs_are_the_same_up_to_rounding(parallel, loss):
    x0, states = torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), []
    for checkpointing in (False, True):
        model = NetworkModel(MLP((3,), width=8, depth=2).double(), VPSDE(), "noise", (3,))
        states.append(TrainState(model, parallel=parallel))
        if checkpointing:
            checkpoint_blocks(model.network)
        fit(states[-1], x0, loss, 4, batch_size=8)
    for name, tensor in states[0].tensors().items():
        torch.testing.assert_close(states[1].tensors()[name], tensor, rtol=1e-9, atol=1e-9)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(
        ValueError, match="network must have blocks to be evaluated again, got Linear without"
    ):
        checkpoint_blocks(nn.Linear(2, 2))
