import math

import numpy as np
import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from problems import SDES
from torch import Tensor

from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.sdes import VPSDE, ForwardSDE
from sde_toolkit.sdes.chain import VARIANCES, Chain, ancestral_coefficients

ALL = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
LINEAR = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def squared_cosine(num_steps: int) -> Tensor:
    """Betas of improved DDPM (2102.09672, eq. 17), capped at 0.999."""
    i = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = ((i + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


SCHEDULES = pytest.mark.parametrize(
    ("schedule", "betas"),
    [("linear", LINEAR), ("squaredcos_cap_v2", squared_cosine(1000))],
    ids=["linear", "squared-cosine"],
)


def distance_to_diffusers(schedule: str, betas: Tensor, variance: str, timesteps, double: bool) -> float:
    """Largest difference between our ancestral step and DDPMScheduler.step, one random state and noise."""
    from diffusers import DDPMScheduler

    chain = Chain.from_betas(betas)
    scheduler = DDPMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=schedule,
        variance_type=f"fixed_{variance}",
        clip_sample=False,
    )
    if double:
        scheduler.alphas_cumprod = chain.alphas[1:].square()
        scheduler.one = chain.alphas[0]
    x_i, z_hat = draw(3, (2, 4, 4), seed=1), draw(3, (2, 4, 4), seed=2)
    worst = 0.0
    for timestep in timesteps:
        z = torch.randn(x_i.shape, generator=torch.Generator().manual_seed(7), dtype=x_i.dtype)
        generator = torch.Generator().manual_seed(7)
        theirs = scheduler.step(z_hat, timestep, x_i, generator=generator).prev_sample
        i = timestep + 1
        x0_hat = (x_i - chain.sigmas[i] * z_hat) / chain.alphas[i]
        ours = chain.ancestral_step(x0_hat, x_i, i, z, variance)
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


@SCHEDULES
@pytest.mark.parametrize("variance", VARIANCES)
def test_ancestral_step_equals_diffusers(schedule: str, betas: Tensor, variance: str):
    """Their formulas on a float64 table agree to rounding; their float32 table limits the early steps."""
    everywhere, later = (0, 1, 2, 10, 100, 250, 500, 900, 990, 998, 999), (0, 50, 100, 250, 500, 700, 990)
    assert distance_to_diffusers(schedule, betas, variance, everywhere, double=True) < 1e-11
    assert distance_to_diffusers(schedule, betas, variance, later, double=False) < 1e-5


@SCHEDULES
def test_q_sample_equals_diffusers(schedule: str, betas: Tensor):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=schedule)
    timesteps = torch.tensor([0, 5, 300, 640, 999])
    x0, z = draw(5, (1, 4, 4)), draw(5, (1, 4, 4), seed=1)
    theirs = scheduler.add_noise(x0, z, timesteps)
    ours = Chain.from_betas(betas).q_sample(x0, timesteps + 1, z)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@ALL
def test_two_steps_of_the_chain_are_one(sde: ForwardSDE):
    """q(x_i | x0) follows from q(x_{i-1} | x0) and the Markov step, whose variance is sigma_t^2 gain."""
    chain = sde.discretize(50)
    i = torch.arange(1, 51)
    ratio = chain.alphas[1:] / chain.alphas[:-1]
    _, _, std = ancestral_coefficients(
        chain.alphas[2:], chain.sigmas[2:], chain.alphas[1:-1], chain.sigmas[1:-1], variance="large"
    )
    expected = chain.sigmas[2:].square() - (ratio[1:] * chain.sigmas[1:-1]).square()
    torch.testing.assert_close(std.square(), expected, rtol=1e-9, atol=1e-13)
    x0 = draw(50, (3,))
    mean, std = chain.q_marginal(x0, i)
    torch.testing.assert_close(mean, chain.alphas[1:, None] * x0, rtol=1e-14, atol=0)
    torch.testing.assert_close(std.flatten(), chain.sigmas[1:], rtol=0, atol=0)


@ALL
def test_posterior_is_bayes_rule(sde: ForwardSDE):
    """Precisions add: q(x_s | x_t, x0) is proportional to q(x_t | x_s) q(x_s | x0)."""
    chain, i = sde.discretize(40), torch.tensor([2, 3, 20, 39, 40])
    s, x0, x_i = i - 1, draw(5, (2, 3)), draw(5, (2, 3), seed=1)
    mean, variance = chain.q_posterior(x0, x_i, i)
    a, b, c = (
        k[:, None, None] for k in (chain.alphas[i] / chain.alphas[s], chain.alphas[s], chain.sigmas[s])
    )
    step = chain.sigmas[i][:, None, None].square() - (a * c).square()
    precision = a.square() / step + 1 / c.square()
    torch.testing.assert_close(variance, 1 / precision, rtol=1e-10, atol=0)
    expected = (a * x_i / step + b * x0 / c.square()) / precision
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-10)


def test_short_steps_keep_their_digits():
    """The gain of a step of relative length 1e-9 is exact to the rounding of the ratios."""
    one = torch.ones((), dtype=torch.float64)
    a, b, c = ancestral_coefficients(one, one, one, one - 2.0**-30, "small")
    gain = 2.0**-29 - 2.0**-60
    assert float(b) == pytest.approx(gain, rel=1e-15, abs=0)
    assert float(a) == pytest.approx(1 - gain, rel=1e-15, abs=0)
    assert float(c) == pytest.approx((1 - 2.0**-30) * math.sqrt(gain), rel=1e-15, abs=0)


@ALL
@pytest.mark.parametrize("variance", VARIANCES)
def test_last_step_returns_its_mean_when_index_0_is_free_of_noise(sde: ForwardSDE, variance: str):
    chain, x, z = sde.discretize(8), draw(4, (3,)), draw(4, (3,), seed=1)
    x0_hat = draw(4, (3,), seed=2)
    step = chain.ancestral_step(x0_hat, x, 1, z, variance)
    if float(chain.sigmas[0]) == 0:
        torch.testing.assert_close(step, x0_hat, rtol=0, atol=0)
    else:
        mean, small = chain.q_posterior(x0_hat, x, 1)
        large = chain.sigmas[1].square() - (chain.alphas[1] / chain.alphas[0] * chain.sigmas[0]).square()
        expected = mean + (small if variance == "small" else large).sqrt() * z
        torch.testing.assert_close(step, expected, rtol=1e-12, atol=1e-12)


def output_law(sde: ForwardSDE, num_steps: int, variance: str) -> tuple[float, float]:
    """Errors of mean and variance after ancestral sampling from the exact marginal at T with the exact score.

    Every step is affine in the state and in z, so three probes give its coefficients without sampling noise.
    """
    m, v = 0.7, 0.25
    chain = sde.discretize(num_steps)
    model = ExactModel(Gaussian([m], [v]), sde)
    i = torch.arange(num_steps, 0, -1).repeat_interleave(3)
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64).repeat(num_steps, 1)
    z = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64).repeat(num_steps, 1)
    probes = chain.ancestral_step(model.denoise(x, chain.times[i]), x, i, z, variance).reshape(-1, 3)
    offsets, slopes, kicks = (probes - probes[:, :1] * torch.tensor([0, 1, 1])).T.tolist()
    mean, var = (float(c) for c in (chain.alphas[-1] * m, chain.alphas[-1] ** 2 * v + chain.sigmas[-1] ** 2))
    for offset, slope, kick in zip(offsets, slopes, kicks, strict=True):
        mean, var = offset + slope * mean, slope**2 * var + kick**2
    return mean - float(chain.alphas[0]) * m, var - float(chain.alphas[0] ** 2 * v + chain.sigmas[0] ** 2)


@ALL
@pytest.mark.parametrize("variance", VARIANCES)
def test_chain_converges_to_the_sde_at_order_one(sde: ForwardSDE, variance: str):
    counts = [128 * 2**k for k in range(6)]
    errors = [output_law(sde, n, variance) for n in counts]
    assert max(abs(mean) for mean, _ in errors) < 1e-12
    slope = np.polyfit(np.log(counts), np.log([abs(var) for _, var in errors]), 1)[0]
    assert -slope == pytest.approx(1, abs=0.15)
    assert abs(errors[3][1]) < 0.005


def test_converged_variances_agree():
    """Both variances lead to one limit, from two sides."""
    small, large = output_law(VPSDE(), 1024, "small")[1], output_law(VPSDE(), 1024, "large")[1]
    assert small == pytest.approx(-0.0038, abs=1e-4)
    assert large == pytest.approx(0.0007, abs=1e-4)


def test_vp_chain_is_ddpm():
    chain = VPSDE().discretize(1000)
    assert float((chain.betas - LINEAR).abs().max()) < 2.1e-4
    assert float((chain.betas / LINEAR - 1).abs().max()) < 0.1
    torch.testing.assert_close(
        chain.alphas.square() + chain.sigmas.square(), torch.ones(1001, dtype=torch.float64)
    )


def test_from_betas_returns_the_betas():
    chain = Chain.from_betas(LINEAR.float())
    assert chain.num_steps == 1000
    assert chain.alphas.dtype == torch.float64
    torch.testing.assert_close(chain.betas, LINEAR.float().double(), rtol=1e-10, atol=0)
    assert [float(chain.alphas[0]), float(chain.sigmas[0])] == [1, 0]
    assert [float(chain.times[0]), float(chain.times[-1])] == [0, 1]


@ALL
def test_indices_of_every_kind_agree(sde: ForwardSDE):
    chain = sde.discretize(10)
    x, x0_hat, z = (draw(3, (2, 2), seed) for seed in range(3))
    for other in (torch.tensor(4), torch.full((3,), 4), torch.full((3,), 4, dtype=torch.int32)):
        for method in (
            lambda i: chain.ancestral_step(x0_hat, x, i, z),
            lambda i: chain.q_sample(x0_hat, i, z),
        ):
            torch.testing.assert_close(method(4), method(other), rtol=1e-15, atol=0)
    step = chain.ancestral_step(x0_hat.float(), x.float(), torch.full((3,), 4), z.float())
    assert step.dtype == torch.float32
    assert chain.q_sample(x.float(), 4, z.float()).dtype == torch.float32
    elsewhere = chain.q_sample(x.to("meta"), torch.full((3,), 4), z.to("meta"))
    assert elsewhere.device.type == "meta"


@given(i=st.one_of(st.integers(-(2**40), 0), st.integers(11, 2**40)))
def test_indices_out_of_range_are_refused(i: int):
    chain, x = VPSDE().discretize(10), draw(1, (2,))
    with pytest.raises(ValueError, match=r"i must hold integers from 1 to num_steps = 10, got"):
        chain.ancestral_step(x, x, i, x)
    with pytest.raises(ValueError, match=r"i must hold integers from 0 to num_steps = 10, got"):
        chain.q_sample(x, -abs(i) - 1, x)


def test_bad_arguments_are_refused():
    ones, times = torch.ones(4, dtype=torch.float64), torch.linspace(0, 1, 4, dtype=torch.float64)
    x = draw(1, (2,))
    with pytest.raises(ValueError, match="variance must be one of small, large, got 'fixed'"):
        VPSDE().discretize(4).ancestral_step(x, x, 1, x, variance="fixed")
    with pytest.raises(ValueError, match="must hold integers"):
        VPSDE().discretize(4).q_sample(x, torch.tensor(1.5), x)
    with pytest.raises(ValueError, match=r"one shape \(N \+ 1,\)"):
        Chain(ones, times[:3], times)
    with pytest.raises(ValueError, match=r"one shape \(N \+ 1,\)"):
        Chain(ones[:1], times[:1], times[:1])
    with pytest.raises(ValueError, match="must increase strictly"):
        Chain(ones, times.flip(0), times)
    with pytest.raises(ValueError, match="alphas > 0"):
        Chain(-ones, times, times)
    with pytest.raises(ValueError, match="sigmas must be float64"):
        Chain(ones, times.float(), times)
    for betas in (torch.tensor([1.0, 0.1]), torch.tensor([0.0]), torch.tensor([[0.1]])):
        with pytest.raises(ValueError, match=r"betas must have shape \(N,\) with values in \(0, 1\)"):
            Chain.from_betas(betas)


@pytest.mark.parametrize("i", [3.0, [3.0, 3.0], np.array([3.0, 3.0]), torch.tensor(3.0)])
def test_real_numbers_are_no_indices(i):
    x = draw(2, (2,))
    with pytest.raises(ValueError, match="i must hold integers from 0 to num_steps = 10"):
        VPSDE().discretize(10).q_sample(x, i, x)
