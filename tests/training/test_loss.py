import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.models.score import ScoreModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VESDE, VPSDE
from sde_toolkit.training.objective import (
    TIME_SAMPLINGS,
    WEIGHTINGS,
    ChainLoss,
    DenoisingLoss,
    LogNormal,
    noise_given_levels,
)
from sde_toolkit.training.objective.weightings import WEIGHTS
from tests.contracts import derivative
from tests.problems import ALPHA, DIAGONAL, GAUSSIAN, SDES


class Recorder(ScoreModel):
    """The score of N(0, I) data times 1 + h, which remembers the states and times that it was asked at."""

    predicts = "score"
    event_shape, data_std, dtype, device = (3,), 1.0, torch.float64, torch.device("cpu")

    def __init__(self, sde, h=0.0):
        self.sde, self.h = sde, h

    def raw(self, x_t, t, condition=None):
        self.x_t, self.t = x_t, t
        variance = self.sde.alpha(t).square() + self.sde.sigma(t).square()
        return -(1 + self.h) * x_t / variance.reshape(-1, *[1] * (x_t.ndim - 1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=5):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def accept(values, expected):
    """Two-sided z-test of a mean, at the false-alarm rate ALPHA."""
    error = float(values.mean() - expected) / (float(values.std()) / math.sqrt(len(values)))
    assert abs(error) < stats.norm.isf(ALPHA / 2), (float(values.mean()), expected, error)


def conditional_variance(data, sde, t):
    """Var[z | x_t] / D of Gaussian data, with the shape of t."""
    eigenvalues = torch.linalg.eigvalsh(data.covariance)
    signal = sde.alpha(t).square()[:, None] * eigenvalues
    return (signal / (signal + sde.sigma(t).square()[:, None])).mean(1)


GUIDES = {  # of log n, for N(0, I) data
    "moments": lambda log_n: (1 + (2 * log_n).exp()).rsqrt(),
    "log_normal": lambda log_n: torch.exp(-0.5 * ((log_n - (-1.2 + math.log(2))) / 1.2).square()),
    "logit_normal": lambda log_n: torch.exp(-0.5 * log_n.square()),
}


def guided_density(sde, t, ends, name="moments"):
    """Nine tenths in proportion to a guide, and a tenth uniform in lam."""
    lam = torch.linspace(float(ends[1]), float(ends[0]), 100_001, dtype=torch.float64)
    mass = torch.trapezoid(GUIDES[name](-lam), lam)
    return 0.9 * GUIDES[name](sde.nsr(t).log()) / mass + 0.1 / (ends[0] - ends[1])


def paper_error(name, model, x_t, t, x0, z):
    """The losses of the papers, each in its own prediction and with its own factor, under a uniform t."""
    sde, d = model.sde, model.data_std

    def gap(a, b):
        return (a - b).square().mean(1)

    def column(values):
        return values[:, None]

    x0_hat, z_hat, n = model.denoise(x_t, t), model.noise(x_t, t), sde.nsr(t)
    alpha_t, sigma_t, snr = sde.alpha(t), sde.sigma(t), sde.nsr(t) ** -2.0
    log_n_rate = derivative(lambda u: sde.nsr(u).log(), t)
    flow = [column(derivative(f, t)) for f in (sde.alpha, sde.sigma)]
    if name in ("noise", "sigma^2"):
        return gap(z_hat, z)
    if name == "data":
        return gap(x0_hat, x0)
    if name == "velocity":
        v = column(alpha_t) * z - column(sigma_t) * x0
        return gap(column(alpha_t) * z_hat - column(sigma_t) * x0_hat, v)
    if name == "flow":
        return gap(flow[0] * x0_hat + flow[1] * z_hat, flow[0] * x0 + flow[1] * z)
    if name == "likelihood":
        return sde.g_squared(t) * gap(model.score(x_t, t), -z / column(sigma_t))
    if name == "residual":  # without moments S = data_std^2 I
        return (1 + n.square() / d**2) * gap(z_hat, z)
    if name == "edm":
        law = stats.norm(-1.2 + math.log(d / 0.5), 1.2).pdf(n.log())
        return torch.from_numpy(law) * log_n_rate * (n**2 + d**2) / (n * d) ** 2 * gap(x0_hat, x0)
    if name == "logit_normal":
        s = n / (1 + n)  # the time of straight paths
        law = torch.from_numpy(stats.norm.pdf((s / (1 - s)).log())) / (s * (1 - s))
        rate = derivative(lambda u: sde.nsr(u) / (1 + sde.nsr(u)), t)
        return law * rate * gap(z_hat - x0_hat, z - x0)
    if name == "min_snr":
        return snr.clamp(max=5.0) * gap(x0_hat, x0)
    if name == "soft_min_snr":
        return snr * 4 / (snr + 4) * gap(x0_hat, x0)
    if name == "p2":
        return gap(z_hat, z) / (1 + snr)
    assert name == "sigmoid"
    log_snr = snr.log()
    return -derivative(lambda u: -2 * sde.nsr(u).log(), t) * torch.sigmoid(2 - log_snr) * gap(z_hat, z)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize(
    ("weighting", "time_sampling", "t_min"),
    [("noise", "uniform", 1e-3), ("noise", "stratified", 1e-3), ("noise", "log_snr", 0.1),
     ("sigma^2", "stratified", 1e-2), ("likelihood", "uniform", 0.1), ("likelihood", "log_snr", 1e-3),
     ("likelihood", "moments", 1e-3), ("noise", "moments", 0.1)],
)  # fmt: skip
def test_the_loss_of_the_exact_score_is_the_conditional_variance(sde, weighting, time_sampling, t_min):
    data = DIAGONAL if time_sampling == "uniform" else GAUSSIAN
    t = torch.linspace(t_min, sde.T, 20001, dtype=torch.float64)
    weight = sde.g_squared(t) / sde.sigma(t).square() if weighting == "likelihood" else torch.ones_like(t)
    integrand = weight * conditional_variance(data, sde, t)
    expected = float(torch.trapezoid(integrand, t)) / (sde.T - t_min)
    loss = DenoisingLoss(weighting, t_min, time_sampling)
    values = loss(ExactModel(data, sde), data.sample(10_000, seed=1), generator())
    assert values.shape == (10_000,)
    accept(values, expected)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("time_sampling", TIME_SAMPLINGS)
def test_it_is_the_weighted_error_of_the_score(sde, weighting, time_sampling):
    x0, t_min = normals(64, 3), 0.02
    model = Recorder(sde)
    values = DenoisingLoss(weighting, t_min, time_sampling)(model, x0, generator())
    x_t, t = model.x_t, model.t
    assert bool(((t >= t_min) & (t <= sde.T)).all())
    z = (x_t - sde.alpha(t)[:, None] * x0) / sde.sigma(t)[:, None]
    expected = paper_error(weighting, model, x_t.clone(), t.clone(), x0, z)
    if time_sampling not in ("uniform", "stratified"):  # divide by the density over that of a uniform time
        lam_rate = sde.g_squared(t) / (2 * sde.sigma(t).square())
        ends = sde.lam(torch.tensor([t_min, sde.T], dtype=torch.float64))
        even = 1 / (ends[0] - ends[1])
        density = even if time_sampling == "log_snr" else guided_density(sde, t, ends, time_sampling)
        expected = expected / (sde.T - t_min) / lam_rate / density
    tolerance = 0.05 if time_sampling in GUIDES else 1e-7  # their density is constant between nodes
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=1e-10)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_law_of_the_times_gives_the_same_mean(weighting):
    """Of the wrong score of N(0, I), against the integral over t by quadrature."""
    sde, t_min, h = VPSDE(), 0.05, 0.5
    t = torch.linspace(t_min, sde.T, 20_001, dtype=torch.float64)
    variance = sde.alpha(t).square() + sde.sigma(t).square()
    # z_hat - z = (1 + h) sigma x_t / variance - z has mean square (h sigma)^2 / variance + alpha^2 / variance
    square = ((h * sde.sigma(t)).square() + sde.alpha(t).square()) / variance
    model = Recorder(sde)
    weight = (1 + sde.nsr(t).square()) if weighting == "residual" else WEIGHTS[weighting](model, t)
    expected = float(torch.trapezoid(weight * square, t)) / (sde.T - t_min)
    for law in (*TIME_SAMPLINGS, LogNormal(0.5, 0.7), lambda model, t: 1 + t.square()):
        values = DenoisingLoss(weighting, t_min, law)(Recorder(sde, h), normals(20_000, 3), generator())
        accept(values, expected)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_the_second_order_term_is_least_for_the_exact_jacobian(sde):
    x0 = normals(20_000, 3)
    terms = []
    for h in (0.05, 0.0, -0.05):
        first, both = (
            DenoisingLoss("noise", 0.05, "log_snr", second_order=c)(Recorder(sde, h), x0, generator())
            for c in (0.0, 2.0)
        )
        terms.append((both.detach() - first) / 2)
    assert bool((terms[1] >= 0).all())
    assert float((terms[0] - terms[1]).mean()) > 0
    assert float((terms[2] - terms[1]).mean()) > 0


def test_antithetic_rows_are_neighbours_in_time_with_opposite_noise():
    sde, model, below = VPSDE(), Recorder(VPSDE()), 0.3
    x0 = normals(33, 3)
    DenoisingLoss("likelihood", 1e-3, "log_snr", antithetic_nsr=below)(model, x0, generator())
    nsr = sde.nsr(model.t)
    order, count = nsr.argsort(), int((nsr < below).sum())
    assert 4 < count < 33
    pairs = order[: count // 2 * 2].reshape(-1, 2)
    scaled = model.x_t / sde.alpha(model.t)[:, None]
    first, second = scaled[pairs[:, 0]], scaled[pairs[:, 1]]
    shared = (nsr[pairs[:, 1], None] * first + nsr[pairs[:, 0], None] * second) / nsr[pairs].sum(1)[:, None]
    torch.testing.assert_close(shared, x0[pairs[:, 0]], rtol=1e-9, atol=1e-9)
    others = order[count // 2 * 2 :]
    DenoisingLoss("likelihood", 1e-3, "log_snr")(plain := Recorder(sde), x0, generator())
    assert torch.equal(plain.x_t[others], model.x_t[others])


def test_antithetic_rows_leave_the_expected_loss_as_it_is():
    sde, t_min, g = VPSDE(), 1e-3, generator()
    t = torch.linspace(t_min, sde.T, 20001, dtype=torch.float64)
    expected = float(torch.trapezoid(conditional_variance(GAUSSIAN, sde, t), t)) / (sde.T - t_min)
    loss, model = DenoisingLoss("noise", t_min, antithetic_nsr=1.0), ExactModel(GAUSSIAN, sde)
    x0 = GAUSSIAN.sample(400 * 32, seed=4).reshape(400, 32, 3)
    accept(torch.stack([loss(model, rows, g).mean() for rows in x0]), expected)


def test_the_noise_given_the_levels_is_its_conditional_mean():
    levels, count = 5, 200_000
    x0 = (2 * torch.rand(count, 1, generator=generator(), dtype=torch.float64) - 1) * 0.2  # the middle bin
    z = torch.randn(count, 1, generator=generator(1), dtype=torch.float64)
    for nsr in (1e-3, 0.05, 0.3, 2.0, 100.0):
        mean = noise_given_levels(x0, z, torch.full((count,), nsr, dtype=torch.float64), levels)
        assert bool(mean.isfinite().all())
        y = x0 + nsr * z
        for test in (mean, y, y.square(), mean * y):  # orthogonal to what is known
            accept(((z - mean) * test)[:, 0], 0.0)
        place = torch.linspace(-0.2, 0.2, 100_001, dtype=torch.float64)  # against quadrature
        weight = (-0.5 * ((y[0] - place) / nsr).square()).exp()
        exact = float((weight * (y[0] - place)).sum() / nsr / weight.sum())
        assert float(mean[0]) == pytest.approx(exact, abs=2e-3)


def test_known_levels_leave_the_gradients_mean_and_lower_their_spread():
    sde, model_x0 = VPSDE(), (torch.randint(17, (4000, 3), generator=generator()) + 0.5) / 8.5 - 1
    x0 = model_x0.double() + (torch.rand(4000, 3, generator=generator(2), dtype=torch.float64) - 0.5) / 8.5
    slopes = []
    for levels in (0, 17):
        loss = DenoisingLoss("likelihood", 1e-4, "log_snr", levels=levels)
        # the derivative of the loss in the size h of the model, sample by sample
        more, less = (loss(Recorder(sde, h), x0, generator(3)) for h in (0.1, -0.1))
        slopes.append(more - less)
    accept(slopes[0] - slopes[1], 0.0)
    assert float(slopes[1].var()) < float(slopes[0].var())
    guided = DenoisingLoss("likelihood", 1e-4, "moments", levels=17)
    more, less = (guided(Recorder(sde, h), x0, generator(4)) for h in (0.1, -0.1))
    error = float((more - less).var() + slopes[0].var())
    assert abs(float((more - less).mean() - slopes[0].mean())) < stats.norm.isf(ALPHA / 2) * math.sqrt(
        error / 4000
    )


def test_the_second_order_term_trains_a_network():
    network = MLP((2,), width=4, depth=1)
    nn.init.normal_(network.last.weight, std=0.1)
    model = NetworkModel(network, VPSDE(), "noise", (2,))
    x0 = torch.randn(6, 2, generator=generator())
    values = DenoisingLoss("likelihood", 1e-3, "moments", second_order=0.5)(model, x0, generator())
    values.mean().backward()
    plain = DenoisingLoss("likelihood", 1e-3, "moments")(model, x0, generator())
    assert bool((values > plain).all())
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_sigma_squared_is_the_noise_weighting():
    x0, model = normals(50, 3), Recorder(VPSDE())
    noise, sigma = (DenoisingLoss(name)(model, x0, generator()) for name in ("noise", "sigma^2"))
    assert torch.equal(noise, sigma)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_exact_score_is_the_minimum(weighting):
    sde, x0 = VPSDE(), normals(10_000, 3)
    loss = DenoisingLoss(weighting, 1e-2, "log_snr")
    more, exact, less = (loss(Recorder(sde, h), x0, generator()) for h in (0.1, 0.0, -0.1))
    assert bool((more + less > 2 * exact).all())
    accept(more - less, 0.0)


def test_all_likelihood_weights_are_equal_when_log_snr_is_drawn_evenly():
    sde, t_min = VPSDE(), 1e-4
    model = Recorder(sde, h=-1.0)  # puts out zero, so that the loss is the weight times |z|^2 / D
    x0 = normals(32, 3)
    values = DenoisingLoss("likelihood", t_min, "log_snr")(model, x0, generator())
    alpha, sigma = sde.alpha(model.t)[:, None], sde.sigma(model.t)[:, None]
    weights = values / ((model.x_t - alpha * x0) / sigma).square().mean(1)
    ends = sde.lam(torch.tensor([t_min, sde.T], dtype=torch.float64))
    expected = 2 * (ends[0] - ends[1]) / (sde.T - t_min)
    torch.testing.assert_close(weights, expected.expand(32), rtol=1e-8, atol=0)


@pytest.mark.parametrize("time_sampling", TIME_SAMPLINGS)
def test_the_time_of_a_given_sample_has_the_declared_law(time_sampling):
    sde, model, t_min = VPSDE(), Recorder(VPSDE()), 1e-3
    loss, times = DenoisingLoss("noise", t_min, time_sampling), []
    g = generator(3)
    for _ in range(600):
        loss(model, torch.zeros(4, 3, dtype=torch.float64), g)
        times.append(model.t[2])
    position, ends = torch.stack(times), torch.tensor([t_min, sde.T], dtype=torch.float64)
    if time_sampling in GUIDES:
        lam = torch.linspace(*sde.lam(ends), 4001, dtype=torch.float64)
        density = guided_density(sde, sde.inverse_nsr((-lam).exp()), sde.lam(ends), time_sampling)
        cumulative = torch.cumulative_trapezoid(density, -lam)
        u = np.interp(-sde.lam(position).numpy(), -lam[1:].numpy(), cumulative.numpy())
        assert stats.kstest(u, "uniform").pvalue > ALPHA
        return
    if time_sampling == "log_snr":
        position, ends = sde.lam(position), sde.lam(ends)
    u = (position - ends[0]) / (ends[1] - ends[0])
    assert stats.kstest(u.numpy(), "uniform").pvalue > ALPHA


def test_stratified_times_spread_evenly_over_the_batch():
    model = Recorder(VPSDE())
    DenoisingLoss("noise", 0.5, "stratified")(model, normals(16, 3), generator())
    gaps = model.t.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.5 / 16), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_chain_loss_of_the_exact_score_is_the_conditional_variance(sde):
    chain = sde.discretize(20)
    expected = float(conditional_variance(GAUSSIAN, sde, chain.times[1:]).mean())
    for stratified in (True, False):
        loss = ChainLoss(chain, stratified)
        accept(loss(ExactModel(GAUSSIAN, sde), GAUSSIAN.sample(10_000, seed=2), generator()), expected)


def test_the_chain_loss_visits_every_index_but_the_data_end():
    model = Recorder(VPSDE())
    chain = model.sde.discretize(10)
    ChainLoss(chain)(model, normals(10, 3), generator())
    assert torch.equal(model.t.sort().values, chain.times[1:])
    ChainLoss(chain, stratified=False)(model, normals(4000, 3), generator())
    assert torch.equal(model.t.unique(), chain.times[1:])


class Linear(nn.Module):
    """A network with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, c):
        return self.weight * x


@pytest.mark.parametrize("predicts", ["noise", "data", "velocity", "score", "edm"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_float32_images_get_finite_losses_and_gradients(predicts, weighting, sde):
    model = NetworkModel(Linear(), sde, predicts, (1, 4, 4), data_std=0.7)
    x0 = 0.7 * torch.randn(32, 1, 4, 4, generator=generator())
    values = DenoisingLoss(weighting)(model, x0, generator())
    values.mean().backward()
    assert values.shape == (32,)
    assert values.dtype == torch.float32
    assert bool(values.isfinite().all() & model.network.weight.grad.isfinite())


def test_a_draw_depends_on_the_generator_alone():
    model = NetworkModel(MLP((2,), width=4, depth=1), VPSDE(), "noise", (2,))
    x0 = torch.randn(6, 2, generator=generator())
    torch.manual_seed(0)
    first = DenoisingLoss()(model, x0, generator(7))
    torch.manual_seed(1)
    assert torch.equal(first, DenoisingLoss()(model, x0, generator(7)))
    assert not torch.equal(first, DenoisingLoss()(model, x0, generator(8)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"weighting": "simple"},
            "weighting must be one of noise, sigma\\^2, data, .*, sigmoid, got 'simple'",
        ),
        (
            {"time_sampling": "random"},
            "time_sampling must be one of stratified, uniform, .*, logit_normal, got 'random'",
        ),
        ({"second_order": -1.0}, "second_order must be a finite number >= 0, got -1.0"),
        ({"levels": 1}, "levels must be an integer >= 2, or 0"),
        ({"levels": 17, "second_order": 1.0}, "with a second-order term, got 17"),
        ({"t_min": -0.1}, "t_min must be a finite time >= 0, got -0.1"),
        ({"t_min": math.nan}, "t_min must be"),
        ({"t_min": 1.0}, "t_min must be below the end of the process, T = 1.0, got 1.0"),
        ({"t_min": 0.0}, "t_min must be a time with noise, got 0.0"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        DenoisingLoss(**arguments)(Recorder(VPSDE()), normals(4, 3), generator())


def test_the_exploding_process_may_start_at_zero():
    values = DenoisingLoss(t_min=0.0)(Recorder(VESDE()), normals(4, 3), generator())
    assert bool(values.isfinite().all())
