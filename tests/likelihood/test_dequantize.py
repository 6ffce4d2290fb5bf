"""Bounds on the probabilities of grey levels, against integrals of known densities over the bins."""

import functools
import math

import pytest
import torch
from problems import ALPHA
from scipy import stats

from sde_toolkit.data.scaling import Scaling
from sde_toolkit.data.toy import digits
from sde_toolkit.likelihood import (
    Dequantizer,
    DiscreteLogLikelihood,
    FlowSolver,
    PlaceFlow,
    TruncatedNormalDequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    discrete_log_likelihood,
    log_likelihood,
    train_dequantizer,
)
from sde_toolkit.models.exact import ExactModel, GaussianMixture
from sde_toolkit.sdes import VESDE, VPSDE
from sde_toolkit.utils import Stream
from solvers import Normals

FLOAT64 = torch.float64
SDE = VPSDE()
LINE = GaussianMixture([0.3, 0.7], [[-0.5], [0.4]], [[0.02], [0.005]])
PLANE = GaussianMixture([0.6, 0.4], [[-0.3, 0.2], [0.5, -0.4]], [[0.02, 0.004], [0.01, 0.05]])
MODELS = {"line": ExactModel(LINE, SDE), "plane": ExactModel(PLANE, SDE)}


class Record:
    """The least that a density has to hand out."""

    def __init__(self, nats):
        self.nats = nats


class Exact:
    """The closed form in the place of the probability flow."""

    def __call__(self, model, x, *, t_min, first_sample):
        return Record(model.log_prob(x, torch.tensor(t_min, dtype=FLOAT64)))


def bins(model, dequantizer, values):
    """log P(values): the integral of p at t_min over the bins, a sum of products of normal probabilities."""
    c, scaling, alpha = model.data.components, dequantizer.scaling, dequantizer.alpha
    nsr = model.sde.nsr(torch.tensor(dequantizer.t_min, dtype=FLOAT64))
    edges = [scaling.to_model(values.to(FLOAT64) + k, FLOAT64) for k in (0, 1)]  # of x / alpha
    std = (c.variances + nsr**2).sqrt()
    assert alpha > 0
    low, high = ((edge[:, None] - c.means) / std for edge in edges)
    flip = (low + high) > 0  # the smaller tail
    a, b = torch.where(flip, -high, low), torch.where(flip, -low, high)
    mass = torch.special.ndtr(b) - torch.special.ndtr(a)
    return (mass.log().sum(-1) + c.weights.log()).logsumexp(1)


def levels_of(model, scaling, count, seed=0):
    return scaling.to_levels(model.data.sample(count, seed=seed))


def made(kind, scaling, event_shape, num_maps=1):
    if kind == "uniform":
        return UniformDequantizer(scaling, SDE)
    if kind == "truncated":
        return TruncatedNormalDequantizer(scaling, SDE)
    flow = PlaceFlow(event_shape, num_maps=num_maps, width=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=FLOAT64))
    return VariationalDequantizer(flow.requires_grad_(False), scaling, SDE, t_min=1e-3)


KINDS = ("uniform", "truncated", "variational")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("name", MODELS)
def test_every_bound_is_below_the_exact_probability_and_tends_to_it(name, levels, kind):
    model, scaling = MODELS[name], Scaling.grey(levels)
    dequantizer = made(kind, scaling, model.event_shape, num_maps=3)
    values = levels_of(model, scaling, 400)
    exact = bins(model, dequantizer, values)
    once = discrete_log_likelihood(model, values, dequantizer, log_likelihood=Exact())
    often = discrete_log_likelihood(model, values, dequantizer, num_samples=64, log_likelihood=Exact())
    # exp(log weight) is unbiased for P(v), sample by sample, and the one-sample bound lies below
    ratio = (often.log_weights - exact[:, None]).exp().mean(1)
    z = stats.norm.isf(ALPHA / 2)
    assert abs(float(ratio.mean()) - 1) < z * float(ratio.std()) / math.sqrt(len(ratio)) + 1e-9
    low = once.nats - exact
    assert float(low.mean()) < z * float(low.std()) / math.sqrt(len(low)) + 1e-9
    # K draws leave the relative variance of a weight over 2 K, to first order
    short, spread = exact - often.nats, (often.log_weights - exact[:, None]).exp().var(1).mean()
    assert float(short.mean()) < 1.5 * float(spread) / 128 + 1e-3
    assert float(short.mean()) < 0.4 * float((exact - often.log_weights.mean(1)).mean()) + 1e-3
    assert bool((often.gap >= -1e-12).all())
    assert once.standard_error is None
    if kind != "truncated":  # whose weights have a heavy tail where p is flat
        pull = short / often.standard_error
        assert 0.7 < float(pull.square().median().sqrt()) / 0.6745 < 1.4


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_one_over_the_bin_and_is_that_of_the_draws(kind):
    scaling, n = Scaling.grey(5), 4000
    dequantizer = made(kind, scaling, (1,))
    values = torch.full((n, 1), 3)
    # z on a grid of equal probabilities: u is increasing in z, so q integrates as a function of x
    z = torch.special.ndtri((torch.arange(n, dtype=FLOAT64) + 0.5) / n)[:, None]
    u, log_q = dequantizer.place(values, z)
    x = dequantizer.alpha * scaling.dequantize(values, u, FLOAT64)

    class Grid:
        def draw(self, index, stream=0):
            assert stream == Stream.BINS
            return z

    drawn, log_q_x = dequantizer.draw(values, Grid())
    assert torch.equal(drawn, x)
    assert bool((scaling.to_levels(x / dequantizer.alpha) == 3).all())
    inner = torch.trapezoid(log_q_x.exp(), x[:, 0])
    covered = (n - 1) / n
    assert float(inner) == pytest.approx(covered, abs=1e-3)
    # F(x_i) = (i + 1/2) / n, so q is the slope of that
    slope = (1 / n) / (x[2:, 0] - x[:-2, 0]) * 2
    middle = slice(n // 100, -n // 100)
    torch.testing.assert_close(log_q_x[1:-1].exp()[middle], slope[middle], rtol=5e-3, atol=0)
    torch.testing.assert_close(log_q_x, log_q - math.log(dequantizer.alpha * 2 / 5))


def test_coupled_places_have_the_density_that_their_jacobian_says():
    flow = made("variational", Scaling.grey(4), (1, 2, 2), num_maps=3).flow
    z = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)
    centre = torch.linspace(-1, 1, 12, dtype=FLOAT64).reshape(3, 1, 2, 2)
    _, log_q = flow(centre, z)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda e, i=i: flow(centre[i : i + 1], e)[0], z[i : i + 1]
        )
        log_det = jacobian.reshape(4, 4).slogdet().logabsdet
        expected = stats.norm.logpdf(z[i].numpy()).sum() - float(log_det)
        assert float(log_q[i]) == pytest.approx(expected, abs=1e-9)
        assert bool((jacobian.reshape(4, 4) - jacobian.reshape(4, 4).diag().diag()).abs().max() > 1e-4)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_uniform_density_gives_exactly_the_log_of_the_number_of_levels(levels):
    scaling, model = Scaling.grey(levels), MODELS["plane"]
    values = torch.randint(levels, (6, 2), generator=torch.Generator().manual_seed(0))

    class Flat:
        def __call__(self, model, x, *, t_min, first_sample):
            alpha = float(SDE.alpha(torch.tensor(t_min, dtype=FLOAT64)))
            assert bool((x.abs() <= alpha).all())
            nats = torch.full((len(x),), -2 * math.log(2 * alpha), dtype=FLOAT64)
            return Record(nats)

    uniform = discrete_log_likelihood(
        model, values, UniformDequantizer(scaling, SDE, 0.01), num_samples=2, log_likelihood=Flat()
    )
    assert torch.allclose(uniform.bits_per_dim, torch.tensor(math.log2(levels), dtype=FLOAT64), atol=1e-12)
    assert float(uniform.standard_error.abs().max()) < 1e-12
    truncated = TruncatedNormalDequantizer(scaling, SDE)
    bound = discrete_log_likelihood(model, values, truncated, num_samples=400, log_likelihood=Flat())
    error = (bound.bits_per_dim.mean() - math.log2(levels)).item()
    assert -0.02 < error < 0.1
    # the cost of one draw is the entropy that a normal within +- 3 standard deviations lacks
    lacking = -stats.truncnorm(-3, 3, scale=1 / 6).entropy()
    assert float(bound.log_weights.mean()) == pytest.approx(-2 * (math.log(levels) + lacking), abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [17, 256])
def test_uniform_levels_never_cost_less_than_their_entropy(levels, kind):
    """Mean over all levels: -log P >= log L for any law, and the bounds are below log P on average."""
    model = ExactModel(GaussianMixture([0.5, 0.5], [[-0.5], [0.5]], [0.1, 0.1]), SDE)
    values = torch.arange(levels).repeat(3000 // levels)[:, None]
    for num_samples in (1, 8):
        dequantizer = made(kind, Scaling.grey(levels), (1,))
        found = discrete_log_likelihood(
            model, values, dequantizer, num_samples=num_samples, log_likelihood=Exact()
        )
        exact = -bins(model, dequantizer, values).mean() / math.log(2)
        assert float(exact) > math.log2(levels)
        # scatter from the draws alone: the values are all there are
        by_value = found.bits_per_dim.reshape(-1, levels)
        error = float(by_value.var(0).mean()) ** 0.5 / math.sqrt(len(values))
        assert float(found.bits_per_dim.mean()) > math.log2(levels) - stats.norm.isf(ALPHA) * error


def test_the_time_of_the_truncated_normal_is_where_half_a_bin_is_three_standard_deviations():
    for levels in (17, 256):
        dequantizer = TruncatedNormalDequantizer(Scaling.grey(levels), SDE)
        nsr = SDE.nsr(torch.tensor(dequantizer.t_min, dtype=FLOAT64))
        assert float(nsr) == pytest.approx(1 / levels / 3, rel=1e-9)
        assert float(dequantizer.std) == pytest.approx(1 / 6, rel=1e-9)
    other = TruncatedNormalDequantizer(Scaling.grey(17), SDE, t_min=1e-3)
    assert other.t_min == 1e-3


def test_data_trained_as_centres_are_what_the_truncated_normal_fits():
    """A point at the centre of a bin: p at t_min is normal there, and q differs by its tails alone."""
    scaling = Scaling.grey(17)
    centre = float(scaling.dequantize(torch.tensor(8), torch.tensor(0.5), FLOAT64))
    model = ExactModel(GaussianMixture([1.0], [[centre]], [1e-12]), SDE)
    values = torch.full((50, 1), 8)
    truncated = TruncatedNormalDequantizer(scaling, SDE)
    exact = math.erf(3 / math.sqrt(2))  # P(|z| < 3)
    found = discrete_log_likelihood(model, values, truncated, log_likelihood=Exact())
    assert torch.allclose(found.nats.exp(), torch.tensor(exact, dtype=FLOAT64), atol=1e-9)
    # the uniform loses log(s sqrt(2 pi)) + (1/12) / (2 s^2) with s = 1/6
    uniform = UniformDequantizer(scaling, SDE, truncated.t_min)
    found = discrete_log_likelihood(model, values, uniform, num_samples=400, log_likelihood=Exact())
    loss = math.log(math.sqrt(2 * math.pi) / 6) + 36 / 24
    assert -float(found.log_weights.mean()) == pytest.approx(loss, abs=0.05)
    assert -float(found.nats.mean()) == pytest.approx(-math.log(exact), abs=0.02)


@pytest.mark.parametrize("num_maps", [1, 2])
def test_training_closes_most_of_the_gap(num_maps):
    """Wide bins and a narrow, correlated Gaussian: P(v) is exact, and the gap of the uniform is large."""
    scaling = Scaling.grey(3)
    model = ExactModel(GaussianMixture([1.0], [[0.1, -0.2]], [[0.02, 0.03]]), SDE)
    values = levels_of(model, scaling, 1000)
    dequantizer = VariationalDequantizer(
        PlaceFlow((2,), num_maps=num_maps, width=16), scaling, SDE, t_min=1e-3
    )
    exact = bins(model, dequantizer, values)
    bound = functools.partial(
        discrete_log_likelihood, model, values, dequantizer, num_samples=4, log_likelihood=Exact()
    )
    gap = [float(exact.mean() - bound().log_weights.mean())]
    train_dequantizer(dequantizer, model, values, num_steps=120, batch_size=64, learning_rate=2e-2)
    gap.append(float(exact.mean() - bound().log_weights.mean()))
    assert gap[0] > 0.5
    assert -1e-3 < gap[1] < 0.15 * gap[0]


def test_an_untrained_flow_is_the_uniform_dequantiser():
    scaling, model = Scaling.grey(9), MODELS["plane"]
    values = levels_of(model, scaling, 20)
    assert (
        VariationalDequantizer(PlaceFlow((2,)), scaling, SDE).t_min == made("truncated", scaling, (2,)).t_min
    )
    flow = VariationalDequantizer(PlaceFlow((2,), num_maps=3), scaling, SDE, t_min=1e-5)
    source = Normals(0, 20, (2,), FLOAT64)
    with torch.no_grad():
        ours, theirs = (d.draw(values, source) for d in (flow, UniformDequantizer(scaling, SDE)))
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_any_batch_split_gives_the_same_values():
    scaling, model = Scaling.grey(17), MODELS["plane"]
    values = levels_of(model, scaling, 7)
    dequantizer = TruncatedNormalDequantizer(scaling, SDE)
    flow = functools.partial(log_likelihood, divergence=1, solver=FlowSolver(rtol=0.001, atol=0.001))
    found = functools.partial(
        discrete_log_likelihood, model, dequantizer=dequantizer, num_samples=3, seed=2, log_likelihood=flow
    )
    whole = found(values)
    parts = [found(values[:3]), found(values[3:], first_sample=3)]
    torch.testing.assert_close(torch.cat([p.nats for p in parts]), whole.nats, rtol=0, atol=1e-9)
    assert whole.nfe is not None
    assert int(whole.nfe.min()) > 3
    assert isinstance(whole, DiscreteLogLikelihood)
    assert whole.mean_bits_per_dim.value == pytest.approx(float(whole.bits_per_dim.mean()))


@pytest.mark.slow
def test_the_probability_flow_gives_the_closed_form_and_the_same_bits_as_before():
    scaling, model = Scaling.grey(17), MODELS["plane"]
    values = levels_of(model, scaling, 6)
    dequantizer = UniformDequantizer(scaling, SDE)
    exact = discrete_log_likelihood(model, values, dequantizer, num_samples=2, log_likelihood=Exact())
    flow = functools.partial(log_likelihood, solver=FlowSolver(rtol=1e-06, atol=1e-06))
    found = discrete_log_likelihood(model, values, dequantizer, num_samples=2, log_likelihood=flow)
    torch.testing.assert_close(found.nats, exact.nats, rtol=0, atol=5e-3)  # the prior's mismatch
    x, _ = dequantizer.draw(values, Normals(0, 6, (2,), FLOAT64))
    alone = log_likelihood(
        model, x, log_det_per_dim=scaling.log_det_per_dim, solver=FlowSolver(rtol=1e-06, atol=1e-06)
    )
    single = -found.log_weights[:, 0] / (2 * math.log(2))
    torch.testing.assert_close(single, alone.bits_per_dim, rtol=0, atol=1e-5)  # -log2 alpha(1e-5)


class Noisy:
    """The closed form with an error of its own in every call."""

    def __init__(self, seed, std):
        self.generator, self.std = torch.Generator().manual_seed(seed), std

    def __call__(self, model, x, *, t_min, first_sample):
        nats = Exact()(model, x, t_min=t_min, first_sample=first_sample).nats
        noise = torch.randn(nats.shape, generator=self.generator, dtype=FLOAT64)
        return Record(nats + self.std * noise)


def test_a_second_density_keeps_the_bound_a_bound_where_the_draws_are_noisy():
    scaling, model, std = Scaling.grey(5), MODELS["line"], 1.5
    values = levels_of(model, scaling, 3000)
    dequantizer = UniformDequantizer(scaling, SDE)
    exact = bins(model, dequantizer, values)
    found = functools.partial(discrete_log_likelihood, model, values, dequantizer, num_samples=16)
    clean = found(log_likelihood=Exact())
    same = found(log_likelihood=Exact(), second=Exact())
    torch.testing.assert_close(same.nats, clean.nats)
    torch.testing.assert_close(same.log_weights, clean.log_weights)
    alone = found(log_likelihood=Noisy(0, std)).nats - exact
    twice = found(log_likelihood=Noisy(1, std), second=Noisy(2, std)).nats - exact
    assert float(alone.mean()) > 0.5
    error = float(twice.std()) / math.sqrt(len(values))
    assert float(twice.mean()) < stats.norm.isf(ALPHA) * error


def test_probes_shared_by_the_draws_leave_no_bias():
    """One probe per sample: its error passes through the mean of the weights, which would else raise it."""
    scaling = Scaling.grey(17)
    model = ExactModel(GaussianMixture([1.0], [[0.0, 0.1]], [[[0.05, 0.045], [0.045, 0.05]]]), SDE)
    values = levels_of(model, scaling, 1).expand(200, 2)
    dequantizer = UniformDequantizer(scaling, SDE, 1e-3)
    flow = functools.partial(log_likelihood, divergence=1, solver=FlowSolver(rtol=0.001, atol=0.001))
    exact = discrete_log_likelihood(model, values, dequantizer, num_samples=8, log_likelihood=Exact())
    found = discrete_log_likelihood(model, values, dequantizer, num_samples=8, log_likelihood=flow)
    difference = found.nats - exact.nats
    error = float(difference.std()) / math.sqrt(len(values))
    assert float(difference.std()) > 0.1
    assert abs(float(difference.mean())) < stats.norm.isf(ALPHA / 2) * error + 5e-3


def test_every_coordinate_may_have_a_scale_of_its_own():
    scale = torch.tensor([2 / 17, 1 / 17], dtype=FLOAT64)
    scaling = Scaling(scale, torch.tensor([-1.0, -0.5], dtype=FLOAT64), 17)
    model = MODELS["plane"]
    values = levels_of(model, scaling, 300)
    for kind in ("uniform", "variational"):
        dequantizer = made(kind, scaling, (2,))
        exact = bins(model, dequantizer, values)
        found = discrete_log_likelihood(model, values, dequantizer, num_samples=64, log_likelihood=Exact())
        assert float((exact - found.nats).abs().mean()) < 0.1
    torch.testing.assert_close(
        TruncatedNormalDequantizer(scaling, SDE).std, torch.tensor([1 / 12, 1 / 6], dtype=FLOAT64)
    )


def test_the_digits_have_their_seventeen_levels():
    dataset = digits()
    for kind in KINDS:
        dequantizer = made(kind, dataset.scaling, dataset.event_shape)
        assert dequantizer.levels == 17
        x, log_q = dequantizer.draw(dataset.test[:5], Normals(0, 5, (1, 8, 8), FLOAT64))
        assert bool((dataset.scaling.to_levels(x / dequantizer.alpha) == dataset.test[:5]).all())
        assert log_q.shape == (5,)
        assert isinstance(dequantizer, Dequantizer)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UniformDequantizer(Scaling.identity(), SDE), "scaling must have grey levels"),
        (lambda: UniformDequantizer(Scaling.grey(4), SDE, 1.0), "t_min must lie in"),
        (lambda: TruncatedNormalDequantizer(Scaling.grey(4), SDE, ratio=0.0), "ratio must be positive"),
        (lambda: TruncatedNormalDequantizer(Scaling.grey(4), SDE, t_min=0.0), "time with noise"),
        (lambda: TruncatedNormalDequantizer(Scaling.grey(256), VESDE()), "less noise at its start"),
        (lambda: PlaceFlow((2,), num_maps=0), "num_maps must be"),
        (lambda: PlaceFlow((2,), width=0), "width must be"),
    ],
)
def test_bad_dequantisers_get_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (torch.zeros(3, 1, dtype=torch.int64), {}, r"shape \(B, 2\)"),
        (torch.zeros(3, 2), {}, "must be integer grey levels"),
        (torch.full((3, 2), 17), {}, r"among 0 .. 16, got 17 .. 17"),
        (torch.full((3, 2), -1), {}, "got -1 .. -1"),
        (torch.zeros(3, 2, dtype=torch.int64), {"num_samples": 0}, "num_samples must be"),
    ],
)
def test_bad_values_get_a_sentence(values, options, words):
    dequantizer = UniformDequantizer(Scaling.grey(17), SDE)
    with pytest.raises(ValueError, match=words):
        discrete_log_likelihood(MODELS["plane"], values, dequantizer, log_likelihood=Exact(), **options)
