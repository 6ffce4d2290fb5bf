"""What a run leaves behind, and what it says when samples fail: modes, global state of torch, indices."""

import pytest
import torch
from torch import nn

from sde_toolkit import samplers
from sde_toolkit.likelihood import (
    Endpoint,
    FlowSolver,
    differentiable_log_likelihood,
    encode,
    log_likelihood,
)
from sde_toolkit.models import ExactModel, Gaussian, Moments, NetworkModel
from sde_toolkit.sdes import VPSDE
from solvers import Normals, SolverError

GAUSSIAN = Gaussian(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)

    def forward(self, x, c):
        return self.linear(self.drop(self.norm(x)))


class Breaking(ExactModel):
    """Nan where the first feature is large."""

    def raw(self, x_t, t, condition=None):
        raw = super().raw(x_t, t, condition)
        return torch.where(x_t[:, :1] > 1.5, torch.nan, raw)


def noisy_model() -> NetworkModel:
    return NetworkModel(Noisy(), VPSDE(), "noise", (2,), moments=Moments(torch.zeros(2), GAUSSIAN.covariance))


def all_samplers(model):
    return [
        samplers.default(model, 5),
        samplers.ddim(5),
        samplers.dopri5(rtol=1e-2, atol=1e-2),
        samplers.euler_maruyama(5),
        samplers.predictor_corrector(samplers.reverse_diffusion(4)),
    ]


def test_networks_answer_in_evaluation_mode_and_keep_their_mode():
    model = noisy_model()
    model.network.norm.eval()
    for sampler in all_samplers(model):
        a, b = (sampler.sample(model, 4).x for _ in range(2))
        assert torch.equal(a, b)
    log_likelihood(model, torch.zeros(2, 2))
    network = model.network
    assert (network.training, network.norm.training, network.drop.training) == (True, False, True)
    assert float(network.norm.num_batches_tracked) == 0


def test_the_mode_is_put_back_after_an_error():
    model = noisy_model()
    with torch.no_grad():
        model.network.linear.bias.fill_(torch.nan)
    with pytest.raises(SolverError):
        samplers.ddim(5).sample(model, 3)
    assert model.network.training
    assert model.network.drop.training


@pytest.mark.parametrize("make", [samplers.euler_maruyama(10), samplers.adaptive_sde(rtol=0.1, atol=0.1)])
def test_good_samples_are_kept_and_failed_ones_told_by_their_global_index(make):
    model = Breaking(GAUSSIAN, VPSDE())
    found = make.sample(model, 12, throw=False, batch_size=5, first_sample=100)
    assert 0 < len(found.failed) < 12
    assert set(found.failed.values()) == {"NONFINITE"}
    assert set(found.failed) < set(range(100, 112))
    assert f"{len(found.failed)} failed" in repr(found)
    with pytest.raises(SolverError, match=r"samples? 10\d") as error:
        make.sample(model, 12, batch_size=5, first_sample=100)
    assert set(error.value.samples) <= set(found.failed)
    assert VPSDE().T >= error.value.t >= make.t_min


def test_the_limit_of_steps_is_an_option_and_its_failure_tells_the_cost():
    model = ExactModel(GAUSSIAN, VPSDE())
    sampler = samplers.dopri5(max_steps=2)
    assert sampler.settings["max_steps"] == 2
    with pytest.raises(SolverError, match="max_steps was reached after 14 evaluations"):
        sampler.sample(model, 3)
    assert set(sampler.sample(model, 3, throw=False).failed.values()) == {"MAX_STEPS"}


def test_failures_of_likelihoods_and_latents_tell_times_of_the_process_and_indices_of_all_samples():
    model = Breaking(GAUSSIAN, VPSDE())
    x = torch.zeros(6, 2, dtype=torch.float64)
    x[4, 0] = 3.0
    runs = [
        lambda: log_likelihood(model, x, first_sample=100, batch_size=2, num_diagnostic_samples=0),
        lambda: encode(model, x, batch_size=2),
        lambda: differentiable_log_likelihood(model, x),
    ]
    for run, sample in zip(runs, (104, 4, 4), strict=True):
        with pytest.raises(SolverError, match=rf"NONFINITE: sample {sample} of \d failed at t = \d") as error:
            run()
        assert error.value.samples == (sample,)
        assert 0 < error.value.t < 1 - error.value.h


def test_the_limit_of_steps_of_a_flow_is_an_option_and_its_failure_tells_the_cost():
    model, x = ExactModel(GAUSSIAN, VPSDE()), torch.ones(3, 2, dtype=torch.float64)
    moments = Moments(torch.zeros(2), 9.0)
    options = {"solver": FlowSolver(max_steps=2), "endpoint": Endpoint(moments=moments)}
    with pytest.raises(SolverError, match="max_steps was reached after 14 evaluations"):
        log_likelihood(model, x, num_diagnostic_samples=0, **options)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        FlowSolver(max_steps=0)
    with pytest.raises(TypeError, match="method must be a Method or an Integrator, got 'dopri5'"):
        FlowSolver("dopri5")


class BreakingAtTheEnd(ExactModel):
    """Inf in the last evaluation of some samples."""

    def raw(self, x_t, t, condition=None):
        return torch.where((x_t[:, :1] > 0.5) & (t <= 0.001), torch.inf, super().raw(x_t, t, condition))


def test_a_clean_prediction_that_is_not_finite_is_a_failure():
    model = BreakingAtTheEnd(GAUSSIAN, VPSDE())
    found = samplers.ddim(5).sample(model, 8, throw=False)
    with pytest.raises(SolverError, match=r"NONFINITE: .* at t = 0.001") as error:
        samplers.ddim(5).sample(model, 8)
    assert 0 < len(found.failed) < 8
    assert error.value.samples == tuple(found.failed)


@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
)
def test_global_state_of_torch_changes_no_type_and_spoils_no_gradient(around):
    model = noisy_model()
    with around():
        exact = ExactModel(GAUSSIAN, VPSDE())
        for sampler in all_samplers(model):
            x = sampler.sample(model, 4).x
            assert x.dtype == torch.float32
            assert not x.is_inference()
        assert log_likelihood(model, torch.zeros(2, 2)).nats.dtype == torch.float64
        samplers.default(exact, 5).sample(exact, 3)
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    (exact.score(x, torch.tensor(0.5)).sum() + exact.moments.project(x).sum()).backward()
    model.score(torch.ones(4, 2, requires_grad=True), torch.tensor(0.5)).sum().backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m: samplers.ddim(5).sample("x", 3), "model must be a ScoreModel, got 'x'"),
        (lambda m: samplers.ddim(5).sample(m, "3"), "num_samples must be an integer >= 1, got '3'"),
        (lambda m: samplers.ddim(5).sample(m, 3, noise=3), "noise must be a NoiseSource, got 3"),
        (
            lambda m: samplers.ddim(5).sample(m, 3, noise=Normals(0, range(2), (2,), m.dtype, m.device)),
            r"noise must give normals of torch.float64 with shape \(3, 2\)",
        ),
        (lambda m: log_likelihood(m, x=torch.ones(2, 2).numpy()), "x must be a torch.Tensor, got a ndarray"),
        (lambda m: log_likelihood(m, torch.ones(2)), r"got \(2,\); for one sample use x\[None\]"),
        (lambda m: samplers.ddim(3, grid=beyond).sample(m, 2), r"grid beyond must fall from T = 1.0"),
        (lambda m: samplers.ddim(4, grid=beyond).sample(m, 2), r"must give num_steps \+ 1 = 5 times, got 4"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_a_run_is_named_before_any_evaluation(run, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run(ExactModel(GAUSSIAN, VPSDE()))


def beyond(sde, num_steps, t_min, t_max=None):
    return torch.linspace(2.0, 0.1, 4)


def test_pictures_with_channels_last_are_told_to_turn():
    model = ExactModel(Gaussian(torch.zeros(3, 4, 4), torch.ones(3, 4, 4)), VPSDE())
    with pytest.raises(ValueError, match=r"channels come first: use x.permute\(0, 3, 1, 2\)"):
        log_likelihood(model, torch.ones(2, 4, 4, 3, dtype=torch.float64))


def test_a_network_without_values_is_refused():
    model = NetworkModel(nn.Linear(2, 2, device="meta"), VPSDE(), "noise", (2,))
    with pytest.raises(ValueError, match="model must hold values, got one on the meta device"):
        samplers.ddim(3).sample(model, 2)
