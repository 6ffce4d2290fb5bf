"""Guided scores of mixtures in closed form, over every process, and what guided runs keep."""

import math

import pytest
import torch
from problems import MIXTURE, RING, SDES
from torch import Tensor, nn

from sde_toolkit import guidance, samplers
from sde_toolkit.guidance import AutoGuided, ClassifierFree, guided
from sde_toolkit.models import ExactModel, Gaussian, NetworkModel, Wrapper, prediction_coefficients
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import Sampler
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE, RectifiedFlow

PROCESSES: dict[str, ForwardSDE] = {
    **{name: sde for name, sde in SDES.items() if name != "custom"},
    "rectified": RectifiedFlow(),
}
SAMPLERS: dict[str, Sampler] = {
    "ddim": samplers.ddim(6),
    "heun": samplers.heun(4, t_min=0.01),
    "dpm_solver_pp": samplers.dpm_solver_pp(6),
    "euler_maruyama": samplers.euler_maruyama(6),
    "edm": samplers.edm(4, s_churn=4.0),
    "dopri5": samplers.dopri5(rtol=1e-2, atol=1e-2),
}
LABELS = torch.tensor([0, 4, 1, 2, 3, 0, 1])


def states(sde: ForwardSDE, t: Tensor) -> Tensor:
    z = torch.randn(7, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return sde.perturb(MIXTURE.sample(7, 0), t, z)


def times(sde: ForwardSDE) -> list[Tensor]:
    each = torch.linspace(0.02, 0.95, 7, dtype=torch.float64) * sde.T
    return [torch.tensor(share * sde.T, dtype=torch.float64) for share in (0.02, 0.3, 0.9)] + [each]


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_the_guided_score_is_the_closed_form(sde: ForwardSDE) -> None:
    """By autograd of the log-densities, which the guided model does not use."""
    exact, w = ExactModel(MIXTURE, sde), 3.5
    model = ClassifierFree(exact, w)
    for t in times(sde):
        x = states(sde, t).requires_grad_()
        log_density = w * exact.log_prob(x, t, LABELS) + (1 - w) * exact.log_prob(x, t)
        (wanted,) = torch.autograd.grad(log_density.sum(), x)
        x = x.detach()
        scale = float(wanted.abs().max())
        assert float((model.score(x, t, LABELS) - wanted).abs().max()) < 1e-10 * scale
        whole, given = exact.score(x, t), exact.score(x, t, LABELS)
        torch.testing.assert_close(ClassifierFree(exact, 1.0).score(x, t, LABELS), given, rtol=0, atol=0)
        torch.testing.assert_close(ClassifierFree(exact, 0.0).score(x, t, LABELS), whole, rtol=0, atol=0)


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_only_ratios_in_the_interval_are_guided(sde: ForwardSDE) -> None:
    exact = ExactModel(MIXTURE, sde)
    t = times(sde)[-1]
    low, high = (float(sde.nsr(t[i])) for i in (2, 4))
    model, everywhere = ClassifierFree(exact, 3.0, (low, high)), ClassifierFree(exact, 3.0)
    x = states(sde, t)
    inside = torch.tensor([False, False, False, True, True, False, False])  # low is not, high is
    wanted = torch.where(inside[:, None], everywhere.score(x, t, LABELS), exact.score(x, t, LABELS))
    torch.testing.assert_close(model.score(x, t, LABELS), wanted, rtol=1e-12, atol=1e-12)
    for i in range(7):
        one = model.score(x[i : i + 1], t[i], LABELS[i : i + 1])
        torch.testing.assert_close(one, wanted[i : i + 1], rtol=1e-12, atol=1e-12)


def test_rows_outside_the_interval_cost_one_evaluation() -> None:
    sde, steps = VPSDE(), 10
    exact = ExactModel(RING, sde)
    ts = samplers.grids.log_snr(sde, steps, 1e-3)
    sampler = samplers.dpm_solver_pp(steps, denoise=False)
    low, high = float(sde.nsr(ts[6])), float(sde.nsr(ts[3]))
    made = guided(sampler, 2.0, interval=(low, high)).sample(exact, 5, condition=1)
    assert made.nfe == steps + 3  # at ts[3], ts[4], ts[5]
    assert "interval=" in made.settings["guidance"]
    assert guided(sampler, 2.0).sample(exact, 5, condition=1).nfe == 2 * steps
    assert guided(sampler, 1.0).sample(exact, 5, condition=1).nfe == steps


def test_the_rescaled_prediction_has_the_spread_of_the_conditional_one() -> None:
    exact = ExactModel(MIXTURE, VPSDE())
    t = torch.tensor(0.4, dtype=torch.float64)
    x = states(exact.sde, t)
    plain, full = ClassifierFree(exact, 4.0).raw(x, t, LABELS), ClassifierFree(exact, 4.0, rescale=1.0)
    given, made = exact.raw(x, t, LABELS), full.raw(x, t, LABELS)
    torch.testing.assert_close(made.std(1), given.std(1), rtol=1e-12, atol=0)
    half = ClassifierFree(exact, 4.0, rescale=0.5).raw(x, t, LABELS)
    torch.testing.assert_close(half, (plain + made) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_autoguidance_goes_away_from_the_weaker_model(sde: ForwardSDE) -> None:
    """Of two Gaussians the guided score is that of a Gaussian: precisions and pulls add with w and 1 - w."""
    strong, weak = Gaussian([0.0, 0.0], 0.25), Gaussian([0.1, 0.1], 1.0)
    model = AutoGuided(ExactModel(strong, sde), ExactModel(weak, sde), 2.0)
    for share in (0.05, 0.5):
        t = torch.tensor(share * sde.T, dtype=torch.float64)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        wanted = -2 * x / (0.25 * alpha**2 + sigma**2) + (x - 0.1 * alpha) / (alpha**2 + sigma**2)
        torch.testing.assert_close(model.score(x, t), wanted, rtol=1e-10, atol=1e-10)


class As(Wrapper):
    """A model that puts out another prediction."""

    def __init__(self, model: ExactModel, predicts: str) -> None:
        super().__init__(model)
        self._predicts = predicts

    @property
    def predicts(self) -> str:
        return self._predicts

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        a, b = prediction_coefficients(self._predicts, alpha, sigma, self.data_std)
        return a * self.model.denoise(x_t, t, condition) + b * self.model.noise(x_t, t, condition)


@pytest.mark.parametrize("one", ["noise", "data", "velocity", "edm", "score"])
@pytest.mark.parametrize("other", ["noise", "data", "velocity", "edm", "score"])
def test_a_weaker_model_may_put_out_another_prediction(one: str, other: str) -> None:
    exact, t = ExactModel(RING, VPSDE()), torch.tensor(0.3, dtype=torch.float64)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = AutoGuided(As(exact, one), As(exact, other), 5.0)
    torch.testing.assert_close(same.score(x, t), exact.score(x, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_guided_samples_do_not_depend_on_the_batch(sde: ForwardSDE, sampler: Sampler) -> None:
    exact = ExactModel(MIXTURE, sde)
    one = guided(sampler, 2.0, interval=(0.05, 3.0))
    whole = one.sample(exact, 7, condition=LABELS, seed=3)
    split = one.sample(exact, 7, condition=LABELS, seed=3, batch_size=3)
    assert torch.equal(whole.x, split.x)
    assert bool(whole.x.isfinite().all())


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_noise_levels_of_a_time_do_not_depend_on_the_other_times(sde: ForwardSDE) -> None:
    t = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sde.T
    for function in (sde.alpha, sde.sigma, sde.nsr, sde.f, sde.g_squared, sde.noise_rate):
        whole = function(t)
        for i in range(0, 60, 3):
            assert torch.equal(function(t[i : i + 3]), whole[i : i + 3])


def test_evaluations_of_a_weaker_model_count() -> None:
    exact = ExactModel(RING, VPSDE())
    sampler = guided(samplers.ddim(5), 2.0, weak=ExactModel(Gaussian([0.0, 0.0], 1.0), VPSDE()))
    assert sampler.sample(exact, 3).nfe == 12
    assert sampler.sample(exact, 3, condition=1).nfe == 12


def test_networks_of_vectors_find_both_predictions_in_one_call() -> None:
    network = MLP((2,), width=8, depth=1, condition_shape=(3,))
    nn.init.normal_(network.last.weight, generator=torch.Generator().manual_seed(1))
    model, rows = NetworkModel(network, VPSDE(), "noise", (2,)), torch.linspace(-1, 1, 12).reshape(4, 3)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    x, t = torch.linspace(-1, 1, 8).reshape(4, 2), torch.tensor(0.5)
    made = ClassifierFree(model, 3.0).raw(x, t, rows)
    assert len(calls) == 1
    free, given = model.raw(x, t), model.raw(x, t, rows)
    torch.testing.assert_close(made, free + 3 * (given - free), rtol=1e-4, atol=1e-5)


def test_guidance_and_thresholds_go_together() -> None:
    limit = guidance.StaticThreshold(0.3)
    exact = ExactModel(RING, VPSDE())
    both = guidance.thresholded(guided(samplers.ddim(5), 3.0), limit)
    assert float(both.sample(exact, 9, condition=1).x.abs().max()) <= 0.3
    again = guided(guided(samplers.ddim(5), 3.0), 2.0)
    assert again.guidance == guided(samplers.ddim(5), 2.0).guidance


def test_numbers_that_cannot_guide_are_refused() -> None:
    exact = ExactModel(RING, VPSDE())
    for interval in ((1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="interval must be two noise-to-signal ratios"):
            guided(samplers.ddim(3), 2.0, interval=interval)
    with pytest.raises(ValueError, match=r"rescale must lie in \[0, 1\]"):
        guided(samplers.ddim(3), 2.0, rescale=1.5)
    line = ExactModel(Gaussian([0.0], 1.0), VPSDE())
    with pytest.raises(ValueError, match="rescale needs samples of at least two elements"):
        AutoGuided(line, line, 2.0, rescale=0.5)
    with pytest.raises(ValueError, match="weak must be a model of samples"):
        AutoGuided(exact, ExactModel(RING, VESDE()), 2.0)
