"""Angles as points of the plane: bijection, log-determinant, every radius, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from sde_toolkit.data import Circles

DEGREES = Circles((1,), (360.0,), -180.0)


def table(count: int = 200) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([rng.normal(size=count), np.degrees(rng.vonmises(2.5, 1.2, count))], 1))


def test_rows_come_back_whatever_the_radius_and_belong_to_their_seed():
    w = table()
    x = DEGREES.embed(w, 3)
    assert x.shape == (200, 3)
    torch.testing.assert_close(DEGREES.angles(x), w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(DEGREES.angles(x * torch.tensor([1.0, 7.0, 7.0])), w, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, DEGREES.embed(w, 3))
    assert not torch.equal(x, DEGREES.embed(w, 4))
    turned = w + torch.tensor([0.0, 360.0])
    torch.testing.assert_close(DEGREES.embed(turned, 3), x, rtol=1e-9, atol=1e-9)


def test_the_exact_law_of_the_plane_gives_the_law_of_the_angle_at_every_radius():
    """The plane's density is that of the map's Jacobian, by automatic differentiation."""
    law = stats.vonmises(1.2, loc=2.5)
    w = table(5)
    for radius in (0.7, 1.0, 1.3):
        for row in w:
            here = torch.tensor([math.radians(float(row[1])) + math.pi, radius], dtype=torch.float64)
            jacobian = torch.autograd.functional.jacobian(
                lambda v: torch.stack([v[1] * v[0].cos(), v[1] * v[0].sin()]), here
            )
            # of the angle in radians and of the radius, per unit of the plane
            known = law.logpdf(float(here[0]) - math.pi) + stats.lognorm(0.2).logpdf(radius)
            log_plane = known - float(jacobian.det().abs().log())
            x = torch.stack([row[0], radius * here[0].cos(), radius * here[0].sin()])[None]
            found = log_plane + float(DEGREES.log_det(x))
            truth = law.logpdf(math.radians(float(row[1]))) + math.log(math.pi / 180)
            assert found == pytest.approx(truth, abs=1e-9)


def test_a_uniform_angle_makes_the_plane_a_density_of_mass_one():
    def density(radius: float) -> float:
        x = torch.tensor([[radius, 0.0]], dtype=torch.float64)
        circle = Circles((0,), (1.0,))
        return 2 * math.pi * radius * math.exp(-float(circle.log_det(x)))  # log p(w) = 0

    assert integrate.quad(density, 1e-6, 5, limit=200)[0] == pytest.approx(1, abs=1e-6)


@given(
    period=st.floats(1e-3, 1e6),
    low=st.floats(-1e3, 1e3),
    angle=st.floats(-1e3, 1e3),
    more=st.integers(0, 2),
)
def test_any_period_brings_angles_into_its_interval(period: float, low: float, angle: float, more: int):
    circle = Circles((0,), (period,), low)
    w = torch.tensor([[angle, *range(more)]], dtype=torch.float64)
    found = float(circle.angles(circle.embed(w))[0, 0])
    assert low <= found <= low + period
    apart = (found - angle) / period
    assert abs(apart - round(apart)) < 1e-6 * (1 + 1e3 / period)


def test_angles_without_meaning_are_refused_in_a_sentence():
    for columns, periods, said in (
        ((), (), "columns must be numbers of columns"),
        ((1, 1), (1.0, 2.0), "each once"),
        ((1,), (0.0,), "periods must be 1 positive"),
        ((1,), (1.0, 2.0), "periods must be 1 positive"),
        ((1,), (math.nan,), "periods must be 1 positive"),
    ):
        with pytest.raises(ValueError, match=said):
            Circles(columns, periods)
    with pytest.raises(ValueError, match="low must be a finite"):
        Circles((0,), (1.0,), math.inf)
    for bad in (torch.zeros(3), torch.zeros(3, 1), torch.full((3, 2), math.nan)):
        with pytest.raises(ValueError, match="w must be finite with shape"):
            DEGREES.embed(bad)
    with pytest.raises(ValueError, match="x must be floating point with shape"):
        DEGREES.log_det(torch.zeros(3, 2))
