"""Split Gibbs: chains whose stationary law is the exact posterior."""

import math

import pytest
import torch
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.guidance import (
    LinearObservation,
    NonlinearObservation,
    Observed,
    SplitGibbs,
    calibrate,
    entries,
    impute,
)
from sde_toolkit.guidance.inverse.gibbs import given_x
from sde_toolkit.models import ExactModel, ExactPosterior, Gaussian, GaussianMixture, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE, RectifiedFlow, SubVPSDE

QUANTILE = 4.42
"""Of a normal: 1e-5 lies outside of it."""

PROCESSES: dict[str, ForwardSDE] = {
    "vp": VPSDE(), "sub-vp": SubVPSDE(), "ve": VESDE(), "rectified": RectifiedFlow()
}  # fmt: skip
LAW = Gaussian([0.5, -1.0, 0.0], [[1.0, 0.3, 0.0], [0.3, 0.5, 0.2], [0.0, 0.2, 2.0]])
ROWS = torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([1.0, -0.5], dtype=torch.float64)
FINE = samplers.sde_dpm_solver_pp(30)


def far(x: Tensor, truth: ExactPosterior) -> float:
    """The largest error of a mean or second moment along the posterior's axes, in standard errors."""
    values, axes = torch.linalg.eigh(truth.data.covariance)
    u = (x - truth.data.mean) @ axes / values.sqrt()
    means = u.mean(0) * math.sqrt(len(u))
    products = torch.stack([u[:, i] * u[:, j] - float(i == j) for i in range(3) for j in range(i, 3)], 1)
    seconds = products.mean(0) / products.std(0) * math.sqrt(len(u))
    return float(torch.cat([means, seconds]).abs().max())


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_chains_have_the_law_of_the_posterior(sde: ForwardSDE) -> None:
    """At a rho that is not small: the noise that the split adds is taken from that of the observation."""
    model = ExactModel(LAW, sde)
    seen = Observed(LinearObservation(ROWS, 0.8), Y)
    made = SplitGibbs(8, sampler=FINE).sample(model, 1000, observation=seen, seed=3)
    assert made.settings["rho"] > 0.4
    assert far(made.x, model.posterior(seen)) < QUANTILE + 1  # of 9 numbers, with the error of 30 steps


def test_a_larger_distance_is_a_larger_noise_of_the_observation() -> None:
    model, row = ExactModel(LAW, VPSDE()), torch.tensor([[0.6, 0.0, 0.8]])
    y = torch.tensor([1.0], dtype=torch.float64)
    made = SplitGibbs(8, rho=0.9, sampler=FINE).sample(
        model, 1000, observation=Observed(LinearObservation(row, 0.2), y)
    )
    assert far(made.x, model.posterior(Observed(LinearObservation(row, 0.9), y))) < QUANTILE + 1
    assert far(made.x, model.posterior(Observed(LinearObservation(row, 0.2), y))) > 10


@pytest.mark.parametrize("rho", [0.3, 2.0])
def test_the_gaussian_step_is_exact(rho: float) -> None:
    """z given x and y, by the textbook's gain."""
    std, x = 0.7, torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    observation = LinearObservation(ROWS, std)
    measured = observation.measured(Y[None], x)
    values, vectors = torch.linalg.eigh(ROWS @ ROWS.mT)
    law = vectors @ torch.diag((rho**2 * values).clamp(min=std**2)) @ vectors.mT  # of y given x
    gain = rho**2 * ROWS.mT @ torch.linalg.inv(law)
    mean = x + gain @ (Y - ROWS @ x)
    covariance = rho**2 * (torch.eye(3, dtype=torch.float64) - gain @ ROWS)
    zero = given_x(x[None], measured, rho, torch.zeros(1, 5, dtype=torch.float64))
    torch.testing.assert_close(zero[0], mean, rtol=1e-10, atol=1e-10)
    units = torch.eye(5, dtype=torch.float64)
    root = given_x(x.expand(5, 3), measured, rho, units) - mean  # z is linear in the draws
    torch.testing.assert_close(root.mT @ root, covariance, rtol=1e-10, atol=1e-10)


def test_modes_have_their_weights_on_a_mixture() -> None:
    law = GaussianMixture([0.3, 0.7], [[-1.5, 0.0], [1.5, 1.0]], [0.2, 0.4])
    model = ExactModel(law, VPSDE())
    seen = Observed(LinearObservation([[0.3, 1.0]], 0.6), torch.tensor([0.2], dtype=torch.float64))
    truth, count = model.posterior(seen), 800
    x = SplitGibbs(40, sampler=samplers.sde_dpm_solver_pp(20)).sample(model, count, observation=seen).x
    exact = truth.data.sample(200_000, 0)
    share = float((exact[:, 0] > 0).double().mean())
    error = abs(float((x[:, 0] > 0).double().mean()) - share)
    assert error < QUANTILE * math.sqrt(share * (1 - share) / count), (error, share)
    away = (x.mean(0) - truth.data.mean).abs() / (truth.data.variance / count).sqrt()
    assert float(away.max()) < QUANTILE


def test_samples_do_not_depend_on_batches() -> None:
    model = ExactModel(GaussianMixture([0.3, 0.7], [[-1.5, 0.0], [1.5, 1.0]], [0.2, 0.4]), VPSDE())
    y = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    gibbs, seen = SplitGibbs(4), LinearObservation([[0.3, 1.0]], 0.6)
    whole = gibbs.sample(model, 5, observation=Observed(seen, y), seed=2)
    split = gibbs.sample(model, 5, observation=Observed(seen, y), seed=2, batch_size=2)
    last = gibbs.sample(model, 2, observation=Observed(seen, y[3:]), seed=2, first_sample=3)
    assert torch.equal(whole.x, split.x)
    assert torch.equal(whole.x[3:], last.x)
    assert whole.nfe == split.nfe == 4 * 21
    given = gibbs.sample(model, 5, observation=Observed(seen, y), condition=1)
    assert float(given.x[:, 0].mean()) > 0.7


def test_networks_gaps_and_exact_observations_are_sampled() -> None:
    network = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "noise", (2,))
    mask = torch.tensor([True, False])
    made = SplitGibbs(3).sample(network, 4, observation=Observed(LinearObservation(mask, 0.0), [0.5, 9.0]))
    assert made.x.dtype == torch.float32
    assert bool(made.x.isfinite().all())
    model = ExactModel(LAW, VPSDE())
    rows = torch.where(torch.tensor([True, False, True]), LAW.sample(2, 0), torch.nan)
    filled = impute(model, rows, std=0.3, sampler=SplitGibbs(3), num_draws=3)
    assert filled.x.shape == (3, 2, 3)
    kept = Observed(LinearObservation(entries((3,)), 0.1), rows)
    assert bool(SplitGibbs(2).sample(model, 2, observation=kept).x.isfinite().all())


@pytest.mark.parametrize("rows", [False, True], ids=["one", "rows"])
def test_observations_may_be_lists(rows: bool) -> None:
    """Of guided samplers and of those that are made for observations, to the same bits as tensors."""
    model, seen = ExactModel(LAW, VPSDE()), LinearObservation(ROWS, 0.8)
    tensor = torch.stack([Y, Y + 1]) if rows else Y
    for sample in (samplers.ddim(3).sample, SplitGibbs(2).sample):
        found = sample(model, 2, observation=Observed(seen, tensor.tolist())).x
        assert torch.equal(found, sample(model, 2, observation=Observed(seen, tensor)).x)


@pytest.mark.slow
def test_split_gibbs_is_calibrated() -> None:
    law = GaussianMixture([0.4, 0.6], [[-1.5, 0.0], [1.0, 1.0]], [0.3, 0.5])
    seen = LinearObservation([[1.0, -0.5]], 0.5)
    found = calibrate(ExactModel(law, VPSDE()), seen, sampler=SplitGibbs(20), num_pairs=200)
    assert found.p_value > 1e-5, found.sentence


def test_data_narrower_than_the_noise_at_t_min_have_a_default_split() -> None:
    """The default is a part of the data's std; here that is below the ratio at t_min."""
    model = ExactModel(Gaussian(torch.zeros(2), 0.4**2 * torch.ones(2)), VPSDE())
    seen = LinearObservation(torch.tensor([True, False]), 0.0)
    chains = SplitGibbs(2).on(model, seen)
    assert chains.rho is not None
    assert chains.rho > float(model.sde.nsr(torch.tensor(1e-3, dtype=torch.float64)))
    y = torch.tensor([0.3, 0.0])
    x = SplitGibbs(2).sample(model, 4, observation=Observed(seen, y)).x
    assert bool(x.isfinite().all())


def test_what_cannot_be_split_is_refused() -> None:
    model, seen = ExactModel(LAW, VPSDE()), LinearObservation(ROWS, 0.8)
    with pytest.raises(ValueError, match="sampler must draw x0 given x_t"):
        SplitGibbs(3, sampler=samplers.ddim(5))
    with pytest.raises(ValueError, match="rho_start must be at least rho"):
        SplitGibbs(3, rho=1.0, rho_start=0.5)
    other = NonlinearObservation(lambda x: x[:, :1], 0.1, (3,))
    with pytest.raises(ValueError, match="needs a LinearObservation"):
        SplitGibbs(3).sample(model, 2, observation=Observed(other, [0.1]))
    with pytest.raises(ValueError, match="rho must lie between the noise-to-signal ratios"):
        SplitGibbs(3, rho=1e-4).sample(model, 2, observation=Observed(seen, Y))
    with pytest.raises(ValueError, match="annealed must be a part of the iterations"):
        SplitGibbs(3, annealed=2.0)
