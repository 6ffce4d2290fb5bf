"""The same network, grid and noise through diffusers' schedulers: the same samples.

The process is DDPM's chain of a thousand indices, the network an exact mixture seen through it.  Where
diffusers
departs from a paper, its form is chosen explicitly and the departure is named here:

    SA-Solver     its formulas of two nodes put h^2/2 in the place of an exact integral ("released")
    DEIS          stops lowering the order of the last steps from 15 steps on; so do the DPM-Solvers
    UniPC, B1     yields nan on the way to sigma = 0, where ours is finite
    Euler         in sigma, which is DDIM and not Euler's method in t
"""

import functools

import numpy as np
import pytest
import torch
from problems import MIXTURE
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.equations import in_lam
from sde_toolkit.sdes.chain import Chain
from sde_toolkit.sdes.chain_sde import ChainSDE
from sde_toolkit.utils import Stream
from solvers import Normals

N = 10
BATCH = 8
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SDE = ChainSDE(Chain.from_betas(BETAS))
MODEL = ExactModel(MIXTURE, SDE)
FIRST = 1 / 1000
"""Time of index 1, diffusers' timestep 0."""


class Draws:
    """One start and one list of draws for both sides."""

    def __init__(self, start_std: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (BATCH, *MODEL.event_shape)
        self.z = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2 * N)]
        self.start = start_std * Normals(0, BATCH, MODEL.event_shape).draw(0, Stream.PRIOR)

    def draw(self, index: int, stream: int = 0) -> Tensor:
        return self.start if stream == Stream.PRIOR else self.z[index]


def peer(scheduler, **options) -> tuple[Tensor, float]:
    """diffusers' loop; the generator repeats the draws of ``Draws``."""
    draws, generator = Draws(), torch.Generator().manual_seed(1)
    scheduler.set_timesteps(N)
    scale = float(scheduler.init_noise_sigma)
    x = scale * draws.start
    for i, t in enumerate(scheduler.timesteps):
        noise = MODEL.noise(scheduler.scale_model_input(x, t).double(), torch.tensor((float(t) + 1) / 1000))
        more = {"generator": generator} if options.get("generator") else {}
        more |= {"variance_noise": draws.z[i]} if options.get("given") else {}
        more |= {"eta": options["eta"]} if "eta" in options else {}
        x = scheduler.step(noise, t, x, **more).prev_sample
    return x.double(), scale


def make(name: str, **options):
    import diffusers

    cls = getattr(diffusers, f"{name}Scheduler")
    return cls(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)


def times(scheduler, last: float) -> grids.Explicit:
    scheduler.set_timesteps(N)
    unique = dict.fromkeys(float(t) for t in scheduler.timesteps)
    return grids.Explicit([*((t + 1) / 1000 for t in unique), last])


dpm = functools.partial(make, "DPMSolverMultistep", timestep_spacing="linspace")
unipc = functools.partial(make, "UniPCMultistep", timestep_spacing="linspace", final_sigmas_type="sigma_min")
sa = functools.partial(make, "SASolver", timestep_spacing="linspace")
PAIRS = {
    **{
        f"ddim, eta {eta}": (
            lambda: make("DDIM", clip_sample=False, timestep_spacing="leading"),
            functools.partial(samplers.ddim, eta=eta),
            0.0,
            {"eta": eta, "given": eta > 0},
        )
        for eta in (0.0, 0.5, 1.0)
    },
    **{
        f"ddpm {variance}": (
            lambda variance=variance: make(
                "DDPM", clip_sample=False, timestep_spacing="leading", variance_type=f"fixed_{variance}"
            ),
            functools.partial(samplers.ddpm, variance=variance),
            0.0,
            {"generator": True},
        )
        for variance in ("small", "large")
    },
    **{
        f"dpm++ {order}M": (
            lambda order=order: dpm(solver_order=order),
            functools.partial(samplers.dpm_solver_pp, order=order, lower_final=True),
            0.0,
            {},
        )
        for order in (1, 2, 3)
    },
    **{
        f"sde-dpm++ {order}M": (
            lambda order=order: dpm(solver_order=order, algorithm_type="sde-dpmsolver++"),
            functools.partial(samplers.sde_dpm_solver_pp, order=order, lower_final=True),
            0.0,
            {"given": True},
        )
        for order in (1, 2)
    },
    **{
        f"{kind} {order} {form}": (
            lambda kind=kind, order=order, form=form: dpm(
                solver_order=order, algorithm_type=kind, solver_type=form, final_sigmas_type="sigma_min"
            ),
            functools.partial(preset, order=order, form=form, lower_final=True),
            FIRST,
            {"given": kind.startswith("sde")},
        )
        for kind, preset, order, form in (
            ("dpmsolver++", samplers.dpm_solver_pp, 2, "heun"),
            ("dpmsolver", samplers.multistep_dpm_solver, 1, "midpoint"),
            ("dpmsolver", samplers.multistep_dpm_solver, 2, "midpoint"),
            ("dpmsolver", samplers.multistep_dpm_solver, 2, "heun"),
            ("dpmsolver", samplers.multistep_dpm_solver, 3, "midpoint"),
            ("sde-dpmsolver", samplers.sde_dpm_solver, 1, "midpoint"),
            ("sde-dpmsolver", samplers.sde_dpm_solver, 2, "midpoint"),
            ("sde-dpmsolver", samplers.sde_dpm_solver, 2, "heun"),
            ("sde-dpmsolver++", samplers.sde_dpm_solver_pp, 2, "heun"),
        )
    },
    **{
        f"unipc {order} {b.__name__} {predicts}": (
            lambda order=order, b=b, predicts=predicts: unipc(
                solver_order=order, solver_type=f"bh{b.__name__[1]}", predict_x0=predicts == "data"
            ),
            functools.partial(samplers.unipc, order=order, b=b, predicts=predicts, lower_final=True),
            FIRST,
            {},
        )
        for order in (1, 2, 3)
        for b in (samplers.b1, samplers.b2)
        for predicts in ("data", "noise")
    },
    **{
        f"deis {order}": (
            lambda order=order: make("DEISMultistep", solver_order=order, timestep_spacing="linspace"),
            functools.partial(samplers.deis, degree=order - 1, clock=in_lam, lower_final=True),
            FIRST,
            {},
        )
        for order in (1, 2, 3)
    },
    "euler": (lambda: make("EulerDiscrete", timestep_spacing="linspace"), samplers.ddim, 0.0, {}),
    "heun": (lambda: make("HeunDiscrete", timestep_spacing="linspace"), samplers.edm, 0.0, {}),
    "lms": (lambda: make("LMSDiscrete", timestep_spacing="linspace"), samplers.lms, 0.0, {}),
    **{
        f"sa {p} + {c}, tau {tau}": (
            lambda p=p, c=c, tau=tau: sa(predictor_order=p, corrector_order=c + 1, tau_func=lambda t: tau),
            functools.partial(
                samplers.sa_solver,
                predictor_steps=p,
                corrector_steps=c,
                tau=tau,
                released=True,
                lower_final=True,
            ),
            FIRST,
            {"generator": True},
        )
        for p, c, tau in ((1, 1, 1.0), (2, 1, 1.0), (3, 2, 0.5), (2, 1, 0.0))
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_samples_equal_those_of_diffusers(name):
    build, preset, last, options = PAIRS[name]
    theirs, scale = peer(build(), **options)
    grid = times(build(), last)
    # schedulers in sigma start from x / alpha = scale z
    alpha = float(SDE.alpha(grid.ts[0])) if scale != 1 else 1.0
    sampler = preset(len(grid.ts) - 1, grid=grid, t_min=last, denoise=False)
    ours = sampler.sample(MODEL, BATCH, noise=Draws(scale * alpha)).x
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.filterwarnings("ignore")
def test_pndm_equals_that_of_diffusers():
    scheduler = make("PNDM", set_alpha_to_one=True, timestep_spacing="leading")
    theirs, _ = peer(scheduler)
    grid = grids.Explicit([*((t + 1) / 1000 for t in np.arange(0, 1000, 1000 // N)[::-1]), 0.0])
    sampler = samplers.pndm(N, grid=grid, t_min=0.0, denoise=False)
    samples = sampler.sample(MODEL, BATCH, noise=Draws())
    assert samples.nfe == len(scheduler.timesteps) == N + 9
    assert (samples.x - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.filterwarnings("ignore")
def test_unipc_with_b1_reaches_zero_noise_where_diffusers_yields_nan():
    scheduler = make(
        "UniPCMultistep",
        solver_order=2,
        solver_type="bh1",
        timestep_spacing="linspace",
        final_sigmas_type="zero",
    )
    assert bool(peer(scheduler)[0].isnan().any())
    grid = times(scheduler, 0.0)
    sampler = samplers.unipc(N, order=2, b=samplers.b1, grid=grid, t_min=0.0, denoise=False, lower_final=True)
    assert bool(sampler.sample(MODEL, BATCH, noise=Draws()).x.isfinite().all())
