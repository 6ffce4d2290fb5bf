"""Weights in half precision: what is kept in float32, what is refused, and what is found at once."""

import pytest
import torch

from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import latest_checkpoint, read_checkpoint, restore
from sde_toolkit.training.loop import NonFiniteError, fit, train_step
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import Optimization, TrainState
from sde_toolkit.utils.files import WorkdirLock

DATA = gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=64, num_test=8)


def make_state(dtype=torch.float32, **options):
    network = MLP((2,), width=8, depth=1).to(dtype)
    return TrainState(NetworkModel(network, VPSDE(), "velocity", (2,)), Optimization(**options))


def test_a_bfloat16_network_has_its_average_and_moments_in_float32():
    torch.manual_seed(0)
    state = make_state(torch.bfloat16, warmup_steps=0)
    fit(state, DATA, DenoisingLoss(), 3, 16)
    assert {p.dtype for p in state.model.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in state.ema.network.parameters()} == {torch.float32}
    kept = [v for s in state.optimizer.state.values() for v in s.values()]
    assert {v.dtype for v in kept} == {torch.float32}
    assert ddim(2).sample(state.ema, 3).x.dtype == torch.float32
    assert ddim(2).sample(state.model, 3).x.dtype == torch.bfloat16


def test_the_average_of_bfloat16_weights_follows_steps_below_their_rounding():
    torch.manual_seed(0)
    low, high = make_state(torch.bfloat16), make_state(torch.float64)
    start = [p.detach().double() for p in low.model.network.parameters()]
    for state in (low, high):
        state.optimization = Optimization(learning_rate=1e-5, warmup_steps=0, ema_decay=0.0)
        for parameter, value in zip(state.model.network.parameters(), start, strict=True):
            parameter.data.copy_(value)
            if "wide" in state.optimizer.state[parameter]:
                state.optimizer.state[parameter]["wide"].copy_(value)
    for _ in range(100):
        for state in (low, high):
            for parameter in state.model.network.parameters():
                parameter.grad = torch.ones_like(parameter)
            state.update()
    pairs = zip(low.ema.network.parameters(), high.ema.network.parameters(), start, strict=True)
    for mine, exact, first in pairs:
        torch.testing.assert_close((exact - first).mean(), torch.tensor(-1e-3).double(), rtol=1e-3, atol=0)
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=1e-5)


def test_a_bfloat16_run_resumes_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    whole = make_state(torch.bfloat16)
    with WorkdirLock(tmp_path) as workdir:
        fit(whole, DATA, DenoisingLoss(), 4, 16, workdir=workdir, checkpoint_every=2, keep=9)
    again = make_state(torch.bfloat16)
    restore(again, read_checkpoint(tmp_path / "checkpoints" / "step-00000002.safetensors"))
    fit(again, DATA, DenoisingLoss(), 4, 16)
    mine, theirs = whole.tensors(), again.tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_float64_network_keeps_float64():
    state = make_state(torch.float64)
    assert {p.dtype for p in state.ema.network.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e5m2])
def test_parameters_too_narrow_to_train_are_refused(dtype):
    with pytest.raises(ValueError, match=f"got {dtype}.*autocast"):
        make_state(dtype)


def test_a_weight_that_is_not_finite_is_found_at_its_update(tmp_path):
    torch.manual_seed(0)
    state = make_state(warmup_steps=0)
    with WorkdirLock(tmp_path) as workdir:
        fit(state, DATA, DenoisingLoss(), 2, 16, workdir=workdir, checkpoint_every=1)
        good = latest_checkpoint(tmp_path)
        average = [p.clone() for p in state.ema.network.parameters()]
        state.optimization = Optimization(warmup_steps=0, learning_rate=2e37)
        next(state.model.network.parameters()).data.fill_(5.0)
        for group in state.optimizer.param_groups:
            group["weight_decay"] = 10.0
        with pytest.raises(NonFiniteError, match=r"got nan or inf in '.*' after step 3; restore"):
            fit(state, DATA, DenoisingLoss(), 9, 16, workdir=workdir, checkpoint_every=1)
    assert latest_checkpoint(tmp_path).step == good.step == 2
    assert all(map(torch.equal, average, state.ema.network.parameters()))
    with pytest.raises(ValueError, match="restore it"):
        train_step(state, DATA.batch(0, 4, 0), DenoisingLoss())
    state.optimization = Optimization(warmup_steps=0)
    restore(state, good)
    fit(state, DATA, DenoisingLoss(), 3, 16)
    assert state.step == 3
