import math

import numpy as np
import pytest
import torch
from problems import ALPHA, GAUSSIAN, MIXTURE, RING
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.distributions import Independent, Normal, kl_divergence

from sde_toolkit.data import Scaling
from sde_toolkit.interop import as_distribution, as_estimator, as_posterior, from_epsilon
from sde_toolkit.likelihood import FlowSolver
from sde_toolkit.models import ExactModel, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE, LinearBeta

EXACT = ExactModel(MIXTURE, VPSDE())
FAR = VPSDE(LinearBeta(beta_max=40.0))
"""With nothing of the data left at T: there all conditions have one prior."""
SOLVER = FlowSolver(rtol=1e-8, atol=1e-8)


def exact_log_prob(data, x):
    return ExactModel(data, VPSDE()).log_prob(x, torch.tensor(0.0, dtype=torch.float64))


def test_log_prob_is_that_of_the_data():
    law = as_distribution(EXACT, solver=SOLVER)
    x = MIXTURE.sample(6, seed=0).double()
    torch.testing.assert_close(law.log_prob(x), exact_log_prob(MIXTURE, x), rtol=1e-4, atol=1e-3)
    assert law.event_shape == (8,)
    assert law.batch_shape == ()
    assert bool(law.support.check(x).all())


@pytest.mark.slow
def test_shapes_are_those_of_torch():
    law, like = as_distribution(EXACT), Independent(Normal(torch.zeros(8), torch.ones(8)), 1)
    for shape in ((), (3,), (2, 3), 4):
        wanted = like.sample((shape,) if isinstance(shape, int) else shape)
        assert law.sample(shape, seed=1).shape == wanted.shape
        assert law.log_prob(wanted.double()).shape == like.log_prob(wanted).shape
    many, alike = law.expand((4, 2)), like.expand((4, 2))
    assert many.batch_shape == alike.batch_shape
    assert many.sample((3,)).shape == alike.sample((3,)).shape
    x = torch.randn(8, dtype=torch.float64)
    assert many.log_prob(x).shape == alike.log_prob(x.float()).shape == (4, 2)
    assert law.sample((0,)).shape == (0, 8)
    assert law.log_prob(torch.empty(0, 8)).shape == (0,)
    with pytest.raises(ValueError, match="ends in"):
        law.log_prob(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="expands to"):
        many.expand((3,))


def test_the_seed_of_torch_rules_the_draws_and_its_own_before_it():
    law = as_distribution(EXACT)
    torch.manual_seed(5)
    first, second = law.sample((3,)), law.sample((3,))
    torch.manual_seed(5)
    assert torch.equal(law.sample((3,)), first)
    assert not torch.equal(first, second)
    assert torch.equal(law.sample((5,), seed=2)[:3], law.sample((3,), seed=2))


ANGLES = torch.tensor([1, 4], dtype=torch.float64) * math.pi / 4
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


@pytest.mark.slow
def test_conditions_make_a_batch():
    exact = ExactModel(RING, FAR)
    labels = torch.tensor([1, 4])
    law = as_distribution(exact, condition=labels, solver=SOLVER)
    assert law.batch_shape == (2,)
    x = CENTRES + 0.1
    one = as_distribution(exact, condition=4, solver=SOLVER)
    assert one.batch_shape == ()
    torch.testing.assert_close(law.log_prob(x)[1], one.log_prob(x[1]))
    wanted = Normal(CENTRES, 0.15).log_prob(x).sum(1)
    torch.testing.assert_close(law.log_prob(x), wanted, rtol=1e-3, atol=1e-3)
    draws = law.sample((50,), seed=0)
    assert draws.shape == (50, 2, 2)
    z = math.sqrt(50) * (draws.mean(0) - CENTRES) / 0.15
    assert float(z.abs().max()) < stats.norm.isf(ALPHA / 8)
    wide = law.expand((3, 2))
    torch.testing.assert_close(wide.log_prob(x)[2], law.log_prob(x))


def test_values_are_in_the_units_of_the_data():
    network = MLP((2,), width=4, depth=1).double()
    w = torch.tensor([[1.0, 40.0], [2.0, 10.0], [-3.0, 25.0], [0.5, 22.0]], dtype=torch.float64)
    model = NetworkModel(network, VPSDE(), "noise", (2,), moments=None)
    plain = as_distribution(model)
    scaling = Scaling.standard(w, per_coordinate=True)
    x = scaling.to_model(w, torch.float64)
    in_model_scale = plain.log_prob(x)
    model.scaling = scaling
    law = as_distribution(model)
    torch.testing.assert_close(law.log_prob(w), in_model_scale + scaling.log_det(x))
    torch.testing.assert_close(law.sample((4,), seed=1), scaling.from_model(plain_sample(model, 4)))


def plain_sample(model, count):
    scaling, model.scaling = model.scaling, None
    try:
        return as_distribution(model).sample((count,), seed=1)
    finally:
        model.scaling = scaling


def test_no_closed_form_is_claimed():
    law = as_distribution(EXACT)
    with pytest.raises(NotImplementedError):
        kl_divergence(law, law)


class Linear(torch.nn.Module):
    """z_hat of theta | x ~ N(x, s^2), s = .5, under VP."""

    condition_shape = (2,)

    def __init__(self):
        super().__init__()
        self.sde = FAR

    def forward(self, x_t, t, x):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        return sigma * (x_t - alpha * x) / (0.25 * alpha**2 + sigma**2)


def posterior():
    return as_posterior(
        from_epsilon(Linear(), FAR, (2,), dtype=torch.float64, data_std=0.5),
        solver=SOLVER,
    )


def test_posteriors_of_observations():
    found = posterior()
    x = torch.tensor([0.7, -1.2], dtype=torch.float64)
    theta = torch.tensor([[0.5, -1.0], [1.0, 0.0]], dtype=torch.float64)
    wanted = Normal(x, 0.5).log_prob(theta).sum(1)
    for given in (x, x[None]):
        torch.testing.assert_close(found.log_prob(theta, given), wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="set_default_x"):
        found.log_prob(theta)
    assert found.set_default_x(x) is found
    torch.testing.assert_close(found.log_prob(theta), wanted, rtol=1e-3, atol=1e-3)
    draws = found.sample((400,), seed=3)
    assert draws.shape == (400, 2)
    z = 20 * (draws.mean(0) - x) / 0.5
    assert float(z.abs().max()) < stats.norm.isf(ALPHA / 4)
    several = torch.stack([x, -x, 2 * x])
    assert found.sample_batched((5,), several, seed=1).shape == (5, 3, 2)
    at = theta[:, None].expand(2, 3, 2)
    torch.testing.assert_close(
        found.log_prob_batched(at, several), Normal(several, 0.5).log_prob(at).sum(-1), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(ValueError, match="one observation, got 3"):
        found.sample((2,), several)
    with pytest.raises(ValueError, match="shape"):
        found.sample((2,), torch.zeros(3))
    with pytest.raises(ValueError, match="must take a condition"):
        as_posterior(NetworkModel(MLP((2,), width=4, depth=1), VPSDE(), "noise", (2,)))


def test_scikit_learn_takes_the_estimator():
    exact = ExactModel(GAUSSIAN, VPSDE())
    found = as_estimator(exact)
    X = GAUSSIAN.sample(12, seed=1).double().numpy()
    wanted = stats.multivariate_normal(GAUSSIAN.mean.numpy(), GAUSSIAN.covariance.numpy()).logpdf(X)
    np.testing.assert_allclose(found.score_samples(X), wanted, atol=2e-3)
    assert found.score(X) == pytest.approx(found.score_samples(X).sum())
    assert found.sample(5, random_state=1).shape == (5, 3)
    assert found.fit(X) is found
    scores = cross_val_score(found, X, cv=3)
    assert scores.sum() == pytest.approx(found.score(X), abs=1e-6)
    assert clone(found).n_features_in_ == 3
    pipe = make_pipeline(StandardScaler(with_mean=False, with_std=False), found).fit(X)
    np.testing.assert_allclose(pipe.score_samples(X), found.score_samples(X))
    assert found.set_params(solver=SOLVER).get_params()["solver"] is SOLVER
    with pytest.raises(ValueError, match="params must be among"):
        found.set_params(width=3)
    for wrong in (X[:, :2], X[0], np.full((2, 3), np.nan), np.array([["a", "b", "c"]])):
        with pytest.raises(ValueError, match="X must"):
            found.score_samples(wrong)
