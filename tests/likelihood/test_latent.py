"""Encoding, decoding and interpolation by the flow."""

import math

import pytest
import torch
from problems import ALPHA, GAUSSIAN, MIXTURE, SDES
from scipy import stats

from sde_toolkit.guidance import ClassifierFree, LinearObservation, Observed
from sde_toolkit.likelihood import FlowSolver, decode, encode, interpolate, interpolate_data
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.moments import isotropic
from sde_toolkit.sdes import VESDE, VPSDE

FLOAT64 = torch.float64


@pytest.mark.parametrize("name", ["vp-linear", "sub-vp", "ve"])
def test_round_trip_and_closed_form(name):
    model = ExactModel(GAUSSIAN, SDES[name])
    x = GAUSSIAN.sample(6, seed=0)
    # a Gaussian's latent is x, whitened, at every time
    whitening = torch.linalg.inv(torch.linalg.cholesky(GAUSSIAN.covariance))
    for moments in (None, isotropic((3,), 0.7)):
        found = encode(model, x, moments=moments, solver=FlowSolver(rtol=1e-08, atol=1e-08))
        assert float(found.round_trip.max()) < 1e-6
        assert torch.allclose(
            decode(model, found.z, moments=moments, solver=FlowSolver(rtol=1e-08, atol=1e-08)), x, atol=1e-6
        )
    z = encode(model, x, round_trip=False, solver=FlowSolver(rtol=1e-08, atol=1e-08))
    assert z.round_trip is None
    if name != "ve":
        length = ((x - GAUSSIAN.mean) @ whitening.mT).square().sum(1)
        assert torch.allclose(z.z.square().sum(1), length, rtol=1e-4)


def test_latents_of_data_are_standard_normal():
    x, model = MIXTURE.sample(400, seed=1), ExactModel(MIXTURE, VPSDE())
    z = encode(model, x, round_trip=False, solver=FlowSolver(rtol=0.001, atol=0.001)).z.flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > ALPHA


def test_great_circles():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 1, 4, 4, generator=generator, dtype=FLOAT64) for _ in range(2))
    path = interpolate(a, b, [0.0, 0.25, 0.5, 1.0])
    assert path.shape == (4, 3, 1, 4, 4)
    assert torch.allclose(path[0], a)
    assert torch.allclose(path[-1], b)
    norms = path.flatten(2).norm(dim=2)
    assert torch.allclose(
        norms, torch.lerp(norms[0], norms[3], torch.tensor([0, 0.25, 0.5, 1.0])[:, None].double())
    )

    def angle(u, v):
        u, v = u.flatten(1), v.flatten(1)
        return torch.acos((u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)))

    assert torch.allclose(angle(path[0], path[1]), angle(a, b) / 4)


def test_straight_lines_where_there_is_no_circle():
    a = torch.tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]], dtype=FLOAT64)
    b = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [3.0, 0.0]], dtype=FLOAT64)
    middle = interpolate(a, b, [0.5])[0]
    assert torch.allclose(middle[:2], torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=FLOAT64))
    assert bool(middle.isfinite().all())
    assert math.isclose(float(interpolate(2 * a[:1], 4 * a[:1], [0.5])[0].norm()), 3 * math.sqrt(5))


def test_bad_arguments_are_refused():
    model = ExactModel(GAUSSIAN, VPSDE())
    with pytest.raises(ValueError, match="x must have shape"):
        encode(model, torch.zeros(2, 4, dtype=FLOAT64))
    with pytest.raises(ValueError, match="z must have the model's type"):
        decode(model, torch.zeros(2, 3))
    x = GAUSSIAN.sample(2, seed=0)
    with pytest.raises(ValueError, match="raise t_min"):
        encode(model, x, t_min=0.0)
    with pytest.raises(ValueError, match="t_min must lie in"):
        encode(model, x, t_min=2.0)
    with pytest.raises(ValueError, match="moments must have the event shape"):
        encode(model, x, moments=isotropic((2,)))
    with pytest.raises(ValueError, match="x must be finite"):
        encode(model, x * math.nan)
    with pytest.raises(ValueError, match="x must have shape"):
        encode(model, x[:0])
    with pytest.raises(ValueError, match="one shape"):
        interpolate(torch.zeros(2, 3), torch.zeros(3, 3), [0.5])


TIGHT = FlowSolver(rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("t_end", [None, 0.3])
@pytest.mark.parametrize("name", ["vp-linear", "ve"])
def test_data_are_interpolated_on_great_circles_of_a_whitened_gaussian(name, t_end):
    model = ExactModel(GAUSSIAN, SDES[name])
    a, b = GAUSSIAN.sample(3, seed=0), GAUSSIAN.sample(3, seed=1)
    weights = [0.0, 0.3, 1.0]
    t_min = 1e-4
    got = interpolate_data(model, a, b, weights, solver=TIGHT, t_end=t_end, t_min=t_min)
    levels = [sde_levels(model.sde, t) for t in (t_min, model.sde.T if t_end is None else t_end)]
    values, axes = torch.linalg.eigh(GAUSSIAN.covariance)
    # along its axes a state y of a Gaussian moves as its standard deviation (l + n^2)^(1/2)
    std = (values + levels[0][1] ** 2).sqrt()

    def white(x):
        return (x / levels[0][0] - GAUSSIAN.mean) @ axes / std

    turned = interpolate(white(a), white(b), weights)
    wanted = levels[0][0] * (GAUSSIAN.mean + (turned * std) @ axes.mT)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def sde_levels(sde, t):
    t = torch.tensor(t, dtype=FLOAT64)
    return float(sde.alpha(t)), float(sde.nsr(t))


def test_data_are_interpolated_under_a_class_and_an_observation():
    model = ExactModel(MIXTURE, VPSDE())
    a, b = MIXTURE.component(0).sample(2, seed=0), MIXTURE.component(0).sample(2, seed=1)
    given = interpolate_data(model, a, b, [0.5], condition=0, solver=TIGHT)
    alone = interpolate_data(model.given(0), a, b, [0.5], solver=TIGHT, moments=model.moments)
    torch.testing.assert_close(given, alone, rtol=1e-6, atol=1e-6)
    guided = interpolate_data(ClassifierFree(model, 1.0), a, b, [0.5], condition=0, solver=TIGHT)
    torch.testing.assert_close(guided, given)
    # Gaussian data that have y: so do all between them
    law = ExactModel(GAUSSIAN, VPSDE())
    seen = Observed(LinearObservation([[1.0, -0.5, 2.0]], 1e-3), torch.tensor([0.7], dtype=FLOAT64))
    ends = [law.posterior(seen).data.sample(2, seed=seed) for seed in (0, 1)]
    points = interpolate_data(seen.model(law), *ends, [0.25, 0.5], solver=FlowSolver(rtol=1e-4, atol=1e-5))
    y = points.flatten(0, 1) @ torch.tensor([1.0, -0.5, 2.0], dtype=FLOAT64)
    assert float((y - 0.7).abs().max()) < 5e-3


def test_a_decoder_gives_all_points_what_was_observed():
    """Of Gaussian data the exact posterior decodes in closed form: U (l_y^1/2 z) + m_y, with the data's z."""
    law = ExactModel(GAUSSIAN, VPSDE())
    seen = Observed(LinearObservation([[1.0, -0.5, 2.0]], 0.1), torch.tensor([0.7], dtype=FLOAT64))
    a, b = (GAUSSIAN.sample(2, seed=seed) for seed in (0, 1))
    weights = [0.0, 0.3, 1.0]
    exact = law.posterior(seen)
    got = interpolate_data(law, a, b, weights, solver=TIGHT, decoder=seen.model(law))
    z = interpolate(*(encode(law, x, solver=TIGHT).z for x in (a, b)), weights).flatten(0, 1)
    wanted = decode(exact, z, solver=TIGHT)
    torch.testing.assert_close(got.flatten(0, 1), wanted, rtol=1e-5, atol=1e-5)
    y = got.flatten(0, 1) @ torch.tensor([1.0, -0.5, 2.0], dtype=FLOAT64)
    assert float((y - 0.7).abs().max()) < 0.5  # five standard deviations of the noise
    with pytest.raises(ValueError, match="decoder must be of samples with shape"):
        interpolate_data(law, a, b, weights, decoder=ExactModel(GAUSSIAN, VESDE()))


def test_pairs_that_do_not_fit_are_refused():
    model = ExactModel(GAUSSIAN, VPSDE())
    x = GAUSSIAN.sample(3, seed=0)
    with pytest.raises(ValueError, match="x_a and x_b must be as many, got 3 and 2"):
        interpolate_data(model, x, x[:2], [0.5])
    with pytest.raises(ValueError, match="t_end must lie above t_min"):
        interpolate_data(model, x, x, [0.5], t_end=2.0)
