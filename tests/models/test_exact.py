import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from problems import ALPHA, DATA, DIAGONAL, GAUSSIAN, LINE, MIXTURE, RING, SDES
from torch import Tensor

from sde_toolkit.models.exact import ExactData, ExactModel, Gaussian, GaussianMixture
from sde_toolkit.sdes import VPSDE, ForwardSDE
from solvers.brownian import Normals

ALL = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
EVERY_DATA = pytest.mark.parametrize("data", DATA.values(), ids=DATA)
METHODS = ("score", "noise", "denoise", "velocity", "log_prob")


def time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def states(data: ExactData, sde: ForwardSDE, t: Tensor, count: int = 6) -> Tensor:
    return sde.perturb(data.sample(count, seed=4), t, draw(count, data.event_shape, seed=5))


def full_covariance(mean: list[float], covariance: list[list[float]]) -> torch.distributions.Distribution:
    tensors = (torch.tensor(value, dtype=torch.float64) for value in (mean, covariance))
    return torch.distributions.MultivariateNormal(*tensors)


# Density and score


@ALL
@EVERY_DATA
@pytest.mark.parametrize("fraction", [0.0, 1e-6, 0.01, 0.4, 1.0])
def test_score_is_the_gradient_of_the_density(sde: ForwardSDE, data: ExactData, fraction: float):
    model, t = ExactModel(data, sde), time(fraction * sde.T)
    x_t = states(data, sde, t).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x_t, t).sum(), x_t)
    scale = float(gradient.abs().max())
    assert float((model.score(x_t.detach(), t) - gradient).abs().max()) < 1e-13 * scale


@ALL
def test_gaussian_density_under_the_process(sde: ForwardSDE):
    model, t = ExactModel(GAUSSIAN, sde), time(0.3 * sde.T)
    x_t, covariance = states(GAUSSIAN, sde, t), GAUSSIAN.covariance
    law = torch.distributions.MultivariateNormal(
        sde.alpha(t) * GAUSSIAN.mean,
        sde.alpha(t).square() * covariance + sde.sigma(t).square() * torch.eye(3, dtype=torch.float64),
    )
    torch.testing.assert_close(model.log_prob(x_t, t), law.log_prob(x_t), rtol=1e-12, atol=1e-12)
    x = draw(5, (3,))
    law = full_covariance(GAUSSIAN.mean.tolist(), covariance.tolist())
    torch.testing.assert_close(GAUSSIAN.log_prob(x), law.log_prob(x), rtol=1e-12, atol=1e-12)


def test_mixture_density_equals_the_distributions_of_torch():
    c = MIXTURE.components
    covariances = torch.einsum("kij,kj,klj->kil", c.axes, c.variances, c.axes)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(c.weights),
        torch.distributions.MultivariateNormal(c.means, covariances),
    )
    x = torch.cat([MIXTURE.sample(20, seed=1), 3 * draw(20, (8,))])
    torch.testing.assert_close(MIXTURE.log_prob(x), law.log_prob(x), rtol=1e-11, atol=1e-11)


@ALL
def test_convolution_by_quadrature(sde: ForwardSDE):
    """p_t and E[x0 | x_t] of one-dimensional data by the trapezoidal rule, which converges spectrally."""
    model, t = ExactModel(LINE, sde), time(0.4 * sde.T)
    alpha_t, sigma_t = sde.alpha(t), sde.sigma(t)
    x0 = torch.linspace(-6, 6, 6001, dtype=torch.float64)
    x_t = states(LINE, sde, t)
    kernel = torch.distributions.Normal(alpha_t * x0, sigma_t).log_prob(x_t).exp()
    joint = kernel * LINE.log_prob(x0.unsqueeze(1)).exp()
    density = torch.trapezoid(joint, x0)
    torch.testing.assert_close(model.log_prob(x_t, t).exp(), density, rtol=1e-11, atol=0)
    mean = torch.trapezoid(joint * x0, x0) / density
    torch.testing.assert_close(model.denoise(x_t, t)[:, 0], mean, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_density_integrates_to_one(fraction: float):
    model, t = ExactModel(RING, VPSDE()), time(fraction)
    axis = torch.linspace(-5, 5, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = model.log_prob(grid, t).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("t", [1e-12, 1e-6, 1e-3, 0.5, 1.0])
def test_digits_against_exact_arithmetic(t: float):
    """Fifty digits of the two predictions at given states: neither small nor large times lose any."""
    sde = VPSDE()
    x_t = sde.perturb(LINE.sample(5, seed=0), time(t), draw(5, (1,)))
    with mpmath.workdps(50):
        integral = mpmath.mpf(t) * (mpmath.mpf(0.1) + mpmath.mpf(t) * mpmath.mpf(0.5 * (20.0 - 0.1)))
        alpha, sigma = mpmath.exp(-integral / 2), mpmath.sqrt(-mpmath.expm1(-integral))
        noise, clean = [], []
        for x in x_t.flatten().tolist():
            total = pull = mpmath.mpf(0)
            for w, m, v in ((0.3, -1.5, 0.04), (0.7, 0.8, 0.16)):
                centre, variance = alpha * mpmath.mpf(m), alpha**2 * mpmath.mpf(v) + sigma**2
                share = mpmath.mpf(w) * mpmath.npdf(x, centre, mpmath.sqrt(variance))
                total, pull = total + share, pull + share * (x - centre) / variance
            noise.append(float(sigma * pull / total))
            clean.append(float((x - sigma**2 * pull / total) / alpha))
    model = ExactModel(LINE, sde)
    assert model.noise(x_t, time(t)).flatten().tolist() == pytest.approx(noise, rel=2e-13, abs=0)
    assert model.denoise(x_t, time(t)).flatten().tolist() == pytest.approx(clean, rel=2e-13, abs=2e-13)


# One formula for all: shapes, batches, types


@ALL
@EVERY_DATA
def test_one_time_or_one_per_sample(sde: ForwardSDE, data: ExactData):
    model, t = ExactModel(data, sde), torch.linspace(0.01, 1, 6, dtype=torch.float64) * sde.T
    x_t = states(data, sde, t)
    for name in METHODS:
        method = getattr(model, name)
        alone = torch.cat([method(x_t[i : i + 1], t[i]) for i in range(6)])
        torch.testing.assert_close(method(x_t, t), alone, rtol=1e-12, atol=1e-12)


@EVERY_DATA
@pytest.mark.parametrize("per_sample", [False, True])
def test_rows_do_not_feel_each_other(data: ExactData, per_sample: bool):
    """Bit for bit, whatever the size of the batch."""
    model = ExactModel(data, VPSDE())
    x_t = draw(192, data.event_shape)
    t = torch.linspace(0.01, 1, 192, dtype=torch.float64) if per_sample else time(0.3)
    whole = model.denoise(x_t, t)
    for size in (1, 7, 64):
        times = t.split(size) if per_sample else [t] * math.ceil(192 / size)
        parts = [model.denoise(x, u) for x, u in zip(x_t.split(size), times, strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_one_component_is_a_gaussian():
    covariance = GAUSSIAN.covariance
    lone = GaussianMixture([1.0], GAUSSIAN.mean[None], covariance[None])
    x_t, t = draw(6, (3,)), torch.linspace(0.1, 1, 6, dtype=torch.float64)
    ours, theirs = ExactModel(lone, VPSDE()), ExactModel(GAUSSIAN, VPSDE())
    for name in METHODS:
        torch.testing.assert_close(getattr(ours, name)(x_t, t), getattr(theirs, name)(x_t, t))
    moved = ours.flow(x_t, t, time(0.01))
    torch.testing.assert_close(moved, theirs.flow(x_t, t, time(0.01)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lone.sample(9, seed=2), GAUSSIAN.sample(9, seed=2))


def test_covariances_in_three_forms_agree():
    means, x_t, t = draw(3, (2, 2)), draw(5, (2, 2), seed=1), time(0.3)
    weights = [0.2, 0.3, 0.5]
    number = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    diagonal = number[:, None, None].expand(3, 2, 2)
    full = number[:, None, None] * torch.eye(4, dtype=torch.float64)
    models = [ExactModel(GaussianMixture(weights, means, c), VPSDE()) for c in (number, diagonal, full)]
    for name in METHODS:
        one, *others = (getattr(model, name)(x_t, t) for model in models)
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-13, atol=1e-13)
    assert [model.event_shape for model in models] == [(2, 2)] * 3
    number_form, full_form = Gaussian([1.0, 2.0], 0.3), Gaussian([1.0, 2.0], [[0.3, 0.0], [0.0, 0.3]])
    torch.testing.assert_close(number_form.covariance, full_form.covariance)


@EVERY_DATA
def test_float32_models_follow(data: ExactData):
    low, high = ExactModel(data, VPSDE(), dtype=torch.float32), ExactModel(data, VPSDE())
    t = torch.linspace(0.05, 1, 6, dtype=torch.float64)
    x_t = states(data, VPSDE(), t)
    for name in METHODS:
        for u in (t, t[2]):
            value = getattr(low, name)(x_t.float(), u)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), getattr(high, name)(x_t, u), rtol=2e-4, atol=2e-4)
    assert low.flow(x_t.float(), t, time(0.1)).dtype == torch.float32


def test_models_say_what_they_take():
    model = ExactModel(DIAGONAL, VPSDE(), dtype=torch.float32, device="meta")
    assert model.event_shape == (1, 2, 2)
    assert model.data_std == pytest.approx(math.sqrt(0.22))
    assert (model.dtype, model.device.type, model.predicts) == (torch.float32, "meta", "score")
    assert model.score(torch.empty(3, 1, 2, 2, device="meta"), time(0.5)).shape == (3, 1, 2, 2)


# Derivatives


def test_second_derivatives_of_a_gaussian():
    """The Jacobian of the score is minus the precision, in every mode of differentiation."""
    sde, t = VPSDE(), time(0.3)
    model, x = ExactModel(GAUSSIAN, sde), draw(4, (3,))
    marginal = sde.alpha(t) ** 2 * GAUSSIAN.covariance + sde.sigma(t) ** 2 * torch.eye(3, dtype=torch.float64)

    def score(row: Tensor) -> Tensor:
        return model.score(row.unsqueeze(0), t).squeeze(0)

    expected = -marginal.inverse().expand(4, 3, 3)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(score))(x), expected)
    x.requires_grad_()
    rows = [torch.autograd.grad(model.score(x, t)[:, i].sum(), x)[0] for i in range(3)]
    torch.testing.assert_close(torch.stack(rows, 1), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_derivatives_of_a_mixture_agree_in_every_mode():
    model, x, t = ExactModel(MIXTURE, VPSDE()), MIXTURE.sample(4, seed=6), time(0.2)

    def score(row: Tensor) -> Tensor:
        return model.score(row.unsqueeze(0), t).squeeze(0)

    def log_prob(row: Tensor) -> Tensor:
        return model.log_prob(row.unsqueeze(0), t).squeeze(0)

    reverse = torch.func.vmap(torch.func.jacrev(score))(x)
    torch.testing.assert_close(reverse, reverse.mT)
    torch.testing.assert_close(torch.func.vmap(torch.func.hessian(log_prob))(x), reverse)
    v = draw(4, (8,), seed=3)
    tangent = torch.func.jvp(lambda u: model.score(u, t), (x,), (v,))[1]
    torch.testing.assert_close(tangent, (reverse @ v.unsqueeze(-1)).squeeze(-1))
    third = torch.func.vmap(torch.func.grad(lambda row: torch.func.jacrev(score)(row).trace()))(x)
    h = 1e-5
    for i in (0, 5):
        step = torch.zeros(8, dtype=torch.float64).index_fill(0, torch.tensor(i), h)
        ends = [torch.func.vmap(torch.func.jacrev(score))(x + s * step) for s in (1, -1)]
        slope = torch.stack([end.diagonal(dim1=1, dim2=2).sum(1) for end in ends])
        torch.testing.assert_close(third[:, i], (slope[0] - slope[1]) / (2 * h), rtol=1e-5, atol=1e-5)


# The flow


@ALL
@EVERY_DATA
def test_flow_there_and_back(sde: ForwardSDE, data: ExactData):
    model, start, end = ExactModel(data, sde), time(0.0), time(sde.T)
    x = states(data, sde, start)
    there = model.flow(x, start, end)
    assert there.shape == x.shape
    torch.testing.assert_close(model.flow(there, end, start), x, rtol=0, atol=2e-9)
    torch.testing.assert_close(model.flow(x, start, start), x, rtol=1e-13, atol=1e-13)


@ALL
@EVERY_DATA
def test_flow_follows_the_probability_flow(sde: ForwardSDE, data: ExactData):
    """Its derivative in time is the drift, by central differences."""
    model, t = ExactModel(data, sde), time(0.4 * sde.T)
    x_t, h = states(data, sde, t), 1e-4 * sde.T
    slope = (model.flow(x_t, t, t + h) - model.flow(x_t, t, t - h)) / (2 * h)
    drift = sde.probability_flow(model).drift(t, x_t)
    assert float((slope - drift).abs().max()) < 1e-5 * float(drift.abs().max())


@ALL
@pytest.mark.parametrize("data", [GAUSSIAN, DIAGONAL], ids=["gaussian", "diagonal"])
def test_flow_pushes_a_gaussian_forward(sde: ForwardSDE, data: Gaussian):
    """An affine map: images of the unit vectors give its matrix J, and J S_t J^T = S_s."""
    model, t, s = ExactModel(data, sde), time(0.9 * sde.T), time(0.2 * sde.T)
    n = data.mean.numel()
    one = torch.eye(n, dtype=torch.float64)
    images = model.flow(torch.cat([0 * one[:1], one]).reshape(-1, *data.event_shape), t, s).flatten(1)
    matrix = (images[1:] - images[0]).T

    def marginal(u: Tensor) -> Tensor:
        return sde.alpha(u) ** 2 * data.covariance + sde.sigma(u) ** 2 * one

    torch.testing.assert_close(matrix @ marginal(t) @ matrix.T, marginal(s), rtol=1e-11, atol=1e-12)
    centre = (sde.alpha(t) * data.mean)[None]
    torch.testing.assert_close(model.flow(centre, t, s), sde.alpha(s) * data.mean[None], rtol=0, atol=1e-11)


@ALL
def test_flow_on_the_line_keeps_the_distribution_function(sde: ForwardSDE):
    """From far out in one tail to far out in the other."""
    model, t, s = ExactModel(LINE, sde), time(0.9 * sde.T), time(0.05 * sde.T)

    def tails(x: Tensor, u: Tensor) -> tuple[np.ndarray, np.ndarray]:
        c = LINE.components
        stds = (sde.alpha(u) ** 2 * c.variances + sde.sigma(u) ** 2).sqrt().flatten()
        laws = scipy.stats.norm((sde.alpha(u) * c.means).flatten().numpy(), stds.numpy())
        return laws.cdf(x.numpy()) @ c.weights.numpy(), laws.sf(x.numpy()) @ c.weights.numpy()

    spread = (sde.alpha(t) ** 2 * LINE.std**2 + sde.sigma(t) ** 2).sqrt()
    x_t = spread * torch.linspace(-9, 9, 37, dtype=torch.float64)[:, None]
    for before, after in zip(tails(x_t, t), tails(model.flow(x_t, t, s), s), strict=True):
        assert after == pytest.approx(before, rel=1e-11, abs=0)


@ALL
def test_integrated_flow_equals_the_flow_on_the_line(sde: ForwardSDE):
    """The second feature is Gaussian and independent of the first: the flow acts on each by itself."""
    c = LINE.components
    plane = GaussianMixture(
        c.weights,
        torch.cat([c.means, torch.full_like(c.means, 0.3)], dim=1),
        torch.cat([c.variances, torch.full_like(c.means, 0.5)], dim=1),
    )
    t, s = time(sde.T), torch.linspace(0, 0.9, 6, dtype=torch.float64) * sde.T
    x_t = states(plane, sde, t)
    moved = ExactModel(plane, sde).flow(x_t, t, s)
    line = ExactModel(LINE, sde).flow(x_t[:, :1], t, s)
    other = ExactModel(Gaussian([0.3], [0.5]), sde).flow(x_t[:, 1:], t, s)
    torch.testing.assert_close(moved, torch.cat([line, other], dim=1), rtol=1e-9, atol=1e-9)


# Sampling and moments


@EVERY_DATA
def test_samples_have_the_moments(data: ExactData):
    count = 4000
    x = data.sample(count, seed=11).flatten(1)
    covariance, n = data.covariance, x.shape[1]
    z = (x - data.mean.flatten()) / covariance.diagonal().sqrt()
    bound = scipy.stats.norm.isf(ALPHA / (2 * n * (n + 1)))
    assert float(z.mean(0).abs().max()) * math.sqrt(count) < bound
    products = z.unsqueeze(2) * z.unsqueeze(1)
    correlation = covariance / torch.outer(covariance.diagonal(), covariance.diagonal()).sqrt()
    error = (products.mean(0) - correlation) / (products.std(0) / math.sqrt(count))
    assert float(error.abs().max()) < bound
    assert data.std == pytest.approx(math.sqrt(covariance.trace() / n))


def test_samples_fall_into_the_components():
    x = RING.sample(4000, seed=3)
    nearest = torch.cdist(x, RING.components.means).argmin(1)
    counts = torch.bincount(nearest, minlength=8).numpy()
    assert scipy.stats.chisquare(counts).pvalue > ALPHA
    on_the_line = LINE.sample(4000, seed=3).flatten()

    def distribution(v: np.ndarray) -> np.ndarray:
        return 0.3 * scipy.stats.norm.cdf(v, -1.5, 0.2) + 0.7 * scipy.stats.norm.cdf(v, 0.8, 0.4)

    assert scipy.stats.kstest(on_the_line.numpy(), distribution).pvalue > ALPHA


@EVERY_DATA
def test_samples_are_keyed_by_seed_and_index(data: ExactData):
    few, many = data.sample(3, seed=5), data.sample(50, seed=5)
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, data.sample(3, seed=6))
    assert many.shape == (50, *data.event_shape)
    assert many.dtype == torch.float64


def test_samples_are_independent_of_a_sampler_with_the_same_seed():
    data = Gaussian([0.0], [1.0])
    x, z = data.sample(2000, seed=1), Normals(1, 2000, (1,)).draw(0)
    correlation = float((x * z).mean())
    assert abs(correlation) * math.sqrt(2000) < scipy.stats.norm.isf(ALPHA / 2)


# Singular covariances


def test_point_masses_give_the_denoiser_of_a_data_set():
    points, sde, t = draw(7, (2, 2)), VPSDE(), time(0.2)
    model = ExactModel(GaussianMixture([1 / 7] * 7, points, [0.0] * 7), sde)
    x_t = draw(5, (2, 2), seed=1)
    distances = torch.cdist(x_t.flatten(1), sde.alpha(t) * points.flatten(1)).square()
    shares = (-0.5 * distances / sde.sigma(t) ** 2).softmax(1)
    expected = torch.einsum("bk,kij->bij", shares, points)
    torch.testing.assert_close(model.denoise(x_t, t), expected, rtol=1e-12, atol=1e-12)
    assert bool((model.data.sample(20, seed=0)[:, None] == points).flatten(2).all(2).any(1).all())


def test_data_on_a_line_in_the_plane():
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    data, sde = Gaussian([0.0, 0.0], torch.outer(direction, direction)), VPSDE()
    assert sorted(data.components.variances.flatten().tolist()) == pytest.approx([0, 1], abs=1e-15)
    x0 = ExactModel(data, sde).flow(draw(5, (2,)), time(1.0), time(0.0))
    across = x0 @ torch.tensor([0.8, -0.6], dtype=torch.float64)
    assert float(across.abs().max()) < 1e-15


# Errors


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Gaussian(0.0, 1.0), r"D of one dimension or more.*numbers are data with shape \(1,\)"),
        (lambda: Gaussian([0.0, math.nan], 1.0), "mean must be finite"),
        (
            lambda: Gaussian([0.0, 0.0], [1.0, 1.0, 1.0]),
            r"full \(2, 2\), diagonal \(2,\) or a number.*\(1, 3\)",
        ),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), r"covariance must be symmetric; use \(C"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "semi-definite, got the variance -1"),
        (lambda: Gaussian([0.0, 0.0], -1.0), "semi-definite, got the variance -1"),
        (lambda: GaussianMixture([0.5, 0.6], [[0.0], [1.0]], [1.0, 1.0]), "weights must.*sum 1.1; divide"),
        (lambda: GaussianMixture([1.5, -0.5], [[0.0], [1.0]], [1.0, 1.0]), "weights must.*be positive"),
        (lambda: GaussianMixture([0.5, 0.5], [[0.0]], [1.0, 1.0]), r"means must have shape.*K = 2.*\(1, 1\)"),
        (lambda: GaussianMixture([0.5, 0.5], [0.0, 1.0], [1.0, 1.0]), r"D of one dimension.*got \(2,\)"),
        (lambda: GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [1.0]), r"each of 2 component.*shape \(1,\)"),
        (lambda: GaussianMixture([1.0], [[0.0]], [math.inf]), "covariances must be finite"),
    ],
)
def test_bad_parameters_are_refused_in_a_sentence(build, said: str):
    with pytest.raises(ValueError, match=said):
        build()


@given(st.integers(max_value=0))
def test_num_samples_must_be_positive(num_samples: int):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        LINE.sample(num_samples, seed=0)


def test_data_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ExactData()


def test_a_covariance_that_no_memory_holds_is_refused_and_not_needed():
    shape = (3, 256, 256)
    data = GaussianMixture([0.5, 0.5], torch.zeros(2, *shape), [1.0, 3.0])
    with pytest.raises(ValueError, match=r"got 196608, which would take 309 GB; use the model's moments"):
        _ = data.covariance
    moments = ExactModel(data, VPSDE()).moments
    assert (moments.kind, moments.event_shape) == ("diagonal", shape)
    assert torch.allclose(moments.variances, torch.full((196608,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("covariances", [[0.5, 2.0], torch.rand(2, 3) + 0.1, torch.eye(3).expand(2, 3, 3)])
def test_variances_are_the_diagonal_of_the_covariance(covariances):
    data = GaussianMixture([0.3, 0.7], [[0.0, 1.0, 2.0], [3.0, -1.0, 2.0]], covariances)
    assert torch.allclose(data.variance, data.covariance.diagonal(), rtol=1e-12)
