"""Networks that know integer indices alone, exact at each, as score models: samplers, likelihoods, fits."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sde_toolkit import samplers
from sde_toolkit.likelihood import FlowSolver, continuous_bound, discrete_bound, log_likelihood
from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture, IndexedModel, Moments
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import grids
from sde_toolkit.sdes import VPSDE, Chain, ChainSDE
from sde_toolkit.training import ChainLoss, Optimization, TrainState, fit
from sde_toolkit.training.checkpoint import read_checkpoint, restore, save_checkpoint
from solvers import RK4

FLOAT64 = torch.float64
QUICK = {"num_diagnostic_samples": 0, "solver": FlowSolver(RK4, num_steps=64)}
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=FLOAT64)
DDPM = Chain.from_betas(BETAS)
NORMAL = Gaussian([0.3, -0.2], [0.25, 0.04])
TWO = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.6, -0.2]], [[0.05, 0.02], [0.04, 0.1]])


def cosine() -> Chain:
    """The table of 2102.09672, whose last two levels differ by a factor of 31 in the ratio."""
    t = torch.linspace(0, 1, 1001, dtype=FLOAT64)
    squares = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    return Chain.from_betas((1 - squares[1:] / squares[:-1]).clamp(max=0.999))


def zero_terminal() -> Chain:
    """DDPM's table, moved to end at alpha = 0 (2305.08891, algorithm 1)."""
    root = (1 - BETAS).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return Chain.from_alphas_cumprod(root.square())


class Integer(nn.Module):
    """The exact prediction at the levels of integer indices, alpha = 0 included."""

    def __init__(self, chain: Chain, predicts: str, data: Gaussian | GaussianMixture = NORMAL) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros((), dtype=FLOAT64))
        self.chain, self.predicts, self.data = chain, predicts, data

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        assert i.dtype == torch.int64
        alpha, sigma = (table[i + 1][:, None, None] for table in (self.chain.alphas, self.chain.sigmas))
        c = self.data.components
        r, v = x[:, None] - alpha * c.means, alpha**2 * c.variances + sigma**2
        share = (c.weights.log() - 0.5 * (r**2 / v + v.log()).sum(-1)).softmax(-1)[..., None]
        x0_hat = (share * (c.means + alpha * c.variances / v * r)).sum(1)
        z_hat = (share * sigma * r / v).sum(1)
        alpha, sigma = alpha[:, 0], sigma[:, 0]
        made = {"noise": z_hat, "data": x0_hat, "velocity": alpha * z_hat - sigma * x0_hat}
        made["score"] = -z_hat / sigma
        return made[self.predicts] + self.anchor


def indexed(chain: Chain, predicts: str, data=NORMAL, **options) -> IndexedModel:
    return IndexedModel(Integer(chain, predicts, data), chain, predicts, (2,), **options)


SINGLESTEP = {
    "2": lambda grid: samplers.dpm_solver(10, order=2, grid=grid),
    "3": lambda grid: samplers.dpm_solver(10, order=3, grid=grid),
    "deis": lambda grid: samplers.deis_rho_rk(10, grid=grid),
}


@pytest.mark.parametrize("make", SINGLESTEP.values(), ids=SINGLESTEP)
@pytest.mark.parametrize("predicts", ["noise", "velocity", "data", "score"])
@pytest.mark.filterwarnings("ignore:.*multiplies errors")
def test_stages_between_indices_are_those_of_the_levels(make, predicts):
    """Means of -5 for .3 where the answer of the nearest index is taken as one at the level of the stage."""
    for data in (NORMAL, TWO):
        model = indexed(cosine(), predicts, data)
        sampler = make(grids.trailing)
        exact = sampler.sample(ExactModel(data, model.sde), 200).x
        assert (sampler.sample(model, 200).x - exact).abs().max() < 0.05
        assert abs((exact - sampler.sample(model, 200).x).mean()) < 0.01


@pytest.mark.parametrize("predicts", ["noise", "velocity", "data", "score", "edm"])
def test_between_indices_a_round_gaussian_is_exact(predicts):
    """F of EDM's preconditioning is the same on both sides, and that is 0 for the Gaussian of data_std."""
    sde = ChainSDE(cosine())
    exact = ExactModel(Gaussian([0.0, 0.0], 0.49), sde)

    class Network(nn.Module):
        def forward(self, x: Tensor, i: Tensor) -> Tensor:
            t = sde.chain.times[i + 1]
            if predicts == "edm":
                return torch.zeros_like(x)
            return {"noise": exact.noise, "velocity": exact.velocity, "data": exact.denoise,
                    "score": exact.score}[predicts](x, t)  # fmt: skip

    model = IndexedModel(Network(), sde.chain, predicts, (2,), data_std=0.7, dtype=FLOAT64)
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    for t in (1e-5, 0.0007, 0.30021, 0.9994, 0.99951, 1.0):
        for times in (torch.tensor(t, dtype=FLOAT64), torch.full((7,), t, dtype=FLOAT64)):
            for name in ("denoise", "noise"):
                ours, theirs = getattr(model, name)(x, times), getattr(exact, name)(x, times)
                assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9), (t, name)


def test_on_the_indices_nothing_changes():
    model = indexed(DDPM, "noise")
    x, t = torch.ones(3, 2, dtype=FLOAT64), DDPM.times[700]
    index = torch.full((3,), 699)
    assert torch.equal(model.raw(x, t), model.network(x, index))
    assert torch.allclose(model.raw(x, t.expand(3)), model.raw(x, t), rtol=1e-12)


@pytest.mark.slow
def test_a_run_ends_at_the_first_index_by_default():
    chain = Chain.from_betas(torch.linspace(1e-3, 0.4, 40, dtype=FLOAT64))
    model = indexed(chain, "noise")
    prepared = samplers.ddim(8).prepare(model)
    assert float(prepared.control.ts[-1]) == prepared.sampler.t_min == float(chain.times[1])
    assert samplers.ddim(8).sample(model, 2).settings["t_min"] == 1 / 40
    assert float(samplers.ddim(8, t_min=0.01).prepare(model).control.ts[-1]) == 0.01
    x = torch.zeros(2, 2, dtype=FLOAT64)
    assert log_likelihood(model, x, **QUICK).settings["t_min"] == 1 / 40
    assert log_likelihood(model, x, **QUICK, t_min=0.03).settings["t_min"] == 0.03


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_log_p_at_the_first_index_is_exact_with_moments(predicts):
    """Moments give the law at T, and the first index is the earliest level that the network knows."""
    law = Moments(NORMAL.mean, NORMAL.covariance)
    x = NORMAL.sample(4, 0)
    model = indexed(DDPM, predicts, moments=law)
    assert model.data_std == law.std
    truth = ExactModel(NORMAL, model.sde).log_prob(x, DDPM.times[1])
    error = (log_likelihood(model, x, **QUICK).nats - truth).abs().max()
    without = indexed(DDPM, predicts)
    before = (log_likelihood(without, x, **QUICK).nats - truth).abs().max()
    assert error < 2e-3  # the levels of 1000 indices, between which the network is asked at the nearest
    assert before > error


ZERO = zero_terminal()


def test_a_table_that_ends_in_noise_alone():
    assert ZERO.ends_in_noise
    assert float(ZERO.alphas[-1]) == 0
    assert float(ZERO.betas[-1]) == 1
    a, b, c = (float(k) for k in samplers_step(ZERO, 1000))
    assert (a, c) == (0.0, float(ZERO.sigmas[-2]))
    assert b == float(ZERO.alphas[-2])
    sde = ChainSDE(ZERO)
    t = torch.linspace(0, 1, 999, dtype=FLOAT64)[1:]
    for table in (sde.nsr, sde.f, sde.g_squared, sde.lam):
        assert bool(table(t).isfinite().all())
    assert sde.prior_std == pytest.approx(1)
    assert ZERO.first(999) == Chain(ZERO.alphas[:-1], ZERO.sigmas[:-1], ZERO.times[:-1])


def samplers_step(chain: Chain, i: int) -> tuple[Tensor, Tensor, Tensor]:
    return chain._coefficients(i, "small", torch.zeros(1, 2))


@pytest.mark.parametrize("predicts", ["velocity", "data"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "unipc", "default", "heun", "dpm_solver"])
def test_samplers_start_from_noise_alone(name, predicts):
    model = indexed(ZERO, predicts)
    preset = samplers.PRESETS[name]
    sampler = preset.make(None if preset.kind == "adaptive" else 50, model)
    x = sampler.sample(model, 500).x
    exact = sampler.sample(ExactModel(NORMAL, model.sde), 500).x
    assert (x - exact).abs().max() < 5e-3
    assert (x.mean(0) - NORMAL.mean).abs().max() < 0.12
    assert (x.std(0) / NORMAL.variance.sqrt() - 1).abs().max() < 0.25


def test_where_noise_alone_says_nothing_it_is_refused_with_what_to_do():
    for predicts in ("noise", "score"):
        with pytest.raises(ValueError, match=r"predicts must be velocity, data or edm.*chain.first\(999\)"):
            indexed(ZERO, predicts)
    model, x = indexed(ZERO, "velocity"), torch.zeros(2, 2, dtype=FLOAT64)
    with pytest.raises(ValueError, match=r"signal at T.*chain.first\(999\)"):
        log_likelihood(model, x)
    with pytest.raises(ValueError, match=r"signal at T.*chain.first\(999\)"):
        continuous_bound(model, x)
    with pytest.raises(ValueError, match=r"signal at its last index.*chain.first\(999\)"):
        discrete_bound(model, x, ZERO)
    short = indexed(ZERO.first(999), "velocity", moments=Moments(NORMAL.mean, NORMAL.covariance))
    truth = ExactModel(NORMAL, short.sde).log_prob(x, ZERO.times[1])
    assert (log_likelihood(short, x, **QUICK).nats - truth).abs().max() < 5e-3


def test_tables_of_others_are_chains():
    assert torch.allclose(Chain.from_alphas_cumprod((1 - BETAS).cumprod(0)).alphas, DDPM.alphas, rtol=1e-13)
    sigmas = torch.tensor([0.01, 0.1, 1.0, 50.0])
    smld = Chain.from_sigmas(sigmas)
    assert torch.equal(smld.sigmas[1:], sigmas.double())
    assert float(smld.sigmas[0]) == 0
    assert bool((smld.alphas == 1).all())
    for maker, bad in (
        (Chain.from_alphas_cumprod, BETAS), (Chain.from_alphas_cumprod, [1.0, 0.5]),
        (Chain.from_sigmas, sigmas.flip(0)), (Chain.from_sigmas, [0.0, 1.0]), (Chain.from_betas, [1.0, 0.5]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must have shape"):
            maker(bad)
    with pytest.raises(ValueError, match="num_steps must lie in 1 to 1000"):
        DDPM.first(1001)


def test_a_float32_table_of_diffusers_is_off_where_ours_is_not():
    """1 - alpha_bar at their first index: 1e-4 in exact arithmetic."""
    from diffusers import DDPMScheduler

    theirs = Chain.from_alphas_cumprod(DDPMScheduler(beta_schedule="linear").alphas_cumprod)
    off = (theirs.sigmas[1:] / DDPM.sigmas[1:] - 1).abs()
    assert float(DDPM.sigmas[1]) == pytest.approx(0.01, rel=1e-12)
    assert 1e-5 < float(off.max()) < 1e-3
    assert float(off[100:].max()) < 2e-5
    assert (theirs.alphas / DDPM.alphas - 1).abs().max() < 2e-5


class Reals(nn.Module):
    """Says that it embeds real numbers."""

    embeds_real_times = True

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        assert i.is_floating_point()
        return x


def test_networks_that_embed_reals_are_asked_at_fractions():
    from diffusers import UNet2DModel

    options = {"sample_size": 4, "block_out_channels": (8,), "norm_num_groups": 4,
               "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}  # fmt: skip
    for network, shape, wanted in (
        (Reals(), (2,), True), (MLP((2,), 4, 1), (2,), True), (Integer(DDPM, "noise"), (2,), False),
        (UNet2DModel(**options), (3, 4, 4), True),
        (UNet2DModel(**options, time_embedding_type="learned", num_train_timesteps=10), (3, 4, 4), False),
    ):  # fmt: skip
        assert IndexedModel(network, DDPM, "noise", shape).fractional is wanted
    assert not IndexedModel(Reals(), DDPM, "noise", (2,), fractional=False).fractional
    IndexedModel(Reals(), DDPM, "noise", (2,)).noise(torch.zeros(2, 2), torch.tensor(0.123456))


class Table(nn.Module):
    """Learns a vector per index."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(50, 32), nn.Linear(34, 2)

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.embed(i).relu()], 1))


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_fit_trains_networks_of_a_chain(predicts):
    chain = VPSDE().discretize(50)
    model = IndexedModel(Table(), chain, predicts, (2,))
    data, loss = NORMAL.sample(512, 0).float(), ChainLoss(chain)

    def value(trained: IndexedModel) -> float:
        with torch.no_grad():
            return float(loss(trained, data, torch.Generator().manual_seed(1)).mean())

    before = value(model)
    state = TrainState(model, Optimization(learning_rate=0.01))
    fit(state, data, loss, num_steps=300, batch_size=64)
    assert value(state.model) < 0.8 * before
    assert samplers.ddim(10).sample(state.model, 4).x.isfinite().all()


@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_a_resumed_run_on_a_chain_is_the_uninterrupted_one(tmp_path, predicts):
    chain = VPSDE().discretize(50)
    data, loss, network = NORMAL.sample(64, 0).float(), ChainLoss(chain), Table()

    def fresh() -> TrainState:
        return TrainState(IndexedModel(copy.deepcopy(network), chain, predicts, (2,)))

    whole, parts, resumed = fresh(), fresh(), fresh()
    fit(whole, data, loss, 6, batch_size=16)
    fit(parts, data, loss, 3, batch_size=16)
    restore(resumed, read_checkpoint(save_checkpoint(parts, tmp_path)))
    fit(resumed, data, loss, 6, batch_size=16)
    left, right = whole.tensors(), resumed.tensors()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert torch.equal(samplers.ddim(5).sample(whole.ema, 3).x, samplers.ddim(5).sample(resumed.ema, 3).x)
