"""Every entry of the error budget against its closed form."""

import math

import pytest
import torch
from problems import ALPHA, GAUSSIAN, MIXTURE, SDES
from scipy import stats
from torch import Tensor

from sde_toolkit.likelihood import Budget, Endpoint, Entry, FlowSolver, Hutchinson, log_likelihood
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.moments import isotropic
from sde_toolkit.sdes import VESDE, VPSDE, LinearBeta

FLOAT64 = torch.float64
SONG = {name: SDES[name] for name in ("vp-linear", "vp-cosine", "sub-vp", "ve")}
SHORT = VPSDE(LinearBeta(0.1, 3.0))
"""Ends at alpha = .46: far from noise."""


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=FLOAT64)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("t_min", [1e-5, 1e-3])
@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_truncation(sde, t_min):
    x, model = GAUSSIAN.sample(8, seed=0), ExactModel(GAUSSIAN, sde)
    budget = log_likelihood(model, x, t_min=t_min, solver=FlowSolver(rtol=1e-08, atol=1e-08)).budget
    exact = GAUSSIAN.log_prob(x) - model.log_prob(x, at(t_min))
    # of second order in n^2 is the shift of the point alone
    assert rms(budget["truncation"].shift - exact) < 0.01 * rms(exact) + 1e-9
    assert rms(budget.total.shift - exact) < 0.01 * rms(exact) + 1e-7
    if t_min == 1e-3 and not isinstance(sde, VESDE):
        assert max(budget, key=lambda name: budget[name].rms) == "truncation"


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_what_the_data_ends_leave(sde):
    x, model, t_min = GAUSSIAN.sample(8, seed=0), ExactModel(GAUSSIAN, sde), 1e-3
    exact = GAUSSIAN.log_prob(x)
    for data_end in ("tweedie", "reconstruction"):
        found = log_likelihood(
            model,
            x,
            t_min=t_min,
            solver=FlowSolver(rtol=1e-09, atol=1e-09),
            endpoint=Endpoint(correction=data_end),
        )
        assert rms(found.nats - exact) < 1e-7
        assert float(found.budget["truncation"].shift.abs().max()) == 0


@pytest.mark.slow
def test_the_data_ends_on_a_mixture():
    x, model = MIXTURE.sample(256, seed=0), ExactModel(MIXTURE, VPSDE())
    errors = {}
    for data_end in ("none", "tweedie", "reconstruction"):
        found = log_likelihood(
            model,
            x,
            t_min=0.001,
            num_diagnostic_samples=0,
            solver=FlowSolver(rtol=1e-06, atol=1e-06),
            endpoint=Endpoint(correction=data_end),
        )
        errors[data_end] = found.nats - MIXTURE.log_prob(x)
    assert rms(errors["tweedie"]) < 0.1 * rms(errors["none"])
    bound = errors["reconstruction"]
    assert float(bound.mean()) < stats.norm.isf(ALPHA) * float(bound.std()) / math.sqrt(len(x))


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("prior", ["process", "gaussian"])
def test_prior(data, prior):
    x, model = data.sample(8, seed=0), ExactModel(data, SHORT)
    found = log_likelihood(
        model, x, solver=FlowSolver(rtol=1e-07, atol=1e-07), endpoint=Endpoint(prior=prior)
    )
    end = at(SHORT.T)
    exact = found.nats - model.log_prob(x, at(1e-5))  # what the prior alone does: the run is exact
    entry = found.budget["prior"]
    if data is GAUSSIAN:
        assert rms(entry.shift + exact) < 1e-6
    else:
        assert rms(entry.shift + exact) < stats.norm.isf(ALPHA / 2) * float(entry.error[0]) + 0.02 * rms(
            exact
        )
    if prior == "process":
        assert max(found.budget, key=lambda name: found.budget[name].rms) == "prior"
        ratio = model.log_prob(found.latent, end) - SHORT.prior_log_prob(found.latent)
        assert torch.allclose(ratio, -exact, atol=1e-5)
    # a process that goes on to noise leaves next to nothing
    far = log_likelihood(
        ExactModel(data, VPSDE()),
        x,
        solver=FlowSolver(rtol=1e-07, atol=1e-07),
        endpoint=Endpoint(prior=prior),
    )
    assert far.budget["prior"].rms < 0.03 * max(entry.rms, 1e-6)


@pytest.mark.parametrize("sde", SONG.values(), ids=SONG)
def test_solver(sde):
    # moments that are not the data's: else a Gaussian is at rest and no tolerance is too large
    x, model = GAUSSIAN.sample(8, seed=0), ExactModel(GAUSSIAN, sde)
    known = {"endpoint": Endpoint(moments=isotropic((3,)), prior=lambda y: model.log_prob(y, at(sde.T)))}
    found = log_likelihood(model, x, solver=FlowSolver(rtol=0.1, atol=0.1), **known)
    exact = model.log_prob(x, at(1e-5)) - found.nats
    entry = found.budget["solver"]
    assert rms(exact) > 1e-3
    assert rms(entry.shift - exact) < 0.35 * rms(exact)
    assert max(found.budget, key=lambda name: found.budget[name].rms) == "solver"
    fixed = log_likelihood(model, x, solver=FlowSolver(num_steps=12), **known)
    exact = model.log_prob(x, at(1e-5)) - fixed.nats
    assert rms(fixed.budget["solver"].shift - exact) < 0.35 * rms(exact)


@pytest.mark.parametrize("control", [0.0, 0.5, 1.0])
def test_probes(control):
    sde = VPSDE()
    model = ExactModel(GAUSSIAN, sde)
    x = GAUSSIAN.sample(8, seed=0)
    found = log_likelihood(
        model, x, divergence=Hutchinson(256, control=control), solver=FlowSolver(rtol=1e-05, atol=1e-05)
    )
    # the integral of n (S + n^2)^{-1} over n is a logarithm
    moments = model.moments
    first, last = (sde.nsr(at(t)) for t in (1e-5, sde.T))
    logs = 0.5 * ((moments.variances + last**2) / (moments.variances + first**2)).log()
    matrix = (1 - control) * moments.axes @ logs.diag() @ moments.axes.mT
    variance = 2 * float((matrix - matrix.diagonal().diag()).square().sum()) / 256
    error = found.budget["probes"].error
    assert float(error.square().mean()) == pytest.approx(variance, rel=0.15, abs=1e-12)
    assert torch.allclose(error, found.standard_error, rtol=0.01, atol=1e-7)
    if control < 1:
        assert max(found.budget, key=lambda name: found.budget[name].rms) == "probes"


def test_one_probe_has_an_error_too():
    x, model = MIXTURE.sample(8, seed=0), ExactModel(MIXTURE, VPSDE())
    one = log_likelihood(model, x, divergence=1, solver=FlowSolver(rtol=0.0001, atol=0.0001))
    assert one.standard_error is None
    assert 0.5 < one.budget["probes"].rms < 8
    assert abs(one.budget["solver"].mean) < 0.05  # the finer run has the same first probe


def test_entries_add_up():
    def entry(shift, error):
        return Entry(torch.full((2,), shift, dtype=FLOAT64), torch.full((2,), error, dtype=FLOAT64), "told")

    budget = Budget({"solver": entry(1.0, 3.0)}).with_entry("dequantization", entry(-0.25, 4.0))
    assert list(budget) == ["solver", "dequantization"]
    assert (budget.total.mean, float(budget.total.error[0])) == (0.75, 5.0)
    assert budget["solver"].rms == pytest.approx(math.sqrt(10))
    assert [line.split()[0] for line in budget.lines(2)] == ["solver", "dequantization", "total"]
