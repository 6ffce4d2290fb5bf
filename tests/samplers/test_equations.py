"""Reverse equations: one flow in every prediction, conversions as numbers, integrals of polynomials."""

import itertools

import pytest
import torch
from problems import MIXTURE, SDES

from sde_toolkit import samplers
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.score import COMBINATIONS, ScoreModel, conversion
from sde_toolkit.samplers.equations import (
    SEMILINEAR,
    ReverseSteps,
    in_angle,
    in_lam,
    in_nsr,
    in_time,
    reverse_family,
    scheme,
    semilinear,
)
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import Stream
from solvers import Adams, ExponentialRungeKutta, FixedGrid, Normals, solve

FLOAT64 = torch.float64


@pytest.mark.parametrize("predicts", COMBINATIONS)
@pytest.mark.parametrize("wanted", ["noise", "data", "velocity", "score"])
def test_conversion_in_numbers_is_that_of_the_model(predicts, wanted):
    exact = ExactModel(MIXTURE, VPSDE())

    class Other(ScoreModel):
        """The same knowledge, put out as another prediction."""

        def __init__(self) -> None:
            self.sde, self.predicts, self.data_std = exact.sde, predicts, 0.7
            self.event_shape, self.dtype, self.device = exact.event_shape, exact.dtype, exact.device

        def raw(self, x_t, t, condition=None):
            if predicts != "edm":
                names = {"noise": "noise", "data": "denoise", "velocity": "velocity", "score": "score"}
                return getattr(exact, names[predicts])(x_t, t)
            alpha, nsr = self.sde.alpha(t), self.sde.nsr(t)
            norm = (nsr**2 + 0.49).sqrt()
            return (exact.denoise(x_t, t) - 0.49 / norm**2 * x_t / alpha) * norm / (0.7 * nsr)

    x, t = MIXTURE.sample(4, seed=1), torch.tensor(0.4, dtype=FLOAT64)
    model = Other()
    P, Q = conversion(predicts, wanted, model.sde.alpha(t), model.sde.sigma(t), 0.7)
    expected = {
        "noise": exact.noise,
        "data": exact.denoise,
        "velocity": exact.velocity,
        "score": exact.score,
    }[wanted](x, t)
    assert torch.allclose(P * x + Q * model.raw(x, t), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("sde", [SDES[name] for name in ("vp-linear", "sub-vp", "ve", "custom")], ids=str)
@pytest.mark.parametrize("predicts", SEMILINEAR)
def test_every_prediction_writes_the_same_flow(predicts, sde):
    model = ExactModel(MIXTURE, sde)
    t, s = (torch.tensor(u, dtype=FLOAT64) for u in (0.6, 0.3))
    x = sde.perturb(MIXTURE.sample(4, seed=1), t, Normals(0, 4, (8,)).draw(0))
    grid = FixedGrid(torch.linspace(0.6, 0.3, 65, dtype=FLOAT64))
    y = solve(semilinear(predicts)(model), x, ExponentialRungeKutta(3, sde.lam), grid).y
    exact = model.flow(x, t, s)
    assert (y - exact).abs().max() < 2e-5 * exact.abs().max()


@pytest.mark.parametrize("predicts", ["score", "noise", "data"])
def test_every_prediction_writes_the_same_sde(predicts):
    """One path: the same noise in small steps of first order."""
    model = ExactModel(MIXTURE, VPSDE())
    ts = torch.linspace(0.6, 0.5, 401, dtype=FLOAT64)
    x = MIXTURE.sample(2, seed=1)
    noise = Normals(0, 2, (8,))
    y = solve(semilinear(predicts, 0.7)(model), x, Adams(1), FixedGrid(ts), noise=noise).y
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        term = reverse_family(0.7)(model)
        x = x + (s - t) * term.drift(t, x) + (t - s).sqrt() * term.diffusion(t) * noise.draw(i)
    assert (y - x).abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("clock", [in_time, in_nsr, in_lam, in_angle])
@pytest.mark.parametrize("predicts", ["noise", "data", "velocity", "score"])
def test_adams_samplers_reach_the_flow_in_every_clock(clock, predicts):
    model = ExactModel(MIXTURE, VPSDE())
    z = Normals(0, 4, (8,)).draw(0, Stream.PRIOR)
    exact = model.flow(z, torch.tensor(1.0, dtype=FLOAT64), torch.tensor(0.1, dtype=FLOAT64))
    options = {"order": 2, "predicts": predicts, "clock": clock, "t_min": 0.1, "denoise": False}
    errors = [
        float((samplers.exponential_adams(n, **options).sample(model, 4).x - exact).square().mean().sqrt())
        for n in (200, 400)
    ]
    assert errors[1] < 0.3 * errors[0] < 1e-3


def test_noise_integrals_reach_zero_noise_in_finite_clocks():
    model = ExactModel(MIXTURE, VPSDE())
    z = Normals(0, 4, (8,)).draw(0, Stream.PRIOR)
    exact = model.flow(z, torch.tensor(1.0, dtype=FLOAT64), torch.tensor(0.0, dtype=FLOAT64))
    for clock in (in_time, in_nsr, in_angle):
        sampler = samplers.deis(300, degree=2, clock=clock, t_min=0.0, denoise=False)
        samples = sampler.sample(model, 4)
        assert samples.nfe == 300
        assert (samples.x - exact).abs().max() < 5e-3


def test_levels_are_those_of_the_process():
    model, seen = ExactModel(MIXTURE, VPSDE()), []

    def rule(k: ReverseSteps):
        if k.order == 2:
            seen.append(k)
        return k.x

    sampler = samplers.dpm_solver_pp(4, denoise=False)
    equation = scheme(rule, "data")(model)
    grid = FixedGrid([1.0, 0.7, 0.5, 0.2])
    solve(equation, torch.zeros(1, 8, dtype=FLOAT64), sampler.method, grid)
    (k,) = seen
    assert k.t.time.tolist() == [0.7, 0.5]
    assert k.s.time.tolist() == [0.5, 0.2]
    assert k.past[0].time.tolist() == [1.0, 0.7]
    assert torch.allclose(k.t.lam, (k.t.alpha / k.t.sigma).log(), rtol=1e-14)
    assert torch.equal(k.h, k.s.lam - k.t.lam)
    assert torch.allclose(k.at_nsr(k.t.nsr).time, k.t.time, rtol=1e-12)
    assert torch.allclose(k.at_lam(k.t.lam).time, k.t.time, rtol=1e-12)


def test_bad_equations_are_refused():
    with pytest.raises(ValueError, match="predicts must be one of score, noise, data, velocity"):
        semilinear("x0")
    with pytest.raises(ValueError, match="eta must be 0"):
        semilinear("velocity", 0.5)
    with pytest.raises(ValueError, match="eta must be a finite number >= 0"):
        reverse_family(-0.1)
