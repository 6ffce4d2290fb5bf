"""Classifier and energy guidance against closed forms."""

import pytest
import torch
from problems import MIXTURE, RING, SDES

from sde_toolkit import samplers
from sde_toolkit.data import Dataset
from sde_toolkit.guidance import (
    ClassifierGuided,
    EnergyGuided,
    ExactClassifier,
    NetworkClassifier,
    classifier_guided,
    energy_guided,
    fit_classifier,
)
from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture
from sde_toolkit.networks import ClassifierMLP
from sde_toolkit.sdes import VPSDE, ForwardSDE, RectifiedFlow

PROCESSES: dict[str, ForwardSDE] = {
    **{name: sde for name, sde in SDES.items() if name != "custom"},
    "rectified": RectifiedFlow(),
}
LABELS = torch.tensor([0, 4, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_guided_score_is_the_closed_form(sde: ForwardSDE, share: float) -> None:
    """log p_t(k | x) = log w_k + log p_t(x | k) - log p_t(x), so w = 1 is the component's own score."""
    exact, w = ExactModel(MIXTURE, sde), 3.5
    t = torch.tensor(share * sde.T, dtype=torch.float64)
    z = torch.randn(7, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = sde.perturb(MIXTURE.sample(7, 0), t, z).requires_grad_()
    log_density = w * exact.log_prob(x, t, LABELS) + (1 - w) * exact.log_prob(x, t)
    (wanted,) = torch.autograd.grad(log_density.sum(), x)
    x = x.detach()
    found = ClassifierGuided(exact, ExactClassifier(exact), w).score(x, t, LABELS).detach()
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) < 1e-10 * scale
    own = ClassifierGuided(exact, ExactClassifier(exact)).score(x, t, LABELS).detach()
    assert float((own - exact.score(x, t, LABELS)).abs().max()) < 1e-10 * scale


def test_a_quadratic_energy_shifts_by_its_gradient() -> None:
    """Of N(0, 1) data x0_hat = alpha x / (alpha^2 + sigma^2), so both gradients are linear in x."""
    sde, t = VPSDE(), torch.tensor(0.4, dtype=torch.float64)
    exact = ExactModel(Gaussian(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)), sde)
    x = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2)
    plain = exact.score(x, t)
    of_state = EnergyGuided(exact, lambda x, t: (x - 1).square().sum(1) / 2, 3.0, "state")
    torch.testing.assert_close(of_state.score(x, t), plain - 3 * (x - 1), rtol=1e-10, atol=1e-10)
    of_data = EnergyGuided(exact, lambda x0: (x0 - 1).square().sum(1) / 2, 3.0)
    slope = sde.alpha(t) / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
    wanted = plain - 3 * slope * (slope * x - 1)
    torch.testing.assert_close(of_data.score(x, t), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_a_trained_classifier_is_near_the_posterior() -> None:
    data = GaussianMixture(weights=[0.5, 0.5], means=[[-1.0], [1.0]], covariances=[0.1, 0.1])
    labels = torch.arange(512) % 2
    draws = torch.randn(512, 1, generator=torch.Generator().manual_seed(3))
    x0 = 2.0 * labels[:, None] - 1 + 0.1**0.5 * draws
    dataset = Dataset("two", x0, x0[:8], labels_train=labels, labels_test=labels[:8])
    sde = VPSDE()
    found = fit_classifier(
        ClassifierMLP((1,), 2, width=32, depth=1), sde, dataset, 300, 128, learning_rate=3e-3
    )
    exact = ExactClassifier(ExactModel(data, sde))
    with torch.no_grad():
        small = torch.tensor(0.01, dtype=torch.float64)
        assert float((found.log_probs(x0.double(), small).argmax(1) == labels).double().mean()) > 0.9
        for at in (0.05, 0.3, 0.7):
            t = torch.tensor(at, dtype=torch.float64)
            z = torch.randn(512, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
            x = sde.perturb(x0.double(), t, z)
            error = (found.log_probs(x, t).exp() - exact.log_probs(x, t).exp()).abs().mean()
            assert float(error) < 0.1


@pytest.mark.parametrize("sampler", [samplers.ddim(4), samplers.euler_maruyama(4), samplers.dpm_solver_pp(4)])
def test_samples_do_not_depend_on_the_batch(sampler: samplers.Sampler) -> None:
    exact = ExactModel(RING, VPSDE())
    for guided, condition in (
        (classifier_guided(sampler, ExactClassifier(exact), 2.0), 3),
        (energy_guided(sampler, lambda x0: x0.square().sum(1), 0.1), None),
    ):
        whole = guided.sample(exact, 6, condition=condition, batch_size=6)
        parts = guided.sample(exact, 6, condition=condition, batch_size=2)
        assert torch.equal(whole.x, parts.x)


def test_classes_of_another_classifier_have_no_moments_and_guided_scores_are_not_exact() -> None:
    """Runs that start from the moments of a class must not take those of the mixture's component K."""
    data = ExactModel(GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.2, 0.2]), VPSDE())
    other = NetworkClassifier(ClassifierMLP((1,), 3), data.sde, (1,), 3)
    guided = ClassifierGuided(data, other)
    assert guided.class_moments is None
    assert not guided.exact
    own = ExactClassifier(data)
    assert ClassifierGuided(data, own).class_moments is data.class_moments
    assert ClassifierGuided(data, own).exact
    assert not ClassifierGuided(data, own, 2.0).exact
    assert not EnergyGuided(data, lambda x0: x0[:, 0]).exact


def test_what_cannot_guide_is_refused() -> None:
    exact = ExactModel(RING, VPSDE())
    with pytest.raises(ValueError, match="model must be that of a mixture"):
        ExactClassifier(ExactModel(Gaussian(torch.zeros(2), torch.ones(2)), VPSDE()))
    with pytest.raises(ValueError, match="classifier must be of states with shape"):
        ClassifierGuided(exact, ExactClassifier(ExactModel(MIXTURE, VPSDE())))
    with pytest.raises(ValueError, match="scale must be a"):
        ClassifierGuided(exact, ExactClassifier(exact), float("nan"))
    with pytest.raises(ValueError, match="energy must return a tensor with shape"):
        EnergyGuided(exact, lambda x0: x0).score(torch.zeros(3, 2), torch.tensor(0.5))
