"""Encoding, decoding and interpolation by the flow."""

import math

import pytest
import torch
from problems import ALPHA, GAUSSIAN, MIXTURE, SDES
from scipy import stats

from sde_toolkit.likelihood import FlowSolver, decode, encode, interpolate
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.models.moments import isotropic
from sde_toolkit.sdes import VPSDE

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
