"""Chains as processes in continuous time, networks at indices, and grids on them."""

import pytest
import torch
from problems import GAUSSIAN
from torch import Tensor, nn

from sde_toolkit import samplers
from sde_toolkit.models import IndexedModel
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.grids import Snapped
from sde_toolkit.sdes import VESDE, VPSDE
from sde_toolkit.sdes.chain import Chain
from sde_toolkit.sdes.chain_sde import ChainSDE

FLOAT64 = torch.float64
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=FLOAT64)
DDPM = Chain.from_betas(BETAS)
CHAINS = {"ddpm": DDPM, "smld": VESDE(0.01, 50.0).discretize(200)}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_the_process_goes_through_the_levels_of_the_chain(chain):
    sde = ChainSDE(chain)
    assert torch.allclose(sde.alpha(chain.times), chain.alphas, rtol=1e-14)
    assert torch.allclose(sde.sigma(chain.times), chain.sigmas, rtol=1e-12)
    assert torch.allclose(sde.index(chain.times), torch.arange(chain.num_steps + 1.0, dtype=FLOAT64))
    t = torch.tensor([0.01, 0.3, 0.77123, 1.0], dtype=FLOAT64)
    assert torch.allclose(sde.inverse_nsr(sde.nsr(t)), t, rtol=1e-12)
    assert sde.alpha(t.float()).dtype == torch.float32
    assert sde.f(t[0]).shape == ()


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_rates_belong_to_the_levels(chain):
    sde = ChainSDE(chain)
    t = torch.tensor([0.0123, 0.30251, 0.77123, 0.9987], dtype=FLOAT64, requires_grad=True)
    (slope,) = torch.autograd.grad(sde.alpha(t).sum(), t)
    assert torch.allclose(slope, (sde.f(t) * sde.alpha(t)).detach(), rtol=1e-9, atol=1e-12)
    (growth,) = torch.autograd.grad(sde.sigma(t).square().sum(), t)
    assert torch.allclose(growth, (2 * sde.f(t) * sde.sigma(t) ** 2 + sde.g_squared(t)).detach(), rtol=1e-8)


def test_between_the_indices_of_ddpm_variance_is_preserved():
    sde = ChainSDE(DDPM)
    t = torch.linspace(0, 1, 3333, dtype=FLOAT64)
    assert torch.allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t), rtol=1e-13)
    assert sde.prior_std == pytest.approx(1.0)


def test_prior_of_an_exploding_chain_is_its_largest_level():
    assert ChainSDE(CHAINS["smld"]).prior_std == pytest.approx(50.0)


class Recorder(nn.Module):
    """A network that notes the indices it is asked at and puts out the exact noise of the Gaussian there."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor, self.asked = nn.Parameter(torch.zeros((), dtype=FLOAT64)), []
        self.exact = ExactModel(GAUSSIAN, ChainSDE(DDPM))

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        assert i.shape == (len(x),)
        self.asked.append(i[0].clone())
        return self.exact.noise(x, (i[0].double() + 1) / 1000) + 0 * self.anchor


def test_a_network_is_asked_at_the_indices_it_was_trained_at():
    model = IndexedModel(Recorder(), DDPM, "noise", (3,))
    x = samplers.ddim(10, grid=Snapped(grids.uniform), t_min=1e-3, denoise=False).sample(model, 4).x
    asked = [int(i) for i in model.network.asked]
    assert asked[0] == 999
    assert asked == sorted(asked, reverse=True)
    assert model.network.asked[0].dtype == torch.int64
    exact = samplers.ddim(10, grid=Snapped(grids.uniform), t_min=1e-3, denoise=False)
    assert torch.allclose(x, exact.sample(model.network.exact, 4).x, rtol=1e-10)


@pytest.mark.parametrize("fractional", [False, True])
def test_times_between_indices_are_rounded_or_passed_on(fractional):
    model = IndexedModel(Recorder(), DDPM, "noise", (3,), fractional=fractional)
    model.raw(torch.zeros(2, 3, dtype=FLOAT64), torch.tensor(0.7004, dtype=FLOAT64))
    assert float(model.network.asked[0]) == pytest.approx(699.4 if fractional else 699)


@pytest.mark.parametrize("make", [samplers.unipc, samplers.edm, samplers.euler_maruyama, samplers.sa_solver])
def test_samplers_run_on_networks_of_a_chain(make):
    model = IndexedModel(Recorder(), DDPM, "noise", (3,))
    assert make(20).sample(model, 2).x.isfinite().all()


def test_snapped_grids_lie_on_indices():
    sde = ChainSDE(DDPM)
    ts = Snapped(grids.log_snr)(sde, 20, 1e-3)
    assert ts.shape == (21,)
    assert bool(torch.isin(ts, DDPM.times).all())
    with pytest.raises(ValueError, match="do not fit on the 1000 indices"):
        Snapped(grids.log_snr)(sde, 900, 1e-3)
    with pytest.raises(TypeError, match="needs a ChainSDE"):
        Snapped(grids.uniform)(VPSDE(), 10, 1e-3)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="times of the chain must increase"):
        ChainSDE(Chain(DDPM.alphas, DDPM.sigmas, DDPM.times + 1))
    with pytest.raises(ValueError, match="predicts must be one of"):
        IndexedModel(Recorder(), DDPM, "x0", (3,))
