"""Particles given an observation: exact for Gaussians, exact in the limit for mixtures, keyed by sample."""

from __future__ import annotations

import math

import pytest
import torch

import sde_toolkit as sde
from sde_toolkit import guidance
from sde_toolkit.guidance import LinearObservation, NonlinearObservation, Observed, TwistedSMC
from sde_toolkit.samplers import grids
from solvers import SolverError

ALPHA = 1e-5
"""Probability that a right program fails one statistical test."""

NORMAL_QUANTILE = 4.42
"""Of ALPHA, two-sided."""

PROCESSES = [sde.VPSDE(), sde.SubVPSDE(), sde.VESDE(), sde.RectifiedFlow()]
DOUBLE = torch.float64


def gaussian() -> sde.Gaussian:
    root = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.8, -0.4], [0.5, 0.0, 0.3]], dtype=DOUBLE)
    return sde.Gaussian(torch.tensor([0.5, -1.0, 0.2], dtype=DOUBLE), root @ root.mT)


def mixture() -> sde.GaussianMixture:
    means = torch.tensor([[-1.5, 0.5], [1.0, 1.0], [0.5, -1.5]], dtype=DOUBLE)
    covariances = torch.tensor(
        [[[0.1, 0.05], [0.05, 0.2]], [[0.2, 0.0], [0.0, 0.05]], [[0.3, 0.1], [0.1, 0.1]]]
    )
    return sde.GaussianMixture([0.5, 0.3, 0.2], means, covariances)


def seen_of(event: int = 3, std: float = 0.3) -> Observed:
    A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4]], dtype=DOUBLE)[:, :event]
    return Observed(LinearObservation(A, std), torch.tensor([0.7, -0.4], dtype=DOUBLE))


@pytest.mark.parametrize("kernel", ["moments", "jacobian"])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_gaussian_data_have_equal_weights_and_the_evidence(process: sde.ForwardSDE, kernel: str) -> None:
    model, seen = sde.ExactModel(gaussian(), process), seen_of()
    found = TwistedSMC(5, particles=16, kernel=kernel).sample(model, 32, observation=seen)
    assert found.nfe == 5
    bound = 1e-10 if kernel == "moments" else 1e-8  # the network's own derivative is rounded
    torch.testing.assert_close(
        found.log_weights, torch.full((2, 16), -math.log(16), dtype=DOUBLE), atol=bound, rtol=0
    )
    exact = model.posterior(seen).log_evidence
    torch.testing.assert_close(found.log_evidence, torch.full((2,), exact, dtype=DOUBLE), atol=bound, rtol=0)


@pytest.mark.parametrize(("kernel", "std"), [("moments", 0.3), ("moments", 0.0), ("jacobian", 0.3)])
def test_gaussian_data_have_the_exact_posterior(kernel: str, std: float) -> None:
    model, seen = sde.ExactModel(gaussian(), sde.VPSDE()), seen_of(std=std)
    count = 20_000
    found = TwistedSMC(3, particles=count, kernel=kernel, resample_below=0.0).sample(
        model, count, observation=seen
    )
    posterior = model.posterior(seen).data
    values, axes = torch.linalg.eigh(posterior.covariance)
    kept = values > 1e-12
    r = (found.x - posterior.mean) @ axes
    assert float(r[:, ~kept].abs().max() if bool((~kept).any()) else 0) < 1e-9
    z = r[:, kept] / values[kept].sqrt()
    assert float(z.mean(0).abs().max()) * count**0.5 < NORMAL_QUANTILE
    # the products of two standard normals have variance 1, their squares less 1 variance 2
    products = z.mT @ z / count - torch.eye(int(kept.sum()), dtype=DOUBLE)
    assert float(products.abs().max()) * (count / 2) ** 0.5 < NORMAL_QUANTILE


@pytest.mark.parametrize("kernel", ["moments", "jacobian", "small"])
def test_samples_do_not_depend_on_the_split_into_batches(kernel: str) -> None:
    model, seen = sde.ExactModel(mixture(), sde.VPSDE()), seen_of(2)
    smc = TwistedSMC(6, particles=8, kernel=kernel)
    whole = smc.sample(model, 40, observation=seen, seed=3)
    for batch in (8, 17, 1):
        split = smc.sample(model, 40, observation=seen, seed=3, batch_size=batch)
        assert torch.equal(split.x, whole.x)
        assert torch.equal(split.log_evidence, whole.log_evidence)
        assert torch.equal(split.log_weights, whole.log_weights)
    part = smc.sample(model, 13, observation=seen, seed=3, first_sample=11)
    assert torch.equal(part.x, whole.x[11:24])
    assert (part.first_group, len(part.log_evidence)) == (1, 2)
    assert torch.equal(part.log_evidence, whole.log_evidence[1:3])
    assert part.nfe == 6 * 16 / 13


@pytest.mark.parametrize("kernel", ["jacobian", "moments"])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_mixtures_come_near_their_posterior(process: sde.ForwardSDE, kernel: str) -> None:
    model, seen = sde.ExactModel(mixture(), process), seen_of(2, std=0.5)
    steps = 24 if kernel == "jacobian" else 60
    found = TwistedSMC(steps, particles=64, kernel=kernel).sample(model, 64 * 24, observation=seen, seed=1)
    posterior = model.posterior(seen)
    groups = found.x.unflatten(0, (24, 64)).mean(1)
    error = (groups.mean(0) - posterior.data.mean).abs()
    assert bool((error < NORMAL_QUANTILE * groups.std(0) / 24**0.5 + 0.03).all()), error
    ratios = (found.log_evidence - posterior.log_evidence).exp()
    assert abs(float(ratios.mean()) - 1) < NORMAL_QUANTILE * float(ratios.std()) / 24**0.5 + 0.03


def test_other_observations_have_a_likelihood_of_their_own() -> None:
    model = sde.ExactModel(sde.Gaussian([0.0, 0.0], 1.0), sde.VPSDE())
    observation = NonlinearObservation(lambda x: x.square().sum(1, keepdim=True).sqrt(), 1.0, (2,))
    seen = Observed(observation, torch.tensor([2.0], dtype=DOUBLE))
    found = TwistedSMC(200, particles=128).sample(model, 128 * 16, observation=seen)
    assert found.settings["kernel"] == "small"
    assert found.settings["twist"] == "likelihood"
    r = torch.linspace(0, 12, 12001, dtype=DOUBLE)
    density = r * (-0.5 * r.square() - 0.5 * (r - 2).square()).exp()
    expected = float((density * r).sum() / density.sum())
    groups = found.x.norm(dim=1).reshape(16, 128).mean(1)
    assert abs(float(groups.mean()) - expected) < NORMAL_QUANTILE * float(groups.std()) / 4 + 0.02
    evidence = math.log(float(density.sum()) * 0.001 / math.sqrt(2 * math.pi))
    ratios = (found.log_evidence - evidence).exp()
    assert abs(float(ratios.mean()) - 1) < NORMAL_QUANTILE * float(ratios.std()) / 4 + 0.02


def test_one_observation_for_each_group() -> None:
    model = sde.ExactModel(gaussian(), sde.VPSDE())
    y = torch.tensor([[0.7, -0.4], [3.0, 1.0]], dtype=DOUBLE)
    each = Observed(seen_of().observation, y.repeat_interleave(8, 0))
    found = TwistedSMC(4, particles=8).sample(model, 16, observation=each)
    exact = [model.posterior(Observed(each.observation, row)).log_evidence for row in y]
    torch.testing.assert_close(found.log_evidence, torch.tensor(exact, dtype=DOUBLE), atol=1e-8, rtol=0)
    with pytest.raises(ValueError, match=r"repeat_interleave\(8, 0\)"):
        TwistedSMC(4, particles=8).sample(
            model, 16, observation=Observed(each.observation, torch.arange(32.0).reshape(16, 2))
        )


@pytest.mark.parametrize("kernel", ["moments", "jacobian", "small"])
def test_entries_that_are_missing_by_row(kernel: str) -> None:
    nan, model = math.nan, sde.ExactModel(gaussian(), sde.VPSDE())
    y = torch.tensor([[0.7, nan, 1.0], [nan, nan, -0.5]], dtype=DOUBLE).repeat_interleave(16, 0)
    entries = LinearObservation(guidance.entries((3,)), 0.3)
    smc = TwistedSMC(200 if kernel == "small" else 8, particles=16, kernel=kernel)
    found = smc.sample(model, 32, observation=Observed(entries, y))
    exact = [model.posterior(Observed(entries, y[i])).log_evidence for i in (0, 16)]
    bound = 0.5 if kernel == "small" else 1e-8
    torch.testing.assert_close(found.log_evidence, torch.tensor(exact, dtype=DOUBLE), atol=bound, rtol=0)


def test_noise_that_differs_counts_in_the_evidence() -> None:
    model = sde.ExactModel(gaussian(), sde.VPSDE())
    observation = LinearObservation(seen_of().observation.A.matrix(), [0.3, 2.0])
    seen = Observed(observation, torch.tensor([0.7, -0.4], dtype=DOUBLE))
    for kernel in ("moments", "jacobian"):
        found = TwistedSMC(4, particles=4, kernel=kernel).sample(model, 4, observation=seen)
        assert abs(float(found.log_evidence[0]) - model.posterior(seen).log_evidence) < 1e-8


def test_groups_without_weight_fail() -> None:
    model = sde.ExactModel(sde.Gaussian([0.0, 0.0], 1.0), sde.VPSDE())

    def impossible(y: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return seen.sum(1) * 0 - math.inf

    observation = NonlinearObservation(lambda x: x, 1.0, (2,), impossible)
    seen, smc = Observed(observation, torch.zeros(2, dtype=DOUBLE)), TwistedSMC(3, particles=4)
    with pytest.raises(SolverError, match="NONFINITE"):
        smc.sample(model, 8, observation=seen)
    found = smc.sample(model, 6, observation=seen, first_sample=1, throw=False)
    assert set(found.failed) == set(range(1, 7))


def test_systematic_resampling_keeps_the_law_of_the_weights() -> None:
    from sde_toolkit.guidance.inverse.particles import resampled

    G, w = 20_000, torch.tensor([0.05, 0.6, 0.0, 0.35], dtype=DOUBLE)
    u, turn = torch.rand(2, G, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    index = resampled(w.log().expand(G, 4), u, turn) - 4 * torch.arange(G)[:, None]
    for place in range(4):
        share = torch.bincount(index[:, place], minlength=4) / G
        assert float((share - w).abs().max()) < NORMAL_QUANTILE * 0.5 / G**0.5
    counts = (index == 1).sum(1)
    assert set(counts.tolist()) == {2, 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 1}, "num_steps"),
        ({"particles": 0}, "particles"),
        ({"kernel": "large"}, "kernel must be"),
        ({"twist": "large"}, "twist must be"),
        ({"resample_below": 2.0}, "resample_below"),
        ({"t_min": 0.0}, "t_min must be positive"),
    ],
)
def test_choices_that_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwistedSMC(**({"num_steps": 4} | change))  # type: ignore[arg-type]


def test_models_that_are_refused() -> None:
    network = torch.nn.Linear(1, 1)
    model = sde.NetworkModel(lambda x, t: x + 0 * network.bias, sde.VPSDE(), "noise", (2,), data_std=1.0)
    seen = seen_of(2)
    with pytest.raises(ValueError, match=r"model\.moments = estimate_moments"):
        TwistedSMC(4, kernel="moments").sample(model, 2, observation=seen)
    exact = sde.ExactModel(gaussian(), sde.VPSDE())
    with pytest.raises(ValueError, match="the model's"):
        TwistedSMC(4).sample(exact, 2, observation=seen)
    with pytest.raises(ValueError, match="std of the observation must be positive"):
        TwistedSMC(4, kernel="small").sample(exact, 2, observation=seen_of(std=0.0))
    square = NonlinearObservation(torch.square, 0.1, (3,))
    with pytest.raises(ValueError, match="needs a LinearObservation"):
        TwistedSMC(4, kernel="moments").sample(exact, 2, observation=Observed(square, torch.zeros(3)))
    with pytest.raises(ValueError, match="num_steps"):
        TwistedSMC(4, grid=grids.Explicit((1.0, 0.5))).sample(exact, 2, observation=seen_of())
    with pytest.raises(ValueError, match="t_min must be smaller than T"):
        TwistedSMC(4, t_min=2.0).sample(exact, 2, observation=seen_of())


@pytest.mark.parametrize("kernel", ["moments", "jacobian"])
def test_many_observations_are_sampled_at_once(kernel: str) -> None:
    """Each has the samples that it has alone, and progress counts them, for groups that parts do not fill."""
    model, smc = sde.ExactModel(mixture(), sde.VPSDE()), TwistedSMC(6, particles=6, kernel=kernel)
    observation = LinearObservation(torch.tensor([[1.0, 0.5]], dtype=DOUBLE), 0.2)
    y = torch.tensor([[0.3], [-1.0], [0.8], [0.0]], dtype=DOUBLE)
    parts = [range(3, 17), range(60, 61), range(1 << 40, (1 << 40) + 6), range(600, 613)]
    done: list[int] = []
    found, rows, _ = smc.sample_given(model, observation, y, None, parts, 5, 20, done.append)
    assert sum(done) == sum(len(x) for x in found) == 14 + 1 + 6 + 13
    assert rows == 6 * 6 * (3 + 1 + len({i // 6 for i in parts[2]}) + 3)
    for x, part, seen in zip(found, parts, y, strict=True):
        alone = smc.sample(
            model, len(part), observation=Observed(observation, seen.expand(len(part), 1)), seed=5,
            first_sample=part.start,
        )  # fmt: skip
        torch.testing.assert_close(x, alone.x, rtol=0, atol=1e-12)


def test_the_kernel_of_a_network_is_that_of_its_moments() -> None:
    """Its derivative is not the covariance of x0: with it, filled tables were as wrong as by guidance."""
    observation = LinearObservation(torch.tensor([True, False]), 0.1)
    network = sde.NetworkModel(sde.networks.MLP((2,), width=8, depth=1), sde.VPSDE(), "noise", (2,))
    assert TwistedSMC(5).on(network, observation).kernel == "jacobian"  # nothing else is known
    network.moments = sde.ExactModel(mixture(), sde.VPSDE()).moments
    assert TwistedSMC(5).on(network, observation).kernel == "moments"
    assert TwistedSMC(5).on(sde.ExactModel(mixture(), sde.VPSDE()), observation).kernel == "jacobian"


def test_a_group_is_the_same_alone_and_among_others_for_rows_with_gaps() -> None:
    """One y for all, or one for each sample: the bits of a group do not depend on the other groups."""
    model, smc = sde.ExactModel(gaussian(), sde.VPSDE()), TwistedSMC(4, particles=3)
    observation = LinearObservation(guidance.entries((3,)), 0.1)
    y = torch.tensor([0.3, math.nan, -0.2], dtype=DOUBLE)
    for given in (lambda n: y, lambda n: y.expand(n, 3)):
        whole = smc.sample(model, 9, observation=Observed(observation, given(9)), seed=2)
        for first in (0, 3, 6):
            part = smc.sample(
                model, 3, observation=Observed(observation, given(3)), seed=2, first_sample=first
            )
            assert torch.equal(part.x, whole.x[first : first + 3])
