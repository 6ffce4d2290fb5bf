"""Variational bounds against closed forms: where they are tight, and what their standard errors promise."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import ALPHA, DIAGONAL, GAUSSIAN, MIXTURE, SDES
from scipy import stats
from torch import Tensor

from sde_toolkit.data.scaling import Scaling
from sde_toolkit.likelihood import (
    Bound,
    BoundDraws,
    FlowSolver,
    continuous_bound,
    discrete_bound,
    log_likelihood,
)
from sde_toolkit.likelihood.bound_terms import GaussianControl
from sde_toolkit.models import ScoreModel, Wrapper
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.sdes import VPSDE, CustomSDE

FLOAT64 = torch.float64
LIMIT = stats.norm.isf(ALPHA / 2)


class Counted(Wrapper):
    """A model that counts the rows that it is asked for, and does not tell its moments."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model)
        self.rows = 0

    @property
    def moments(self) -> None:
        return None

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        return self.model.raw(x_t, t, condition)


def accept(bound: Bound, expected: Tensor, slack: float = 0.0) -> None:
    """The mean of a bound is right within its standard error, at the false-alarm rate ALPHA."""
    error = float((bound.nats - expected).mean())
    assert abs(error) < LIMIT * bound.mean_standard_error + slack, (error, bound.mean_standard_error)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_continuous_bound_of_exact_scores_is_the_log_density(sde):
    x, model = MIXTURE.sample(128, seed=3), ExactModel(MIXTURE, sde)
    bound = continuous_bound(model, x, prior_moments=model.moments, seed=1)
    accept(bound, MIXTURE.log_prob(x), slack=1e-3)
    assert bound.mean_standard_error < 0.5
    gaussian = ExactModel(GAUSSIAN, sde)
    x = GAUSSIAN.sample(16, seed=0)
    bound = continuous_bound(gaussian, x, prior_moments=gaussian.moments, draws=BoundDraws(num_draws=4))
    # the control variate is the model itself: nothing is left to chance, and what is left is the decoder's
    torch.testing.assert_close(bound.nats, GAUSSIAN.log_prob(x), rtol=0, atol=3e-5)
    assert float(bound.standard_error.max()) < 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"time_sampling": "uniform"},
        {"antithetic": True},
        {"control": False},
        {"num_reconstructions": 8},
    ],
    ids=str,
)
def test_every_way_to_draw_gives_the_same_value(options):
    x, model = MIXTURE.sample(128, seed=3), ExactModel(MIXTURE, VPSDE())
    draws = BoundDraws(num_draws=32, **options)
    bound = continuous_bound(model, x, prior_moments=model.moments, seed=2, draws=draws)
    accept(bound, MIXTURE.log_prob(x), slack=1e-3)


def test_the_bound_is_tight_at_a_single_point_and_its_standard_error_is_honest():
    x = torch.tensor([[1.0, -0.3, 0.2, 0.8, -1.0, 0.4, 0.0, 0.6]], dtype=FLOAT64)
    x, model = x.expand(1000, -1).contiguous(), ExactModel(MIXTURE, VPSDE())
    bound = continuous_bound(model, x, prior_moments=model.moments, seed=5, draws=BoundDraws(num_draws=16))
    error = bound.nats - MIXTURE.log_prob(x)
    spread = float(error.std())
    assert abs(float(error.mean())) < LIMIT * spread / math.sqrt(1000) + 1e-3
    assert float(bound.standard_error.square().mean()) / spread**2 == pytest.approx(1, abs=0.25)


def test_the_control_variate_lowers_the_variance_and_needs_no_true_moments():
    x, model = MIXTURE.sample(64, seed=3), ExactModel(MIXTURE, VPSDE())
    exact = MIXTURE.log_prob(x)
    with_moments = continuous_bound(model, x, draws=BoundDraws(num_draws=32))
    plain = continuous_bound(model, x, draws=BoundDraws(num_draws=32, control=False))
    foreign = continuous_bound(Counted(model), x, draws=BoundDraws(num_draws=32))
    accept(foreign, exact, slack=2e-2)  # the plain prior's mismatch
    assert with_moments.mean_standard_error < 0.6 * plain.mean_standard_error
    assert foreign.mean_standard_error < plain.mean_standard_error


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "ve", "custom"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_every_divergence_of_the_chain_has_its_closed_form(name, variance):
    sde = SDES[name]
    model, x, chain = ExactModel(GAUSSIAN, sde), GAUSSIAN.sample(400, seed=7), sde.discretize(6)
    bound = discrete_bound(model, x, chain, variance=variance, seed=3, draws=BoundDraws(control=False))
    variances, axes = torch.linalg.eigh(GAUSSIAN.covariance)
    u2 = ((x - GAUSSIAN.mean) @ axes).square()
    for i, nats, error in zip(*(bound.terms[k] for k in ("index", "nats", "standard_error")), strict=True):
        (a_t, a_s), (s_t, s_s) = ((table[i], table[i - 1]) for table in (chain.alphas, chain.sigmas))
        step = s_t**2 - (a_t / a_s * s_s) ** 2
        posterior = step * s_s**2 / s_t**2
        model_variance = posterior if variance == "small" else step
        n2 = (s_t / a_t) ** 2
        missed = n2 * (n2 * u2 + variances**2) / (variances + n2) ** 2  # E (x0_hat - x0)^2 in the eigenbasis
        pull = (a_s * step / s_t**2) ** 2
        ratio = posterior / model_variance
        exact = 0.5 * (ratio - 1 - ratio.log() + pull * missed / model_variance).sum(1).mean()
        # the spread of the table's errors is over the data as well
        assert abs(float(nats - exact)) < LIMIT * float(error) + 1e-9
    known = discrete_bound(model, x, chain, variance=variance, seed=3)
    accept(bound, known.nats, slack=1e-9)
    assert float(known.standard_error.max()) < 1e-9


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "sub-vp", "ve"])
def test_the_discrete_bound_rises_to_the_log_density(name):
    model = ExactModel(MIXTURE, SDES[name])
    x = MIXTURE.sample(64, seed=3)
    gaps, errors = [], []
    for num_steps in (16, 64, 256):
        bound = discrete_bound(model, x, SDES[name].discretize(num_steps), prior_moments=model.moments)
        gaps.append(float((MIXTURE.log_prob(x) - bound.nats).mean()))
        errors.append(bound.mean_standard_error)
    spread = math.sqrt(8 / len(x))  # of log p(x0) minus its estimate from data, a generous D / 2 per sample
    for gap, error in zip(gaps, errors, strict=True):
        assert gap > -LIMIT * error - 0.1 * spread
    assert gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 0.3 * gaps[1] + LIMIT * errors[2]


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "sub-vp"])
def test_the_flow_and_the_bounds_agree_on_exact_scores(name):
    sde = SDES[name]
    x, model = MIXTURE.sample(24, seed=6), ExactModel(MIXTURE, sde)
    flow = log_likelihood(
        model, x, num_diagnostic_samples=0, solver=FlowSolver(rtol=0.0001, atol=0.0001)
    ).nats
    accept(continuous_bound(model, x, prior_moments=model.moments), flow, slack=1e-2)
    short = discrete_bound(model, x, sde.discretize(200), prior_moments=model.moments)
    gap = float((flow - short.nats).mean())
    assert abs(gap) < 0.7 + LIMIT * short.mean_standard_error


def test_on_gaussians_the_gap_of_the_chain_is_positive_and_vanishes_at_order_one():
    sde = VPSDE()
    model, x = ExactModel(GAUSSIAN, sde), GAUSSIAN.sample(20_000, seed=1)
    gaps = []
    for num_steps in (50, 100, 200, 400):
        bound = discrete_bound(
            model, x, sde.discretize(num_steps), prior_moments=model.moments, draws=BoundDraws(num_draws=2)
        )
        gaps.append(float((GAUSSIAN.log_prob(x) - bound.nats).mean()))
    assert min(gaps) > 0
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(gaps)]
    assert all(abs(slope - 1) < 0.1 for slope in slopes), slopes


def test_the_small_variance_loses_half_of_eulers_constant_on_steps_uniform_in_time():
    sde = CustomSDE(alpha=torch.ones_like, sigma=lambda t: 1e-3 * t.sqrt())  # data are flat at this scale
    data = Gaussian([0.0], [1.0])
    model, x, num_steps = ExactModel(data, sde), torch.tensor([[0.3]], dtype=FLOAT64), 1000
    for variance, expected in (("small", 0.5 * np.euler_gamma), ("large", 0.0)):
        bound = discrete_bound(
            model, x, sde.discretize(num_steps), variance=variance, prior_moments=model.moments
        )
        assert float((data.log_prob(x) - bound.nats).mean()) == pytest.approx(expected, abs=1 / num_steps)


@pytest.mark.parametrize(("fraction", "name"), [(0.0, "small"), (1.0, "large")])
def test_a_learned_variance_lies_between_the_two_ends(fraction, name):
    sde = VPSDE()
    model, x, chain = ExactModel(DIAGONAL, sde), DIAGONAL.sample(16, seed=0), sde.discretize(20)
    named = discrete_bound(model, x, chain, variance=name, draws=BoundDraws(control=False))
    for shape in ((-1, 1, 1, 1), (-1,)):  # one for every feature, or one for every sample

        def learned(x_i: Tensor, i: Tensor, shape: tuple[int, ...] = shape) -> Tensor:
            v = torch.full((len(i),), fraction, dtype=FLOAT64).reshape(shape)
            return v.expand_as(x_i) if len(shape) > 1 else v

        bound = discrete_bound(model, x, chain, variance=learned, draws=BoundDraws(control=False))
        torch.testing.assert_close(bound.diffusion, named.diffusion, rtol=1e-9, atol=1e-9)
    # the control variate changes the draws' spread, not what they estimate
    x = x[:1].expand(300, -1, -1, -1).contiguous()
    with_control, without = (
        discrete_bound(
            model,
            x,
            chain,
            variance=lambda x_i, i: 0.5 + 0.1 * x_i.tanh(),
            seed=3,
            draws=BoundDraws(control=c),
        )
        for c in (True, False)
    )
    accept(with_control, without.nats.mean(), slack=LIMIT * without.mean_standard_error)
    assert with_control.mean_standard_error < 0.6 * without.mean_standard_error


def test_the_learned_variance_of_the_last_step_is_its_decoders():
    sde = VPSDE()
    model, x, chain = ExactModel(DIAGONAL, sde), DIAGONAL.sample(2000, seed=0), sde.discretize(20)
    nsr = chain.sigmas / chain.alphas
    for fraction, variance in (
        (1.0, chain.sigmas[1] ** 2),
        (0.0, chain.sigmas[1] ** 2 * (1 - (nsr[1] / nsr[2]) ** 2)),
    ):
        bound = discrete_bound(
            model,
            x,
            chain,
            variance=lambda x_i, i, v=fraction: torch.full_like(x_i, v),
            draws=BoundDraws(num_draws=2),
        )
        lost = DIAGONAL.covariance.diagonal()
        lost = lost * nsr[1] ** 2 / (lost + nsr[1] ** 2)  # E (x0_hat - x0)^2, on average over data
        expected = float(0.5 * ((2 * math.pi * variance).log() + lost / variance).sum())
        error = float(bound.reconstruction.mean()) - expected
        assert abs(error) < LIMIT * float(bound.reconstruction.std()) / math.sqrt(2000)


@pytest.mark.parametrize("kind", ["continuous", "discrete", "some"])
def test_draws_belong_to_samples_not_to_batches(kind):
    sde, x, model = VPSDE(), MIXTURE.sample(7, seed=3), ExactModel(MIXTURE, VPSDE())

    def bound(rows: Tensor, **options) -> Bound:
        if kind == "continuous":
            return continuous_bound(model, rows, seed=1, draws=BoundDraws(num_draws=8), **options)
        return discrete_bound(
            model,
            rows,
            sde.discretize(9),
            seed=1,
            draws=BoundDraws(num_draws=None if kind == "discrete" else 4),
            **options,
        )

    whole, parts, later = bound(x), bound(x, batch_size=3), bound(x[4:], first_sample=4)
    for name in ("nats", "standard_error", "reconstruction", "prior", "diffusion"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
        assert torch.equal(getattr(later, name), getattr(whole, name)[4:])
    torch.testing.assert_close(parts.terms["nats"], whole.terms["nats"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_features", [8, 64, 784])
def test_the_control_variate_of_a_row_does_not_depend_on_the_other_rows(num_features):
    data = Gaussian(torch.zeros(num_features), torch.linspace(0.1, 2.0, num_features))
    x, moments = data.sample(101, seed=0), ExactModel(data, VPSDE()).moments
    ratios = torch.linspace(0.1, 3.0, 7, dtype=FLOAT64)
    whole = GaussianControl(moments, x).expected(ratios, ratios)
    for count in (1, 2, 5, 7):
        part = GaussianControl(moments, x[:count]).expected(ratios, ratios)
        assert torch.equal(part, whole[:count])


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_the_record_adds_up_and_counts_evaluations(kind):
    model = Counted(ExactModel(DIAGONAL, VPSDE()))
    x = DIAGONAL.sample(5, seed=0)
    draws = BoundDraws(12 if kind == "continuous" else None, num_reconstructions=3, control=False)
    if kind == "continuous":
        bound = continuous_bound(model, x, draws=draws, log_det_per_dim=-0.7)
    else:
        bound = discrete_bound(model, x, VPSDE().discretize(8), draws=draws, log_det_per_dim=-0.7)
    torch.testing.assert_close(bound.nats, -(bound.prior + bound.diffusion + bound.reconstruction))
    torch.testing.assert_close(bound.bits_per_dim, (0.7 - bound.nats / 4) / math.log(2))
    torch.testing.assert_close(bound.terms["nats"].sum(), bound.diffusion.mean())
    assert int(bound.nfe.sum()) == model.rows == 5 * ((12 if kind == "continuous" else 7) + 3)
    assert bound.settings["bound"] == kind
    torch.testing.assert_close(bound.standard_error_bits_per_dim, bound.standard_error / (4 * math.log(2)))
    assert len(bound.terms["t"]) == (6 if kind == "continuous" else 7)
    assert bound.mean_standard_error == pytest.approx(float(bound.standard_error.square().mean() / 5) ** 0.5)


def test_the_prior_of_the_datas_moments_removes_the_mismatch():
    model, x = ExactModel(GAUSSIAN, VPSDE()), GAUSSIAN.sample(2000, seed=0)
    plain, fitted = (
        continuous_bound(model, x, prior_moments=m, draws=BoundDraws(num_draws=2))
        for m in (None, model.moments)
    )
    end = torch.tensor(1.0, dtype=FLOAT64)
    alpha, sigma = VPSDE().alpha(end), VPSDE().sigma(end)
    covariance = alpha**2 * GAUSSIAN.covariance + sigma**2 * torch.eye(3, dtype=FLOAT64)
    law = torch.distributions.MultivariateNormal(alpha * GAUSSIAN.mean, covariance)
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(3, dtype=FLOAT64), torch.eye(3, dtype=FLOAT64)
    )
    mismatch = torch.distributions.kl_divergence(law, normal)
    lost = fitted.nats - plain.nats
    assert float(lost.mean()) > 0
    error = float(lost.mean() - mismatch) / (float(lost.std()) / math.sqrt(2000))
    assert abs(error) < LIMIT


def test_grey_levels_get_the_mass_of_their_bins():
    scaling, levels = Scaling.grey(4), 4
    v = torch.tensor([[0], [1], [2], [3]])
    x = scaling.to_model(v + 0.5, FLOAT64)
    data = Gaussian([0.1], [0.2])
    sde = VPSDE()
    model = ExactModel(data, sde)
    for t_min in (1e-5, 0.05, 0.2):
        options = {
            "t_min": t_min,
            "scaling": scaling,
            "draws": BoundDraws(num_draws=64, num_reconstructions=64),
        }
        bound = continuous_bound(model, x, **options)
        assert bool((bound.reconstruction >= 0).all())
        t = torch.tensor(t_min, dtype=FLOAT64)
        normals, nsr = torch.linspace(-5, 5, 4001, dtype=FLOAT64), sde.nsr(t)
        y = x + nsr * normals
        mean = 0.1 + 0.2 / (0.2 + nsr**2) * (y - 0.1)
        edges = torch.linspace(-1, 1, levels + 1, dtype=FLOAT64)
        edges[0], edges[-1] = -math.inf, math.inf
        law = torch.special.ndtr((edges[1:][v, None] - mean[..., None]) / nsr).squeeze(-1).squeeze(-1)
        low = torch.special.ndtr((edges[:-1][v, None] - mean[..., None]) / nsr).squeeze(-1).squeeze(-1)
        density = (-0.5 * normals.square()).exp()
        exact = -((law - low).log() * density).sum(1) / density.sum()
        assert torch.allclose(bound.reconstruction, exact, atol=0.5)
        total = discrete_bound(
            model, x, sde.discretize(50), scaling=scaling, draws=BoundDraws(num_reconstructions=16)
        )
        assert bool((total.nats.exp() <= 1).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: {"draws": BoundDraws(num_draws=3)}, "num_draws must be a positive multiple of 2, got 3"),
        (
            lambda: {"draws": BoundDraws(num_draws=6, antithetic=True)},
            "num_draws must be a positive multiple of 4, got 6",
        ),
        (
            lambda: {"draws": BoundDraws(time_sampling="late")},
            "time_sampling must be one of log_snr, uniform, got 'late'",
        ),
        (lambda: {"draws": BoundDraws(num_reconstructions=1)}, "num_reconstructions must be at least 2"),
        (lambda: {"t_min": 1.0}, "t_min must lie in"),
        (lambda: {"t_min": 0.0}, "t_min must be a time with noise, got 0.0"),
        (lambda: {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (lambda: {"scaling": Scaling.grey(4)}, "x0 must be the centres of its bins"),
    ],
)
def test_bad_arguments_get_a_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        continuous_bound(ExactModel(GAUSSIAN, VPSDE()), GAUSSIAN.sample(2, seed=0), **options())


def test_bad_chains_and_data_get_a_sentence():
    model, x, chain = ExactModel(GAUSSIAN, VPSDE()), GAUSSIAN.sample(2, seed=0), VPSDE().discretize(5)
    with pytest.raises(ValueError, match="variance must be one of small, large or a callable, got 'medium'"):
        discrete_bound(model, x, chain, variance="medium")
    with pytest.raises(ValueError, match="num_draws must be a positive even number, or None for all"):
        discrete_bound(model, x, chain, draws=BoundDraws(num_draws=3))
    for draws in (BoundDraws(antithetic=True), BoundDraws(time_sampling="uniform")):
        with pytest.raises(ValueError, match="are for the continuous bound"):
            discrete_bound(model, x, chain, draws=draws)
    with pytest.raises(ValueError, match="chain must have at least 2 steps between noisy states"):
        discrete_bound(model, x, VPSDE().discretize(2))
    with pytest.raises(ValueError, match=r"x0 must have shape \(B, 3\), got \(2, 2\)"):
        discrete_bound(model, x[:, :2], chain)
    with pytest.raises(ValueError, match="x0 must have the model's type"):
        discrete_bound(model, x.float(), chain)
    with pytest.raises(ValueError, match="x0 must be finite"):
        continuous_bound(model, x / 0)
