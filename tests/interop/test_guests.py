import itertools

import pytest
import torch
from problems import GAUSSIAN, MIXTURE, RING
from scipy.integrate import solve_ivp
from torch import nn

from sde_toolkit.interop import as_azula_denoiser, as_k_denoiser, as_vector_field, from_denoiser
from sde_toolkit.models import ExactModel, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, RectifiedFlow, SubVPSDE
from solvers import expand_like

PROCESSES = [VPSDE(), VPSDE(CosineBeta()), SubVPSDE(), VESDE(), RectifiedFlow()]


def points(exact, count=16, seed=1):
    sde = exact.sde
    generator = torch.Generator().manual_seed(seed)
    t = sde.T * (0.02 + 0.96 * torch.rand(count, generator=generator, dtype=torch.float64))
    z = torch.randn(count, *exact.event_shape, generator=generator, dtype=torch.float64)
    return sde.perturb(exact.data.sample(count, seed=seed).double(), t, z), t


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_the_vector_field_is_the_rate_of_the_flow(sde):
    exact = ExactModel(MIXTURE, sde)
    x, t = points(exact)
    field = as_vector_field(exact)
    wanted = sde.probability_flow(exact).drift
    torch.testing.assert_close(field(t, x), wanted(t, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(field(float(t[0]), x), wanted(t[0], x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_another_solver_runs_the_vector_field_along_the_exact_flow(sde):
    exact = ExactModel(GAUSSIAN, sde)
    start, end = 0.75 * sde.T, 0.0625 * sde.T
    x = points(exact, 4)[0]
    field = as_vector_field(exact)

    def rate(t, y):
        return field(t, torch.from_numpy(y).reshape(x.shape)).numpy().ravel()

    found = solve_ivp(rate, (start, end), x.numpy().ravel(), rtol=1e-10, atol=1e-12)
    wanted = exact.flow(x, *torch.tensor([start, end], dtype=torch.float64))
    torch.testing.assert_close(
        torch.from_numpy(found.y[:, -1]).reshape(x.shape), wanted, rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_a_denoiser_goes_out_and_comes_back(sde):
    exact = ExactModel(MIXTURE, sde)
    x, t = points(exact)
    denoiser = as_k_denoiser(exact)
    sigma = sde.nsr(t)
    wanted = exact.denoise(x, t)
    y = x / expand_like(sde.alpha(t), x)
    torch.testing.assert_close(denoiser(y, sigma), wanted, rtol=1e-8, atol=1e-8)
    back = from_denoiser(denoiser, exact.event_shape, sde, dtype=torch.float64)
    for method in ("denoise", "noise", "score", "velocity"):
        found, exactly = getattr(back, method)(x, t), getattr(exact, method)(x, t)
        torch.testing.assert_close(found, exactly, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_an_euler_loop_over_the_denoiser_is_the_deterministic_step(sde):
    """k-diffusion's loop: x += (x - D) / sigma (sigma_next - sigma)."""
    exact = ExactModel(GAUSSIAN, sde)
    denoiser = as_k_denoiser(exact, t_min=1e-3)
    sigmas = denoiser.sigmas(12)
    assert sigmas.shape == (13,)
    assert float(sigmas[-1]) == 0
    assert float(sigmas[0]) == pytest.approx(denoiser.sigma_max)
    assert float(sigmas[-2]) == pytest.approx(denoiser.sigma_min)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = sigmas[0] * z
    for sigma, following in itertools.pairwise(sigmas):
        x = x + (x - denoiser(x, sigma.expand(5))) / sigma * (following - sigma)
    # In y = x / alpha the same is the closed form of the deterministic step, y' = D + (n' / n) (y - D).
    y = sigmas[0] * z
    for n, m in itertools.pairwise(sigmas):
        t = sde.inverse_nsr(n)
        d = exact.denoise(sde.alpha(t) * y, t)
        y = d + m / n * (y - d)
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_levels_above_the_process_are_refused():
    denoiser = as_k_denoiser(ExactModel(GAUSSIAN, VESDE(0.01, 10.0)))
    with pytest.raises(ValueError, match="sigma must be at most 10"):
        denoiser(torch.ones(2, 3, dtype=torch.float64), torch.tensor([1.0, 11.0]))
    for make in (as_k_denoiser, as_azula_denoiser):
        with pytest.raises(ValueError, match="t_min must be between 0 and T"):
            make(ExactModel(GAUSSIAN, VPSDE()), t_min=1.0)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_azula_sees_the_schedule_and_the_posterior_mean(sde):
    exact = ExactModel(MIXTURE, sde)
    denoiser = as_azula_denoiser(exact, t_min=0.01 * sde.T)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    at = 0.01 * sde.T + 0.99 * sde.T * t
    alpha_t, sigma_t = denoiser.schedule(t)
    torch.testing.assert_close(alpha_t, sde.alpha(at))
    torch.testing.assert_close(sigma_t, sde.sigma(at))
    assert float(denoiser.schedule(torch.tensor(0.0))[1]) > 0
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, t).mean, exact.denoise(x, at))


def test_conditions_of_the_call_go_before_those_of_the_guest():
    exact = ExactModel(RING, VPSDE())
    x, t = points(exact, 3)
    labels = torch.tensor([1, 4, 6])
    wanted = exact.denoise(x, t, labels)
    sigma, y = exact.sde.nsr(t), x / exact.sde.alpha(t)[:, None]
    torch.testing.assert_close(as_k_denoiser(exact, labels)(y, sigma), wanted)
    torch.testing.assert_close(as_k_denoiser(exact, 2)(y, sigma, condition=labels), wanted)
    first = as_k_denoiser(exact, 2)(y, sigma)
    torch.testing.assert_close(first, exact.denoise(x, t, torch.tensor([2, 2, 2])))
    flow = as_vector_field(exact, 2)
    torch.testing.assert_close(flow(t, x, labels), as_vector_field(exact, labels)(t, x))
    with pytest.raises(ValueError, match="labels must be among"):
        as_vector_field(exact, 99)


def test_parameters_of_networks_are_those_of_the_guest():
    network = MLP((2,), width=4, depth=1)
    model = NetworkModel(network, VPSDE(), "noise", (2,))
    for guest in (as_vector_field(model), as_k_denoiser(model), as_azula_denoiser(model)):
        assert isinstance(guest, nn.Module)
        assert next(guest.parameters()) is next(network.parameters())
    x = torch.ones(3, 2, requires_grad=True)
    as_vector_field(model)(torch.tensor(0.5), x).sum().backward()
    assert x.grad is not None
