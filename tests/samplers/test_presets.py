"""Every preset: its whole output law on Gaussian data, independence of the batch, no waiting, refusals."""

import math

import numpy as np
import pytest
import scalar_samplers as ref
import torch
from problems import SDES, RowByRow
from scalar_time_samplers import exponential_integrator, in_time
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.preset_orders import MAKERS, SCALAR, SamplerImpulses, response
from sde_toolkit import guidance, samplers
from sde_toolkit.models import ScoreModel, Wrapper
from sde_toolkit.models.exact import ExactModel, Gaussian, GaussianMixture
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.correctors import AnnealedLangevin, Langevin
from sde_toolkit.sdes import VESDE, VPSDE, SubVPSDE
from sde_toolkit.utils import Stream
from solvers import DOPRI5, EULER, SHARK, SRA1, Normals
from solvers.reference import TorchSDE

FLOAT64 = torch.float64
IMAGES = GaussianMixture(
    weights=[0.4, 0.6],
    means=[[[[0.3, -0.2], [0.1, 0.6]]], [[[-0.5, 0.2], [0.4, -0.3]]]],
    covariances=[0.05, 0.1],
)

BOX = {
    "ddim": ref.ddim(0.0),
    "ddim, eta 1/2": ref.ddim(0.5),
    "ancestral": ref.ddim(1.0),
    "ddpm small": ref.ddpm(large=False),
    "ddpm large": ref.ddpm(large=True),
    "reverse_diffusion": ref.reverse_diffusion,
    "euler": in_time(0.0, 1),
    "euler_maruyama": in_time(1.0, 1),
    "eta_family": in_time(1.0, 1),
    "eta_family, eta 1/2": in_time(0.5, 1),
    "heun": in_time(0.0, 2, w=(0, 0), area=(0, 0), b=(0.5, 0.5)),
    "stochastic_heun": in_time(1.0, 2, w=(0, 1), area=(0, 0), b=(0.5, 0.5)),
    "sra1": in_time(1.0, 2, c=3 / 4, w=(0, 3 / 4), area=(0, 3 / 2), b=(1 / 3, 2 / 3)),
    "shark": in_time(1.0, 2, c=5 / 6, w=(0, 5 / 6), area=(1, 1), b=(2 / 5, 3 / 5)),
    "sosra": in_time(
        1.0,
        3,
        c=0.6923962376159507,
        w=(0, 0.6685816352199881, 1.6528225992912733),
        area=(0, 1.3371632704399763, 3.3056451985825466),
        b=(0.2889874966892885, 0.6859880440839937, 0.025024459226717772),
        third=(-3.1609142252828395, 4.1609142252828395),
    ),
    "exponential_integrator": exponential_integrator(1.0),
    "exponential_integrator, eta 0": exponential_integrator(0.0),
    **{f"dpm_solver {k}": ref.dpm_solver(k) for k in (1, 2, 3)},
    **{f"dpm_solver_pp {k}M": ref.dpm_solver_pp(k) for k in (1, 2, 3)},
    "dpm_solver_pp_2s": ref.dpm_solver_pp_2s,
    **{f"deis tAB{k}": ref.adams(k + 1, "time") for k in range(4)},
    "deis log-rho 2": ref.adams(3, "lam"),
    "deis rhoAB 2": ref.adams(3, "nsr"),
    "lms 2": ref.adams(2, "nsr"),
    "lms 4": ref.adams(4, "nsr"),
    "exponential_adams noise": ref.adams(2, "lam"),
    "exponential_adams score": ref.score_adams(2),
    "exponential_adams data": ref.adams(3, "lam", tau=0.0),
    "exponential_adams velocity": ref.velocity_adams(3),
    "edm": ref.rho_rk([[], [1]], [0.5, 0.5], [0, 1]),
    "edm churn": ref.churned(0.5),
    "deis_rho_rk heun": ref.rho_rk([[], [1]], [0.5, 0.5], [0, 1]),
    "deis_rho_rk kutta3": ref.rho_rk([[], [0.5], [-1, 2]], [1 / 6, 2 / 3, 1 / 6], [0, 0.5, 1]),
    "deis_rho_rk rk4": ref.rho_rk(
        [[], [0.5], [0, 0.5], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0, 0.5, 0.5, 1]
    ),
    "ipndm": ref.ipndm,
    "pndm": ref.pndm,
    "s-pndm": ref.spndm,
    "unip 1": ref.unipc(1, math.expm1, data=True, corrector=False),
    "unip 2 B1": ref.unipc(2, lambda h: h, data=True, corrector=False),
    "unip 3": ref.unipc(3, math.expm1, data=True, corrector=False),
    "unipc 1": ref.unipc(1, math.expm1, data=True, corrector=True),
    "unipc 2 B1 noise": ref.unipc(2, lambda h: h, data=False, corrector=True),
    "unipc 2": ref.unipc(2, math.expm1, data=True, corrector=True),
    "unipc 3": ref.unipc(3, math.expm1, data=True, corrector=True),
    "sa_solver 3 + 3, tau 0": ref.adams(3, "lam", tau=0.0, corrector=3),
    "sa_solver 1 + 0": ref.adams(1, "lam", tau=1.0),
    "sa_solver 2 + 1": ref.adams(2, "lam", tau=1.0, corrector=1),
    "sa_solver 3 + 3": ref.adams(3, "lam", tau=1.0, corrector=3),
    "sa_solver released, tau 1/2": ref.adams(2, "lam", tau=0.5, corrector=1, released=True),
    "dpm_solver_pp 2M heun": ref.dpm_multistep(2, noise=False, eta=0.0, heun=True),
    "multistep_dpm_solver 2M": ref.dpm_multistep(2, noise=True, eta=0.0),
    "multistep_dpm_solver 3M heun": ref.dpm_multistep(3, noise=True, eta=0.0, heun=True),
    "sde_dpm_solver 1": ref.dpm_multistep(1, noise=True, eta=1.0),
    "sde_dpm_solver 2M": ref.dpm_multistep(2, noise=True, eta=1.0),
    "sde_dpm_solver_pp 1": ref.dpm_multistep(1, noise=False, eta=1.0),
    "sde_dpm_solver_pp 2M": ref.dpm_multistep(2, noise=False, eta=1.0),
    "sde_dpm_solver_pp 3M": ref.dpm_multistep(3, noise=False, eta=1.0),
    **{f"er_sde {k}": ref.er_sde(k) for k in (1, 2, 3)},
}
"""The papers' boxes."""


def test_every_preset_is_compared_with_its_box():
    assert set(MAKERS) == set(BOX)


ON_CUSTOM = ("ddim", "dpm_solver 3", "edm churn", "unipc 3", "sa_solver 3 + 3", "sra1")
"""Presets that are compared under a user's process too, whose levels are found by bisection."""
PAIRS = [(name, sde) for name in BOX for sde in SDES if sde != "custom" or name in ON_CUSTOM]


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_the_output_is_the_papers_combination_of_start_and_draws(name, process):
    """Hence the exact mean and variance of the output, for any number of samples."""
    sampler, sde = MAKERS[name](7, t_min=0.05, denoise=False), SDES[process]
    noise = SamplerImpulses(7, areas=True)
    x = sampler.sample(ExactModel(SCALAR, sde), noise.rows, noise=noise).x.flatten().numpy()
    ts = sampler.grid(sde, 7, 0.05)
    expected = float(sde.alpha(ts[-1])) * BOX[name](ref.Problem(sde, ts))
    found = np.concatenate([x[:1], x[1:] - x[0]])
    assert np.abs(found - expected).max() < 1e-9 * max(1, np.abs(expected).max())
    variance = (found[1:] ** 2).sum()
    assert variance == pytest.approx((expected[1:] ** 2).sum(), rel=1e-9)


WRAPPED = {
    "predictor-corrector": samplers.predictor_corrector(samplers.unipc(4)),
    "annealed": samplers.predictor_corrector(samplers.dpm_solver_pp(4), AnnealedLangevin(num_steps=2)),
    "restart": samplers.restarting(
        samplers.edm(4), samplers.Restart(0.3, 1.0, 2, 2), samplers.Restart(0.05, 0.2, 2, stream=5)
    ),
    "threshold": guidance.thresholded(samplers.ddim(4), guidance.DynamicThreshold(0.9, 0.5)),
    "bosh3": samplers.bosh3(rtol=1e-2, atol=1e-2),
    "adaptive_sde": samplers.adaptive_sde(rtol=0.1, atol=0.1),
}
EVERY = {name: make(4) for name, make in MAKERS.items()} | WRAPPED


@pytest.mark.parametrize("name", EVERY)
def test_samples_are_bit_equal_for_every_batch_size(name):
    sampler, model = EVERY[name], RowByRow(ExactModel(IMAGES, VPSDE()))
    whole = sampler.sample(model, 5, seed=5).x
    assert whole.shape == (5, 1, 2, 2)
    assert torch.equal(sampler.sample(model, 5, seed=5, batch_size=2).x, whole)
    assert torch.equal(sampler.sample(model, 1, seed=5, first_sample=3).x, whole[3:4])


@pytest.mark.parametrize("name", MAKERS)
def test_evaluations_are_as_declared_also_under_a_corrector(name):
    model = ExactModel(SCALAR, VPSDE())
    for sampler in (
        MAKERS[name](5),
        MAKERS[name](5, denoise=False),
        samplers.predictor_corrector(MAKERS[name](5), Langevin(num_steps=2)),
    ):
        assert sampler.sample(model, 2).nfe == sampler.nfe


class Waiting(TorchDispatchMode):
    """Refuses what would make the host wait for the device, once it is closed."""

    closed = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default")
        if self.closed and any(name in str(func) for name in waits):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class Closing(Wrapper):
    """A model that closes the gate at its evaluation ``first`` and opens it at ``last``."""

    def __init__(self, model: ScoreModel, gate: Waiting, first: int, last: int) -> None:
        super().__init__(model)
        self.gate, self.calls, self.window = gate, 0, range(first, last)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.gate.closed = self.calls in self.window
        return self.model.raw(x_t, t, condition)


FIXED = {name: sampler for name, sampler in EVERY.items() if sampler.nfe and name != "restart"}


@pytest.mark.parametrize("name", FIXED)
def test_nothing_waits_for_the_device_on_the_way(name):
    """From the second evaluation to the last one of the last step; only then is the result looked at."""
    sampler, gate = FIXED[name], Waiting()
    model = Closing(ExactModel(IMAGES, VPSDE()), gate, 2, sampler.nfe - 1)
    source = Normals(0, 3, model.event_shape)
    for i in range(12):
        source.draw(i)
    with gate:
        sampler.sample(model, 3, noise=source)
    assert model.calls == sampler.nfe


def test_the_gate_notices_a_model_that_waits():
    class Impatient(Closing):
        def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            out = super().raw(x_t, t)
            return out * float(out.isfinite().all())

    gate = Waiting()
    model = Impatient(ExactModel(IMAGES, VPSDE()), gate, 2, 5)
    with gate, pytest.raises(AssertionError, match="waits for the device"):
        samplers.ddim(5).sample(model, 3)


@pytest.mark.parametrize("name", FIXED)
def test_float32_follows_float64(name):
    results = []
    for dtype in (torch.float64, torch.float32):
        model = ExactModel(IMAGES, VPSDE(), dtype=dtype)
        results.append(FIXED[name].sample(model, 4, seed=1).x)
    assert results[1].dtype == torch.float32
    assert (results[0] - results[1]).abs().max() < 1e-3


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=["vp", "sub-vp", "ve"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_predictor_takes_a_corrector_under_every_process_on_vectors(name, sde):
    model = ExactModel(Gaussian([0.1, 0.2, 0.3], 0.25), sde)
    samples = samplers.predictor_corrector(MAKERS[name](4), AnnealedLangevin(0.2)).sample(model, 3)
    assert samples.x.shape == (3, 3)
    assert samples.settings["corrector"] == "AnnealedLangevin(snr=0.2, num_steps=1)"


@pytest.mark.parametrize("make", [samplers.dpm_solver_pp, samplers.unipc, samplers.deis, samplers.sa_solver,
                                  samplers.er_sde, samplers.sde_dpm_solver_pp,
                                  samplers.multistep_dpm_solver])  # fmt: skip
def test_a_step_to_zero_noise_needs_the_lower_final_orders(make):
    model = ExactModel(SCALAR, VPSDE())
    grid = grids.Explicit([1.0, 0.7, 0.4, 0.2, 0.1, 0.0])
    options = {"grid": grid, "t_min": 0.0, "denoise": False}
    if make is not samplers.deis:  # polynomials in t have no infinite node
        with pytest.raises(ValueError, match="infinite coefficients"):
            make(5, **options).sample(model, 2)
    samples = make(5, lower_final=True, **options).sample(model, 400, seed=0)
    assert samples.nfe == 5
    assert samples.x.std() == pytest.approx(0.5, abs=0.2)


def test_final_denoising_is_one_more_step_of_first_order_to_zero_noise():
    model = ExactModel(IMAGES, VPSDE())
    ts = grids.log_snr(model.sde, 6, 0.01)
    denoised = samplers.dpm_solver_pp(6, t_min=0.01, denoise=True).sample(model, 4).x
    grid = grids.Explicit([*ts.tolist(), 0.0])
    # the last step of the longer grid has one node
    last = samplers.dpm_solver_pp(7, order=1, grid=grid, t_min=0.0, denoise=False)
    first = samplers.dpm_solver_pp(6, order=1, t_min=0.01).sample(model, 4).x
    assert torch.allclose(last.sample(model, 4).x, first, rtol=1e-12, atol=1e-12)
    assert denoised.shape == first.shape


def test_edm_ends_at_zero_noise_with_eulers_step():
    model = ExactModel(SCALAR, VPSDE())
    for churn in (0.0, 2.0):
        sampler = samplers.edm(6, s_churn=churn, t_min=0.0, denoise=False)
        assert sampler.sample(model, 3).nfe == 11  # 2 N - 1, as in the paper


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.dpm_solver(5, order=4), "order must be 1, 2 or 3, got 4"),
        (lambda: samplers.dpm_solver_pp(5, order=0), "order must be an integer from 1 to 3, got 0"),
        (lambda: samplers.deis(5, degree=4), "degree must be an integer from 0 to 3, got 4"),
        (lambda: samplers.lms(5, order=5), "order must be an integer from 1 to 4"),
        (lambda: samplers.unipc(5, predicts="velocity"), "noise or data predictions, got 'velocity'"),
        (lambda: samplers.exponential_adams(5, predicts="x0"), "predicts must be noise, data, velocity"),
        (lambda: samplers.sde_dpm_solver(5, order=3), "order must be an integer from 1 to 2, got 3"),
        (lambda: samplers.dpm_solver_pp(5, form="ralston"), "form must be"),
        (lambda: samplers.dpm_solver_pp(5, lower_final=(0,)), "numbers of nodes from 1"),
        (lambda: samplers.sa_solver(5, predictor_steps=5), "predictor_steps must lie in 1 to 4"),
        (lambda: samplers.sa_solver(5, tau=-1.0), "tau must be a finite number >= 0"),
        (lambda: samplers.er_sde(5, order=0), "order must be 1, 2 or 3, got 0"),
        (lambda: samplers.edm(5, s_churn=-1.0), "churn needs s_churn >= 0"),
        (lambda: samplers.ddpm(5, variance="medium"), "variance must be one of small, large"),
        (lambda: samplers.eta_family(5, eta=-1.0), "eta must be a finite number >= 0"),
        (lambda: samplers.adaptive_sde(eta=0.0), "eta of an adaptive SDE must be positive"),
        (lambda: samplers.adaptive(EULER), "has no error estimate"),
        (lambda: samplers.restarting(samplers.ancestral(5), samplers.Restart(0.1, 1.0)), "deterministic"),
        (
            lambda: samplers.restarting(samplers.edm(5, s_churn=1.0), samplers.Restart(0.1, 1.0)),
            "deterministic",
        ),
        (lambda: samplers.restarting(samplers.dopri5(), samplers.Restart(0.1, 1.0)), "fixed grid"),
        (lambda: samplers.restarting(samplers.edm(5)), "at least one restart"),
        (lambda: samplers.Restart(1.0, 0.1), "0 < nsr_min < nsr_max"),
        (lambda: samplers.Restart(0.1, 1.0, num_steps=0), "must be >= 1"),
        (lambda: guidance.StaticThreshold(0.0), "limit must be a finite positive number"),
        (lambda: guidance.DynamicThreshold(0.0), r"quantile must lie in \(0, 1\]"),
    ],
)
def test_bad_options_are_refused_when_the_sampler_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_combinations_are_refused_before_any_evaluation():
    class Silent(RowByRow):
        def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            raise AssertionError("the model was evaluated")

    model = Silent(ExactModel(SCALAR, VPSDE()))
    far = samplers.restarting(samplers.edm(5), samplers.Restart(0.1, 1e4))
    with pytest.raises(ValueError, match="nsr_max of a restart must be at most that at T"):
        far.sample(model, 2)
    with pytest.raises(ValueError, match="a callback needs a fixed grid"):
        samplers.dopri5().sample(model, 2, callback=print)
    with pytest.raises(ValueError, match="sigma = 0"):
        samplers.deis_rho_rk(5, t_min=0.0, denoise=False).sample(model, 2)


def test_callbacks_see_every_step_with_state_and_clean_prediction():
    model, seen = ExactModel(IMAGES, VPSDE()), []
    sampler = samplers.unipc(5)
    quiet = sampler.sample(model, 5, seed=2, batch_size=3)
    watched = sampler.sample(model, 5, seed=2, batch_size=3, callback=seen.append)
    assert torch.equal(watched.x, quiet.x)
    assert watched.nfe == quiet.nfe == 6  # looking costs nothing, for methods that evaluate ahead neither
    assert [(info.number, info.num_steps, info.first_sample) for info in seen] == [
        (i, 5, first) for first in (0, 3) for i in range(5)
    ]
    assert [info.nfe for info in seen[:5]] == [2, 3, 4, 5, 5]
    last = seen[4]
    assert last.x.shape == last.x0_hat.shape == (3, 1, 2, 2)
    assert float(last.s) == sampler.t_min
    assert torch.equal(model.denoise(last.x, last.s), watched.x[:3])
    assert (seen[3].x0_hat - watched.x[:3]).abs().max() < (seen[0].x0_hat - watched.x[:3]).abs().max()


def test_clean_predictions_of_a_callback_are_those_the_step_was_made_with():
    model, seen = ExactModel(IMAGES, VPSDE()), []
    samplers.ddim(3).sample(model, 2, callback=seen.append)
    assert torch.allclose(seen[1].x0_hat, model.denoise(seen[0].x, seen[0].s), rtol=1e-10, atol=1e-12)


def test_thresholds_keep_clean_predictions_in_range():
    wide = Gaussian(mean=torch.zeros(1, 2, 2), covariance=4.0)
    model = ExactModel(wide, VPSDE())
    for threshold in (guidance.StaticThreshold(0.8), guidance.DynamicThreshold(0.9, 0.8)):
        for sampler in (
            samplers.dpm_solver_pp(6),
            samplers.heun(6),
            samplers.ancestral(6),
            samplers.unipc(6),
        ):
            samples = guidance.thresholded(sampler, threshold).sample(model, 20)
            assert samples.x.abs().max() <= 0.8 + 1e-12
            assert "Threshold" in samples.settings["guidance"]
    x0_hat = torch.tensor([[0.1, -0.2, 3.0, 1.0], [0.1, 0.2, -0.3, 0.4]], dtype=FLOAT64)
    scaled = guidance.DynamicThreshold(1.0, 0.5)(x0_hat)
    assert torch.allclose(scaled[0], x0_hat[0] / 6)
    assert torch.allclose(scaled[1], x0_hat[1])


def test_a_restart_contracts_the_errors_of_a_rough_start():
    """From a wrong law at T: the restarted sampler forgets more of it."""
    model = ExactModel(SCALAR, VPSDE())
    plain = samplers.edm(12)
    again = samplers.restarting(plain, samplers.Restart(0.1, 3.0, num_steps=12, repeats=4))
    assert again.nfe == 25 + 4 * 24
    source = Normals(0, 4000, (1,))

    class Shifted:
        def draw(self, index: int, stream: int = 0) -> Tensor:
            z = source.draw(index, stream)
            return z + 2.0 if stream == Stream.PRIOR else z

    errors = [abs(float(s.sample(model, 4000, noise=Shifted()).x.mean()) - 0.7) for s in (plain, again)]
    assert errors[0] > 0.5
    assert errors[1] < 0.1


def test_churn_keeps_the_law():
    model = ExactModel(SCALAR, VPSDE())
    base, start, draws, _ = response(samplers.edm(300, s_churn=20.0), model)
    assert base == pytest.approx(0.7, abs=1e-3)
    assert start**2 + float(draws.square().sum()) == pytest.approx(0.25, rel=5e-3)
    assert abs(start) < 0.01  # nothing of the start is left


@pytest.mark.parametrize("method", [SRA1, SHARK], ids=lambda m: m.name)
def test_an_adaptive_sde_keeps_the_variance_after_rejections(method):
    """Redrawing after a rejection would raise the variance by tens of per cent here."""
    model = ExactModel(SCALAR, VPSDE())
    x = samplers.adaptive_sde(method=method, rtol=0.05, atol=0.05).sample(model, 2000, seed=3).x
    assert float(x.var()) == pytest.approx(0.25, abs=5 * 0.25 * math.sqrt(2 / 2000) + 0.005)


@pytest.mark.parametrize("name", ["euler", "srk", "heun"])
def test_torchsde_runs_on_the_reverse_sde_and_on_the_samplers_own_noise(name):
    model = ExactModel(SCALAR, VPSDE())
    sampler = samplers.torchsde_sampler(TorchSDE(name), 50)
    samples = sampler.sample(model, 500, seed=3)
    assert samples.nfe >= 51
    assert float(samples.x.mean()) == pytest.approx(0.7, abs=0.15)
    some = sampler.sample(model, 3, seed=3, first_sample=17, batch_size=2)
    assert torch.allclose(some.x, samples.x[17:20], rtol=0, atol=1e-12)
    assert not torch.allclose(sampler.sample(model, 3, seed=4).x, samples.x[:3])


def test_adaptive_presets_follow_the_flow():
    model = ExactModel(IMAGES, VPSDE())
    low = samplers.bosh3(rtol=1e-7, atol=1e-7).sample(model, 3)
    high = samplers.adaptive(DOPRI5, rtol=1e-8, atol=1e-8).sample(model, 3)
    assert torch.allclose(low.x, high.x, atol=1e-4)
    assert high.nfe < low.nfe


def test_grids_end_exactly_where_they_should():
    """No step length but that of the grid: one Euler-Maruyama step is h = t_min - T long."""
    model, t_min = ExactModel(SCALAR, VPSDE()), 0.25
    ts = grids.uniform(model.sde, 4, t_min)
    assert (float(ts[0]), float(ts[-1])) == (1.0, t_min)
    seen = []
    samplers.euler_maruyama(4, t_min=t_min).sample(model, 2, callback=seen.append)
    assert [float(info.t - info.s) for info in seen] == pytest.approx([0.1875] * 4, rel=1e-14)
    assert float(seen[-1].s) == t_min
