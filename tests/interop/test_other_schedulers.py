"""Learned variances of every convention, consistency models, IPNDM, and the multistep solvers' own grids."""

import pytest
import torch
from pipeline_parts import scheduler, states, unet
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.interop import (
    from_denoiser,
    from_diffusers,
    from_epsilon,
    matching_sampler,
    toolkit_scheduler,
)
from sde_toolkit.interop.pipelines.matching import first_steps
from sde_toolkit.interop.variances import log_bounds
from sde_toolkit.likelihood import BoundDraws, discrete_bound
from sde_toolkit.sdes import Chain, ancestral_coefficients
from sde_toolkit.utils import Stream

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*that of a consistency model"
)
N = 10
CHAIN = Chain.from_betas(torch.linspace(0.02, 0.5, N, dtype=torch.float64))
BETAS = CHAIN.betas.tolist()


class Positive(torch.nn.Module):
    """A network with 2 C channels, the second half of which is a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = unet(out_channels=2)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        prediction, second = self.inner(x, tau).sample.chunk(2, dim=1)
        return torch.cat([prediction, 0.3 * second.exp()], dim=1)


class Draws:
    """A start, and the draws of torch's generator of a seed."""

    def __init__(self, start: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.start = start
        self.z = [torch.randn(start.shape, generator=generator, dtype=start.dtype) for _ in range(N)]

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        return self.start if stream == Stream.PRIOR else self.z[index]


@torch.no_grad()
def theirs(made, network, x: Tensor, steps: int = N, first: int = 0) -> Tensor:
    """diffusers' loop, from a step on."""
    made.set_timesteps(steps)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(first)
    generator = torch.Generator().manual_seed(3)
    more = {} if type(made).__name__ == "IPNDMScheduler" else {"generator": generator}
    for tau in made.timesteps[first:]:
        out = network(made.scale_model_input(x, tau), tau.expand(len(x)))
        x = made.step(getattr(out, "sample", out), tau, x, **more).prev_sample
    return x


def test_bounds_are_those_of_the_chains_steps():
    small, large = log_bounds(CHAIN)
    for i in range(2, N + 1):
        levels = (CHAIN.alphas[i], CHAIN.sigmas[i], CHAIN.alphas[i - 1], CHAIN.sigmas[i - 1])
        assert float(small[i - 1]) == pytest.approx(2 * float(ancestral_coefficients(*levels)[2].log()))
        std = ancestral_coefficients(*levels, variance="large")[2]
        assert float(large[i - 1]) == pytest.approx(2 * float(std.log()))
    assert small[0].isfinite()


def test_the_learned_variance_of_diffusers_is_a_fraction_and_makes_the_same_run():
    network = Positive()
    other = scheduler(
        "DDPM", variance_type="learned", clip_sample=False, trained_betas=BETAS, num_train_timesteps=N
    )
    model = from_diffusers(network, other, event_shape=(1, 8, 8), learned_variance=True)
    x = states()
    small, large = log_bounds(CHAIN)
    for i in (1, 4, N):
        _, v = model.raw_and_fraction(x, model.sde.time(torch.tensor(float(i), dtype=torch.float64)))
        with torch.no_grad():
            variance = network(x, torch.tensor([i - 1] * 3))[:, 1:]
        assert torch.allclose((v * large[i - 1] + (1 - v) * small[i - 1]).exp(), variance, rtol=1e-4)
    ours = matching_sampler(other, N).sample(model, 3, noise=Draws(x, 3)).x
    expected = theirs(other, network, x)
    assert (ours - expected).abs().max() < 1e-5 * float(expected.abs().max())
    inside = toolkit_scheduler(other, "ddpm", variance="learned", t_min=0.0, denoise=False)
    assert (theirs(inside, network, x) - expected).abs().max() < 1e-5 * float(expected.abs().max())


def test_the_conventions_of_a_learned_variance_say_the_same():
    network = Positive()

    def log(x: Tensor, i: Tensor) -> Tensor:
        prediction, second = network(x, i).chunk(2, dim=1)
        return torch.cat([prediction, second.log()], dim=1)

    made = [
        from_epsilon(network, CHAIN, (1, 8, 8), learned_variance="value"),
        from_epsilon(log, CHAIN, (1, 8, 8), learned_variance="log"),
    ]
    x0 = 0.5 * states(2)
    draws = BoundDraws(num_draws=2)
    bounds = [discrete_bound(model, x0, CHAIN, draws=draws, variance="learned").nats for model in made]
    assert torch.allclose(bounds[0], bounds[1], rtol=1e-5)
    small, large = log_bounds(CHAIN)

    def fraction(x: Tensor, i: Tensor) -> Tensor:
        """The same as a "range", written by hand."""
        prediction, second = network(x, i).chunk(2, dim=1)
        low, high = (bound.float()[i.long()][:, None, None, None] for bound in (small, large))
        return torch.cat([prediction, 2 * (second.log() - low) / (high - low) - 1], dim=1)

    again = from_epsilon(fraction, CHAIN, (1, 8, 8), learned_variance=True)
    bound = discrete_bound(again, x0, CHAIN, draws=draws, variance="learned").nats
    assert torch.allclose(bounds[0], bound, rtol=1e-4)


def test_a_denoiser_may_return_a_variance_besides():
    model = from_denoiser(lambda y, sigma: torch.cat([0.5 * y, y], 1), (1, 8, 8), learned_variance=True)
    x, t = states(), torch.tensor(0.3)
    assert torch.allclose(model.denoise(x, t), 0.5 * x)
    wrong = from_denoiser(lambda y, sigma: 0.5 * y, (1, 8, 8), learned_variance=True)
    with pytest.raises(ValueError, match="twice the channels of its input, 2, got an output with shape"):
        wrong.denoise(x, t)


@torch.no_grad()
def test_a_consistency_model_keeps_the_boundary_and_makes_the_same_run():
    network, other = unet(), scheduler("CMStochasticIterative", clip_denoised=False, sigma_max=10.0)
    model = from_diffusers(network, other)
    x = states()
    assert torch.equal(model.denoise(x, torch.tensor(0.0)), x)
    t = torch.tensor(0.6, dtype=torch.float64)
    sigma = float(model.sde.sigma(t))
    F = network(x / (sigma**2 + 0.25) ** 0.5, torch.full((3,), 250 * t_log(sigma))).sample
    skip, out = other.get_scalings_for_boundary_condition(torch.tensor(sigma))
    assert torch.allclose(model.denoise(x, t), skip * x + out * F, atol=1e-5)
    for steps in (1, 4):
        expected = theirs(other, network, 10 * x, steps)
        ours = matching_sampler(other, steps).sample(model, 3, noise=Draws(x, 3)).x
        assert (ours - expected).abs().max() < 1e-5 * float(expected.abs().max())
    clipped = matching_sampler(scheduler("CMStochasticIterative"), 2)
    assert "StaticThreshold(limit=1.0)" in repr(clipped.settings["guidance"])


def t_log(sigma: float) -> float:
    return float(torch.tensor(sigma, dtype=torch.float64).log())


def test_a_consistency_model_is_opened_with_a_warning():
    with pytest.warns(UserWarning, match="that of a consistency model, whose prediction is the end"):
        from_diffusers(unet(), scheduler("CMStochasticIterative"))


@torch.no_grad()
def test_ipndm_is_that_of_its_scheduler_from_the_second_step_on():
    network, other = unet(), scheduler("IPNDM")
    model = from_diffusers(network, other)
    x = states()
    whole = matching_sampler(other, 6)
    t = torch.tensor(0.5, dtype=torch.float64)
    assert torch.allclose(model.velocity(x, t), network(x, torch.full((3,), 0.5)).sample, atol=1e-5)
    assert float(model.sde.alpha(t)) == pytest.approx(0.5**0.5)
    ours = first_steps(whole, model.sde, 1, 5).sample(model, 3, noise=Draws(x, 3)).x
    expected = theirs(other, network, x, 6, first=1)
    assert (ours - expected).abs().max() < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(("kind", "predicts"), [("sample", "data"), ("epsilon", "noise")])
def test_flow_schedules_know_other_predictions(kind, predicts):
    model = from_diffusers(
        unet(), scheduler("DPMSolverMultistep", use_flow_sigmas=True, prediction_type=kind)
    )
    assert model.network_predicts == predicts


SDE = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize(
    ("options", "steps", "final"),
    [
        ({"solver_order": 3}, 10, True),
        ({"solver_order": 3}, 20, (1,)),
        ({"solver_order": 3, "final_sigmas_type": "sigma_min"}, 20, False),
        ({"solver_order": 3, "lower_order_final": False}, 10, (1,)),
        ({**SDE, "solver_type": "heun"}, 10, True),
    ],
)
def test_the_last_steps_have_the_orders_of_the_scheduler(options, steps, final):
    sampler = matching_sampler(scheduler("DPMSolverMultistep", **options), steps)
    assert sampler.method.lower_final == final
    assert sampler.options["form"] == options.get("solver_type", "midpoint")
    assert sampler.name == ("sde_dpm_solver" if "algorithm_type" in options else "dpm_solver_pp")


def test_nodes_of_the_last_steps_are_at_most_those_named():
    from sde_toolkit.models.exact import ExactModel, Gaussian
    from sde_toolkit.sdes import VPSDE

    model = ExactModel(Gaussian([0.3], 0.25), VPSDE())
    for n in (1, 2, 5):
        falling = samplers.dpm_solver_pp(n, order=3, lower_final=True).sample(model, 3).x
        named = samplers.dpm_solver_pp(n, order=3, lower_final=(2, 1)).sample(model, 3).x
        assert torch.equal(falling, named)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: matching_sampler(scheduler("DPMSolverMultistep", solver_order=3, **SDE), 4), "be 1 or 2"),
        (lambda: from_diffusers(unet(), scheduler("IPNDM", trained_betas=[0.1, 0.2])), "trained_betas must"),
        (lambda: from_epsilon(unet(), CHAIN, (1, 8, 8), learned_variance="std"), "learned_variance must be"),
        (lambda: from_diffusers(unet(), scheduler(
            "DPMSolverMultistep", use_flow_sigmas=True, prediction_type="v_prediction")), "alpha.2 . sigma"),
        (lambda: from_diffusers(unet(), scheduler("EDMDPMSolverMultistep", prediction_type="sample")),
         "EDM's preconditioning must be epsilon or v_prediction, got 'sample'"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_with_a_sentence(build, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        build()
