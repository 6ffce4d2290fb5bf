"""Improved DDPM: its loss by the paper's formula, the variances of Gaussian data, its bound, its sampler."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.preset_orders import SamplerImpulses
from sde_toolkit.guidance import guided
from sde_toolkit.likelihood import BoundDraws, discrete_bound
from sde_toolkit.models import ExactModel, Gaussian, IndexedModel
from sde_toolkit.networks import MLP, Doubled, UNet1D
from sde_toolkit.samplers import Snapped, ddpm, grids
from sde_toolkit.sdes import VESDE, Chain, ChainSDE, VariationalTerms
from sde_toolkit.training import HybridLoss, TrainState, load_model, save_model, train_step

FLOAT64 = torch.float64
CHAIN = Chain.cosine(12)
VARIANCES = torch.tensor([0.25, 1.5], dtype=FLOAT64)
NORMAL = Gaussian([0.0, 0.0], VARIANCES)
EXACT, FEW = ExactModel(NORMAL, ChainSDE(CHAIN)), NORMAL.sample(3, seed=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class OfGaussian(nn.Module):
    """The exact noise of NORMAL at an index, beside u = 2 v - 1 from a table with shape (N, 2)."""

    def __init__(self, chain: Chain, v: Tensor) -> None:
        super().__init__()
        self.chain, self.v = chain, nn.Parameter(v)

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        alpha, sigma = (table[i + 1][:, None] for table in (self.chain.alphas, self.chain.sigmas))
        z_hat = sigma * x / (alpha**2 * VARIANCES + sigma**2)
        return torch.cat([z_hat, 2 * self.v[i] - 1], 1)


def best_fractions(chain: Chain) -> Tensor:
    """v with shape (N, 2) for the variance of x_{i-1} given x_i, at i = 1 of x_0 given x_1."""
    a, s = chain.alphas[:, None], chain.sigmas[:, None]
    total = a**2 * VARIANCES + s**2
    forward = s[1:] ** 2 - (a[1:] / a[:-1]) ** 2 * s[:-1] ** 2
    exact = forward * total[:-1] / total[1:]
    large, small = forward[:, 0], forward[:, 0] * (s[:-1] ** 2 / s[1:] ** 2)[:, 0]
    small = torch.cat([small[1:2], small[1:]])
    return (exact.log() - small.log()[:, None]) / (large.log() - small.log())[:, None]


def model_of(v: Tensor, chain: Chain = CHAIN) -> IndexedModel:
    return IndexedModel(OfGaussian(chain, v), chain, "noise", (2,), learned_variance=True)


def test_the_loss_is_the_papers():
    """In the paper's own symbols: alpha-bar, beta, beta~, and torch's divergence of two normal laws."""
    torch.manual_seed(0)
    network, x0 = Doubled(MLP((6,), width=8, depth=1).double()), torch.randn(64, 3, dtype=FLOAT64)
    nn.init.normal_(network.network.last.weight)
    model = IndexedModel(network, CHAIN, "noise", (3,), learned_variance=True)
    found = HybridLoss(CHAIN, vlb_weight=0.3)(model, x0, generator(4))
    g, N = generator(4), 12
    i = (
        1
        + (
            N * ((torch.arange(64, dtype=FLOAT64) / 64 + torch.rand((), dtype=FLOAT64, generator=g)) % 1)
        ).long()
    )
    z = torch.randn(64, 3, dtype=FLOAT64, generator=g)
    t = torch.linspace(0, 1, N + 1, dtype=FLOAT64)
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = torch.cat([torch.zeros(1), (1 - f[1:] / f[:-1]).clamp(max=0.999)])
    bar = (1 - beta).cumprod(0)
    tilde = torch.cat([torch.zeros(1), (1 - bar[:-1]) / (1 - bar[1:]) * beta[1:]])
    tilde[1] = tilde[2]
    b, a, a_s = (k[:, None] for k in (beta[i], bar[i], bar[i - 1]))
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * z
    eps, u = network(x_t, (i - 1).double()).chunk(2, 1)
    v = (u + 1) / 2
    std = (0.5 * (v * b.log() + (1 - v) * tilde[i].log()[:, None])).exp()
    mu_hat = (x_t - b / (1 - a).sqrt() * eps) / (1 - b).sqrt()
    mu = a_s.sqrt() * b / (1 - a) * x0 + (1 - b).sqrt() * (1 - a_s) / (1 - a) * x_t
    q = torch.distributions.Normal(mu, tilde[i].sqrt()[:, None])
    p = torch.distributions.Normal(mu_hat, std)
    vlb = torch.where(i[:, None] == 1, -p.log_prob(x0), torch.distributions.kl_divergence(q, p))
    expected = (eps - z).square().mean(1) + 0.3 * N * vlb.mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_the_bound_stops_at_the_mean():
    torch.manual_seed(0)
    x0, grads = torch.randn(16, 2, dtype=FLOAT64), []
    for weights in ({"vlb_weight": 0.0}, {"vlb_weight": 5.0}, {"vlb_weight": 5.0, "fixed_mean": False}):
        network = Doubled(MLP((4,), width=8, depth=1).double())
        nn.init.constant_(network.network.last.weight, 0.1)
        model = IndexedModel(network, CHAIN, "velocity", (2,), learned_variance=True)
        HybridLoss(CHAIN, **weights)(model, x0, generator(1)).sum().backward()
        grads.append(network.network.last.weight.grad)
    plain, fixed, free = grads
    assert torch.equal(plain[:2], fixed[:2])
    assert not plain[2:].any()
    assert bool(fixed[2:].abs().sum() > 0)
    assert not torch.equal(fixed[:2], free[:2])


@pytest.mark.slow
def test_the_best_variances_of_gaussian_data_are_the_posteriors():
    """The expected bound by quadrature over x0 and z, and its minimum over v by Newton's method."""
    nodes, weights = (torch.from_numpy(k) for k in np.polynomial.hermite_e.hermegauss(8))
    weights = weights / weights.sum()
    first, second = torch.meshgrid(nodes, nodes, indexing="ij")
    weight = (weights[:, None] * weights).flatten()
    loss, exact = HybridLoss(CHAIN), best_fractions(CHAIN)
    for k, d in enumerate(VARIANCES.sqrt()):
        x0, z = (d * first).flatten(), second.flatten()
        for i in range(1, 13):
            alpha, sigma = CHAIN.alphas[i], CHAIN.sigmas[i]
            z_hat = sigma * (alpha * x0 + sigma * z) / (alpha**2 * d**2 + sigma**2)
            error, index = ((z_hat - z) ** 2)[:, None], torch.full((64,), i)
            v = torch.tensor(0.5, dtype=FLOAT64, requires_grad=True)
            for _ in range(60):
                value = weight @ loss.bound_terms(index, error, v.expand(64, 1))[:, 0]
                (slope,) = torch.autograd.grad(value, v, create_graph=True)
                (curve,) = torch.autograd.grad(slope, v)
                v = (v - (slope / curve).clamp(-0.5, 0.5)).detach().requires_grad_()
            assert v.item() == pytest.approx(float(exact[i - 1, k]), abs=1e-9)


def test_training_leaves_the_best_variances_where_they_are():
    model, x0 = model_of(best_fractions(CHAIN)), NORMAL.sample(20_000, seed=1)
    losses = HybridLoss(CHAIN, 1.0, 0.0, stratified=False)(model, x0, generator(2))
    (grad,) = torch.autograd.grad(losses.mean(), model.network.v)
    loss, grads = HybridLoss(CHAIN, 1.0, 0.0), []
    for k, part in enumerate(x0.split(500)):
        grads += torch.autograd.grad(loss(model, part, generator(3 + k)).mean(), model.network.v)
    grads = torch.stack(grads)
    z = grads.mean(0) / (grads.std(0) / math.sqrt(len(grads)))
    assert float(z.abs().max()) < 6  # Student's t with 39 degrees of freedom, 24 values
    assert bool(grad.isfinite().all())


def test_with_the_best_variances_the_bound_is_the_likelihood():
    """The reverse chain of Gaussian data is Gaussian: nothing is lost, where fixed variances lose."""
    x, best = NORMAL.sample(2000, seed=0), model_of(best_fractions(CHAIN))
    draws, moments = BoundDraws(num_reconstructions=4, control=False), ExactModel(NORMAL, best.sde).moments
    found = {
        name: discrete_bound(best, x, CHAIN, variance=name, draws=draws, prior_moments=moments)
        for name in ("learned", "small", "large")
    }
    gaps = {name: NORMAL.log_prob(x) - bound.nats for name, bound in found.items()}
    learned = gaps["learned"]
    assert abs(float(learned.mean())) < 4.5 * float(learned.std()) / math.sqrt(len(x))
    a, s = CHAIN.alphas[:, None], CHAIN.sigmas[:, None]
    large = s[1:] ** 2 - (a[1:] / a[:-1]) ** 2 * s[:-1] ** 2
    exact = large * (a**2 * VARIANCES + s**2)[:-1] / (a**2 * VARIANCES + s**2)[1:]
    for name, fixed in (("small", large * (s[:-1] / s[1:]) ** 2), ("large", large)):
        fixed = torch.cat([(s / a)[1:2] ** 2, fixed[1:]])  # the decoder's is that of the first state
        lost = float((exact / fixed - 1 - (exact / fixed).log()).sum()) / 2
        more = gaps[name] - learned
        assert lost > 0.02
        assert abs(float(more.mean()) - lost) < 4.5 * float(more.std()) / math.sqrt(len(x))
    # one evaluation gives both the noise and the variance
    table = best_fractions(CHAIN)
    callable_bound = discrete_bound(
        best, x, CHAIN, variance=lambda x_i, i: table[i - 1], draws=draws, prior_moments=moments
    )
    torch.testing.assert_close(callable_bound.nats, found["learned"].nats)


@pytest.mark.parametrize("stride", [12, 5])
def test_samples_have_the_exact_law_at_every_stride(stride):
    """With the variances of the longer steps the output of Gaussian data is exact, by unit impulses."""
    chain = CHAIN.strided(stride)
    v = torch.full((12, 2), 0.5, dtype=FLOAT64)
    index = ChainSDE(CHAIN).index(chain.times[1:]).round().long()
    v[index - 1] = best_fractions(chain)
    model = model_of(v)
    sampler = ddpm(stride - 1, variance="learned", grid=Snapped(grids.uniform), denoise=False)
    assert torch.equal(sampler.grid(model.sde, stride - 1, float(CHAIN.times[1])), chain.times[1:].flip(0))
    noise = SamplerImpulses(stride - 1, areas=True)
    samples = sampler.sample(IndexedModel(OneFeature(model), CHAIN, "noise", (1,), learned_variance=True),
                             noise.rows, noise=noise)  # fmt: skip
    assert samples.nfe == stride - 1
    k = samples.x[1:, 0] - samples.x[0, 0]
    last, first = CHAIN.alphas[12] ** 2 * VARIANCES[0] + CHAIN.sigmas[12] ** 2, CHAIN.alphas[1] ** 2
    variance = float(k[0] ** 2 * last / model.sde.prior_std**2 + k[1:].square().sum())
    assert variance == pytest.approx(float(first * VARIANCES[0] + CHAIN.sigmas[1] ** 2), rel=1e-9)


class OneFeature(nn.Module):
    """The first feature of a model's network."""

    def __init__(self, model: IndexedModel) -> None:
        super().__init__()
        self.network = model.network

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        return self.network(x.expand(-1, 2), i)[:, ::2]


@pytest.mark.parametrize(("fraction", "name"), [(0.0, "small"), (1.0, "large")])
def test_the_ends_are_the_fixed_variances(fraction, name):
    model = model_of(torch.full((12, 2), fraction, dtype=FLOAT64))
    learned, fixed = (ddpm(11, variance=kind).sample(model, 9, seed=3).x for kind in ("learned", name))
    torch.testing.assert_close(learned, fixed, rtol=1e-9, atol=1e-9)


def test_the_terms_of_an_exploding_chain_begin_at_index_one():
    terms = VariationalTerms(VESDE().discretize(5))
    assert terms.first == 1
    assert bool((terms.mean_weight[1:] > 0).all())
    assert bool((terms.log_ratio[1:] < 0).all())
    assert HybridLoss(VESDE().discretize(5)).chain.num_steps == 5


def test_strided_chains_keep_levels_and_have_the_variances_of_longer_steps():
    chain = CHAIN.strided(4)
    index = torch.tensor([0, 1, 5, 8, 12])
    for name in ("alphas", "sigmas", "times"):
        assert torch.equal(getattr(chain, name), getattr(CHAIN, name)[index])
    whole = 1 - CHAIN.betas
    torch.testing.assert_close(1 - chain.betas[2], whole[5:8].prod())
    assert CHAIN.strided(1).num_steps == 1
    assert CHAIN.strided(12) == CHAIN


def test_a_run_trains_saves_and_loads(tmp_path):
    chain = Chain.cosine(10)
    network = Doubled(UNet1D((4, 8), channels=(8,)))
    state = TrainState(IndexedModel(network, chain, "noise", (2, 8), learned_variance=True))
    x0 = torch.randn(8, 2, 8, generator=generator())
    first = [train_step(state, x0, HybridLoss(chain)).loss for _ in range(30)]
    assert sum(first[-5:]) < sum(first[:5])
    assert state.losses.shape == (8,)
    again = load_model(save_model(state.ema, tmp_path / "model.safetensors"))
    assert again.learned_variance
    assert isinstance(again.network, Doubled)
    sampler = ddpm(9, variance="learned")
    assert torch.equal(sampler.sample(again, 3).x, sampler.sample(state.ema, 3).x)
    restored = state.model.with_network(state.model.network)
    assert restored.learned_variance


def test_conditions_and_guidance_pass_through():
    network = Doubled(MLP((4,), width=8, depth=1, num_classes=3))
    nn.init.normal_(network.network.last.weight, std=0.1, generator=generator())
    model = IndexedModel(network, CHAIN, "noise", (2,), learned_variance=True)
    sampler = ddpm(11, variance="learned")
    given = sampler.sample(model, 4, condition=1)
    torch.testing.assert_close(sampler.sample(model.given(1), 4).x, given.x)
    two = guided(sampler, 1.0).sample(model, 4, condition=1)
    torch.testing.assert_close(two.x, given.x)
    assert given.nfe == 12
    assert two.nfe == 11 * 2 + 1  # scale 1 is the prediction given the class alone, beside the fraction's
    assert guided(sampler, 2.0).sample(model, 4, condition=1).nfe == 11 * 3 + 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: HybridLoss(CHAIN, -1.0), "vlb_weight must be a finite number >= 0, got -1.0"),
        (lambda: HybridLoss(CHAIN.first(1)), "at least 2 steps between noisy states, got num_steps = 1"),
        (lambda: HybridLoss(Chain.from_betas(torch.tensor([0.1, 0.5, 1.0]))), r"use|chain.first\(2\)"),
        (lambda: HybridLoss(CHAIN)(EXACT, FEW, generator()),
         "model must have learned variances"),
        (lambda: HybridLoss(CHAIN.first(9))(model_of(best_fractions(CHAIN)), FEW, generator()),
         "chain must be the model's own"),
        (lambda: ddpm(5, variance="learned").sample(EXACT, 3),
         'variance="learned" needs a model with learned variances'),
        (lambda: discrete_bound(EXACT, FEW, CHAIN, variance="learned"),
         'variance="learned" needs a model with learned variances'),
        (lambda: Chain.cosine(0), "num_steps must be at least 1"),
        (lambda: CHAIN.strided(13), "num_steps must lie in 1 to 12, got 13"),
        (lambda: Doubled(MLP((3,))), r"twice the channels, such as .* got MLP for \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_network_of_one_part_is_refused():
    model = IndexedModel(MLP((2,)), CHAIN, "noise", (2,), learned_variance=True)
    with pytest.raises(TypeError, match=r"network must return a tensor of shape \(3, 4\)"):
        model.noise(torch.zeros(3, 2), torch.tensor(0.5))


def test_the_decoder_of_bins_is_the_papers():
    """DDPM's L_0 as its code has it: differences of the normal distribution function, open at both ends."""
    torch.manual_seed(0)
    levels, N = 5, 3
    chain = Chain.from_betas(torch.tensor([0.02, 0.1, 0.4], dtype=FLOAT64))
    network = Doubled(MLP((6,), width=8, depth=1).double())
    nn.init.normal_(network.network.last.weight, std=0.3)
    model = IndexedModel(network, chain, "noise", (3,), learned_variance=True)
    k = torch.randint(levels, (90, 3), generator=generator(1))
    x0 = 2 * (k + torch.rand(90, 3, dtype=FLOAT64, generator=generator(2))) / levels - 1
    options = {"simple_weight": 0.0, "vlb_weight": 1.0}
    found = HybridLoss(chain, levels=levels, **options)(model, x0, generator(4)).detach()
    plain = HybridLoss(chain, **options)(model, x0, generator(4)).detach()
    g = generator(4)
    i = 1 + (N * ((torch.arange(90) / 90 + torch.rand((), dtype=FLOAT64, generator=g)) % 1)).long()
    z = torch.randn(90, 3, dtype=FLOAT64, generator=g)
    first = i == 1
    assert torch.equal(found[~first], plain[~first])
    beta, bar = 0.02, 1 - torch.tensor(0.02, dtype=FLOAT64)
    x_1 = (bar.sqrt() * x0 + (1 - bar).sqrt() * z)[first]
    eps, u = network(x_1, torch.zeros(len(x_1), dtype=FLOAT64)).detach().chunk(2, 1)
    mean = (x_1 - (1 - bar).sqrt() * eps) / bar.sqrt()
    tilde_2 = (1 - bar) / (1 - bar * 0.9) * 0.1  # the code takes that of the second step for the first
    log_variance = (u + 1) / 2 * math.log(beta) + (1 - u) / 2 * tilde_2.log()
    law = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    centre = (2 * k[first] + 1).double() / levels - 1
    below, above = law.cdf(centre - 1 / levels), law.cdf(centre + 1 / levels)
    mass = torch.where(k[first] == 0, above, torch.where(k[first] == levels - 1, 1 - below, above - below))
    torch.testing.assert_close(found[first], N * -mass.log().mean(1), rtol=1e-9, atol=1e-9)


def test_the_mass_of_bins_is_right_where_tails_cancel_and_has_finite_gradients():
    terms = VariationalTerms(Chain.from_betas(torch.tensor([0.0001, 0.0002, 0.1], dtype=FLOAT64)))
    x0 = torch.tensor([[-1.0, 0.9, 0.3]], dtype=FLOAT64)
    x0_hat, v = torch.tensor([[0.5, 0.9, 0.36]], dtype=FLOAT64), torch.full((1, 3), 0.5, dtype=FLOAT64)
    x0_hat.requires_grad_()
    found = terms.decoder_bins(x0, x0_hat, v, 20)[0]
    std = float(terms.decoder_std(v)[0, 0])
    ends = (-mpmath.inf, 0.9, 0.3), (-0.9, mpmath.inf, 0.4), (0.5, 0.9, 0.36)
    with mpmath.workdps(60):
        for value, low, high, mean in zip(found.detach(), *ends, strict=True):
            mass = mpmath.ncdf((high - mpmath.mpf(mean)) / std) - mpmath.ncdf((low - mpmath.mpf(mean)) / std)
            assert float(value) == pytest.approx(float(-mpmath.log(mass)), rel=1e-9)
    found.sum().backward()
    assert bool(x0_hat.grad.isfinite().all())


def test_bins_of_one_level_or_without_a_decoder_are_refused():
    with pytest.raises(ValueError, match="levels must be an integer >= 2, or 0"):
        HybridLoss(CHAIN, levels=1)
    with pytest.raises(ValueError, match="on a chain with noise at index 0"):
        HybridLoss(VESDE().discretize(10), levels=4)
    with pytest.raises(ValueError, match="levels must be"):
        VariationalTerms(CHAIN).decoder_bins(FEW, FEW, FEW, 1)
