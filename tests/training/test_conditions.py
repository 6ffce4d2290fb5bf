"""Conditions that are no classes in training: what is dropped, resumed runs, guidance, refusals."""

import math

import pytest
import torch
from torch import nn

from sde_toolkit.data import Dataset, from_array, training_data
from sde_toolkit.guidance import ClassifierFree
from sde_toolkit.models import NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import (
    DenoisingLoss,
    Optimization,
    TrainState,
    fit,
    held_out_loss,
    read_checkpoint,
    restore,
    save_checkpoint,
)

STD = 0.3


def rows(count, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def around(count, seed=0):
    """x given c is N(c, STD^2 I), and so N(0, (1 + STD^2) I) without c."""
    c = rows(count, 2, seed=seed)
    return c + STD * rows(count, 2, seed=seed + 1), c


def state_of(shape=(2,), seed=0, width=8, depth=1, **rule):
    network = MLP((2,), width=width, depth=depth, condition_shape=shape)
    model = NetworkModel(network, VPSDE(), "noise", (2,), math.sqrt(1 + STD**2))
    return TrainState(model, Optimization(**rule), seed)


@pytest.mark.parametrize("shape", [(2,), (3, 2)])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_rows_is_dropped_and_the_others_stay(shape, share):
    seen = []

    def loss(model, x0, generator, condition):
        seen.append(condition)
        return DenoisingLoss()(model, x0, generator, condition)

    c = rows(64, *shape)
    if len(shape) == 2:
        c[:, 2] = math.nan  # texts of two tokens
    fit(state_of(shape), (rows(64, 2, seed=3), c), loss, 20, batch_size=50, label_dropout=share)
    data, found = training_data((rows(64, 2, seed=3), c)), torch.cat(seen)
    expected = torch.cat([data.batch_conditions(step, 50, 0) for step in range(20)])
    dropped = found.flatten(1).isnan().all(1)
    torch.testing.assert_close(found[~dropped], expected[~dropped], rtol=0, atol=0, equal_nan=True)
    spread = 5 * math.sqrt(share * (1 - share) / len(found))
    assert abs(float(dropped.double().mean()) - share) <= spread


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    whole, parts, resumed = (state_of() for _ in range(3))
    data = around(64)
    fit(whole, data, DenoisingLoss(), 6, batch_size=8)
    fit(parts, data, DenoisingLoss(), 3, batch_size=8)
    restore(resumed, read_checkpoint(save_checkpoint(parts, tmp_path)))
    fit(resumed, data, DenoisingLoss(), 6, batch_size=8)
    expected = whole.tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.tensors().items())


@pytest.mark.slow
def test_the_law_given_a_vector_and_that_of_all_data_are_both_learned():
    """Scores against the exact ones, of x given c and of x, and so that of guidance."""
    state = state_of(width=64, depth=2, learning_rate=5e-3, decay_steps=1500)
    fit(state, around(8192), DenoisingLoss("noise", 1e-3, "stratified"), 1500, 256, label_dropout=0.25)
    (x0, c), z = around(2000, seed=9), rows(2000, 2, seed=11)
    model = state.ema
    for time in (0.2, 0.5):
        t = torch.tensor(time)
        alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
        x = alpha * x0 + sigma * z
        given = sigma * (x - alpha * c) / (alpha**2 * STD**2 + sigma**2)
        free = sigma * x / (alpha**2 * (1 + STD**2) + sigma**2)
        with torch.no_grad():
            for found, exact in ((model.noise(x, t, c), given), (model.noise(x, t), free)):
                assert float((found - exact).square().mean() / exact.square().mean()) < 0.02
            guided = ClassifierFree(model, 2.0).noise(x, t, c)
            exact = free + 2 * (given - free)
            assert float((guided - exact).square().mean() / exact.square().mean()) < 0.04


def test_held_out_losses_are_given_the_conditions():
    x, c = around(60)
    data = from_array(x, conditions=c)
    assert data.conditions_train.shape == (54, 2)
    where = (data.scaling.from_model(data.train)[:, None] - x[None]).square().sum(-1).argmin(1)
    torch.testing.assert_close(data.conditions_train, c[where])
    state = state_of()
    seen = []

    def loss(model, x0, generator, condition):
        seen.append(condition)
        return DenoisingLoss()(model, x0, generator, condition)

    held_out_loss(state.model, data, loss, repeats=1)
    assert torch.equal(seen[0], data.conditions_test)
    without = Dataset("none", data.train, data.test)
    with pytest.raises(
        ValueError, match="dataset must have conditions_test for a model with condition_shape"
    ):
        held_out_loss(state.model, without, loss)


def test_conditions_that_do_not_fit_are_refused():
    x, c = around(16)
    for given, words in (
        (x, r"conditions_train with rows of the model's condition_shape \(2,\), got none"),
        ((x, rows(16, 3)), r"condition_shape \(2,\), got rows of shape \(3,\)"),
        ((x, c[:9]), r"conditions_train must be real numbers with shape \(16, d\) or"),
        ((x, c.long()), "conditions_train must be real numbers with shape"),
        ((x, torch.where(rows(16, 2) > 1, math.nan, c)), "nan throughout a row or token for none"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(state_of(), given, DenoisingLoss(), 1, batch_size=4)
    with pytest.raises(ValueError, match=r"conditions must be real numbers in 16 rows, .* shape \(9, 2\)"):
        from_array(x, conditions=c[:9])
    with pytest.raises(ValueError, match="conditions_test must have rows of the shape of conditions_train"):
        Dataset("two", x, x, conditions_train=c, conditions_test=rows(16, 3))
    with pytest.raises(ValueError, match="dataset must have conditions_train for this, got 'bare' without"):
        Dataset("bare", x, x).batch_conditions(0, 4, 0)


class Mine(nn.Module):
    """A network that takes a condition, and does not say what a row of nan is."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, t, c):
        return self.layer(torch.cat([x, c], 1))


def test_a_network_that_does_not_know_rows_of_nan_gets_none():
    state = TrainState(NetworkModel(Mine(), VPSDE(), "noise", (2,), condition_shape=(2,)))
    with pytest.raises(ValueError, match="label_dropout must be 0 for a network that does not say"):
        fit(state, around(16), DenoisingLoss(), 1, batch_size=4)
    assert len(fit(state, around(16), DenoisingLoss(), 2, batch_size=4, label_dropout=0.0)) == 2
