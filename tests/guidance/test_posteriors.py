"""Methods of posterior sampling beside posteriors in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sde_toolkit import guidance, samplers
from sde_toolkit.likelihood import FlowSolver, log_likelihood
from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture, Moments, NetworkModel
from sde_toolkit.sdes import VESDE, VPSDE, RectifiedFlow, SubVPSDE

SDES = (VPSDE(), SubVPSDE(), VESDE(), RectifiedFlow())
EXACT = (
    guidance.GaussianInformed(), guidance.PiGDM("moments"), guidance.TMPD("full"), guidance.MMPS(),
)  # fmt: skip
OTHERS = (
    guidance.PiGDM(), guidance.TMPD(), guidance.DPS(0.3, 100), guidance.DDNM(), guidance.DiffPIR(),
    guidance.ScoreALD(), guidance.Replacement(), guidance.RePaint(2), guidance.DDRM(),
)  # fmt: skip
METHODS = EXACT + OTHERS
SAMPLERS = (
    samplers.ddim(6), samplers.euler_maruyama(6), samplers.ancestral(6), samplers.heun(3),
    samplers.multistep_dpm_solver(6), samplers.euler(6),
)  # fmt: skip


def _normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(n: int = 4) -> Gaussian:
    root = _normals(n, n) / math.sqrt(n)
    return Gaussian(torch.arange(n) - 1.0, root @ root.mT + 0.01 * torch.eye(n, dtype=torch.float64))


def mixture() -> GaussianMixture:
    return GaussianMixture([0.3, 0.7], torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), [0.1, 0.2])


def observations() -> dict[str, guidance.LinearObservation]:
    return {
        "matrix": guidance.LinearObservation(_normals(2, 4, seed=1), 0.1),
        "mask": guidance.LinearObservation(torch.tensor([True, False, True, False]), 0.3),
        "blur": guidance.LinearObservation(guidance.gaussian_blur((4,), 0.8), 0.05),
        "stds": guidance.LinearObservation(_normals(2, 4, seed=1), torch.tensor([0.1, 0.5])),
        "exact": guidance.LinearObservation(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), 0.0),
    }


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("name", observations())
@pytest.mark.parametrize("method", EXACT, ids=repr)
def test_methods_with_the_exact_covariance_are_exact_on_gaussians(sde, name, method) -> None:
    data, observation = gaussian(), observations()[name]
    model = ExactModel(data, sde)
    y = observation.draw(data.sample(1, 3), 5)[0]
    posterior = model.posterior(guidance.Observed(observation, y))
    guided = guidance.PosteriorModel(model, observation, method, y)
    x = data.sample(6, 1)
    for t in (0.05, 0.4, 0.9):
        time = torch.tensor(t, dtype=torch.float64)
        x_t = sde.alpha(time) * x + sde.sigma(time) * _normals(6, 4, seed=9)
        wanted = posterior.denoise(x_t, time)
        torch.testing.assert_close(guided.denoise(x_t, time), wanted, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(guided.denoise(x_t, time.expand(6)), wanted, rtol=1e-8, atol=1e-8)


def linear_network(J: Tensor, moments: Moments | None) -> NetworkModel:
    """A network whose clean prediction has the Jacobian J everywhere."""
    return NetworkModel(
        lambda x, t: x @ J.mT, VPSDE(), "data", (len(J),), moments=moments, dtype=torch.float64
    )


@pytest.mark.parametrize("known", [True, False], ids=["moments", "none"])
@pytest.mark.parametrize("std", [0.0, 0.02, 0.3])
def test_no_jacobian_throws_draws_past_the_observation(known: bool, std: float) -> None:
    """|y - A x0_hat'| <= |y - A x0_hat| where J is neither symmetric nor positive, as that of networks."""
    methods = [guidance.MMPS(), guidance.MMPS(1), guidance.TMPD(), guidance.TMPD("full"), guidance.PiGDM()]
    methods += [guidance.PiGDM("moments")] if known else []
    data = gaussian(6)
    moments = Moments(data.mean, data.covariance) if known else None
    for seed in range(5):
        model = linear_network(0.3 * _normals(6, 6, seed=seed), moments)
        for numbers in (1, 4):
            observation = guidance.LinearObservation(_normals(numbers, 6, seed=seed + 50), std)
            y = observation.draw(data.sample(20, seed), seed)
            for method in methods:
                guided = guidance.PosteriorModel(model, observation, method)
                for t in (0.1, 0.5, 0.99):
                    x_t, time = _normals(20, 6, seed=seed + 90), torch.tensor(t, dtype=torch.float64)
                    off = [
                        (y - observation.A.forward(x0)).norm(dim=1)
                        for x0 in (guided.denoise(x_t, time, y), model.denoise(x_t, time))
                    ]
                    assert bool((off[0] <= (1 + 1e-9) * off[1]).all()), (method, t)


@pytest.mark.parametrize("known", [True, False], ids=["moments", "none"])
def test_mmps_solves_for_any_covariance_of_the_network(known: bool) -> None:
    """By the direct formula, for a V that is not that of the moments."""
    root, data = _normals(6, 6, seed=7), gaussian(6)
    J = 0.1 * root @ root.mT + 0.05 * torch.eye(6, dtype=torch.float64)
    model = linear_network(J, Moments(data.mean, data.covariance) if known else None)
    observation = guidance.LinearObservation(_normals(4, 6, seed=8), 0.2)
    guided, A = guidance.PosteriorModel(model, observation, guidance.MMPS(4)), observation.A.matrix()
    x_t, y, t = _normals(3, 6, seed=9), _normals(3, 4, seed=10), torch.tensor(0.4, dtype=torch.float64)
    V = model.sde.sigma(t) ** 2 / model.sde.alpha(t) * J
    x0_hat = model.denoise(x_t, t)
    law = A @ V @ A.mT + 0.04 * torch.eye(4, dtype=torch.float64)
    wanted = x0_hat + torch.linalg.solve(law, (y - x0_hat @ A.mT).mT).mT @ A @ V
    torch.testing.assert_close(guided.denoise(x_t, t, y), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", [guidance.GaussianInformed(), guidance.PiGDM("moments"), guidance.MMPS()])
def test_missing_entries_by_row_are_exact_on_gaussians(method) -> None:
    data, observation = gaussian(), guidance.LinearObservation(guidance.entries((4,)), 0.2)
    model = ExactModel(data, VPSDE())
    y = data.sample(3, 2)
    y[0, 1] = y[1, 0] = y[1, 3] = y[2, :3] = math.nan
    x, t = data.sample(3, 4), torch.tensor(0.3, dtype=torch.float64)
    guided = guidance.PosteriorModel(model, observation, method)
    found = guided.denoise(x, t, guided.conditions(y, 3))
    for i in range(3):
        posterior = model.posterior(guidance.Observed(observation, y[i]))
        torch.testing.assert_close(found[i : i + 1], posterior.denoise(x[i : i + 1], t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", observations())
def test_the_exact_posterior_is_bayes_rule(name: str) -> None:
    """log p(x0) + log p(y | x0) = log p(y) + log p(x0 | y), for a mixture, wherever y has a density."""
    observation = observations()[name]
    means = torch.stack([gaussian().mean, -gaussian().mean])
    data = GaussianMixture([0.4, 0.6], means, torch.stack([gaussian().covariance, 2 * gaussian().covariance]))
    model = ExactModel(data, VPSDE())
    y = observation.draw(data.sample(1, 3), 5)[0]
    posterior = model.posterior(guidance.Observed(observation, y))
    x = posterior.data.sample(5, 0)
    if float(observation.std.amin()) > 0:
        joint = data.log_prob(x) + observation.log_likelihood(y, x)
        torch.testing.assert_close(
            joint - posterior.data.log_prob(x), torch.full((5,), posterior.log_evidence).double()
        )
    else:
        torch.testing.assert_close(x[:, 0] + x[:, 1], y.expand(5))
    drawn = observation.draw(data.sample(4000, 7), 8)
    assert drawn.shape == (4000, *observation.shape)


@given(numbers=st.integers(1, 5), features=st.integers(1, 5), std=st.floats(1e-3, 3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_matrix_has_the_posterior_of_a_direct_formula(numbers, features, std, seed) -> None:
    A = _normals(numbers, features, seed=seed)
    root = _normals(features, features, seed=seed + 100)
    prior = root @ root.mT + 0.1 * torch.eye(features, dtype=torch.float64)
    data = Gaussian(torch.ones(features), prior)
    observation = guidance.LinearObservation(A, std)
    y = observation.draw(data.sample(1, seed), seed)[0]
    found = ExactModel(data, VPSDE()).posterior(guidance.Observed(observation, y)).data
    precision = prior.inverse() + A.mT @ A / std**2
    mean = torch.linalg.solve(precision, prior.inverse() @ torch.ones(features).double() + A.mT @ y / std**2)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, precision.inverse(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [
    lambda: guidance.gaussian_blur((2, 4, 6), 0.7), lambda: guidance.downsampling((1, 4, 6), 2),
    lambda: guidance.colour_mixing((3, 2, 2), [0.2, 0.5, 0.3]), lambda: guidance.downsampling((6,), 3),
    lambda: guidance.fourier_mask((1, 4, 4), torch.arange(16).reshape(4, 4) % 3 == 0),
    lambda: guidance.projection((2, 3), 4, 1),
    lambda: guidance.LinearObservation(torch.tensor([True, False, True]), 1.0).A,
])  # fmt: skip
def test_adjoints_are_those_that_autograd_finds(make) -> None:
    A = make()
    x = _normals(3, *A.event_shape).requires_grad_()
    r = _normals(3, A.count, seed=2)
    (wanted,) = torch.autograd.grad((A.forward(x) * r).sum(), x)
    torch.testing.assert_close(A.backward(r), wanted)
    torch.testing.assert_close(A.forward(x.detach()), x.detach().flatten(1) @ A.matrix().mT)


@pytest.mark.parametrize(
    "sde", [SDES[0], *(pytest.param(sde, marks=pytest.mark.slow) for sde in SDES[1:])], ids=repr
)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_works_with_every_sampler_in_any_split(sde, method) -> None:
    model = ExactModel(mixture(), sde)
    observation = guidance.LinearObservation(torch.tensor([[1.0, 0.5]]), 0.3)
    one = torch.tensor([0.5], dtype=torch.float64)
    for sampler in SAMPLERS:
        for y in (one, one + torch.linspace(-1, 1, 7).double()[:, None]):
            observed = guidance.Observed(observation, y, method)
            whole = sampler.sample(model, 7, observation=observed, seed=3, throw=False).x
            parts = []
            for first, count in ((0, 3), (3, 4)):
                own = y if y.ndim == 1 else y[first : first + count]
                part = guidance.Observed(observation, own, method)
                parts.append(
                    sampler.sample(
                        model, count, observation=part, seed=3, first_sample=first, batch_size=2, throw=False
                    ).x
                )
            assert whole.shape == (7, 2)
            assert torch.equal(whole.nan_to_num(), torch.cat(parts).nan_to_num())


def test_conditions_of_the_model_inside_travel_with_the_observation() -> None:
    model = ExactModel(mixture(), VPSDE())
    observation = guidance.LinearObservation(torch.tensor([True, False]), 0.5)
    labels = torch.tensor([0, 1, 1, 0])
    y = torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.4, 0.0]]).double()
    found = samplers.ddim(20).sample(
        model, 4, condition=labels, observation=guidance.Observed(observation, y, guidance.MMPS()), seed=2
    )
    for i in range(4):
        own = samplers.ddim(20).sample(
            model.given(int(labels[i])), 1, seed=2, first_sample=i,
            observation=guidance.Observed(observation, y[i], guidance.MMPS()),
        )  # fmt: skip
        torch.testing.assert_close(found.x[i], own.x[0], rtol=1e-7, atol=1e-7)


@pytest.mark.slow
def test_the_likelihood_of_a_guided_gaussian_is_that_of_its_posterior() -> None:
    data, observation = gaussian(), observations()["matrix"]
    model = ExactModel(data, VPSDE())
    y = observation.draw(data.sample(1, 3), 5)[0]
    posterior = model.posterior(guidance.Observed(observation, y))
    x = posterior.data.sample(3, 1)
    for method in (guidance.GaussianInformed(), guidance.MMPS()):
        guided = guidance.PosteriorModel(model, observation, method, y)
        found = log_likelihood(guided, x, solver=FlowSolver(rtol=1e-6, atol=1e-6)).nats
        torch.testing.assert_close(found, posterior.data.log_prob(x), rtol=0, atol=1e-3)


def test_a_nonlinear_observation_guides_by_dps() -> None:
    """|x| of N(0, I) is observed: draws lie nearer to the circle, and the angle stays free."""
    model = ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE())
    radius = guidance.NonlinearObservation(
        lambda x: (x.square().sum(1, keepdim=True) + 1e-12).sqrt(), 0.1, (2,)
    )
    observed = guidance.Observed(radius, torch.tensor([2.0]), guidance.DPS(0.3, 100))
    found = samplers.ancestral(100).sample(model, 200, observation=observed, seed=0).x
    free = samplers.ancestral(100).sample(model, 200, seed=0).x
    off = [float((x.norm(dim=1) - 2).abs().mean()) for x in (found, free)]
    assert off[0] < 0.3 * off[1]
    assert float(found.mean(0).norm()) < 0.5


SUM = guidance.LinearObservation(torch.ones(1, 2), 0.1)


def _sampled(model: ExactModel) -> None:
    """By a sampler that chooses its own steps, with a method that acts between the steps."""
    observed = guidance.Observed(SUM, [1.0], guidance.Replacement())
    samplers.dopri5().sample(model, 2, observation=observed)


REFUSED = {
    "event_shape must have the features": lambda _: guidance.LinearObservation(torch.ones(2, 3), 0.1, (2,)),
    "A must be a matrix": lambda _: guidance.LinearObservation(torch.ones(3), 0.1),
    "linear function": lambda _: guidance.LinearObservation(lambda x: x.square(), 0.1, (2,)),
    "std must be": lambda _: guidance.LinearObservation(torch.ones(1, 2), -1.0),
    "y must have shape": lambda _: guidance.Observed(SUM, torch.ones(3)),
    "y must be finite": lambda _: guidance.Observed(SUM, [math.nan]),
    "observation must be of samples": lambda model: guidance.PosteriorModel(
        model, guidance.LinearObservation(torch.ones(1, 3), 0.1), guidance.MMPS()
    ),
    "needs a LinearObservation": lambda model: guidance.PosteriorModel(
        model, guidance.NonlinearObservation(torch.sin, 0.1, (2,)), guidance.MMPS()
    ),
    "fixed grid": _sampled,
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_done_is_refused_in_a_sentence(words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        REFUSED[words](ExactModel(mixture(), VPSDE()))


@pytest.mark.parametrize("data", [gaussian(2), mixture()], ids=["no classes", "classes"])
def test_rows_of_another_width_are_no_observation(data) -> None:
    """Nor are they taken for y joined with the condition of the model inside."""
    guided = guidance.PosteriorModel(ExactModel(data, VPSDE()), SUM, guidance.MMPS())
    for width in (0, 3):
        with pytest.raises(ValueError, match="y must have shape"):
            guided.conditions(torch.zeros(4, width), 4)
