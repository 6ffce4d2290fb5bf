"""Samplers against closed forms: exact output laws, exact flow, and samples that do not depend on their
batch."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from problems import GAUSSIAN, MIXTURE, SDES, RowByRow
from scipy import stats
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.models.score import ScoreModel
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.correctors import AnnealedLangevin, Langevin
from sde_toolkit.sdes import VESDE, VPSDE, SubVPSDE
from sde_toolkit.utils import Stream
from solvers import Interval, Normals, SolverError
from solvers.brownian import STEPS
from solvers.reference import SciPy

SONG = {"vp": VPSDE(), "sub-vp": SubVPSDE(), "ve": VESDE()}
FIXED = {
    "euler_maruyama": samplers.euler_maruyama,
    "reverse_diffusion": samplers.reverse_diffusion,
    "ancestral": samplers.ancestral,
    "reverse_diffusion flow": functools.partial(samplers.reverse_diffusion, probability_flow=True),
    "ddim": samplers.ddim,
    "euler": samplers.euler,
    "heun": samplers.heun,
}
ALL = {name: make(6) for name, make in FIXED.items()} | {
    "ddim, eta 1/2": samplers.ddim(6, eta=0.5),
    "dopri5": samplers.dopri5(rtol=1e-4, atol=1e-4),
    "langevin": samplers.predictor_corrector(samplers.reverse_diffusion(6)),
    "annealed": samplers.predictor_corrector(samplers.ddim(6), AnnealedLangevin(num_steps=2)),
}
FLOAT64 = torch.float64


class Impulses:
    """A noise source for scalar samples: row 0 gets zeros, every other row one unit impulse in one draw."""

    def __init__(self, num_steps: int, num_corrections: int = 0) -> None:
        self.first = {Stream.PRIOR: 1, STEPS: 2, Stream.CORRECTOR: 2 + num_steps}
        self.rows = 2 + num_steps + num_corrections

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        z = torch.zeros(self.rows, 1, dtype=FLOAT64)
        z[self.first[stream] + index] = 1
        return z


def output_law(sampler: samplers.Sampler, model: ScoreModel) -> tuple[float, float]:
    """Exact mean and variance of a sampler's output for scalar Gaussian data, from its response to
    impulses."""
    assert sampler.num_steps is not None
    source = Impulses(sampler.num_steps)
    x = sampler.sample(model, source.rows, noise=source).x.flatten()
    return float(x[0]), float((x[1:] - x[0]).square().sum())


def recursion(
    name: str, sde, mean: float, variance: float, ts: Tensor, start: float | None = None
) -> tuple[float, float]:
    """The same law from the papers' formulas, with numbers in place of samples."""
    m, v = 0.0, sde.prior_std**2 if start is None else start
    for t, s in itertools.pairwise(ts):
        h = float(t - s)
        alpha_t, alpha_s, sigma_t, sigma_s = (
            float(u) for u in (*map(sde.alpha, (t, s)), *map(sde.sigma, (t, s)))
        )
        f, g2, total = float(sde.f(t)), float(sde.g_squared(t)), alpha_t**2 * variance + sigma_t**2
        r = alpha_t / alpha_s
        q2 = sigma_t**2 - r**2 * sigma_s**2
        # score = -(x - alpha_t mean) / total;  z_hat = -sigma_t score;  x0_hat = (x + sigma_t^2 score) /
        # alpha_t
        if name == "euler_maruyama":
            keep, pull, noise = 1 - h * f, h * g2, g2 * h
        elif name == "euler":
            keep, pull, noise = 1 - h * f, h * g2 / 2, 0.0
        elif name == "reverse_diffusion":
            keep, pull, noise = 2 - r, q2, q2
        elif name == "reverse_diffusion flow":
            keep, pull, noise = 2 - r, q2 / 2, 0.0
        elif name == "ancestral":  # mean of q(x_s | x_t, x0_hat)
            keep, by_x0, noise = (
                r * sigma_s**2 / sigma_t**2,
                alpha_s * q2 / sigma_t**2,
                sigma_s**2 * q2 / sigma_t**2,
            )
            keep, pull = keep + by_x0 / alpha_t, by_x0 * sigma_t**2 / alpha_t
        else:  # ddim
            keep, noise = alpha_s / alpha_t, 0.0
            pull = alpha_s * sigma_t**2 / alpha_t - sigma_s * sigma_t
        slope = keep - pull / total
        m, v = slope * m + pull / total * alpha_t * mean, slope**2 * v + noise
    return m, v


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
@pytest.mark.parametrize(
    "name",
    ["euler_maruyama", "euler", "reverse_diffusion", "reverse_diffusion flow", "ancestral", "ddim"],
)
def test_output_mean_and_variance_on_gaussian_data_equal_the_exact_recursion(name, sde):
    data = Gaussian(mean=[0.7], covariance=[0.25])
    sampler = FIXED[name](50, denoise=False)
    ts = grids.uniform(sde, 50, sampler.t_min)
    mean, variance = output_law(sampler, ExactModel(data, sde))
    expected_mean, expected_variance = recursion(name, sde, 0.7, 0.25, ts)
    assert mean == pytest.approx(expected_mean, rel=1e-9, abs=1e-9)
    assert variance == pytest.approx(expected_variance, rel=1e-9)


def test_final_denoising_is_tweedies_formula():
    data, sde, t = Gaussian(mean=[0.7], covariance=[0.25]), VPSDE(), torch.tensor(0.05, dtype=FLOAT64)
    model = ExactModel(data, sde)
    mean, variance = output_law(samplers.ancestral(20, t_min=0.05, denoise=False), model)
    denoised_mean, denoised_variance = output_law(samplers.ancestral(20, t_min=0.05), model)
    gain = float(0.25 * sde.alpha(t) / (0.25 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2))
    assert denoised_mean == pytest.approx(0.7 + gain * (mean - 0.7 * float(sde.alpha(t))), rel=1e-12)
    assert denoised_variance == pytest.approx(gain**2 * variance, rel=1e-12)


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_probability_flow_by_dopri5_equals_the_closed_form_flow(sde):
    model = ExactModel(GAUSSIAN, sde)
    sampler = samplers.dopri5(rtol=1e-8, atol=1e-8, denoise=False)
    x = sampler.sample(model, 16, seed=3).x
    z = Normals(3, 16, model.event_shape).draw(0, Stream.PRIOR)
    end, start = (torch.tensor(u, dtype=FLOAT64) for u in (sampler.t_min, sde.T))
    assert (x - model.flow(sde.prior_sample(z), start, end)).abs().max() < 1e-6


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_scipy_follows_the_same_flow(sde):
    model = ExactModel(MIXTURE, sde)
    ours = samplers.dopri5(rtol=1e-8, atol=1e-8).sample(model, 8)
    theirs = samplers.adaptive(SciPy("RK45"), rtol=1e-8, atol=1e-8).sample(model, 8)
    assert (ours.x - theirs.x).abs().max() < 1e-5
    assert theirs.settings["sampler"] == "scipy_rk45"


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2)])
def test_deterministic_samplers_converge_at_their_order(name, order):
    model = ExactModel(MIXTURE, VPSDE())
    z = Normals(0, 16, model.event_shape).draw(0, Stream.PRIOR)
    start, end = torch.tensor(1.0, dtype=FLOAT64), torch.tensor(0.1, dtype=FLOAT64)
    exact = model.flow(z, start, end)
    counts = [128, 256, 512, 1024]
    errors = [
        float((FIXED[name](n, t_min=0.1, denoise=False).sample(model, 16).x - exact).square().mean().sqrt())
        for n in counts
    ]
    slope = -stats.linregress([math.log(n) for n in counts], [math.log(e) for e in errors]).slope
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ancestral", "heun", "dopri5", "langevin"])
@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_samples_are_bit_equal_for_every_batch_size(name, sde):
    """All presets, on fewer samples, in test_presets."""
    sampler, model = ALL[name], RowByRow(ExactModel(MIXTURE, sde))
    whole = sampler.sample(model, 64, seed=5).x
    for batch_size in (1, 7):
        assert torch.equal(sampler.sample(model, 64, seed=5, batch_size=batch_size).x, whole)
    assert torch.equal(sampler.sample(model, 3, seed=5, first_sample=17).x, whole[17:20])
    assert not torch.equal(sampler.sample(model, 64, seed=6).x, whole)


def small_unet() -> NetworkModel:
    from sde_toolkit.networks.unet import UNet

    torch.manual_seed(0)
    network = UNet((1, 8, 8), channels=(8, 16), seed=0)
    with torch.no_grad():  # a fresh network puts out zeros; make it move
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return NetworkModel(network.eval(), VPSDE(), "noise", (1, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "heun", "ancestral", "langevin"])
def test_float32_unet_samples_agree_for_every_batch_size(name):
    model, sampler = small_unet(), ALL[name]
    whole = sampler.sample(model, 64, seed=5).x
    scale = whole.abs().max()
    for batch_size in (1, 7):
        assert (sampler.sample(model, 64, seed=5, batch_size=batch_size).x - whole).abs().max() < 1e-5 * max(
            1, scale
        )


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [
        (samplers.euler_maruyama(10), 11),
        (samplers.ddim(10, denoise=False), 10),
        (samplers.heun(10), 21),
        (samplers.predictor_corrector(samplers.ancestral(10), Langevin(num_steps=3)), 41),
    ],
)
def test_evaluations_are_counted(sampler, nfe):
    calls = []

    class Watched(RowByRow):
        def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            calls.append(len(x_t))
            return self.model.raw(x_t, t, condition)

    samples = sampler.sample(Watched(ExactModel(GAUSSIAN, VPSDE())), 5, batch_size=2)
    assert samples.nfe == nfe == sum(calls) / 5


def test_samples_carry_their_settings():
    samples = samplers.ddim(4, eta=0.5, t_min=0.01, grid=grids.karras).sample(
        ExactModel(GAUSSIAN, VPSDE()), 2, seed=9
    )
    assert samples.seed == 9
    assert samples.seconds > 0
    assert samples.settings == {
        "sampler": "ddim",
        "num_steps": 4,
        "t_min": 0.01,
        "grid": "Karras(rho=7.0)",
        "denoise": True,
        "eta": 0.5,
    }


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_ancestral_steps_are_those_of_the_discrete_chain(sde):
    chain, model = sde.discretize(8), ExactModel(GAUSSIAN, sde)
    grid = grids.Explicit(chain.times.flip(0)[:-1])
    result = (
        samplers.ancestral(7, grid=grid, t_min=float(chain.times[1]), denoise=False)
        .sample(model, 4, seed=2)
        .x
    )
    noise = Normals(2, 4, model.event_shape)
    x = sde.prior_sample(noise.draw(0, Stream.PRIOR))
    for step, i in enumerate(range(8, 1, -1)):
        index = torch.tensor(i)
        x0_hat = model.denoise(x, chain.times[i])
        mean, variance = chain.q_posterior(x0_hat, x, index)
        x = mean + variance.sqrt() * noise.draw(step)
    assert torch.allclose(result, x, rtol=1e-10, atol=1e-10)


def test_reverse_diffusion_under_vp_is_the_published_formula():
    sde = VPSDE()
    model = ExactModel(GAUSSIAN, sde)
    sampler = samplers.reverse_diffusion(1, t_min=0.9, denoise=False)
    noise = Normals(4, 3, model.event_shape)
    x, z = sde.prior_sample(noise.draw(0, Stream.PRIOR)), noise.draw(0)
    start, end = torch.tensor(1.0, dtype=FLOAT64), torch.tensor(0.9, dtype=FLOAT64)
    beta = 1 - (sde.alpha(start) / sde.alpha(end)) ** 2
    expected = (2 - (1 - beta).sqrt()) * x + beta * model.score(x, start) + beta.sqrt() * z
    assert torch.allclose(sampler.sample(model, 3, seed=4).x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
@pytest.mark.parametrize("shape", [(64,), (1, 8, 8)], ids=["vector", "image"])
def test_the_corrector_improves_every_predictor_run_with_few_steps(sde, shape):
    variances = torch.linspace(0.05, 1.0, 64, dtype=FLOAT64)
    data = Gaussian(mean=torch.zeros(shape, dtype=FLOAT64), covariance=variances.reshape(shape))
    model = ExactModel(data, sde)
    predictor = samplers.reverse_diffusion(20, grid=grids.karras)

    def error(sampler: samplers.Sampler) -> float:
        x = sampler.sample(model, 800, seed=1).x.flatten(1)
        return float((x.var(0) - variances).square().mean().sqrt())

    assert error(samplers.predictor_corrector(predictor, Langevin(snr=0.25))) < 0.7 * error(predictor)


def test_annealed_langevin_brings_the_law_nearer_and_has_the_exact_output_law():
    sde, data, num_steps = VPSDE(), Gaussian(mean=[0.0], covariance=[0.25]), 30
    predictor = samplers.ancestral(num_steps, denoise=False)
    sampler = samplers.predictor_corrector(predictor, AnnealedLangevin(snr=0.4, num_steps=2))
    source = Impulses(num_steps, num_corrections=2 * num_steps)
    x = sampler.sample(ExactModel(data, sde), source.rows, noise=source).x.flatten()
    variance, ts = 1.0, grids.uniform(sde, num_steps, predictor.t_min)
    for t, s in itertools.pairwise(ts):
        _, variance = recursion("ancestral", sde, 0.0, 0.25, torch.stack([t, s]), variance)
        e = 2 * (0.4 * float(sde.sigma(s))) ** 2
        total = float(0.25 * sde.alpha(s) ** 2 + sde.sigma(s) ** 2)
        for _ in range(2):
            variance = (1 - e / total) ** 2 * variance + 2 * e
    truth = float(0.25 * sde.alpha(ts[-1]) ** 2 + sde.sigma(ts[-1]) ** 2)
    _, uncorrected = output_law(predictor, ExactModel(data, sde))
    assert float((x[1:] - x[0]).square().sum()) == pytest.approx(variance, rel=1e-9)
    assert abs(variance - truth) < 0.7 * abs(uncorrected - truth)


def test_a_corrector_that_comes_first_has_the_exact_output_law():
    sde, num_steps = VPSDE(), 30
    predictor = samplers.ancestral(num_steps, denoise=False)
    sampler = samplers.predictor_corrector(predictor, AnnealedLangevin(snr=0.4, num_steps=2), True)
    model = ExactModel(Gaussian(mean=[0.0], covariance=[0.25]), sde)
    source = Impulses(num_steps, num_corrections=2 * num_steps)
    found = sampler.sample(model, source.rows, noise=source)
    assert found.nfe == sampler.nfe == 3 * num_steps
    assert found.settings["corrector_first"] is True
    variance, ts = 1.0, grids.uniform(sde, num_steps, predictor.t_min)
    for t, s in itertools.pairwise(ts):
        e = 2 * (0.4 * float(sde.sigma(t))) ** 2
        total = float(0.25 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
        for _ in range(2):
            variance = (1 - e / total) ** 2 * variance + 2 * e
        _, variance = recursion("ancestral", sde, 0.0, 0.25, torch.stack([t, s]), variance)
    x = found.x.flatten()
    assert float((x[1:] - x[0]).square().sum()) == pytest.approx(variance, rel=1e-9)


def test_langevin_step_uses_the_norms_of_the_sample_alone():
    model, sde = ExactModel(MIXTURE, VPSDE()), VPSDE()
    x = MIXTURE.sample(5, seed=0)
    noise = Normals(0, 5, model.event_shape)
    interval = interval_between(0.5, 0.4)
    moved = Langevin(snr=0.1)(model, interval, x, noise)
    z, score = noise.draw(0, Stream.CORRECTOR), model.score(x, interval.s)
    ratio = 0.1 * z.norm(dim=1, keepdim=True) / score.norm(dim=1, keepdim=True)
    e = 2 * (sde.alpha(interval.t) / sde.alpha(interval.s)) ** 2 * ratio**2
    assert torch.allclose(moved, x + e * score + (2 * e).sqrt() * z, rtol=1e-12, atol=1e-12)


def interval_between(t: float, s: float):
    return Interval(0, torch.tensor(t, dtype=FLOAT64), torch.tensor(s, dtype=FLOAT64), s - t)


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize(
    ("argument", "value"), [("num_steps", 0), ("num_steps", -3), ("t_min", -0.1), ("t_min", math.nan)]
)
def test_bad_options_are_refused_when_the_sampler_is_made(make, argument, value):
    with pytest.raises(ValueError, match=argument):
        make(**{"num_steps": 5, argument: value})


def test_bad_requests_are_refused_before_any_evaluation():
    class Silent(RowByRow):
        def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            raise AssertionError("the model was evaluated")

    model = Silent(ExactModel(GAUSSIAN, VPSDE()))
    with pytest.raises(ValueError, match="t_min must be smaller than T"):
        samplers.ddim(5, t_min=1.0).sample(model, 4)
    with pytest.raises(ValueError, match="num_samples"):
        samplers.ddim(5).sample(model, 0)
    with pytest.raises(ValueError, match="batch_size"):
        samplers.ddim(5).sample(model, 4, batch_size=0)
    with pytest.raises(ValueError, match="seed"):
        samplers.ddim(5).sample(model, 4, seed=-1)
    with pytest.raises(ValueError, match="noise source serves one batch"):
        samplers.ddim(5).sample(model, 4, batch_size=2, noise=Normals(0, 4, (3,)))
    with pytest.raises(ValueError, match="where sigma = 0"):
        samplers.heun(5, t_min=0.0, denoise=False).sample(model, 4)
    with pytest.raises(ValueError, match="strictly decrease"):
        samplers.ddim(2, grid=grids.Explicit([1.0, 0.5, 0.5])).sample(model, 4)
    with pytest.raises(ValueError, match="eta"):
        samplers.ddim(5, eta=1.5)
    with pytest.raises(ValueError, match="corrector needs a fixed grid"):
        samplers.predictor_corrector(samplers.dopri5())
    with pytest.raises(ValueError, match="snr"):
        Langevin(snr=0.0)
    with pytest.raises(ValueError, match="num_steps"):
        AnnealedLangevin(num_steps=0)


def test_ddim_may_end_at_zero_noise():
    model = ExactModel(GAUSSIAN, VPSDE())
    samples = samplers.ddim(400, t_min=0.0, denoise=False).sample(model, 8, seed=1)
    z = Normals(1, 8, model.event_shape).draw(0, Stream.PRIOR)
    exact = model.flow(z, torch.tensor(1.0, dtype=FLOAT64), torch.tensor(0.0, dtype=FLOAT64))
    assert samples.nfe == 400
    assert (samples.x - exact).abs().max() < 0.02


def test_a_broken_model_is_named_with_sample_and_time():
    class Broken(RowByRow):
        def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            out = self.model.raw(x_t, t, condition)
            if float(t.max()) < 0.5:
                out[3] = math.nan
            return out

    with pytest.raises(SolverError, match="sample 3 of 5") as caught:
        samplers.ddim(10, t_min=0.0, denoise=False).sample(Broken(ExactModel(GAUSSIAN, VPSDE())), 5)
    assert caught.value.samples == (3,)
    assert caught.value.t == pytest.approx(0.4)


@pytest.mark.parametrize(
    "make", [samplers.heun, samplers.unipc, samplers.ddim], ids=lambda make: make.__name__
)
def test_callbacks_get_a_copy_and_may_return_a_new_state(make):
    model = ExactModel(MIXTURE, VPSDE())
    sampler = make(5)
    expected = sampler.sample(model, 3)

    def scribble(step):
        step.x.zero_()

    assert torch.equal(sampler.sample(model, 3, callback=scribble).x, expected.x)
    prepared, states = sampler.prepare(model), []

    def halve(step):
        states.append(step.x)
        return 0.5 * step.x if step.number == 2 else None

    moved = prepared.sample(3, callback=halve)
    assert not torch.equal(moved.x, expected.x)
    # the rest of the run is that of a run that starts from the state returned
    rest = replace(sampler, num_steps=2, grid=lambda *_: prepared.control.ts[3:])
    for wrong in (torch.zeros(3), 0.5, torch.zeros(3, 8)):
        with pytest.raises(ValueError, match="a callback must return None or a state with shape"):
            sampler.sample(model, 3, callback=lambda step, wrong=wrong: wrong)
    if make is samplers.ddim:
        start = 0.5 * states[2] / model.sde.prior_std

        class Start:
            def draw(self, index, stream=STEPS):
                return start

        assert torch.equal(rest.sample(model, 3, noise=Start()).x, moved.x)
