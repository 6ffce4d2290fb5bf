"""Offset noise and self-conditioning."""

import pytest
import torch
from torch import nn

from sde_toolkit.config import build_loss, build_model, load_config
from sde_toolkit.models import NetworkModel
from sde_toolkit.networks import MLP, SelfConditioned, UNet1D
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, TrainState, load_model, save_model, train_step
from tests.training.test_loss import Recorder, accept, generator


class Signals(Recorder):
    """Signals of two channels and 50 places."""

    event_shape = (2, 50)


def test_offset_noise_has_its_covariance_and_is_what_is_predicted():
    sde, s, x0 = VPSDE(), 0.5, torch.zeros(4000, 2, 50, dtype=torch.float64)
    model = Signals(sde)
    losses = DenoisingLoss("noise", 0.1, "stratified", offset_noise=s)(model, x0, generator())
    z = model.x_t / sde.sigma(model.t)[:, None, None]
    mean = z.mean(2)
    accept(z.square().mean((1, 2)), 1 + s**2)
    accept(mean.square().flatten(), s**2 + 1 / 50)
    accept(mean[:, 0] * mean[:, 1], 0.0)
    accept(z[:, 0, 0] * z[:, 0, 1], s**2)
    torch.testing.assert_close(losses, (model.noise(model.x_t, model.t) - z).square().mean((1, 2)))
    DenoisingLoss("noise", 0.1, "stratified")(plain := Signals(sde), x0, generator())
    offsets = z - plain.x_t / sde.sigma(plain.t)[:, None, None]
    torch.testing.assert_close(offsets, offsets[..., :1].expand_as(offsets))


class Remembering(nn.Module):
    """Its outputs and inputs, for events of two channels."""

    event_shape = (2,)

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.tensor(0.5)), []

    def forward(self, x, c):
        self.seen.append(x)
        return self.weight * x + x.flip(1)


def test_a_network_sees_its_own_first_answer():
    network = SelfConditioned(Remembering()).eval()
    x = torch.randn(5, 1, generator=generator())
    out = network(x, torch.zeros(5))
    first = 0.5 * x  # the second channel, given 0, flips into the first
    torch.testing.assert_close(network.doubled.network.seen[1], torch.cat([x, first], 1))
    torch.testing.assert_close(out, 0.5 * x + first)
    out.sum().backward()
    torch.testing.assert_close(network.doubled.network.weight.grad, x.sum())  # nothing through the answer


def test_in_training_half_of_the_rows_see_none():
    network, before = SelfConditioned(Remembering()), torch.random.get_rng_state()
    torch.manual_seed(0)
    network(torch.ones(4000, 1), torch.zeros(4000))
    torch.random.set_rng_state(before)
    fed = network.doubled.network.seen[1][:, 1]
    assert set(fed.tolist()) == {0.0, 0.5}
    assert abs(float((fed > 0).double().mean()) - 0.5) < 4.5 / (2 * 4000**0.5)


def test_a_self_conditioned_model_trains_samples_and_is_saved(tmp_path):
    network = SelfConditioned(UNet1D((4, 8), channels=(8,)))
    state, again = (
        TrainState(NetworkModel(SelfConditioned(UNet1D((4, 8), channels=(8,))), VPSDE(), "data", (2, 8)))
        for _ in range(2)
    )
    x0 = torch.randn(8, 2, 8, generator=generator())
    for _ in range(3):
        train_step(state, x0, DenoisingLoss())
        train_step(again, x0, DenoisingLoss())
    weights = [dict(run.model.network.named_parameters()) for run in (state, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    loaded = load_model(save_model(state.ema, tmp_path / "model.safetensors"))
    assert type(loaded.network) is type(network)
    assert torch.equal(ddim(3).sample(loaded, 2).x, ddim(3).sample(state.ema, 2).x)


def test_configurations_name_them():
    config = load_config("vectors", {"model.self_conditioning": True, "loss.offset_noise": 0.1})
    assert isinstance(build_model(config, (3,), 1.0).network, SelfConditioned)
    assert build_loss(config).offset_noise == 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DenoisingLoss(offset_noise=-0.1), "offset_noise must be a finite number >= 0, got -0.1"),
        (lambda: DenoisingLoss(offset_noise=0.1, levels=17), "offset_noise must be 0 with"),
        (lambda: DenoisingLoss(offset_noise=0.1)(
            Recorder(VPSDE()), torch.zeros(4, 3, dtype=torch.float64), generator()),
         "offset_noise is for events of channels and positions, got the shape"),
        (lambda: SelfConditioned(MLP((3,))), "twice the channels"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
