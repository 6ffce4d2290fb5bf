"""Laws of the times and a weight that learn: means that stay, what they tend to, and runs that go on."""

import math

import pytest
import torch

from sde_toolkit.config import build_loss, load_config
from sde_toolkit.data import ring
from sde_toolkit.models import ExactModel, NetworkModel
from sde_toolkit.networks import MLP, SelfConditioned
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import (
    AdaptiveTimes,
    ChainLoss,
    DenoisingLoss,
    ImportanceIndices,
    LearnedWeight,
    Parallel,
    TrainState,
    fit,
    latest_checkpoint,
    restore,
    train_step,
)
from sde_toolkit.training.objective.learned import decoded
from tests.problems import GAUSSIAN
from tests.training.test_loss import Recorder, accept, conditional_variance, generator, normals

FLOAT64 = torch.float64


def learned(loss, model, x0, num_batches, first=0):
    """The loss after its parts were told of so many batches."""
    for k in range(num_batches):
        losses = loss(model, x0, generator(first + k)).detach()
        loss.observe(model, losses, generator(first + k))
    return loss


def mean_square(sde, t, h):
    """E |z_hat - z|^2 / D of the score of N(0, I) times 1 + h."""
    variance = sde.alpha(t).square() + sde.sigma(t).square()
    return ((h * sde.sigma(t)).square() + sde.alpha(t).square()) / variance


@pytest.mark.parametrize("weighting", ["noise", "likelihood", "edm"])
def test_adaptive_times_follow_the_loss_and_leave_its_mean(weighting):
    sde, t_min, h, x0 = VPSDE(), 1e-3, 0.5, normals(2000, 3)
    law, model = AdaptiveTimes(), Recorder(sde, h)
    loss = learned(DenoisingLoss(weighting, t_min, law), model, x0, 40)
    plain = DenoisingLoss(weighting, t_min, "log_snr")
    t = torch.linspace(t_min, sde.T, 20_001, dtype=FLOAT64)
    weight = plain_weight(weighting, model, t) * mean_square(sde, t, h)
    expected = float(torch.trapezoid(weight, t)) / (sde.T - t_min)
    values, others = (each(model, normals(20_000, 3), generator(99)) for each in (loss, plain))
    accept(values, expected)
    accept(others, expected)
    assert float(values.std()) < (1.05 if weighting == "likelihood" else 0.8) * float(others.std())
    lam = torch.linspace(-4.0, 4.0, 9, dtype=FLOAT64)  # the density of t is in proportion to the loss there
    at = sde.inverse_nsr((-lam).exp())
    ratio = law(model, at) / (plain_weight(weighting, model, at) * mean_square(sde, at, h))
    assert float(ratio.std() / ratio.mean()) < 0.12


def plain_weight(weighting, model, t):
    from sde_toolkit.training.objective.weightings import weights_at

    return weights_at(weighting, model, t)


def test_bins_without_losses_have_the_mean_of_the_others():
    law, model = AdaptiveTimes(width=1.0, decay=0.5), Recorder(VPSDE())
    t = VPSDE().inverse_nsr(torch.tensor([math.exp(-1.5), math.exp(0.5)], dtype=FLOAT64))
    rate = VPSDE().g_squared(t) / (2 * VPSDE().sigma(t).square())
    law.observe(model, t, rate * torch.tensor([2.0, 4.0], dtype=FLOAT64))
    law.observe(model, t[:1], rate[:1] * 5.0)
    probe = VPSDE().inverse_nsr((-torch.tensor([1.4, -0.6, 3.3], dtype=FLOAT64)).exp())
    found = law(model, probe) * 2 * VPSDE().sigma(probe).square() / VPSDE().g_squared(probe)
    torch.testing.assert_close(found, torch.tensor([4.0, 4.0, 4.0], dtype=FLOAT64))  # (2 / 2 + 5) / 1.5 = 4


def test_importance_indices_are_those_of_the_paper():
    law, model = ImportanceIndices(4, history=3), Recorder(VPSDE())
    rows = torch.tensor(
        [[1.0, 9.0, 2.0, 3.0], [0.5, 0.5, 0.5, 0.5], [4.0, 4.0, 1.0, 1.0], [2.0, 2.0, 2.0, 7.0]]
    )
    for k, column in enumerate(rows.double().T):
        assert torch.equal(law.probabilities(), torch.full((4,), 0.25, dtype=FLOAT64))
        law.observe(model, torch.arange(1, 5), column)
        if k == 2:
            break
    law.observe(model, torch.tensor([1, 2, 3, 4]), rows[:, 3].double())
    size = rows[:, 1:].double().square().mean(1).sqrt()
    expected = 0.999 * size / size.sum() + 0.001 / 4
    torch.testing.assert_close(law.probabilities(), expected)
    i, correction = law.draw((torch.arange(10_000, dtype=FLOAT64) + 0.5) / 10_000)
    torch.testing.assert_close(
        torch.bincount(i, minlength=5)[1:].double() / 10_000, expected, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(correction, 1 / (4 * expected[i - 1]))


def test_importance_indices_leave_the_mean_of_the_loss():
    sde = VPSDE()
    chain, model = sde.discretize(20), ExactModel(GAUSSIAN, sde)
    x0 = GAUSSIAN.sample(4000, seed=2)
    law = ImportanceIndices(20, uniform=0.1)
    loss = learned(ChainLoss(chain, index_sampling=law), model, x0[:400], 3)
    assert float(law.probabilities().std()) > 0.01
    expected = float(conditional_variance(GAUSSIAN, sde, chain.times[1:]).mean())
    accept(loss(model, x0, generator(50)), expected)


def test_the_learned_weight_tends_to_the_size_of_the_loss():
    sde, x0 = VPSDE(), normals(512, 3)
    weight, model = LearnedWeight("noise", num_features=24), Recorder(sde, 0.5)
    loss = learned(DenoisingLoss(weight, 1e-2, "uniform"), model, x0, 600)
    t = torch.linspace(0.05, 0.95, 30, dtype=FLOAT64)
    error = weight.u(model, t) - mean_square(sde, t, 0.5).log()
    assert float(error.abs().max()) < 0.25
    assert float(error.square().mean().sqrt()) < 0.1
    # exp(-u) L + u, whose mean at the minimum is 1 + log E[L | t]
    plain = DenoisingLoss("noise", 1e-2, "uniform")(model, x0, generator(7))
    values = loss(model, x0, generator(7))
    u = weight.u(model, model.t)
    torch.testing.assert_close(values, plain * (-u).exp() + u)


def test_the_learned_weight_takes_the_gradient_of_the_papers_loss():
    weight, model = LearnedWeight("data", num_features=5, learning_rate=1.0), Recorder(VPSDE())
    t, losses = torch.tensor([0.1, 0.5, 0.9], dtype=FLOAT64), torch.tensor([0.3, 2.0, 9.0], dtype=FLOAT64)
    theta = torch.zeros(6, dtype=FLOAT64, requires_grad=True)
    u = weight._features(model, t) @ theta
    ((-u).exp() * losses + u).mean().backward()
    weight.observe(model, t, losses)
    torch.testing.assert_close(weight.tensors()["first"], 0.1 * theta.grad)


LOSSES = {
    "continuous": lambda: DenoisingLoss(LearnedWeight("likelihood"), 1e-3, AdaptiveTimes()),
    "chain": lambda: ChainLoss(VPSDE().discretize(8), index_sampling=ImportanceIndices(8, history=2)),
}


def new_state():
    return TrainState(NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "noise", (2,)), seed=3)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(kind, tmp_path):
    points = ring(num_train=64, num_test=8)
    whole, first, second = new_state(), new_state(), new_state()
    fit(whole, points, LOSSES[kind](), 12, 16)
    fit(first, points, LOSSES[kind](), 6, 16, tmp_path)
    restore(second, latest_checkpoint(tmp_path))
    fit(second, points, LOSSES[kind](), 12, 16)
    assert whole.notes == second.notes
    assert set(whole.notes) == {"learned"}
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name
    forgetful = new_state()
    restore(forgetful, latest_checkpoint(tmp_path))
    forgetful.notes = {}
    fit(forgetful, points, LOSSES[kind](), 12, 16)
    assert forgetful.notes != whole.notes  # the memory matters


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_in_parts_leaves_the_same_memory(kind):
    x0, states = torch.randn(16, 2, generator=generator()), []
    for count in (1, 4):
        network = SelfConditioned(MLP((4,), width=8, depth=1))
        model = NetworkModel(network, VPSDE(), "noise", (2,))
        states.append(TrainState(model, seed=3, parallel=Parallel(accumulate=count)))
        for _ in range(4):
            train_step(states[-1], x0, LOSSES[kind]())
    for one, other in zip(*(state.notes["learned"].values() for state in states), strict=True):
        for a, b in zip(decoded(one).values(), decoded(other).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_one_loss_serves_two_runs():
    x0, loss = torch.randn(16, 2, generator=generator()), LOSSES["continuous"]()
    alone, a, b = new_state(), new_state(), new_state()
    for k in range(4):
        train_step(alone, x0, LOSSES["continuous"]())
        train_step(a, x0, loss)
        train_step(b, -(k + 1) * x0, loss)
    assert alone.notes == a.notes != b.notes
    weights = (run.model.network.last.weight for run in (alone, a))
    assert torch.equal(*weights)


def test_a_memory_of_another_law_is_refused():
    x0, state = torch.randn(16, 2, generator=generator()), new_state()
    train_step(state, x0, DenoisingLoss("noise", 1e-3, AdaptiveTimes()))
    with pytest.raises(ValueError, match="the memory of AdaptiveTimes must have"):
        train_step(state, x0, DenoisingLoss("noise", 1e-3, AdaptiveTimes(width=1.0)))


def test_configurations_name_them():
    def loss(**fields):
        return build_loss(load_config("vectors", {f"loss.{name}": text for name, text in fields.items()}))

    assert isinstance(loss(time_sampling="adaptive").time_sampling, AdaptiveTimes)
    assert loss(time_sampling="adaptive(width=1.0)").time_sampling.width == 1.0
    assert loss(weighting="learned(weighting='data')").weighting.weighting == "data"
    assert isinstance(loss(weighting="learned").weighting, LearnedWeight)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: AdaptiveTimes(width=0.0), "width must lie in"),
        (lambda: AdaptiveTimes(decay=1.0), "decay must lie in"),
        (lambda: ImportanceIndices(0), "num_steps"),
        (lambda: ImportanceIndices(5, uniform=0.0), "uniform must lie in"),
        (lambda: ChainLoss(VPSDE().discretize(4), index_sampling=ImportanceIndices(5)),
         "for the chain's 4 steps, got one for 5"),
        (lambda: LearnedWeight("residual"), "weighting must be one of noise, .* got 'residual'"),
        (lambda: LearnedWeight(learning_rate=0.0), "learning_rate must be"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


class Interrupted(AdaptiveTimes):
    """Is interrupted once, when it is told of its fifth batch."""

    told = 0

    def observe(self, model, place, losses):
        self.told += 1
        if self.told == 5:
            raise KeyboardInterrupt
        super().observe(model, place, losses)


def test_an_update_without_its_memory_is_not_saved(tmp_path):
    def begin():
        return TrainState(NetworkModel(MLP((2,), width=8, depth=1, seed=0), VPSDE(), "noise", (2,)), seed=1)

    whole, cut = begin(), begin()
    fit(whole, ring(), DenoisingLoss(time_sampling=AdaptiveTimes()), 8, 16)
    loss = DenoisingLoss(time_sampling=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        fit(cut, ring(), loss, 8, 16, workdir=tmp_path, checkpoint_every=3)
    again = begin()
    restore(again, latest_checkpoint(tmp_path))
    assert again.step == 3
    fit(again, ring(), loss, 8, 16)
    assert again.notes["learned"] == whole.notes["learned"]
