import math

import pytest
import torch
from contracts import derivative, draw
from problems import DATA, MIXTURE, SDES
from torch import Tensor, nn

from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.indexed import IndexedModel
from sde_toolkit.models.moments import Moments
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.models.score import COMBINATIONS, PREDICTIONS, ScoreModel, prediction_coefficients
from sde_toolkit.sdes import VPSDE, ForwardSDE, RectifiedFlow
from solvers.terms import expand_like

ALL = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
EVERY_PREDICTION = pytest.mark.parametrize("predicts", [*COMBINATIONS, "flow"])
METHODS = ("denoise", "noise", "score", "velocity")


class Oracle(nn.Module):
    """A network that puts out the exact prediction, from the scaled state and the time feature alone."""

    def __init__(self, exact: ExactModel, predicts: str, data_std: float) -> None:
        super().__init__()
        self.exact, self.predicts, self.data_std = exact, predicts, data_std
        self.unused = nn.Parameter(torch.zeros(1, dtype=exact.dtype))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        sde = self.exact.sde
        t = c.double() * (sde.T / 1000)
        alpha_t, sigma_t = sde.alpha(t), sde.sigma(t)
        scale = (alpha_t.square() * self.data_std**2 + sigma_t.square()).sqrt()
        x_t = expand_like(scale, x) * x
        x0_hat, z_hat = self.exact.denoise(x_t, t), self.exact.noise(x_t, t)
        if self.predicts == "edm":
            # Karras et al., eq. 7: D(y) = c_skip y + c_out F with y = x_t / alpha.
            n = expand_like(sigma_t / alpha_t, x)
            d = self.data_std
            c_skip, c_out = d**2 / (n**2 + d**2), n * d / (n**2 + d**2).sqrt()
            return (x0_hat - c_skip * x_t / expand_like(alpha_t, x)) / c_out
        return {
            "noise": z_hat,
            "data": x0_hat,
            "score": -z_hat / expand_like(sigma_t, x),
            "velocity": expand_like(alpha_t, x) * z_hat - expand_like(sigma_t, x) * x0_hat,
            "flow": expand_like(derivative(sde.alpha, t), x) * x0_hat
            + expand_like(derivative(sde.sigma, t), x) * z_hat,
        }[self.predicts]


def times(sde: ForwardSDE, count: int) -> Tensor:
    return torch.linspace(0.02, 1, count, dtype=torch.float64) * sde.T


def oracle(sde: ForwardSDE, predicts: str, name: str = "mixture", data_std: float = 0.8) -> NetworkModel:
    network = Oracle(ExactModel(DATA[name], sde), predicts, data_std)
    return NetworkModel(network, sde, predicts, DATA[name].event_shape, data_std)


@ALL
@EVERY_PREDICTION
@pytest.mark.parametrize("name", ["mixture", "diagonal"])
def test_every_prediction_gives_every_other(sde: ForwardSDE, predicts: str, name: str):
    model, exact, t = oracle(sde, predicts, name), ExactModel(DATA[name], sde), times(sde, 6)
    x_t = sde.perturb(DATA[name].sample(6, seed=1), t, draw(6, DATA[name].event_shape))
    for method in METHODS:
        ours, truth = getattr(model, method)(x_t, t), getattr(exact, method)(x_t, t)
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
        alone = torch.cat([getattr(model, method)(x_t[i : i + 1], t[i]) for i in range(6)])
        torch.testing.assert_close(alone, ours, rtol=1e-11, atol=1e-11)


@ALL
@pytest.mark.parametrize("name", DATA)
def test_predictions_of_one_model_fit_together(sde: ForwardSDE, name: str):
    """alpha x0_hat + sigma z_hat = x_t, sigma score = -z_hat, and v_hat from the two, at t = 0 too."""
    model = ExactModel(DATA[name], sde)
    t = torch.tensor([0.0, 1e-9, 1e-4, 0.1, 0.5, 1.0], dtype=torch.float64) * sde.T
    x_t = sde.perturb(DATA[name].sample(6, seed=2), t, draw(6, DATA[name].event_shape))
    x0_hat, z_hat, score, v_hat = (getattr(model, method)(x_t, t) for method in METHODS)
    alpha_t, sigma_t = expand_like(sde.alpha(t), x_t), expand_like(sde.sigma(t), x_t)
    close = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(alpha_t * x0_hat + sigma_t * z_hat, x_t, **close)
    torch.testing.assert_close(-sigma_t * score, z_hat, **close)
    # Under VE sigma is 50, and rounding of x0_hat is magnified so much.
    torch.testing.assert_close(v_hat, alpha_t * z_hat - sigma_t * x0_hat, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("predicts", COMBINATIONS)
def test_coefficients_build_the_prediction(predicts: str):
    sde, t = VPSDE(), times(VPSDE(), 5)
    exact = ExactModel(MIXTURE, sde)
    x_t = sde.perturb(MIXTURE.sample(5, seed=1), t, draw(5, (8,)))
    a, b = prediction_coefficients(predicts, sde.alpha(t), sde.sigma(t), data_std=0.8)
    raw = a[:, None] * exact.denoise(x_t, t) + b[:, None] * exact.noise(x_t, t)
    torch.testing.assert_close(oracle(sde, predicts).raw(x_t, t), raw, rtol=1e-10, atol=1e-10)
    assert [c.shape for c in prediction_coefficients(predicts, sde.alpha(t[0]), sde.sigma(t[0]))] == [(), ()]


@ALL
def test_networks_see_states_of_unit_size(sde: ForwardSDE):
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            seen.append((x, c))
            return x + self.bias

    model = NetworkModel(Spy(), sde, "noise", (1, 64, 64), data_std=0.5)
    x0, z = 0.5 * draw(3, (1, 64, 64)).float(), draw(3, (1, 64, 64), seed=1).float()
    t = times(sde, 3)
    model.noise(sde.perturb(x0, t, z), t)
    model.noise(sde.perturb(x0, t[1], z), t[1])
    for x, c in seen:
        assert x.dtype == c.dtype == torch.float32
        assert c.shape == (3,)
        assert x.std((1, 2, 3)).tolist() == pytest.approx([1.0] * 3, abs=0.05)
    assert seen[0][1].tolist() == pytest.approx((1000 * t / sde.T).tolist(), rel=1e-6)
    assert seen[1][1].tolist() == pytest.approx([510.0] * 3, rel=1e-6)
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"


@EVERY_PREDICTION
def test_states_keep_their_type(predicts: str):
    sde = VPSDE()
    network = Oracle(ExactModel(MIXTURE, sde, dtype=torch.float32), predicts, 1.0)
    model, x, t = NetworkModel(network, sde, predicts, (8,)), draw(4, (8,)).float(), times(sde, 4)
    for method in METHODS:
        assert getattr(model, method)(x, t).dtype == torch.float32
        assert getattr(model, method)(x, t[2]).dtype == torch.float32


@EVERY_PREDICTION
def test_gradients_reach_the_network(predicts: str):
    network = nn.Linear(2, 2).double()

    class Timeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return self.inner(x)

    model = NetworkModel(Timeless(), VPSDE(), predicts, (2,))
    for method in METHODS:
        network.zero_grad()
        getattr(model, method)(draw(3, (2,)), times(VPSDE(), 3)).square().sum().backward()
        assert float(network.weight.grad.abs().sum()) > 0


def test_bad_arguments_are_refused():
    network, sde = nn.Linear(2, 2), VPSDE()
    known = ", ".join(PREDICTIONS)
    with pytest.raises(ValueError, match=f"predicts must be one of {known}, epsilon, .*got 'eps'"):
        NetworkModel(network, sde, "eps", (2,))
    known = ", ".join(COMBINATIONS)
    with pytest.raises(ValueError, match=f"predicts must be one of {known}, got 'eps'"):
        prediction_coefficients("eps", torch.ones(()), torch.ones(()))
    names = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity", "edm": "edm"}
    assert {name: NetworkModel(network, sde, name, (2,)).predicts for name in names} == names
    for data_std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"data_std must be a (finite positive )?number, got"):
            NetworkModel(network, sde, "noise", (2,), data_std=data_std)


@ALL
def test_a_flow_is_the_drift_of_the_probability_flow(sde: ForwardSDE):
    t = times(sde, 5)
    model = oracle(sde, "flow")
    assert (model.network_predicts, model.predicts) == ("flow", "velocity")
    x_t = sde.perturb(MIXTURE.sample(5, seed=1), t, draw(5, MIXTURE.event_shape))
    drift = sde.probability_flow(model).drift(t, x_t)
    torch.testing.assert_close(model(x_t, t), drift, rtol=1e-9, atol=1e-9)


def test_straight_paths_leave_the_flow_as_it_is_and_start_at_the_data():
    """At t = 0 of rectified flow x0_hat is the state, and nothing is divided by the noise level."""
    sde, x = RectifiedFlow(), draw(3, (2,))
    model = NetworkModel(lambda x, c: torch.ones_like(x), sde, "flow", (2,), dtype=torch.float64)
    torch.testing.assert_close(model.denoise(x, torch.zeros(3)), x, rtol=0, atol=0)
    t = torch.tensor([0.2, 0.5, 0.999], dtype=torch.float64)
    torch.testing.assert_close(
        model.noise(x, t) - model.denoise(x, t), torch.ones_like(x), rtol=1e-10, atol=0
    )


def test_the_indices_of_a_chain_have_no_flow():
    with pytest.raises(ValueError, match='got "flow", which is a rate of time; use a NetworkModel'):
        IndexedModel(nn.Linear(2, 2), VPSDE().discretize(10), "flow", (2,))


def test_score_model_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ScoreModel()


class Labelled(nn.Module):
    """A network whose prediction is its label: 3 classes, and the null class."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, c: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = torch.full(c.shape, 3) if labels is None else labels
        return expand_like(labels.to(x), x).expand_as(x)


def labelled() -> NetworkModel:
    moments = [Moments([float(k), 0.0], 1.0 + k) for k in range(4)]
    return NetworkModel(Labelled(), VPSDE(), "noise", (2,), 1.0, moments[3], moments[:3])


def test_one_class_of_a_model_is_a_score_model():
    model, x, t = labelled(), torch.zeros(4, 2), torch.tensor(0.3)
    assert model.num_classes == 3
    for label in range(4):
        view = model.given(label)
        assert isinstance(view, ScoreModel)
        assert torch.equal(view.noise(x, t), torch.full((4, 2), float(label)))
        assert view.moments is not None
        assert float(view.moments.mean[0]) == label
        assert view.model is model
    assert torch.equal(model.noise(x, t), torch.full((4, 2), 3.0))
    labels = torch.tensor([2, 0, 3, 1])
    assert torch.equal(model.noise(x, t, labels)[:, 0], labels.float())
    assert model.conditions(None, 4) is None
    assert model.conditions(2, 4).tolist() == [2, 2, 2, 2]
    assert model.conditions(labels.int(), 4).dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: oracle(VPSDE(), "noise").given(0), "left out for a model without conditions, got 0"),
        (lambda: labelled().given(4), r"among 0 .. 2, or 3 for none, got 4"),
        (lambda: labelled().given(-1), "got -1"),
        (lambda: labelled().conditions(torch.tensor([0, 4]), 2), "got 4"),
        (lambda: labelled().conditions(torch.tensor([0, 1]), 3), r"shape \(3,\), one per sample, got \(2,\)"),
        (lambda: labelled().given(1).conditions(1, 3), "model that is given one"),
        (
            lambda: NetworkModel(Labelled(), VPSDE(), "noise", (2,), 1.0, None, [Moments([0.0, 0.0], 1.0)]),
            "those of 3 classes, got 1",
        ),
        (
            lambda: NetworkModel(Labelled(), VPSDE(), "noise", (2,), 1.0, None, [Moments([0.0], 1.0)] * 3),
            "moments must have the event shape",
        ),
    ],
)
def test_wrong_classes_get_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
