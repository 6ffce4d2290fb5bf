"""The prediction "residual": a network set on the Gaussian with the data's moments."""

import copy

import pytest
import torch
from contracts import draw
from problems import DATA, DIAGONAL, GAUSSIAN, MIXTURE, RING, SDES
from torch import Tensor, nn

from sde_toolkit.models import (
    ExactModel,
    Gaussian,
    IndexedModel,
    Moments,
    NetworkModel,
    Preconditioner,
    isotropic,
)
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import default, heun
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE
from sde_toolkit.training import (
    DenoisingLoss,
    TrainState,
    fit,
    latest_checkpoint,
    load_model,
    restore,
    save_model,
)
from solvers.terms import expand_like

ALL = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
METHODS = ("denoise", "noise", "score", "velocity")
DATA_MOMENTS = {name: Moments(law.mean, law.covariance) for name, law in DATA.items()}


def times(sde: ForwardSDE) -> Tensor:
    return torch.tensor([1e-5, 1e-3, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64) * sde.T


def zero(x: Tensor, c: Tensor) -> Tensor:
    return torch.zeros_like(x)


def set_on(network, sde: ForwardSDE, moments: Moments, dtype=torch.float64, data_std=None) -> NetworkModel:
    std = moments.std if data_std is None else data_std
    kind = None if isinstance(network, nn.Module) else dtype
    return NetworkModel(network, sde, "residual", moments.event_shape, std, moments, dtype=kind)


class Residual(nn.Module):
    """F of an exact model by its definition, with S as a matrix, from what the network is given alone."""

    def __init__(self, exact: ExactModel) -> None:
        super().__init__()
        self.exact, self.mean = exact, exact.data.mean
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        variances, axes = torch.linalg.eigh(exact.data.covariance)
        self.of = lambda f: (axes * f(variances)) @ axes.mT

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        sde, found = self.exact.sde, []
        for row, t in zip(x, c.double() * (sde.T / 1000), strict=True):
            n, alpha = float(sde.nsr(t)), sde.alpha(t)
            y = self.mean + self.of(lambda v, n=n: (v + n**2).sqrt()) @ row
            x0_hat = self.exact.denoise(alpha * y[None], t)[0]
            left = x0_hat - self.mean - self.of(lambda v, n=n: v / (v + n**2)) @ (y - self.mean)
            found.append(self.of(lambda v, n=n: ((v + n**2) / v).sqrt() / n) @ left)
        return torch.stack(found)


@ALL
@pytest.mark.parametrize("kind", ["full", "low_rank", "diagonal", "scalar"])
def test_without_a_network_it_is_the_gaussian(sde: ForwardSDE, kind: str):
    moments = DATA_MOMENTS["mixture"]
    forms = {"full": lambda: moments, "low_rank": lambda: moments.low_rank(3)}
    moments = forms.get(kind, getattr(moments, kind, None))()
    axes = torch.eye(8, dtype=torch.float64) if moments.axes is None else moments.axes
    exact, t = ExactModel(Gaussian(moments.mean, (axes * moments.variances) @ axes.mT), sde), times(sde)
    model = set_on(zero, sde, moments, data_std=0.4)
    x_t = sde.perturb(exact.data.sample(6, seed=1), t, draw(6, (8,)))
    for method in METHODS:
        truth = getattr(exact, method)(x_t, t)
        torch.testing.assert_close(getattr(model, method)(x_t, t), truth, rtol=1e-10, atol=1e-11)


@ALL
@pytest.mark.parametrize("name", ["mixture", "ring", "gaussian"])
def test_the_residual_of_an_exact_model_gives_that_model(sde: ForwardSDE, name: str):
    exact, t = ExactModel(DATA[name], sde), times(sde).clamp(min=1e-2)  # x0_hat - ... cancels below
    model = set_on(Residual(exact), sde, DATA_MOMENTS[name])
    assert (model.network_predicts, model.predicts) == ("residual", "edm")
    x_t = sde.perturb(DATA[name].sample(6, seed=1), t, draw(6, DATA[name].event_shape))
    for method in METHODS:
        ours, truth = getattr(model, method)(x_t, t), getattr(exact, method)(x_t, t)
        torch.testing.assert_close(ours, truth, rtol=1e-7, atol=1e-7)
    one = model.raw(x_t[:1], t[2])
    torch.testing.assert_close(one, model.raw(x_t[:1], t[2:3]), rtol=1e-12, atol=1e-12)


def test_without_moments_it_is_edm():
    network, x, t = MLP((3,), width=8, depth=1).double(), draw(5, (3,)), torch.linspace(0.1, 1, 5).double()
    nn.init.normal_(network.last.weight)
    edm, residual = (NetworkModel(network, VPSDE(), p, (3,), 0.7) for p in ("edm", "residual"))
    for method in METHODS:
        torch.testing.assert_close(
            getattr(edm, method)(x, t), getattr(residual, method)(x, t), rtol=1e-11, atol=1e-12
        )


@ALL
def test_its_targets_have_unit_variance_along_every_axis(sde: ForwardSDE):
    """F* = S^{-1/2} (S + n^2)^{-1/2} (n (x0 - m) - S z), linear in the draws of x0 and z."""
    moments = DATA_MOMENTS["gaussian"]
    made, eye = Preconditioner(moments, torch.zeros(1, dtype=torch.float64)), torch.eye(3).double()
    root = torch.linalg.cholesky(GAUSSIAN.covariance)
    for t in times(sde):
        n = sde.nsr(t)
        # the target is minus the noise that the Gaussian leaves, in the units of F
        gaussian = ExactModel(GAUSSIAN, sde)
        x0 = torch.cat([root.mT, 0 * eye]) + GAUSSIAN.mean
        z = torch.cat([0 * eye, eye])
        error = gaussian.noise(sde.perturb(x0, t.expand(6), z), t) - z
        target = made.in_units(error, n.expand(6))
        torch.testing.assert_close(target.mT @ target, eye, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mixture", "ring"])
def test_any_network_vanishes_where_noise_dominates(name: str):
    moments, sde = DATA_MOMENTS[name], VPSDE()
    model = set_on(lambda x, c: torch.ones_like(x), sde, moments)
    gaussian = set_on(zero, sde, moments)
    t = torch.tensor([0.5, 0.8, 1.0], dtype=torch.float64)
    x = draw(3, moments.event_shape)
    apart = (model.noise(x, t) - gaussian.noise(x, t)).flatten(1).norm(dim=1)
    most = moments.largest_std / sde.nsr(t) * moments.mean.numel() ** 0.5
    assert bool((apart <= most).all())
    assert float(apart[2]) < 0.02


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.001, 1000.0)], ids=["vp", "ve"])
def test_nothing_cancels_in_float32(sde: ForwardSDE):
    moments = Moments(torch.tensor([100.0, -3.0]), torch.tensor([[1.0, 0.3], [0.3, 0.1]]))
    types = torch.float64, torch.float32
    wide, narrow = (set_on(lambda x, c: x.sin(), sde, moments, dtype) for dtype in types)
    t = torch.linspace(1e-3, 1, 9, dtype=torch.float64)
    x = sde.perturb(moments.mean + 0.5 * draw(9, (2,)), t, draw(9, (2,), seed=1)).float()
    for method in ("raw", "denoise"):
        truth = getattr(wide, method)(x.double(), t)
        error = (getattr(narrow, method)(x, t).double() - truth).norm(dim=1) / truth.norm(dim=1)
        assert float(error.max()) < 2e-4, method  # 100 / sigma rounding errors of x_t near the data


def test_axes_without_variance_and_narrow_types():
    moments = Moments(torch.zeros(3), torch.diag(torch.tensor([1.0, 0.5, 0.0])))
    model = set_on(zero, VPSDE(), moments)
    x0_hat = model.denoise(draw(4, (3,)), torch.tensor(0.5))
    assert bool(x0_hat.isfinite().all())
    assert float(x0_hat[:, 2].abs().max()) < 1e-5
    half = NetworkModel(MLP((3,), width=8, depth=1).bfloat16(), VPSDE(), "residual", (3,), 0.7, moments)
    x = draw(4, (3,)).bfloat16()
    found, truth = half.denoise(x, torch.tensor(0.5)), model.denoise(x.double(), torch.tensor(0.5))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), truth, rtol=0.02, atol=0.02)


def test_an_untrained_network_samples_the_gaussian_exactly():
    """With full moments the residual is nothing, and every sampler starts from the closed form."""
    moments, sde = DATA_MOMENTS["mixture"], VPSDE()
    model = set_on(MLP((8,), width=8, depth=1).double(), sde, moments)
    exact = ExactModel(Gaussian(moments.mean, moments.covariance), sde)
    for sampler in (default(model, 5), heun(5)):
        ours, truth = (sampler.sample(m, 8, seed=1).x for m in (model, exact))
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "diagonal"])
@ALL
def test_its_loss_is_one_at_the_gaussian(sde: ForwardSDE, name: str):
    data = {"gaussian": GAUSSIAN, "diagonal": DIAGONAL}[name]
    generator = torch.Generator().manual_seed(0)
    loss = DenoisingLoss("residual", 1e-3, "stratified")
    values = loss(ExactModel(data, sde), data.sample(20_000, seed=1), generator)
    assert float(values.mean()) == pytest.approx(1, abs=5 * float(values.std()) / len(values) ** 0.5)


def test_the_weighting_is_the_squared_error_of_the_network():
    """On one model and one batch: |F - F*|^2 / D with F* by its closed form."""
    seen, moments, sde = [], DATA_MOMENTS["ring"], VPSDE()

    def network(x: Tensor, c: Tensor) -> Tensor:
        seen.append((x, c))
        return 0.3 * x.cos()

    x0 = RING.sample(50, seed=3)
    generator = torch.Generator().manual_seed(1)
    loss = DenoisingLoss("residual", 1e-2, "stratified")(set_on(network, sde, moments), x0, generator)
    x, c = seen[0]
    variance = float(moments.variances.mean())  # of the ring S is a number times I
    n = expand_like(sde.nsr(c.double() / 1000), x0)
    y = moments.mean + (variance + n**2).sqrt() * x
    z = (y - x0) / n
    target = (n * (x0 - moments.mean) - variance * z) / (variance * (variance + n**2)).sqrt()
    torch.testing.assert_close(loss, (0.3 * x.cos() - target).square().mean(1), rtol=1e-6, atol=1e-6)


def test_moments_stay_with_the_network_that_was_trained_with_them(tmp_path):
    points = RING.sample(300, seed=1).float()
    first = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "residual", (2,))
    state = TrainState(first, seed=0)
    fit(state, points, DenoisingLoss(), 2, workdir=tmp_path / "run")
    moments, raw = state.ema.moments, state.ema.raw(points[:4], torch.tensor(0.3))
    assert moments is not None
    assert torch.allclose(moments.mean, points.double().mean(0))
    with pytest.raises(ValueError, match="moments must be those that the network was trained with"):
        first.set_moments(isotropic((2,), 3.0))
    fit(state, 3 * points, DenoisingLoss(), 3)
    assert state.model.moments == moments

    save_model(state.ema, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.network_predicts == "residual"
    assert torch.equal(
        loaded.raw(points[:4], torch.tensor(0.3)), state.ema.raw(points[:4], torch.tensor(0.3))
    )
    other = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "residual", (2,), 1.0, isotropic((2,), 9.0))
    again = TrainState(other, seed=0)
    checkpoint = latest_checkpoint(tmp_path / "run")
    restore(again, checkpoint)
    assert again.model.moments == again.ema.moments == moments
    torch.testing.assert_close(again.ema.raw(points[:4], torch.tensor(0.3)), raw, rtol=0, atol=0)


def test_it_is_copied_evaluated_and_refused_where_it_has_no_meaning():
    moments = DATA_MOMENTS["ring"]
    model = set_on(MLP((2,), width=8, depth=1).double(), VPSDE(), moments)
    x, t = draw(3, (2,)), torch.tensor(0.4)
    model.raw(x, t)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.raw(x, t), model.raw(x, t))
    assert torch.equal(model.with_network(model.network).raw(x, t), model.raw(x, t))
    assert model.float().raw(x.float(), t).dtype == torch.float32
    assert "predicts='residual'" in repr(model)
    with pytest.raises(ValueError, match='got "residual"; use a NetworkModel'):
        IndexedModel(MLP((2,), width=8, depth=1), VPSDE().discretize(10), "residual", (2,))
    with pytest.raises(ValueError, match="weighting must be one number for a time"):
        DenoisingLoss("residual", second_order=0.1)


def test_gradients_reach_the_network_after_inference_mode():
    model = set_on(MLP((8,), width=8, depth=1), VPSDE(), DATA_MOMENTS["mixture"], torch.float32)
    x = MIXTURE.sample(4, seed=1).float()
    with torch.inference_mode():
        model.raw(x, torch.tensor(0.5))
    DenoisingLoss("residual")(model, x, torch.Generator().manual_seed(0)).mean().backward()
    assert float(model.network.last.weight.grad.abs().sum()) > 0
