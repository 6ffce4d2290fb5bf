"""Log-likelihoods against closed forms, and what the estimator promises."""

import math

import pytest
import torch
from problems import ALPHA, DIAGONAL, GAUSSIAN, MIXTURE
from scipy import stats
from torch import Tensor

from sde_toolkit.exact import ExactModel, Gaussian
from sde_toolkit.likelihood import LogLikelihood, log_likelihood, moment_matched_prior, score_and_divergence
from sde_toolkit.score import NetworkModel, ScoreModel
from sde_toolkit.sde import VESDE, VPSDE, SubVPSDE
from solvers import EULER, SolverError
from solvers.reference import SciPy

SONG = {"vp": VPSDE(), "sub-vp": SubVPSDE(), "ve": VESDE()}
FLOAT64 = torch.float64
EXACT = {"rtol": 1e-6, "atol": 1e-6}


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_log_density_of_the_mixture_equals_the_closed_form(sde):
    x, model = MIXTURE.sample(32, seed=3), ExactModel(MIXTURE, sde)
    prior = moment_matched_prior(sde, MIXTURE.mean, MIXTURE.covariance)
    result = log_likelihood(model, x, prior=prior, **EXACT)
    exact = model.log_prob(x, torch.tensor(result.settings["t_min"], dtype=FLOAT64))
    assert rms(result.nats - exact) < 1e-3
    if not isinstance(sde, VESDE):  # VE blurs its data at t = 0; the others do not
        assert rms(result.nats - MIXTURE.log_prob(x)) < 1e-3
    assert result.standard_error is None


def test_the_plain_prior_is_off_by_its_mismatch_alone():
    x, sde = MIXTURE.sample(16, seed=3), VPSDE()
    model, end = ExactModel(MIXTURE, sde), torch.tensor(1.0, dtype=FLOAT64)
    plain = log_likelihood(model, x, **EXACT)
    exact = log_likelihood(model, x, prior=lambda y: model.log_prob(y, end), **EXACT)
    mismatch = sde.prior_log_prob(plain.latent) - model.log_prob(plain.latent, end)
    assert torch.allclose(plain.nats - exact.nats, mismatch, atol=1e-10)
    assert 1e-4 < rms(mismatch) < 0.1


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_the_latent_is_the_closed_form_flow(sde):
    x, model = GAUSSIAN.sample(8, seed=0), ExactModel(GAUSSIAN, sde)
    result = log_likelihood(model, x, rtol=1e-9, atol=1e-9)
    start, end = (torch.tensor(u, dtype=FLOAT64) for u in (1e-5, sde.T))
    assert torch.allclose(result.latent, model.flow(x, start, end), rtol=1e-6, atol=1e-6)


def test_images_scipy_and_batches_give_the_same_value():
    x, model = DIAGONAL.sample(6, seed=1), ExactModel(DIAGONAL, VPSDE())
    exact = DIAGONAL.log_prob(x)
    prior = moment_matched_prior(VPSDE(), DIAGONAL.mean, DIAGONAL.covariance)
    ours = log_likelihood(model, x, prior=prior, **EXACT)
    split = log_likelihood(model, x, prior=prior, batch_size=4, **EXACT)
    theirs = log_likelihood(model, x, prior=prior, method=SciPy("RK45"), rtol=1e-8, atol=1e-8)
    assert rms(ours.nats - exact) < 1e-3
    assert torch.allclose(split.nats, ours.nats, rtol=0, atol=1e-9)
    assert rms(theirs.nats - exact) < 1e-3
    assert theirs.settings["method"] == "RK45"


def test_probes_are_unbiased_and_their_standard_error_is_honest():
    model = ExactModel(GAUSSIAN, VPSDE())
    prior = moment_matched_prior(VPSDE(), GAUSSIAN.mean, GAUSSIAN.covariance)
    x = GAUSSIAN.sample(1, seed=2).expand(300, -1).contiguous()
    result = log_likelihood(model, x, num_probes=8, seed=4, prior=prior, rtol=1e-4, atol=1e-4)
    error = result.nats - GAUSSIAN.log_prob(x)
    assert result.standard_error is not None
    spread = float(error.std())
    assert abs(float(error.mean())) < stats.norm.isf(ALPHA / 2) * spread / math.sqrt(300) + 1e-3
    # the mean of the squared standard errors estimates the variance of the values
    ratio = float(result.standard_error.square().mean()) / spread**2
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 299) / 299
    assert 0.8 * low < 1 / ratio < 1.2 * high


def test_probes_belong_to_samples_not_to_batches():
    x, model = MIXTURE.sample(7, seed=3), ExactModel(MIXTURE, VPSDE())
    whole = log_likelihood(model, x, num_probes=2, seed=1, rtol=1e-4, atol=1e-4)
    parts = log_likelihood(model, x, num_probes=2, seed=1, rtol=1e-4, atol=1e-4, batch_size=3)
    later = log_likelihood(model, x[4:], num_probes=2, seed=1, rtol=1e-4, atol=1e-4, first_sample=4)
    assert torch.allclose(parts.nats, whole.nats, rtol=0, atol=1e-9)
    assert torch.allclose(later.nats, whole.nats[4:], rtol=0, atol=1e-9)
    assert log_likelihood(model, x, num_probes=1, rtol=1e-2, atol=1e-2).standard_error is None


def test_one_forward_pass_per_counted_evaluation():
    class Watched(ScoreModel):
        def __init__(self, model: ScoreModel) -> None:
            self.model, self.rows = model, 0
            self.sde, self.predicts, self.data_std = model.sde, model.predicts, model.data_std
            self.event_shape, self.dtype, self.device = model.event_shape, model.dtype, model.device

        def raw(self, x_t: Tensor, t: Tensor) -> Tensor:
            self.rows += len(x_t)
            return self.model.raw(x_t, t)

    for num_probes in (None, 3):
        model = Watched(ExactModel(MIXTURE, VPSDE()))
        result = log_likelihood(model, MIXTURE.sample(5, seed=0), num_probes=num_probes, rtol=1e-3, atol=1e-3)
        assert int(result.nfe.sum()) == model.rows


def test_divergence_is_the_trace_of_the_jacobian():
    model = ExactModel(MIXTURE, VPSDE())
    x, t = MIXTURE.sample(4, seed=0), torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=FLOAT64)
    score, divergence = score_and_divergence(model, x, t)
    jacobians = [
        torch.func.jacrev(lambda u, i=i: model.score(u[None], t[i : i + 1])[0])(x[i]) for i in range(4)
    ]
    assert torch.allclose(score, model.score(x, t))
    assert torch.allclose(divergence[:, 0], torch.stack([j.trace() for j in jacobians]))
    probes = torch.ones(4, 2, 8, dtype=FLOAT64)
    _, estimates = score_and_divergence(model, x, t, probes)
    assert torch.allclose(estimates, torch.stack([j.sum() for j in jacobians])[:, None].expand(4, 2))


def test_unet_divergence_is_exact_in_float32():
    from sde_toolkit.networks import UNet

    network = UNet((1, 8, 8), channels=(8, 16), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    model = NetworkModel(network, VPSDE(), "noise", (1, 8, 8))
    x, t = torch.randn(2, 1, 8, 8, generator=generator), torch.tensor(0.5, dtype=FLOAT64)
    _, divergence = score_and_divergence(model, x, t)
    total = torch.autograd.functional.jacobian(lambda u: model.score(u, t), x)
    traces = [total[i, :, :, :, i].reshape(64, 64).trace() for i in range(2)]
    assert torch.allclose(divergence[:, 0], torch.stack(traces), rtol=1e-4)


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
        ({"num_probes": 0}, "num_probes"),
        ({"t_min": 1.0}, "t_min"),
        ({"t_min": -0.1}, "t_min"),
        ({"t_min": 0.0}, "raise t_min"),
        ({"batch_size": 0}, "batch_size"),
        ({"rtol": -1.0}, "rtol"),
        ({"method": EULER}, "no error estimate"),
        ({"x": torch.zeros(2, 4, dtype=FLOAT64)}, "shape"),
        ({"x": torch.zeros(2, 3)}, "type"),
        ({"x": torch.full((2, 3), math.nan, dtype=FLOAT64)}, "finite"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        log_likelihood(ExactModel(GAUSSIAN, VPSDE()), **{"x": torch.zeros(2, 3, dtype=FLOAT64)} | options)


def test_a_broken_model_fails_with_the_time():
    class Broken(ScoreModel):
        def __init__(self, model: ScoreModel) -> None:
            self.model, self.sde, self.predicts, self.data_std = model, model.sde, model.predicts, 1.0
            self.event_shape, self.dtype, self.device = model.event_shape, model.dtype, model.device

        def raw(self, x_t: Tensor, t: Tensor) -> Tensor:
            return self.model.raw(x_t, t) + torch.where(t > 0.5, math.nan, 0.0).reshape(-1, 1)

    with pytest.raises(SolverError, match="NONFINITE"):
        log_likelihood(Broken(ExactModel(GAUSSIAN, VPSDE())), torch.zeros(2, 3, dtype=FLOAT64))
