"""Compositions: the composed score, its law in closed form, and what samplers draw of it."""

import pytest
import torch
from problems import MIXTURE
from torch import nn

from sde_toolkit import guidance, samplers
from sde_toolkit.guidance import ClassifierFree, Composed, composed, product_law
from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture, NetworkModel, Wrapper
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE, RectifiedFlow, SubVPSDE

PROCESSES: dict[str, ForwardSDE] = {
    "vp": VPSDE(), "sub-vp": SubVPSDE(), "ve": VESDE(), "rectified": RectifiedFlow()
}  # fmt: skip
WEIGHTS = [1.5, 1.0, -0.75]
GRID = torch.linspace(-12, 12, 48_001, dtype=torch.float64)[:, None]


def wave(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(predicts: str = "noise", **conditions: object) -> NetworkModel:
    made = MLP((2,), width=8, depth=1, **conditions)  # type: ignore[arg-type]
    nn.init.normal_(made.last.weight, generator=torch.Generator().manual_seed(1))
    return NetworkModel(made, VPSDE(), predicts, (2,))


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_the_composed_score_is_the_gradient_of_the_composed_log_density(sde: ForwardSDE) -> None:
    """By autograd of log-densities in closed form, which the composition does not use."""
    exact, other = ExactModel(MIXTURE, sde), ExactModel(Gaussian(torch.ones(8), 2.0 * torch.ones(8)), sde)
    model = Composed(exact, [2, other, 0], WEIGHTS)
    labels = [torch.full((7,), k) for k in (2, 0)]
    for share in (0.02, 0.3, 0.9):
        t = torch.tensor(share * sde.T, dtype=torch.float64)
        x = sde.perturb(MIXTURE.sample(7, 0), t, wave(1, 7, 8)).requires_grad_()
        plain = exact.log_prob(x, t)
        terms = (exact.log_prob(x, t, labels[0]), other.log_prob(x, t), exact.log_prob(x, t, labels[1]))
        log_density = plain + sum(w * (term - plain) for w, term in zip(WEIGHTS, terms, strict=True))
        (wanted,) = torch.autograd.grad(log_density.sum(), x)
        got = model.score(x.detach(), t)
        assert float((got - wanted).abs().max()) < 1e-10 * float(wanted.abs().max())


@pytest.mark.parametrize("predicts", ["noise", "data", "velocity", "edm"])
def test_a_network_answers_for_all_branches_in_one_call(predicts: str) -> None:
    model = network(predicts, num_classes=3)
    calls: list[int] = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    x, t = wave(2, 5, 2).float(), torch.linspace(0.1, 0.9, 5)
    got = Composed(model, [0, 2], [2.0, -1.0]).denoise(x, t)
    assert len(calls) == 1
    free, first, second = (
        model.denoise(x, t, None if k is None else torch.full((5,), k)) for k in (None, 0, 2)
    )
    torch.testing.assert_close(got, free + 2 * (first - free) - (second - free), rtol=1e-4, atol=1e-4)
    alone = Composed(model, [1], [3.0]).denoise(x, t)
    torch.testing.assert_close(alone, ClassifierFree(model, 3.0).denoise(x, t, torch.full((5,), 1)))


def test_rows_and_other_models_are_terms_and_evaluations_are_counted() -> None:
    model, other = network(condition_shape=(3,)), network("velocity")
    row, x, t = torch.tensor([1.0, 2.0, 3.0]), wave(3, 4, 2).float(), torch.tensor(0.4)
    got = Composed(model, [row, other], [0.5, 2.0]).score(x, t)
    free = model.score(x, t)
    wanted = free + 0.5 * (model.score(x, t, row.expand(4, 3)) - free) + 2 * (other.score(x, t) - free)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    plain = samplers.ddim(5).sample(other, 4).nfe
    assert composed(samplers.ddim(5), [row, other]).sample(model, 4).nfe == 3 * plain
    assert composed(samplers.ddim(5), [row, other], 0.5).sample(model, 4).nfe == 2 * plain  # no plain one


@pytest.mark.parametrize(
    ("laws", "powers"),
    [
        ([Gaussian([0.0], [4.0]), GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[0.5], [1.0]])], [-1.0, 2]),
        ([Gaussian([1.0], [0.5]), Gaussian([-1.0], [3.0])], [0.7, 1.6]),
        ([GaussianMixture([0.5, 0.5], [[-1.0], [2.0]], [[0.5], [1.0]]), Gaussian([2.0], [2.0])], [3, -0.5]),
    ],
)
def test_the_product_is_that_on_a_grid(laws: list[Gaussian | GaussianMixture], powers: list[float]) -> None:
    log = sum(power * law.log_prob(GRID) for law, power in zip(laws, powers, strict=True))
    assert isinstance(log, torch.Tensor)
    wanted = log - torch.trapezoid(log.exp(), GRID[:, 0]).log()
    kept = wanted > -200
    got = product_law(laws, powers).log_prob(GRID)
    torch.testing.assert_close(got[kept], wanted[kept], rtol=1e-9, atol=1e-9)


def test_observations_that_are_independent_given_the_data_compose_to_their_posterior() -> None:
    data = Gaussian(torch.zeros(2), [[1.0, 0.6], [0.6, 2.0]])
    model = ExactModel(data, VPSDE())
    rows, y = torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=torch.float64), torch.tensor([0.7, -1.0]).double()

    def given(chosen: slice) -> ExactModel:
        seen = guidance.LinearObservation(rows[chosen], 0.5)
        return model.posterior(guidance.Observed(seen, y[chosen]))

    both, law = given(slice(0, 2)), Composed(model, [given(slice(0, 1)), given(slice(1, 2))]).law()
    torch.testing.assert_close(law.mean, both.data.mean)
    torch.testing.assert_close(law.covariance, both.data.covariance)


def test_langevin_steps_bring_the_samples_nearer_to_the_law() -> None:
    """Squared errors of mean and standard deviation over those of 4000 exact draws, without and with them."""
    prior = Gaussian([0.0], [4.0])
    model = ExactModel(prior, VPSDE())
    left, right = (
        ExactModel(GaussianMixture([0.5, 0.5], [[m], [-3.0 * m]], [[0.5], [0.5]]), model.sde)
        for m in (1.0, -1.0)
    )
    law = Composed(model, [left, right]).law()
    plain = samplers.ancestral(50)
    corrected = samplers.predictor_corrector(plain, samplers.AnnealedLangevin(0.3, 8))
    errors = [
        abs(float(composed(way, [left, right]).sample(model, 2000, seed=1).x.std()) - law.std)
        for way in (plain, corrected)
    ]
    assert errors[1] < 0.3 * errors[0], errors


def test_what_cannot_be_composed_is_refused() -> None:
    model = ExactModel(MIXTURE, VPSDE())
    with pytest.raises(ValueError, match="terms must be a list of one or more"):
        composed(samplers.ddim(2), [])
    with pytest.raises(ValueError, match="weights must be one for each of 2 terms, got 1"):
        composed(samplers.ddim(2), [0, 1], [1.0])
    with pytest.raises(ValueError, match="weights must be finite"):
        Composed(model, [0], [float("nan")])
    with pytest.raises(ValueError, match="class labels must be among 0"):
        Composed(model, [99])
    with pytest.raises(ValueError, match="terms must be conditions, or models of samples with shape"):
        Composed(model, [ExactModel(MIXTURE, VESDE())])
    with pytest.raises(ValueError, match="its terms are its conditions"):
        composed(samplers.ddim(2), [0]).sample(model, 2, condition=1)
    with pytest.raises(ValueError, match="without a finite mass"):
        product_law([Gaussian([0.0], [1.0]), Gaussian([0.0], [0.5])], [1.0, -1.0])
    with pytest.raises(ValueError, match=r"0, 1, 2, ... for a mixture"):
        Composed(model, [0, 1]).law()
    with pytest.raises(ValueError, match="law is known for exact models"):
        Composed(network(num_classes=3), [0]).law()
    with pytest.raises(ValueError, match="at most 4096 Gaussians"):
        product_law([MIXTURE], [20])
    assert isinstance(Composed(model, [0]), Wrapper)
    assert "Composition([0, 1], [1.0, 1.0])" in repr(composed(samplers.ddim(2), [0, 1]).guidance)
