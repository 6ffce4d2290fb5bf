"""The samplers of score_sde: every step against formulas written from the paper, in float64.

``Paper`` shares nothing with the presets but the model's score: its loops are the paper's, over all steps,
with draws that are the sampler's own.
"""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.preset_orders import response
from sde_toolkit import samplers
from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture, IndexedModel
from sde_toolkit.sdes import VESDE, VPSDE, Chain, CosineBeta, LinearBeta, SubVPSDE
from sde_toolkit.utils import Stream
from solvers import Normals

FLOAT64 = torch.float64
IMAGES = GaussianMixture(
    weights=[0.4, 0.6],
    means=[[[[0.3, -0.2], [0.1, 0.6]]], [[[-0.5, 0.2], [0.4, -0.3]]]],
    covariances=[0.05, 0.1],
)
SDES = {"vp": VPSDE(LinearBeta(0.1, 20.0)), "subvp": SubVPSDE(LinearBeta(0.1, 20.0)), "ve": VESDE(0.01, 50.0)}
BETA_0, BETA_1, LOW, HIGH = 0.1, 20.0, 0.01, 50.0
COUNT = 3


class Paper:
    """One run of algorithm 1 with N times, from 2011.13456 (VP: algorithms 3 and 5; VE: 2 and 4)."""

    def __init__(self, kind: str, N: int, eps: float, predictor: str, seed: int, annealed=False) -> None:
        self.kind, self.N, self.eps, self.predictor, self.snr = kind, N, eps, predictor, 0.16
        self.annealed = annealed
        self.noise = Normals(seed, COUNT, (1, 2, 2))

    def beta(self, k: int) -> float:
        return (BETA_0 + k / (self.N - 1) * (BETA_1 - BETA_0)) / self.N

    def sigma(self, k: int) -> float:
        return 0.0 if k < 0 else LOW * (HIGH / LOW) ** (k / (self.N - 1))

    def predict(self, x: Tensor, t: float, k: int, score: Tensor) -> tuple[Tensor, float]:
        """x_mean, and the std of the draw."""
        if self.predictor == "none":
            return x, 0.0
        if self.predictor == "euler_maruyama":
            rate = BETA_0 + t * (BETA_1 - BETA_0)
            if self.kind == "ve":
                g2 = 2 * math.log(HIGH / LOW) * (LOW * (HIGH / LOW) ** t) ** 2
                return x + g2 * score / self.N, math.sqrt(g2 / self.N)
            g2 = rate
            if self.kind == "subvp":
                g2 *= 1 - math.exp(-2 * BETA_0 * t - (BETA_1 - BETA_0) * t**2)
            return x - (-0.5 * rate * x - g2 * score) / self.N, math.sqrt(g2 / self.N)
        if self.kind == "ve":
            removed = self.sigma(k) ** 2 - self.sigma(k - 1) ** 2
            std = math.sqrt(removed)
            if self.predictor == "ancestral":
                std *= self.sigma(k - 1) / self.sigma(k)
            return x + removed * score, std
        beta = self.beta(k)
        if self.predictor == "ancestral":
            return (x + beta * score) / math.sqrt(1 - beta), math.sqrt(beta)
        return 2 * x - math.sqrt(1 - beta) * x + beta * score, math.sqrt(beta)

    def std(self, t: float) -> float:
        """The noise of the marginal at t, from the closed forms of appendix B."""
        if self.kind == "ve":
            return LOW * (HIGH / LOW) ** t
        return math.sqrt(1 - math.exp(-0.5 * t**2 * (BETA_1 - BETA_0) - t * BETA_0))

    def correct(self, x: Tensor, k: int, i: int, n: int, score, batch_mean: bool, t: float = 0.0) -> Tensor:
        for j in range(n):
            z, gradient = self.noise.draw(i * n + j, Stream.CORRECTOR), score(x)
            lengths = [torch.stack([v.norm() for v in u]) for u in (z, gradient)]
            if batch_mean:
                lengths = [u.mean().expand(COUNT) for u in lengths]
            a = 1.0 if self.kind == "ve" else 1 - self.beta(k)
            ratio = lengths[0] / lengths[1]
            if self.annealed:
                ratio = torch.full((COUNT,), self.std(t), dtype=FLOAT64)
            e = (2 * a * (self.snr * ratio) ** 2).reshape(COUNT, 1, 1, 1)
            x = x + e * gradient + (2 * e).sqrt() * z
        return x

    def run(self, score, corrections: int, batch_mean: bool) -> list[tuple[Tensor, Tensor]]:
        """(x, x_mean) after every step; ``score(x, i, t)``."""
        x = self.noise.draw(0, Stream.PRIOR) * (HIGH if self.kind == "ve" else 1.0)
        found = []
        for i in range(self.N):
            t = 1 - i * (1 - self.eps) / (self.N - 1)
            k = self.N - 1 - i
            x = self.correct(x, k, i, corrections, lambda y, i=i, t=t: score(y, i, t), batch_mean, t)
            mean, std = self.predict(x, t, k, score(x, i, t))
            x = mean + std * self.noise.draw(i)
            found.append((x, mean))
        return found


CASES = [
    *[("vp", p, n) for p in ("euler_maruyama", "reverse_diffusion", "ancestral") for n in (0, 1)],
    ("vp", "euler_maruyama", 2),
    *[("ve", p, n) for p in ("euler_maruyama", "reverse_diffusion", "ancestral") for n in (0, 1)],
    ("subvp", "euler_maruyama", 0),
]


def preset(kind: str, N: int, predictor: str, corrections: int, **options) -> samplers.Sampler:
    if kind == "subvp":
        return samplers.score_sde_subvp(N, **options)
    make = {"vp": samplers.score_sde_vp, "ve": samplers.score_sde_ve}[kind]
    return make(N, predictor=predictor, corrections=corrections, **options)


@pytest.mark.parametrize(
    ("kind", "predictor", "corrections", "batch_mean"),
    [*[(*case, False) for case in CASES], *[(*case, True) for case in CASES if case[2]]],
)
def test_every_step_is_that_of_the_paper(kind, predictor, corrections, batch_mean):
    N, model, eps = 22, ExactModel(IMAGES, SDES[kind]), 1e-5 if kind == "ve" else 1e-3
    options = {"batch_mean_norms": batch_mean} if corrections else {}
    sampler, seen = preset(kind, N, predictor, corrections, **options), []
    samples = sampler.sample(model, COUNT, seed=4, callback=lambda info: seen.append(info.x))
    paper = Paper(kind, N, eps, predictor, 4)
    steps = paper.run(lambda x, i, t: model.score(x, torch.tensor(t, dtype=FLOAT64)), corrections, batch_mean)
    # a callback sees the state after the correction that begins the next step
    if not corrections:
        for found, (x, _) in zip(seen[:-1], steps[:-1], strict=True):
            torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(samples.x, steps[-1][1], rtol=1e-9, atol=1e-9)
    drawn = preset(kind, N, predictor, corrections, noise_removal=False, **options).sample(
        model, COUNT, seed=4
    )
    torch.testing.assert_close(drawn.x, steps[-1][0], rtol=1e-9, atol=1e-9)
    assert samples.nfe == sampler.nfe == N * (1 + corrections)


@pytest.mark.parametrize("predictor", ["none", "reverse_diffusion"])
@pytest.mark.parametrize("correction", ["langevin", "ald"])
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_corrections_alone_and_annealed_ones_are_the_paper_s(kind, correction, predictor):
    N, model, eps = 22, ExactModel(IMAGES, SDES[kind]), 1e-5 if kind == "ve" else 1e-3
    sampler = preset(kind, N, predictor, 2, correction=correction)
    samples = sampler.sample(model, COUNT, seed=4)
    paper = Paper(kind, N, eps, predictor, 4, annealed=correction == "ald")
    steps = paper.run(lambda x, i, t: model.score(x, torch.tensor(t, dtype=FLOAT64)), 2, False)
    torch.testing.assert_close(samples.x, steps[-1][1], rtol=1e-9, atol=1e-9)
    assert samples.nfe == sampler.nfe == N * (2 + (predictor != "none"))


@pytest.mark.slow
def test_annealed_langevin_dynamics_draws_from_a_gaussian():
    """Many short steps at every level, with the noise level alone for their length: the data's law."""
    model = ExactModel(Gaussian(mean=[0.5], covariance=[0.04]), VESDE(0.01, 5.0))
    sampler = samplers.score_sde_ve(
        40, predictor="none", corrections=40, correction="ald", snr=0.2, last_time=1e-3
    )
    x = sampler.sample(model, 4000, seed=1).x
    assert float(x.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(x.std()) == pytest.approx(0.2, rel=0.06)


def test_defaults_are_the_published_ones():
    ve = samplers.score_sde_ve()
    assert (ve.num_steps, ve.nfe, ve.corrector.snr, ve.corrector.num_steps) == (1000, 2000, 0.16, 1)
    assert (ve.options["predictor"], ve.options["last_time"], ve.last_draw) == (
        "reverse_diffusion",
        1e-5,
        False,
    )
    for sampler in (samplers.score_sde_vp(), samplers.score_sde_subvp()):
        assert (sampler.num_steps, sampler.nfe, sampler.corrector, sampler.last_draw) == (
            1000,
            1000,
            None,
            False,
        )
        assert (sampler.options["predictor"], sampler.options["last_time"]) == ("euler_maruyama", 1e-3)


class Labelled(torch.nn.Module):
    """A network that shows the labels that it is asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((), 0.3, dtype=FLOAT64))
        self.labels: list[float] = []

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.labels.append(float(c[0]))
        return self.weight * x + 0.01 * c.reshape(-1, 1, 1, 1).cos()


def chain(kind: str, N: int) -> Chain:
    if kind == "vp":
        return Chain.from_betas(torch.linspace(BETA_0 / N, BETA_1 / N, N, dtype=FLOAT64))
    return Chain.from_sigmas(torch.linspace(math.log(LOW), math.log(HIGH), N, dtype=FLOAT64).exp())


@pytest.mark.parametrize(
    ("predictor", "corrections", "correction"),
    [("euler_maruyama", 0, "langevin"), ("reverse_diffusion", 2, "langevin"), ("ancestral", 1, "ald"),
     ("none", 1, "langevin")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_a_model_of_indices_is_asked_as_score_sde_asks_it(kind, predictor, corrections, correction):
    """VP: labels (N - 1) t, and sigma of the index below; VE: labels are whole."""
    N, eps, network = 40, 1e-5 if kind == "ve" else 1e-3, Labelled()
    predicts = "score" if kind == "ve" else "noise"
    model = IndexedModel(network, chain(kind, N), predicts, (1, 2, 2), fractional=kind == "vp")
    sampler = preset(kind, N, predictor, corrections, correction=correction)
    x = sampler.sample(model, COUNT, seed=4).x
    expected = [(N - 1) * (1 - i * (1 - eps) / (N - 1)) for i in range(N)]
    expected = [float(round(c)) for c in expected] if kind == "ve" else expected
    each = corrections + (predictor != "none")
    asked = [label for label in expected for _ in range(each)]
    assert network.labels == pytest.approx(asked, rel=1e-9, abs=1e-9)
    alpha_bar = (1 - torch.linspace(BETA_0 / N, BETA_1 / N, N, dtype=FLOAT64)).cumprod(0)

    def score(x: Tensor, i: int, t: float) -> Tensor:
        with torch.no_grad():
            out = network(x, torch.full((COUNT,), expected[i], dtype=FLOAT64))
        return out if kind == "ve" else -out / (1 - alpha_bar[int(expected[i])]).sqrt()

    paper = Paper(kind, N, eps, predictor, 4, annealed=correction == "ald")
    steps = paper.run(score, corrections, False)
    torch.testing.assert_close(x, steps[-1][1], rtol=1e-8, atol=1e-8)


def test_norms_of_their_own_keep_samples_apart_and_means_do_not():
    model = ExactModel(IMAGES, SDES["ve"])
    apart, joined = (samplers.score_sde_ve(6, batch_mean_norms=mean) for mean in (False, True))
    whole = apart.sample(model, 4, seed=1).x
    torch.testing.assert_close(apart.sample(model, 4, seed=1, batch_size=1).x, whole, rtol=1e-9, atol=1e-12)
    one, four = (joined.sample(model, 4, seed=1, batch_size=size).x for size in (1, 4))
    torch.testing.assert_close(one, whole, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(four, whole, rtol=1e-3)
    plain = samplers.Langevin(0.2, batch_mean_norms=True)
    pc = samplers.predictor_corrector(samplers.ancestral(5), plain)
    assert not torch.allclose(pc.sample(model, 3).x, pc.sample(model, 3, batch_size=1).x)


@pytest.mark.parametrize("kind", ["vp", "subvp"])
def test_the_published_steps_are_euler_maruyama_down_to_zero(kind):
    """With eps = 1 / N, as with the published thousand steps."""
    model, N = ExactModel(IMAGES, SDES[kind]), 20
    own = preset(kind, N, "euler_maruyama", 0, last_time=1 / N).sample(model, COUNT, seed=2)
    plain = samplers.without_last_draw(samplers.euler_maruyama(N, t_min=0.0, denoise=False))
    torch.testing.assert_close(own.x, plain.sample(model, COUNT, seed=2).x, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "predictor"),
    [(kind, p) for kind, p, n in CASES if not n and (kind == "ve" or p != "euler_maruyama")],
)
def test_the_weak_order_is_one(kind, predictor):
    """The exact variance of the output on Gaussian data, with N, 2N and 4N steps."""
    model = ExactModel(Gaussian(mean=[0.7], covariance=[0.25]), SDES[kind])
    variances = []
    for N in (256, 512, 1024):
        options = {} if kind == "ve" else {"last_time": 1 / N}
        _, start, draws, _ = response(preset(kind, N, predictor, 0, **options), model)
        variances.append(start**2 + float(draws.square().sum()))
    slope = math.log2(abs((variances[0] - variances[1]) / (variances[1] - variances[2])))
    assert slope == pytest.approx(preset(kind, 4, predictor, 0).weak_order, abs=0.15)
    assert variances[-1] == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.score_sde_vp(0), "num_steps must be an integer >= 1"),
        (lambda: samplers.score_sde_vp(predictor="heun"), "predictor must be one of euler_maruyama"),
        (lambda: samplers.score_sde_ve(corrections=-1), "corrections must be an integer >= 0"),
        (lambda: samplers.score_sde_ve(snr=0.0), "snr must be a finite positive number"),
        (lambda: samplers.score_sde_ve(last_time=0.0), r"last_time must lie in \(0, 1\)"),
        (lambda: samplers.score_sde_vp(predictor="none"), "leaves all to the corrections, got none"),
        (lambda: samplers.score_sde_ve(correction="hmc"), "correction must be one of langevin, ald"),
        (lambda: samplers.score_sde_ve(correction="ald", batch_mean_norms=True), "takes no norms"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("sampler", "sde", "message"),
    [
        (
            samplers.score_sde_vp(20, predictor="ancestral"),
            SDES["vp"],
            "num_steps must be greater than beta_max",
        ),
        (
            samplers.score_sde_vp(20, corrections=1),
            SDES["vp"],
            "num_steps must be greater than beta_max = 20",
        ),
        (samplers.score_sde_vp(5), SDES["ve"], "score_sde_vp needs a model under VPSDE"),
        (samplers.score_sde_vp(5), VPSDE(CosineBeta()), "score_sde_vp needs a model under VPSDE"),
        (samplers.score_sde_vp(5), SDES["subvp"], "score_sde_vp needs a model under VPSDE"),
        (samplers.score_sde_subvp(5), SDES["vp"], "score_sde_subvp needs a model under SubVPSDE"),
        (samplers.score_sde_ve(5), SDES["vp"], "score_sde_ve needs a model under VESDE or its chain"),
    ],
)
def test_models_under_other_processes_are_refused(sampler, sde, message):
    with pytest.raises(ValueError, match=message):
        sampler.sample(ExactModel(IMAGES, sde), 2)


def test_chains_of_others_are_refused():
    def model(table: Chain) -> IndexedModel:
        return IndexedModel(Labelled(), table, "noise", (1, 2, 2))

    with pytest.raises(ValueError, match="num_steps must be the 40 indices"):
        samplers.score_sde_vp(5).sample(model(chain("vp", 40)), 2)
    with pytest.raises(ValueError, match="score_sde_vp needs a chain with its own table, betas in equal"):
        samplers.score_sde_vp(39).sample(model(Chain.cosine(40).first(39)), 2)
    with pytest.raises(ValueError, match="score_sde_ve needs a chain with its own table, geometric"):
        samplers.score_sde_ve(40).sample(model(chain("vp", 40)), 2)
