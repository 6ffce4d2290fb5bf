"""Numbers, arrays and lists where tensors go."""

import numpy as np
import pytest
import torch

from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, CustomSDE, ForwardSDE, SubVPSDE

PROCESSES = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(), CustomSDE(lambda t: 1.0, lambda t: t + 0.1)]
MODELS = [
    ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE()),
    NetworkModel(MLP((2,), width=4, depth=1), VPSDE(), "noise", (2,)),
]
OF_TIME = ("log_alpha", "alpha", "sigma", "f", "g", "g_squared", "nsr", "lam", "inverse_nsr")


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", OF_TIME)
def test_numbers_and_arrays_are_the_times_of_a_tensor(sde, name):
    function = getattr(sde, name)
    for value in (0.5, np.float32(0.5), np.array([0.25, 0.5]), [0.25, 0.5], 1, torch.tensor([1, 1])):
        wanted = function(torch.as_tensor(np.asarray(value), dtype=torch.float64))
        assert torch.equal(function(value), wanted)
    assert function(torch.tensor(0.5)).dtype == torch.float32


def test_a_process_of_yours_takes_numbers_too():
    class Mine(VPSDE):
        def sigma(self, t):
            return t.sqrt()

    assert float(Mine().sigma(0.25)) == 0.5
    assert float(Mine().sigma(t=0.25)) == 0.5


@pytest.mark.parametrize(
    "value", [None, "0.5", b"1", 1j, object(), ["a"], 10**400, [[1.0], [1.0, 2.0]], float("nan")]
)
def test_what_is_no_number_is_refused_by_name(value):
    sde: ForwardSDE = VPSDE()
    for call in (sde.alpha, sde.sigma, sde.nsr):
        with pytest.raises((TypeError, ValueError), match=r"\bt must"):
            call(value)
    with pytest.raises((TypeError, ValueError), match=r"\bnsr must"):
        sde.inverse_nsr(value)


@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.parametrize("name", ["score", "noise", "denoise", "velocity", "raw"])
def test_models_take_arrays_and_numbers(model, name):
    x = np.array([[0.5, 1.0], [0.0, -1.0]])
    function, tensor = getattr(model, name), torch.as_tensor(x, dtype=model.dtype)
    wanted = function(tensor, torch.tensor(0.5, dtype=torch.float64))
    for given in (x, x.astype(np.float32), x.tolist(), tensor):
        for t in (0.5, np.float64(0.5), torch.tensor(0.5, dtype=torch.float64)):
            assert torch.equal(function(given, t), wanted)
    assert torch.allclose(function(x, [0.5, 0.5]), wanted)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_states_that_are_not_the_models_are_named(model):
    other = torch.float32 if model.dtype == torch.float64 else torch.float64
    good = torch.zeros(3, 2, dtype=model.dtype)
    for x, t, words in (
        (torch.zeros(3, 5, dtype=model.dtype), 0.5, r"x_t must have shape \(B, 2\), got \(3, 5\)"),
        (torch.zeros(2, dtype=model.dtype), 0.5, r"for one sample use x_t\[None\]"),
        (good, torch.zeros(2), r"t must have shape \(\) or \(3,\), got \(2,\)"),
        (good, "0.5", "t must be a tensor, an array or a number"),
        ("x", 0.5, "x_t must be a tensor, an array or a number"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            model.score(x, t)
    if isinstance(model, NetworkModel):
        with pytest.raises(ValueError, match=rf"x_t must have the model's type {model.dtype}, got {other}"):
            model.score(good.to(other), 0.5)


def test_classes_are_numbers_arrays_or_lists():
    mixture = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    model, x = ExactModel(mixture, VPSDE()), torch.zeros(3, 1, dtype=torch.float64)
    wanted = model.score(x, 0.5, torch.tensor([1, 1, 1]))
    for condition in (1, np.int64(1), [1, 1, 1], np.array([1, 1, 1]), torch.tensor([1, 1, 1])):
        assert torch.equal(model.score(x, 0.5, condition), wanted)
    for condition in ("1", 0.5, [0.5] * 3, [1.0] * 3, np.ones(3), [1], 7):
        with pytest.raises((ValueError, TypeError), match="condition"):
            model.score(x, 0.5, condition)
