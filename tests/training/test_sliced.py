"""Sliced score matching against explicit score matching, and simulated states against their exact law."""

import math

import pytest
import torch

from sde_toolkit.models import NetworkModel
from sde_toolkit.models.score import ScoreModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import Simulated, SlicedScoreLoss, TrainState, train_step
from tests.training.test_loss import accept, generator, normals

COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 1.5]], dtype=torch.float64)
DATA = normals(40_000, 2) @ torch.linalg.cholesky(COVARIANCE).T


class Linear(ScoreModel):
    """The score -K x."""

    predicts, event_shape, data_std = "score", (2,), 1.0
    dtype, device, sde = torch.float64, torch.device("cpu"), VPSDE()

    def __init__(self, K):
        self.K = K

    def raw(self, x_t, t, condition=None):
        return -x_t @ self.K.T


def stay(x0, t, generator):
    return x0


def losses(K, **options):
    return SlicedScoreLoss(stay, **options)(Linear(K), DATA, generator(3)).detach()


@pytest.mark.parametrize("options", [{}, {"variance_reduced": False}, {"num_slices": 3}])
def test_the_gradient_is_that_of_explicit_score_matching(options):
    """d/dK E |-K x + S^-1 x|^2 / D = 2 (K S - I) / D, in every direction."""
    K = torch.tensor([[1.0, -0.4], [0.3, 0.8]], dtype=torch.float64)
    exact = 2 * (K @ COVARIANCE - torch.eye(2, dtype=torch.float64)) / 2
    for i in range(2):
        for j in range(2):
            step = torch.zeros_like(K)
            step[i, j] = 0.5  # the loss is quadratic in K
            accept(losses(K + step, **options) - losses(K - step, **options), float(exact[i, j]))


def test_the_minimum_is_at_the_exact_score():
    best = torch.linalg.inv(COVARIANCE)
    accept(losses(best), -float(best.trace()) / 2)  # -E |s*|^2 / D
    for step in (0.1 * torch.eye(2), torch.tensor([[0.0, 0.1], [0.1, 0.0]])):
        more, less = losses(best + step), losses(best - step)
        accept(more - less, 0.0)
        assert float((more + less - 2 * losses(best)).mean()) > 0


def test_the_reduced_form_has_less_spread():
    best = torch.linalg.inv(COVARIANCE)
    for K in (best, 0.5 * best, torch.eye(2, dtype=torch.float64)):
        assert float(losses(K).std()) < float(losses(K, variance_reduced=False).std())


def test_simulated_states_have_the_law_of_their_steps():
    """Euler-Maruyama on dx = -x dt + (1 + t) dW: mean and variance of its own recursion, at each time."""
    t = torch.tensor([0.3, 1.0], dtype=torch.float64).repeat(20_000)
    made = Simulated(lambda x, t: -x, lambda t: 1 + t, num_steps=7)
    x = made(torch.full((40_000, 1), 2.0, dtype=torch.float64), t, generator())[:, 0]
    for end in (0.3, 1.0):
        h, mean, variance = end / 7, 2.0, 0.0
        for k in range(7):
            mean, variance = (1 - h) * mean, (1 - h) ** 2 * variance + h * (1 + k * h) ** 2
        rows = x[t == end]
        accept(rows, mean)
        accept((rows - mean).square(), variance)


def test_a_network_trains_where_no_kernel_is_known():
    """A double well: the drift is not linear."""
    state = TrainState(NetworkModel(MLP((2,), width=16, depth=1), VPSDE(), "score", (2,)))
    wells = Simulated(lambda x, t: x - x**3, lambda t: 0.5 + 0 * t, num_steps=10)
    loss = SlicedScoreLoss(wells, 0.2, weighting=lambda model, t: t)
    x0 = 0.3 * torch.randn(64, 2, generator=generator())
    found = [train_step(state, x0, loss).loss for _ in range(60)]
    assert sum(found[-10:]) < sum(found[:10])
    assert all(map(math.isfinite, found))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SlicedScoreLoss(stay, num_slices=0), "num_slices"),
        (lambda: SlicedScoreLoss(stay, 0.5, 0.2), r"t_min must lie in \[0, t_max\), got 0.5"),
        (lambda: SlicedScoreLoss(stay, 1.0)(Linear(COVARIANCE), DATA, generator()), "below the end"),
        (lambda: SlicedScoreLoss(lambda x, t, g: x[:, :1])(Linear(COVARIANCE), DATA, generator()),
         r"states\(x0, t, generator\) must have shape"),
        (lambda: Simulated(lambda x, t: x, lambda t: t, 0), "num_steps"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
