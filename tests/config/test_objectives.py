"""Objectives and chains by configuration: equal to those made in Python, trained, resumed, refused."""

import math

import pytest
import torch

from sde_toolkit import config as c
from sde_toolkit.models import ExactModel, Gaussian, IndexedModel, NetworkModel
from sde_toolkit.networks import Doubled, SelfConditioned
from sde_toolkit.sdes import VPSDE, Chain, ChainSDE
from sde_toolkit.training import ChainLoss, HybridLoss, ImportanceIndices, ScoreWeight, SlicedScoreLoss
from tests.training.test_loss import accept, generator, normals

FIELDS = {"model.name": "mlp", "model.width": 8, "model.depth": 1, "model.predicts": "velocity"}
CHAINS = {"ddpm": 40, "ddpm_cosine": 12, "smld": 12}


def config_of(sde, loss, **fields):
    steps = {"sde.num_steps": CHAINS[sde]} if sde in CHAINS else {}
    return c.load_config("ring", {**FIELDS, "sde.name": sde, "loss.name": loss, **steps, **fields})


def test_the_chains_are_those_of_the_papers():
    betas = torch.linspace(0.1 / 40, 20.0 / 40, 40, dtype=torch.float64)
    assert c.build_chain(config_of("ddpm", "discrete")) == Chain.from_betas(betas)
    assert c.build_chain(config_of("ddpm_cosine", "hybrid")) == Chain.cosine(12)
    found = c.build_chain(config_of("smld", "discrete"))
    levels = torch.logspace(math.log10(0.01), math.log10(50), 12, dtype=torch.float64)
    torch.testing.assert_close(found.sigmas[1:], levels, rtol=1e-12, atol=0)
    assert c.build_sde(config_of("smld", "denoising")).chain == found


@pytest.mark.parametrize("sde", CHAINS)
@pytest.mark.parametrize("loss", ["discrete", "hybrid"])
@pytest.mark.parametrize("indices", ["uniform", "importance"])
def test_losses_at_indices_are_those_made_in_python(sde, loss, indices):
    config = config_of(sde, loss, **{"loss.index_sampling": indices})
    model = c.build_model(config, (2,), 1.0)
    assert isinstance(model, IndexedModel)
    assert model.learned_variance == isinstance(model.network, Doubled) == (loss == "hybrid")
    chain = c.build_chain(config)
    law = ImportanceIndices(chain.num_steps) if indices == "importance" else None
    made = (HybridLoss if loss == "hybrid" else ChainLoss)(chain, index_sampling=law)
    x0 = normals(16, 2).float()
    losses = [which(model, x0, generator(3)) for which in (c.build_loss(config), made)]
    assert torch.equal(*losses)
    assert losses[0].shape == (16,)


def test_a_network_of_the_residual_sees_the_times_of_the_chain():
    config = config_of("ddpm", "discrete", **{"model.predicts": "residual"})
    model = c.build_model(config, (2,), 1.0)
    assert isinstance(model, NetworkModel)
    assert isinstance(model.sde, ChainSDE)
    assert c.build_loss(config)(model, normals(4, 2).float(), generator()).shape == (4,)


def test_self_conditioning_goes_with_learned_variances():
    config = config_of("ddpm_cosine", "hybrid", **{"model.self_conditioning": True})
    model = c.build_model(config, (2,), 1.0)
    assert isinstance(model.network, SelfConditioned)
    raw, v = model.raw_and_fraction(normals(4, 2).float(), torch.tensor(0.5))
    assert raw.shape == v.shape == (4, 2)


@pytest.mark.parametrize("steps", [0, 200])
def test_the_sliced_loss_has_its_minimum_at_the_score(steps):
    """-E[w sigma^2 |s*|^2] / D for data N(0, .5): with w = 1 the mean over t of -sigma^2 / V."""
    config = config_of("vp", "sliced", **{"loss.simulated_steps": steps, "loss.t_min": 0.2})
    loss = c.build_loss(config)
    assert isinstance(loss, SlicedScoreLoss)
    assert loss.weighting == ScoreWeight("noise")
    sde, x0 = VPSDE(), normals(4000, 2) * math.sqrt(0.5)
    model = ExactModel(Gaussian([0.0, 0.0], torch.full((2,), 0.5, dtype=torch.float64)), sde)
    t = torch.linspace(0.2, 1.0, 4001, dtype=torch.float64)
    share = sde.sigma(t).square() / (0.5 * sde.alpha(t).square() + sde.sigma(t).square())
    found = loss(model, x0, generator(2)).detach()
    if steps:  # of the first order: the error of the variances is .02 here
        assert abs(float(found.mean()) + float(share.mean())) < 0.05
    else:
        accept(found, -float(share.mean()))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"loss.name": "hybrid"}, "config.loss.name hybrid needs a chain, one of ddpm, ddpm_cosine, smld"),
        ({"loss.name": "hybird"}, "config.loss.name 'hybird' is unknown; did you mean 'hyb"),
        ({"loss.name": "hybrid", "sde.name": "ddpm", "model.predicts": "residual"}, "predicts=velocity"),
        ({"loss.name": "discrete", "sde.name": "smld", "loss.index_sampling": "any"}, "'any' is unknown"),
        ({"loss.name": "discrete", "sde.name": "smld", "loss.weighting": "edm"}, "a field of denoising"),
        ({"sde.name": "ddpm", "sde.num_steps": 1}, "config.sde.num_steps must be at least 2, got 1"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        c.load_config("digits", fields)


def test_rates_that_do_not_fit_the_steps_are_refused():
    config = c.load_config("ring", {"sde.name": "ddpm", "sde.num_steps": 10})
    with pytest.raises(ValueError, match=r"beta_max < num_steps, since beta_N = beta_max / N, got .* and 10"):
        c.build_sde(config)
    with pytest.raises(ValueError, match="sigma_min must be positive and below sigma_max"):
        c.build_sde(c.load_config("ring", {"sde.name": "smld", "sde.sigma_min": 60}))
    with pytest.raises(ValueError, match=r"config\.sde\.name must be one of ddpm, .*, got vp"):
        c.build_chain(c.load_config("ring"))
    fields = {"sde.name": "ddpm", "loss.name": "discrete", "model.fourier": (1,)}
    with pytest.raises(ValueError, match="asked at the indices of a chain"):
        c.build_network(c.load_config("digits", fields), (1, 8, 8))
    with pytest.raises(ValueError, match=r"weighting must be one of noise, .*, got 'residual'"):
        ScoreWeight("residual")
