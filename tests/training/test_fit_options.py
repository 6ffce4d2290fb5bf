"""What fit takes and returns, and networks that answer in other ways."""

import pytest
import torch
from torch import nn

from sde_toolkit.data import Dataset
from sde_toolkit.models import NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE, CosineBeta, CustomSDE
from sde_toolkit.training import DenoisingLoss, TrainState, fit


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, c):
        return self.linear(x)


class Answer:
    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


class Wrapped(Linear):
    def forward(self, x, c):
        return Answer(self.linear(x))


def data() -> Dataset:
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    return Dataset("normal", x, x)


def test_fit_takes_a_path_and_returns_what_every_update_was(tmp_path, capsys):
    state = TrainState(NetworkModel(Linear(), VPSDE(), "noise", (2,)))
    history = fit(state, data(), DenoisingLoss(), 3, 8, workdir=tmp_path / "run")
    assert [info.step for info in history] == [1, 2, 3]
    assert list((tmp_path / "run").rglob("step-*.safetensors"))
    assert capsys.readouterr() == ("", "")
    fit(state, data(), DenoisingLoss(), 4, 8, workdir=str(tmp_path / "run"), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err


def test_a_wrong_data_set_is_named():
    state = TrainState(NetworkModel(Linear(), VPSDE(), "noise", (2,)))
    with pytest.raises(TypeError, match=r"dataset must be .*, got a MLP"):
        fit(state, MLP((2,)), DenoisingLoss(), 1)
    with pytest.raises(ValueError, match="dataset must hold examples that differ"):
        fit(state, torch.zeros(4, 2), DenoisingLoss(), 1)


def test_a_network_that_returns_a_record_with_a_sample_is_taken():
    model = NetworkModel(Wrapped(), VPSDE(), "noise", (2,))
    assert model.noise(torch.zeros(3, 2), torch.tensor(0.5)).shape == (3, 2)


def test_constant_functions_of_time_are_taken_and_other_values_refused():
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    process = CustomSDE(alpha=lambda t: 1.0, sigma=lambda t: t)
    same = CustomSDE(alpha=torch.ones_like, sigma=lambda t: t)
    for name in ("alpha", "f", "g_squared", "nsr"):
        torch.testing.assert_close(getattr(process, name)(t), getattr(same, name)(t))
    with pytest.raises(TypeError, match=r"alpha\(t\) must return a tensor with the shape of t, got 'x'"):
        CustomSDE(alpha=lambda t: "x", sigma=lambda t: t)
    with pytest.raises(TypeError, match="alpha must be a function, got 1"):
        CustomSDE(alpha=1.0, sigma=lambda t: t)


def test_an_offset_of_the_cosine_schedule_beyond_its_range_is_refused():
    with pytest.raises(ValueError, match="the cosine rate needs s > 0, s <= 1"):
        CosineBeta(s=1e12)
