"""The held-out loss: against a closed form, the same draws for two models, labels and grey levels."""

import pytest
import torch
from torch import nn

from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.watching.held_out import held_out_examples, held_out_loss

LOSS = DenoisingLoss("noise", t_min=1e-3, time_sampling="stratified")


class Times(nn.Module):
    """A network that answers a number for everything, and remembers whether it was in training mode."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.modes = []

    def forward(self, x, c):
        self.modes.append(self.training)
        return self.value + torch.zeros_like(x)


def normal(count=400, **options):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return Dataset("normal", x[:10], x, **options)


def constant(value):
    return NetworkModel(Times(value), VPSDE(), "noise", (2,))


def test_the_loss_of_a_constant_is_the_closed_form():
    """|c - z|^2 / D has the mean 1 + c^2."""
    for value in (0.0, 2.0):
        found = held_out_loss(constant(value), normal(), LOSS, repeats=8)
        assert found.per_example.shape == (400,)
        assert abs(found.mean - (1 + value**2)) < 4 * found.standard_error
        expected = ((2 + 4 * value**2) / 2 / 8 / 400) ** 0.5
        assert found.standard_error == pytest.approx(expected, rel=0.2)


def test_two_models_are_given_the_same_draws():
    """|c - z|^2 - |z|^2 = c^2 - 2 c z, whose noise is far below that of either loss at a small c."""
    one, other = (held_out_loss(constant(c), normal(), LOSS) for c in (0.01, 0.0))
    gap = one.minus(other)
    assert abs(gap.mean - 1e-4) < 4 * gap.standard_error
    assert gap.standard_error < one.standard_error / 50
    again = held_out_loss(constant(0.01), normal(), LOSS)
    assert torch.equal(one.per_example, again.per_example)
    assert not torch.equal(one.per_example, held_out_loss(constant(0.01), normal(), LOSS, 1).per_example)


def test_the_model_keeps_its_mode_and_has_no_gradients():
    model = constant(0.0)
    model.train()
    held_out_loss(model, normal(9), LOSS, batch_size=4, repeats=2)
    assert model.network.modes == [False] * 6
    assert model.network.training
    assert model.network.value.grad is None


def test_the_first_examples_only():
    whole = held_out_loss(constant(0.5), normal(), LOSS, batch_size=50)
    part = held_out_loss(constant(0.5), normal(), LOSS, batch_size=50, num_examples=100, repeats=1)
    assert len(part.per_example) == 100
    assert whole.per_example.dtype == torch.float64


def test_classes_need_labels():
    model = NetworkModel(MLP((2,), width=4, depth=1, num_classes=3), VPSDE(), "noise", (2,))
    with pytest.raises(ValueError, match="labels_test for a model with classes"):
        held_out_loss(model, normal(8), LOSS)
    labels = torch.arange(8) % 3
    with_labels = normal(8, labels_train=labels, labels_test=labels)
    assert held_out_loss(model, with_labels, LOSS).per_example.isfinite().all()


@pytest.mark.parametrize("training", ["uniform", "centres"])
def test_grey_levels_lie_where_training_has_them(training):
    x = torch.tensor([[0, 3], [1, 2]])
    dataset = Dataset("grey", x, x, Scaling.grey(4), training=training)
    levels = (held_out_examples(dataset, 0, 2) + 1) * 2
    assert torch.equal(levels.floor(), x.float())
    assert torch.equal(levels % 1 == 0.5, torch.full((2, 2), training == "centres"))
    if training == "uniform":
        assert torch.equal(held_out_examples(dataset, 3, 2), dataset.scaled_test(3))


@pytest.mark.parametrize("name", ["repeats", "batch_size"])
def test_counts_are_checked(name):
    with pytest.raises(ValueError, match=name):
        held_out_loss(constant(0.0), normal(8), LOSS, **{name: 0})
