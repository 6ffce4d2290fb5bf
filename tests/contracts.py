"""What every forward process must satisfy.  A new one is tested by a subclass with its own ``sde``:

@pytest.mark.parametrize("sde", [MySDE()])
class TestMySDE(SDEContract): ...
"""

import math

import pytest
import torch
from torch import Tensor

from sde_toolkit.sdes import ForwardSDE

FUNCTIONS = ("alpha", "log_alpha", "sigma", "f", "g", "g_squared", "noise_rate", "nsr", "lam")
EVENT_SHAPES = ((1,), (5,), (3, 2), (1, 4, 4))


def inner_times(sde: ForwardSDE, count: int = 41) -> Tensor:
    """Times inside (0, T), crowded at both ends."""
    u = torch.linspace(0, 1, count + 2, dtype=torch.float64)[1:-1]
    return sde.T * 0.5 * (1 - torch.cos(math.pi * u))


def derivative(function, t: Tensor) -> Tensor:
    """Derivative of an elementwise function by reverse-mode differentiation."""
    t = t.clone().requires_grad_()
    return torch.autograd.grad(function(t).sum() + 0 * t.sum(), t)[0]


class SDEContract:
    """x_t = alpha x0 + sigma z is the solution of dx = f x dt + g dW, and the helpers agree with both."""

    def test_alpha_decays_at_rate_f(self, sde: ForwardSDE):
        t = inner_times(sde)
        torch.testing.assert_close(sde.f(t), derivative(sde.log_alpha, t), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sde.f(t) * sde.alpha(t), derivative(sde.alpha, t), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sde.log_alpha(t).exp(), sde.alpha(t), rtol=1e-14, atol=0)

    def test_variance_grows_by_g_squared(self, sde: ForwardSDE):
        t = inner_times(sde)
        variance = sde.sigma(t).square()
        growth = derivative(lambda u: sde.sigma(u).square(), t)
        scale = growth.abs() + 2 * (sde.f(t) * variance).abs()
        error = growth - 2 * sde.f(t) * variance - sde.g_squared(t)
        assert float((error / scale).abs().max()) < 1e-11
        assert bool((sde.g_squared(t) >= 0).all())
        torch.testing.assert_close(sde.g(t).square(), sde.g_squared(t), rtol=1e-14, atol=0)
        rate = derivative(sde.sigma, t) - sde.f(t) * sde.sigma(t)
        torch.testing.assert_close(sde.noise_rate(t), rate, rtol=1e-9, atol=1e-12)

    def test_noise_to_signal_ratio_is_the_clock(self, sde: ForwardSDE):
        t = torch.cat([t_end(sde, 0.0), inner_times(sde, 201), t_end(sde, 1.0)])
        nsr = sde.nsr(t)
        assert bool((nsr.diff() > 0).all())
        torch.testing.assert_close(nsr, sde.sigma(t) / sde.alpha(t), rtol=1e-13, atol=0)
        torch.testing.assert_close(
            sde.lam(t[1:]), (sde.alpha(t) / sde.sigma(t))[1:].log(), rtol=0, atol=1e-12
        )

    def test_inverse_of_the_ratio(self, sde: ForwardSDE):
        t = torch.cat([t_end(sde, 0.0), 1e-5 * t_end(sde, 1.0), inner_times(sde), t_end(sde, 1.0)])
        torch.testing.assert_close(sde.inverse_nsr(sde.nsr(t)), t, rtol=1e-11, atol=1e-13)
        grid = sde.nsr(t[1:13]).reshape(2, 2, 3)
        torch.testing.assert_close(sde.inverse_nsr(grid), t[1:13].reshape(2, 2, 3), rtol=1e-11, atol=1e-13)

    def test_noise_starts_small_and_ends_as_the_prior(self, sde: ForwardSDE):
        start, end = t_end(sde, 0.0), t_end(sde, 1.0)
        assert float(sde.alpha(start)) == 1
        assert 0 <= float(sde.sigma(start)) <= 0.01
        assert float(sde.sigma(end)) == pytest.approx(sde.prior_std, rel=1e-2)

    @pytest.mark.parametrize("event_shape", EVENT_SHAPES)
    def test_prior_is_the_normal_law_it_says(self, sde: ForwardSDE, event_shape: tuple[int, ...]):
        z = draw(3, event_shape)
        x = sde.prior_sample(z)
        normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), sde.prior_std)
        torch.testing.assert_close(x, z * sde.prior_std, rtol=0, atol=0)
        expected = normal.log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(sde.prior_log_prob(x), expected, rtol=1e-12, atol=1e-12)

    def test_functions_keep_the_shape_and_type_of_t(self, sde: ForwardSDE):
        t = inner_times(sde, 6)
        for name in FUNCTIONS:
            function = getattr(sde, name)
            values = function(t)
            assert values.shape == t.shape
            assert values.dtype == torch.float64
            singles = torch.stack([function(u) for u in t])
            torch.testing.assert_close(singles, values, rtol=1e-13, atol=1e-13)
            low = function(t.float())
            assert low.dtype == torch.float32
            torch.testing.assert_close(low.double(), values, rtol=2e-4, atol=2e-5)

    @pytest.mark.parametrize("event_shape", EVENT_SHAPES)
    def test_perturb_takes_one_time_or_one_per_sample(self, sde: ForwardSDE, event_shape: tuple[int, ...]):
        x0, z, t = draw(4, event_shape), draw(4, event_shape, seed=1), inner_times(sde, 4)
        each = torch.stack([sde.alpha(t[i]) * x0[i] + sde.sigma(t[i]) * z[i] for i in range(4)])
        torch.testing.assert_close(sde.perturb(x0, t, z), each, rtol=1e-13, atol=1e-13)
        alone = torch.cat([sde.perturb(x0[i : i + 1], t[i], z[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(alone, each, rtol=1e-13, atol=1e-13)

    def test_states_keep_their_type(self, sde: ForwardSDE):
        x0, z, t = draw(4, (3,)).float(), draw(4, (3,), seed=1).float(), inner_times(sde, 4)
        assert sde.perturb(x0, t, z).dtype == torch.float32
        assert sde.perturb(x0, t[0], z).dtype == torch.float32
        assert sde.prior_sample(z).dtype == torch.float32
        assert sde.prior_log_prob(x0).dtype == torch.float32

    def test_works_where_the_tensors_live(self, sde: ForwardSDE):
        t, x0 = inner_times(sde, 4).to("meta"), draw(4, (3, 2)).to("meta")
        for name in FUNCTIONS:
            assert getattr(sde, name)(t).device.type == "meta"
        assert sde.inverse_nsr(sde.nsr(t)).device.type == "meta"
        assert sde.perturb(x0, t, x0).shape == x0.shape
        assert sde.perturb(x0, inner_times(sde, 4)[0], x0).device.type == "meta"
        assert sde.prior_log_prob(sde.prior_sample(x0)).shape == (4,)


def t_end(sde: ForwardSDE, fraction: float) -> Tensor:
    """The time ``fraction`` T, with shape (1,)."""
    return torch.tensor([fraction * sde.T], dtype=torch.float64)


def draw(count: int, event_shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Standard normals with shape (count, *event_shape) from a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *event_shape, generator=generator, dtype=torch.float64)
