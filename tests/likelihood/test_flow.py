"""Log-likelihoods against closed forms, and what the estimator promises."""

import math

import pytest
import torch
from problems import ALPHA, DIAGONAL, GAUSSIAN, MIXTURE, RING, SDES, mixture
from scipy import stats
from torch import Tensor

from sde_toolkit.likelihood import (
    Endpoint,
    FlowSolver,
    Hutchinson,
    HutchPlusPlus,
    LogLikelihood,
    differentiable_log_likelihood,
    log_likelihood,
)
from sde_toolkit.likelihood.whitened import WhitenedFlow
from sde_toolkit.models import ScoreModel, Wrapper
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.models.moments import isotropic
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from solvers import AB3, AB4, EULER, RK4, TSIT5, FixedGrid, SolverError
from solvers.reference import SciPy

SONG = {name: SDES[name] for name in ("vp-linear", "vp-cosine", "sub-vp", "ve")}
FLOAT64 = torch.float64
EXACT = {"num_diagnostic_samples": 0, "solver": FlowSolver(rtol=1e-06, atol=1e-06)}
FAST = {"num_diagnostic_samples": 0, "solver": FlowSolver(rtol=0.0001, atol=0.0001)}
START = torch.tensor(1e-5, dtype=FLOAT64)


def _wide() -> Gaussian:
    """64-D, full covariance, variances from .01 to 10."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=FLOAT64))[0]
    variances = torch.logspace(-2, 1, 64, dtype=FLOAT64)
    covariance = axes @ variances.diag() @ axes.mT
    return Gaussian(torch.randn(64, generator=generator, dtype=FLOAT64), (covariance + covariance.mT) / 2)


CLOSED = {
    "gaussian2": Gaussian(mean=[0.5, -1.0], covariance=[[1.0, 0.6], [0.6, 0.5]]),
    "gaussian64": _wide(),
    "ring": RING,
    "mixture8": MIXTURE,
}


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("data", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_log_density_equals_the_closed_form(sde, data):
    x, model = data.sample(24, seed=3), ExactModel(data, sde)
    result = log_likelihood(model, x, **EXACT)
    assert rms(result.nats - model.log_prob(x, START)) < 1e-4
    assert result.standard_error is None
    assert result.budget is None


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_moments_that_are_not_the_data_s_change_the_effort_only(sde):
    x, model = GAUSSIAN.sample(16, seed=3), ExactModel(GAUSSIAN, sde)
    end = torch.tensor(sde.T, dtype=FLOAT64)
    result = log_likelihood(
        model, x, endpoint=Endpoint(moments=isotropic((3,)), prior=lambda y: model.log_prob(y, end)), **EXACT
    )
    assert rms(result.nats - model.log_prob(x, START)) < 1e-4
    assert result.settings["moments"] == "scalar"


def test_the_plain_prior_is_off_by_its_mismatch_alone():
    x, sde = MIXTURE.sample(16, seed=3), VPSDE()
    model, end = ExactModel(MIXTURE, sde), torch.tensor(1.0, dtype=FLOAT64)
    plain = log_likelihood(model, x, endpoint=Endpoint(prior="process"), **EXACT)
    exact = log_likelihood(model, x, endpoint=Endpoint(prior=lambda y: model.log_prob(y, end)), **EXACT)
    mismatch = sde.prior_log_prob(plain.latent) - model.log_prob(plain.latent, end)
    assert torch.allclose(plain.nats - exact.nats, mismatch, atol=1e-10)
    assert 1e-4 < rms(mismatch) < 0.1


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_the_latent_is_the_closed_form_flow(sde):
    x, model = GAUSSIAN.sample(8, seed=0), ExactModel(GAUSSIAN, sde)
    end = torch.tensor(sde.T, dtype=FLOAT64)
    for moments in (None, isotropic((3,))):
        result = log_likelihood(
            model,
            x,
            num_diagnostic_samples=0,
            solver=FlowSolver(rtol=1e-09, atol=1e-09),
            endpoint=Endpoint(moments=moments),
        )
        assert torch.allclose(result.latent, model.flow(x, START, end), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_any_solver_images_and_batches_give_the_same_value():
    x, model = DIAGONAL.sample(6, seed=1), ExactModel(DIAGONAL, VPSDE())
    end = torch.tensor(1.0, dtype=FLOAT64)
    endpoint = Endpoint(moments=isotropic((1, 2, 2)), prior=lambda y: model.log_prob(y, end))
    known = {"num_diagnostic_samples": 0, "endpoint": endpoint}
    exact = model.log_prob(x, START)
    for solver in (
        FlowSolver(TSIT5, rtol=1e-6, atol=1e-6),
        FlowSolver(SciPy("RK45"), rtol=1e-8, atol=1e-8),
        FlowSolver(RK4, num_steps=100),
        FlowSolver(AB4, num_steps=150),
    ):
        found = log_likelihood(model, x, solver=solver, **known)
        assert rms(found.nats - exact) < 1e-4
        assert found.settings["method"] == solver.method.name
    whole = log_likelihood(model, x, **known)
    assert torch.equal(log_likelihood(model, x, batch_size=4, **known).nats, whole.nats)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [None, Hutchinson(2, orthogonal=True), HutchPlusPlus(2, 1)], ids=str)
def test_any_batch_split_gives_the_same_bits(divergence):
    x, model = MIXTURE.sample(7, seed=3), ExactModel(MIXTURE, VPSDE())
    options = {"divergence": divergence, "endpoint": Endpoint(correction="reconstruction"), **FAST}
    whole = log_likelihood(model, x, **options)
    for batch_size in (1, 3):
        parts = log_likelihood(model, x, batch_size=batch_size, **options)
        assert torch.equal(parts.nats, whole.nats)
        assert torch.equal(parts.nfe, whole.nfe)
    later = log_likelihood(model, x[4:], first_sample=4, **options)
    assert torch.equal(later.nats, whole.nats[4:])


@pytest.mark.slow
def test_a_network_gives_the_same_values_for_any_batch_split():
    network = MLP((3,), width=16, depth=1, seed=0)
    with torch.no_grad():
        network.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    model = NetworkModel(network, VPSDE(), "noise", (3,))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    whole = log_likelihood(model, x, divergence=2, **FAST)
    parts = log_likelihood(model, x, divergence=2, batch_size=2, **FAST)
    assert whole.nats.dtype == torch.float64
    assert torch.allclose(parts.nats, whole.nats, rtol=1e-5, atol=1e-4)


def test_probes_are_unbiased_and_their_standard_error_is_honest():
    model = ExactModel(GAUSSIAN, VPSDE())
    x = GAUSSIAN.sample(1, seed=2).expand(300, -1).contiguous()
    result = log_likelihood(model, x, divergence=8, seed=4, **FAST)
    error = result.nats - GAUSSIAN.log_prob(x)
    assert result.standard_error is not None
    spread = float(error.std())
    assert abs(float(error.mean())) < stats.norm.isf(ALPHA / 2) * spread / math.sqrt(300) + 1e-3
    # the mean of the squared standard errors estimates the variance of the values
    ratio = float(result.standard_error.square().mean()) / spread**2
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 299) / 299
    assert 0.8 * low < 1 / ratio < 1.2 * high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "divergence"),
    [
        ("mixture8", Hutchinson(16)),
        ("mixture8", Hutchinson(32, "gaussian")),
        ("mixture8", Hutchinson(6, orthogonal=True)),
        ("mixture8", HutchPlusPlus(12, 2)),
        ("mixture64", Hutchinson(8)),
        ("mixture64", Hutchinson(8, orthogonal=True)),
    ],
    ids=str,
)
def test_intervals_cover(problem, divergence):
    data = {**CLOSED, "mixture64": mixture(6, 64, seed=3)}[problem]
    count, model = 2000, ExactModel(data, VPSDE())
    x = data.sample(count, seed=11)
    result = log_likelihood(
        model, x, divergence=divergence, num_diagnostic_samples=0, solver=FlowSolver(method=AB4, num_steps=40)
    )
    error = result.nats - model.log_prob(x, START)
    assert abs(float(error.mean())) < stats.norm.isf(ALPHA / 2) * float(error.std()) / math.sqrt(count) + 1e-3
    low, high = result.interval(0.95)
    covered = float(((low - result.nats < -error) & (-error < high - result.nats)).double().mean())
    print(f"{problem} {divergence}: covered {covered:.4f}, rms {rms(error):.3f} nats")
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("sde", [SDES["vp-linear"], SDES["ve"]], ids=["vp", "ve"])
def test_gradients_are_the_score(sde):
    for data in (GAUSSIAN, RING):
        model = ExactModel(data, sde)
        x = data.sample(5, seed=0).requires_grad_()
        value = differentiable_log_likelihood(model, x, solver=FlowSolver(RK4, num_steps=60))
        (gradient,) = torch.autograd.grad(value.sum(), x)
        exact = model.score(x.detach(), START)
        assert torch.allclose(gradient, exact, rtol=2e-3, atol=2e-3 * float(exact.abs().max()))
        assert rms(value.detach() - model.log_prob(x.detach(), START)) < 1e-3


@pytest.mark.slow
def test_gradients_of_a_network_are_those_of_the_values():
    network = MLP((2,), width=8, depth=1, seed=0).double()
    with torch.no_grad():
        network.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    model = NetworkModel(network, VPSDE(), "velocity", (2,))
    x = torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=FLOAT64, requires_grad=True)

    def value(y: Tensor) -> Tensor:
        return differentiable_log_likelihood(
            model, y, solver=FlowSolver(RK4, num_steps=4), divergence=1, seed=3
        )

    assert torch.autograd.gradcheck(value, x, eps=1e-6, rtol=1e-4)


def test_one_forward_pass_per_counted_evaluation():
    class Watched(Wrapper):
        def __init__(self, model: ScoreModel) -> None:
            super().__init__(model)
            self.rows, self.calls = 0, 0

        def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            self.rows += len(x_t)
            self.calls += 1
            return self.model.raw(x_t, t, condition)

    for options in (
        {"solver": FlowSolver(rtol=0.001, atol=0.001)},
        {"divergence": 3, "solver": FlowSolver(method=AB3, num_steps=4)},
    ):
        model = Watched(ExactModel(MIXTURE, VPSDE()))
        x = MIXTURE.sample(9, seed=0)
        result = log_likelihood(model, x[:1], num_diagnostic_samples=0, **options)
        assert int(result.nfe) == model.calls
        # the samples that are still on their way; a few are padded, up to eight
        model.rows = 0
        result = log_likelihood(model, x, num_diagnostic_samples=0, **options)
        assert int(result.nfe.sum()) <= model.rows < int(result.nfe.sum()) + 8 * int(result.nfe.max())


def test_bits_per_dim_use_the_scale_of_the_data():
    data = Gaussian(mean=[0.0, 0.0], covariance=[0.3, 0.3])
    x = data.sample(4, seed=0)
    result = log_likelihood(ExactModel(data, VPSDE()), x, log_det_per_dim=math.log(2 / 17), **EXACT)
    expected = -(result.nats + 2 * math.log(2 / 17)) / (2 * math.log(2))
    assert isinstance(result, LogLikelihood)
    assert torch.allclose(result.bits_per_dim, expected)
    assert result.seconds > 0
    # uniform noise over 17 levels on [-1, 1] has density 1/2 and log2(17) bits
    flat = -(2 * math.log(1 / 2) + 2 * math.log(2 / 17)) / (2 * math.log(2))
    assert flat == pytest.approx(math.log2(17))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (lambda: {"divergence": 0}, "divergence must be an integer >= 1, got 0"),
        (lambda: {"t_min": 1.0}, "t_min"),
        (lambda: {"t_min": -0.1}, "t_min"),
        (lambda: {"t_min": 0.0}, "raise t_min"),
        (lambda: {"batch_size": 0}, "batch_size"),
        (lambda: {"solver": FlowSolver(rtol=-1.0)}, "rtol"),
        (lambda: {"solver": FlowSolver(method=EULER)}, "no error estimate for tolerances; give num_steps"),
        (lambda: {"solver": FlowSolver(num_steps=0)}, "num_steps"),
        (lambda: {"num_diagnostic_samples": -1}, "num_diagnostic_samples must be at least 0"),
        (lambda: {"divergence": Hutchinson(4, orthogonal=True)}, "at most the number of features"),
        (lambda: {"endpoint": Endpoint(prior="normal")}, "prior must be one of gaussian, process"),
        (lambda: {"endpoint": Endpoint(correction="bayes")}, "correction must be one of none, tweedie"),
        (lambda: {"endpoint": Endpoint(moments=isotropic((2,)))}, "event shape"),
        (lambda: {"x": torch.zeros(2, 4, dtype=FLOAT64)}, "shape"),
        (lambda: {"x": torch.zeros(2, 3)}, "type"),
        (lambda: {"x": torch.full((2, 3), math.nan, dtype=FLOAT64)}, "finite"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        log_likelihood(ExactModel(GAUSSIAN, VPSDE()), **{"x": torch.zeros(2, 3, dtype=FLOAT64)} | options())


def test_intervals_need_two_probes():
    result = log_likelihood(ExactModel(GAUSSIAN, VPSDE()), GAUSSIAN.sample(2, seed=0), divergence=2, **FAST)
    low, high = result.interval(0.5)
    assert torch.allclose((high - low) / 2, result.standard_error)  # Cauchy's quartile is 1
    bits = result.standard_error / (3 * math.log(2))
    torch.testing.assert_close(result.standard_error_bits_per_dim, bits)
    with pytest.raises(ValueError, match="level"):
        result.interval(1.0)
    one = log_likelihood(ExactModel(GAUSSIAN, VPSDE()), GAUSSIAN.sample(2, seed=0), divergence=1, **FAST)
    assert one.standard_error_bits_per_dim is None
    with pytest.raises(ValueError, match="at least two probes"):
        one.interval()


def test_gradients_need_a_grid_and_the_density_itself():
    model, x = ExactModel(GAUSSIAN, VPSDE()), GAUSSIAN.sample(2, seed=0)
    with pytest.raises(ValueError, match="gradients need a fixed grid, got tolerances"):
        differentiable_log_likelihood(model, x, solver=FlowSolver())
    with pytest.raises(ValueError, match="correction must be 'none' for gradients, got 'tweedie'"):
        differentiable_log_likelihood(model, x, endpoint=Endpoint(correction="tweedie"))


def test_levels_of_a_grid_are_computed_once_and_those_of_an_adaptive_run_are_not_kept():
    flow = WhitenedFlow(ExactModel(GAUSSIAN, VPSDE()), 1e-5)
    grid = FixedGrid(torch.linspace(flow.tau_min, flow.tau_max, 5, dtype=FLOAT64))
    levels = flow.levels(grid)
    assert all(levels(tau) is levels(tau) for tau in grid.ts)
    between = (grid.ts[0] + grid.ts[1]) / 2
    assert levels(between) is not levels(between)
    assert all(torch.equal(a, b) for a, b in zip(levels(grid.ts[2]), flow.level(grid.ts[2]), strict=True))
    before = dict(vars(flow))
    log_likelihood(flow.model, GAUSSIAN.sample(2, seed=0), **FAST)
    adaptive = flow.levels(FlowSolver().steps(flow.tau_min, flow.tau_max))
    assert adaptive(grid.ts[1]) is not adaptive(grid.ts[1])
    assert vars(flow) == before


def test_a_broken_model_fails_with_the_time():
    class Broken(Wrapper):
        def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return self.model.raw(x_t, t, condition) + torch.where(t > 0.5, math.nan, 0.0).reshape(-1, 1)

    with pytest.raises(SolverError, match="NONFINITE"):
        log_likelihood(Broken(ExactModel(GAUSSIAN, VPSDE())), torch.zeros(2, 3, dtype=FLOAT64))
