"""The default sampler: exact on Gaussians, of high order on mixtures, the same for every batch size."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import DIAGONAL, GAUSSIAN, MIXTURE, RING, SDES, RowByRow
from torch.utils._python_dispatch import TorchDispatchMode

from sde_toolkit import samplers
from sde_toolkit.metrics.distances import energy_distance
from sde_toolkit.models import known_moments
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.moments import Moments, isotropic
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.samplers.correctors import AnnealedLangevin
from sde_toolkit.samplers.gaussian.grid import CONSTANTS, ResidualGrid
from sde_toolkit.samplers.starts import start_state
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import Stream
from solvers import Normals


def exact_end(model: ExactModel, sampler: samplers.Sampler, seed: int, count: int) -> torch.Tensor:
    """Where the flow carries the sampler's own starts."""
    z = Normals(seed, count, model.event_shape, model.dtype).draw(0, Stream.PRIOR)
    T, t_min = (torch.tensor(t, dtype=torch.float64) for t in (model.sde.T, sampler.t_min))
    return model.flow(start_state(sampler.start, model, z, T), T, t_min)


def relative(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.parametrize("num_steps", [1, 2, 7, 40])
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("data", [GAUSSIAN, DIAGONAL], ids=["full", "diagonal"])
def test_gaussian_data_take_one_closed_form(data, name: str, num_steps: int) -> None:
    model = ExactModel(data, SDES[name])
    sampler = samplers.default(model, num_steps)
    samples = sampler.sample(model, 16, seed=1)
    assert relative(samples.x, exact_end(model, sampler, 1, 16)) < 1e-9
    assert samples.nfe == sampler.nfe == num_steps


@pytest.mark.parametrize("name", ["vp-linear", "ve"])
@pytest.mark.parametrize("data", [MIXTURE, RING], ids=["mixture", "ring"])
def test_the_error_falls_with_a_high_order(data, name: str) -> None:
    model = ExactModel(data, SDES[name])
    num_steps = [36, 54, 81, 120]
    errors = []
    for n in num_steps:
        sampler = samplers.default(model, n)
        error = sampler.sample(model, 32, seed=2).x - exact_end(model, sampler, 2, 32)
        errors.append(float(error.square().sum(1).sqrt().median()))
    slope = -np.polyfit(np.log(num_steps), np.log(errors), 1)[0]
    assert slope > sampler.order + 0.3
    assert errors[-1] < 3e-7


def test_few_steps_beat_the_multistep_methods_of_the_literature() -> None:
    model = ExactModel(RING, VPSDE())
    for num_steps, bound in ((5, 0.15), (10, 0.1), (20, 0.02)):
        ours = samplers.default(model, num_steps)
        exact = exact_end(model, ours, 0, 64)
        theirs = replace(samplers.dpm_solver_pp(num_steps, order=2), denoise=False)
        error, other = (
            relative(s.sample(model, 64, seed=0, start="moments").x, exact) for s in (ours, theirs)
        )
        assert error < bound * other


class Impulses:
    """A noise source for 3-D samples: row 0 gets zeros, every other row one unit impulse in one draw."""

    def __init__(self, num_draws: int) -> None:
        self.rows = 1 + 3 * (1 + num_draws)

    def draw(self, index: int, stream: int = 0) -> torch.Tensor:
        z = torch.zeros(self.rows, 3, dtype=torch.float64)
        first = 1 if stream == Stream.PRIOR else 4 + 3 * index
        z[first : first + 3] = torch.eye(3, dtype=torch.float64)
        return z


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_with_noise_gaussian_data_have_their_exact_law_at_any_step_count(name: str, eta: float) -> None:
    model = ExactModel(GAUSSIAN, SDES[name])
    sde, moments = model.sde, model.moments
    sampler = samplers.default(model, 3, eta=eta)
    source = Impulses(4)
    x = sampler.sample(model, source.rows, noise=source).x
    spread = x[1:] - x[0]
    T, t_min = (torch.tensor(t, dtype=torch.float64) for t in (sde.T, sampler.t_min))
    exact = sde.alpha(t_min) ** 2 * GAUSSIAN.covariance + sde.sigma(t_min) ** 2 * torch.eye(
        3, dtype=torch.float64
    )
    torch.testing.assert_close(x[0], sde.alpha(t_min) * moments.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(spread.T @ spread, exact, rtol=0, atol=1e-12)
    x = sampler.sample(model, source.rows, noise=source, start="prior").x
    spread = x[1:] - x[0]
    # the start is the prior's, which the data's marginal at T is not quite: what is left of it fades with rho
    v_T, v = (sde.alpha(t) ** 2 * moments.variances + sde.sigma(t) ** 2 for t in (T, t_min))
    rho = (v / sde.alpha(t_min) ** 2 / (v_T / sde.alpha(T) ** 2)) ** (eta**2 / 2)
    mean = sde.alpha(t_min) * moments.mean
    mean = (
        mean - moments.embed((v / v_T).sqrt() * rho * sde.alpha(T) * moments.project(moments.mean[None]))[0]
    )
    covariance = moments.axes @ (v * (1 - rho**2 + rho**2 * sde.prior_std**2 / v_T)).diag() @ moments.axes.T
    torch.testing.assert_close(x[0], mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(spread.T @ spread, covariance, rtol=0, atol=1e-9)
    assert (sampler.strong_order, sampler.nfe) == (1.0, 3)


@pytest.mark.slow
def test_with_noise_mixtures_keep_their_law() -> None:
    model = ExactModel(RING, VPSDE())
    num_samples = 4000
    for eta in (0.5, 1.0):
        x = samplers.default(model, 20, eta=eta).sample(model, num_samples, seed=7).x
        exact, other = RING.sample(num_samples, 8), RING.sample(num_samples, 9)
        coarse = samplers.default(model, 1, eta=eta).sample(model, num_samples, seed=7).x
        at_best, found, poor = (float(energy_distance(y, exact)) for y in (other, x, coarse))
        assert abs(found) < abs(at_best) + 2e-3
        assert poor > 2 * abs(found)


def test_coarser_moments_still_converge() -> None:
    model = ExactModel(GAUSSIAN, VPSDE())
    exact = exact_end(model, samplers.default(model, 1), 3, 16)
    # the last has a wrong mean as well, so that the residual dies out slowly where noise dominates
    for moments, bound in (
        (model.moments.diagonal(), 1e-4),
        (model.moments.scalar(), 1e-3),
        (isotropic((3,), 1.5), 2e-2),
    ):
        errors = [
            relative(sampler.sample(model, 16, seed=3, start="moments").x, exact)
            for sampler in (samplers.gaussian_residual(model, n, moments=moments) for n in (8, 32))
        ]
        assert errors[1] < bound
        assert errors[1] < errors[0] / 3


def test_a_model_without_moments_is_taken_as_isotropic() -> None:
    model = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "noise", (2,), data_std=0.7)
    assert known_moments(model).kind == "scalar"
    assert known_moments(model).std == pytest.approx(0.7)
    samples = samplers.default(model, 3).sample(model, 4)
    assert samples.x.shape == (4, 2)
    assert samples.settings["moments"] == "scalar"
    assert samples.settings["num_steps"] == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_do_not_depend_on_the_batch_size(dtype: torch.dtype, eta: float) -> None:
    model = RowByRow(ExactModel(MIXTURE, VPSDE(), dtype))
    sampler = samplers.default(model, 6, eta=eta)
    x = sampler.sample(model, 20, seed=4).x
    for batch_size in (1, 7, 64):
        assert torch.equal(sampler.sample(model, 20, seed=4, batch_size=batch_size).x, x)


def test_float32_agrees_with_float64() -> None:
    x64, x32 = (
        samplers.default(model, 12).sample(model, 32, seed=5).x.double()
        for model in (ExactModel(RING, VPSDE(), dtype) for dtype in (torch.float64, torch.float32))
    )
    # the normals of the two types are the same draws, rounded
    assert float((x64 - x32).abs().median()) < 1e-4


def test_a_state_that_something_else_moved_is_taken_as_it_is() -> None:
    model = ExactModel(GAUSSIAN, VPSDE())
    sampler = replace(samplers.default(model, 8), corrector=AnnealedLangevin(0.05, 1))
    x = sampler.sample(model, 4096, seed=6).x
    torch.testing.assert_close(x.mean(0), GAUSSIAN.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(x.T.cov(), GAUSSIAN.covariance, rtol=0, atol=0.15)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("num_steps", [2, 3, 30, 200])
def test_the_grid_has_exact_ends_and_falls(name: str, num_steps: int) -> None:
    sde = SDES[name]
    for std in (0.01, 1.0, 30.0):
        ts = ResidualGrid(isotropic((2,), std))(sde, num_steps, 1e-3)
        assert ts.shape == (num_steps + 1,)
        assert (float(ts[0]), float(ts[-1])) == (sde.T, 1e-3)
        assert bool((ts.diff() < 0).all())


def test_a_prepared_sampler_gives_the_same_samples_and_keeps_nothing() -> None:
    model = ExactModel(MIXTURE, VPSDE())
    for sampler in (samplers.default(model, 4), samplers.unipc(4), samplers.dopri5(rtol=1e-2, atol=1e-2)):
        prepared, before = sampler.prepare(model), dict(vars(sampler))
        whole = sampler.sample(model, 8, seed=1)
        assert torch.equal(prepared.sample(8, seed=1, batch_size=3).x, whole.x)
        assert torch.equal(prepared.sample(3, seed=1, first_sample=5).x, whole.x[5:])
        prepared.sampler.settings  # noqa: B018  a cached property
        assert set(vars(sampler)) - set(before) <= {"_settings"}


def test_a_callback_sees_every_step_the_first_without_a_prediction() -> None:
    model, seen = ExactModel(MIXTURE, VPSDE()), []
    sampler = samplers.default(model, 4)
    watched = sampler.sample(model, 3, callback=seen.append)
    assert torch.equal(watched.x, sampler.sample(model, 3).x)
    assert [info.nfe for info in seen] == [0, 1, 2, 3, 4]
    assert seen[0].x0_hat is None
    for info, later in pairwise(seen):
        torch.testing.assert_close(later.x0_hat, model.denoise(info.x, info.s), rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_is_refused() -> None:
    model = ExactModel(MIXTURE, VPSDE())
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        samplers.default(model, 0)
    with pytest.raises(ValueError, match=r"moments must have the event shape \(8,\), got \(2,\)"):
        samplers.gaussian_residual(model, 5, moments=isotropic((2,)))
    with pytest.raises(ValueError, match=r"event shape \(8,\).*make one with gaussian_residual"):
        samplers.default(model, 5).sample(ExactModel(GAUSSIAN, VPSDE()), 2)
    with pytest.raises(ValueError, match="eta must be a finite number >= 0, got -1"):
        samplers.default(model, 5, eta=-1.0)
    with pytest.raises(ValueError, match="num_steps must be at least 2"):
        ResidualGrid(isotropic((2,)))(VPSDE(), 1, 1e-3)
    assert CONSTANTS.nodes <= CONSTANTS.corrector_nodes
    assert Moments(MIXTURE.mean, MIXTURE.covariance).kind == "full"


class Waiting(TorchDispatchMode):
    """Refuses what would make the host wait for the device, once it is closed."""

    closed = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default")
        if self.closed and any(name in str(func) for name in waits):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_nothing_waits_for_the_device_on_the_way(eta: float) -> None:
    gate = Waiting()

    class Closing(RowByRow):
        calls = 0

        def raw(
            self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None
        ) -> torch.Tensor:
            self.calls += 1
            gate.closed = 1 < self.calls < 6
            return self.model.raw(x_t, t, condition)

    model = Closing(ExactModel(MIXTURE, VPSDE()))
    source = Normals(0, 3, model.event_shape)
    for i in range(12):
        source.draw(i)
    with gate:
        samplers.default(model, 6, eta=eta).sample(model, 3, noise=source)
    assert model.calls == 6


def test_a_grid_is_made_once_for_all_batches_and_all_runs_of_a_prepared_sampler() -> None:
    calls = []

    def grid(sde, num_steps: int, t_min: float, t_max: float | None = None) -> torch.Tensor:
        calls.append(num_steps)
        return torch.linspace(sde.T, t_min, num_steps + 1, dtype=torch.float64)

    model = ExactModel(MIXTURE, VPSDE())
    sampler = samplers.ddim(4, grid=grid)
    sampler.sample(model, 4, batch_size=2)
    assert calls == [4]
    prepared = sampler.prepare(model)
    for _ in range(2):
        prepared.sample(4)
    assert calls == [4, 4]
