"""The schedulers of diffusers, driven by any score model over our range of noise levels.

A scheduler knows a table of 1000 training indices.  Ours runs over the ratios of the problem in the time of
DDPM's linear schedule, whose ends are those of the process: index 999 is the largest ratio, index 0 the
smallest.  It is built in float64 and handed over as ``trained_betas``; grids that are not made of indices
(``use_karras_sigmas``, ``use_exponential_sigmas`` and others) then span the same range.  A scheduler asks for
the network at a training index; for grids between the indices it rounds that index, but not the noise level
that it goes on to use.  Here the model looks at the very noise level that the scheduler uses.

States of some schedulers are x = alpha y, of others y itself.  Where a grid ends at the smallest ratio and
the scheduler would add a last step from there to there, the grid is made one step longer and that step left
out.  The grid of ``use_beta_sigmas`` is far from the best for every scheduler and stands with one family;
``lower_order_final`` keeps its default, True: where it bears on the result, the result is rarely better
without, and azula's zEAB is DEIS without.

Left out: schedulers of distilled or discrete models (LCM, TCD, CM, SCM, VQ, ...), of special tasks (RePaint,
UnCLIP, inverse), and those of flow matching, whose equation is the same flow: FlowMatchEuler is DDIM on
another grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.peers.models import TABLE, Look, Peer, vp_clock

GRIDS: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    "exponential": {"timestep_spacing": "linspace", "use_exponential_sigmas": True},
    "beta": {"timestep_spacing": "linspace", "use_beta_sigmas": True},
}
_BY_INDEX = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
OF_INDICES = ("trailing", "linspace", "leading")


def scheduler(name: str, look: Look, **options: Any) -> Any:
    """A scheduler with the table of the module's head."""
    u = torch.linspace(0, 1, TABLE, dtype=torch.float64)
    ratios = vp_clock(u, look.nsr_min, look.nsr_max)
    kept = 1 / (1 + ratios.square())
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    made = getattr(diffusers, name)(num_train_timesteps=TABLE, trained_betas=betas.numpy(), **options)
    if hasattr(made, "alphas_cumprod"):
        made.alphas_cumprod = kept
    if getattr(made.config, "set_alpha_to_one", None) is False:
        made.final_alpha_cumprod = kept[0]
    return made


def _noise_levels(made: Any) -> Callable[[Any], float]:
    """Timestep -> the ratio at which the scheduler wants the model now."""
    if not hasattr(made, "set_begin_index"):
        kept = made.alphas_cumprod
        return lambda t: float(((1 - kept[int(t)]) / kept[int(t)]).sqrt())
    if hasattr(made, "sigmas_interpol"):
        return lambda t: float(
            (made.sigmas if made.state_in_first_order else made.sigmas_interpol)[_index(made)]
        )
    return lambda t: float(made.sigmas[_index(made)])


def _index(made: Any) -> int:
    return 0 if made.step_index is None else made.step_index


def drive(
    made: Any,
    look: Look,
    y: Tensor,
    num_steps: int,
    *,
    seed: int = 0,
    plain: bool = False,
    end: float = 0.0,
    drop: bool = False,
    **more: Any,
) -> Tensor:
    """Run a scheduler from y.

    Args:
        made: the scheduler.
        look: the model.
        y: start, scale-free, at ``look.nsr_max``.
        num_steps: for ``set_timesteps``.
        seed: of the scheduler's noise.
        plain: whether the scheduler's states are y, not alpha y.
        end: ratio at which the run ends.
        drop: whether the last step, from the smallest ratio to itself, is left out.
        more: further arguments of the scheduler's ``step``.
    """
    made.set_timesteps(num_steps + drop)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)
    level, draws = _noise_levels(made), torch.Generator().manual_seed(seed)
    if "generator" in made.step.__code__.co_varnames:
        more["generator"] = draws
    n = look.nsr_max
    sample = y if plain else y / (1 + n**2) ** 0.5
    for t in made.timesteps[: len(made.timesteps) - drop]:
        n = level(t)
        if plain:
            made.scale_model_input(sample, t)
        z_hat = look.noise(sample if plain else sample * (1 + n**2) ** 0.5, n)
        sample = made.step(z_hat, t, sample, **more).prev_sample
    return sample if plain else sample * (1 + end**2) ** 0.5


def _peer(
    label: str,
    name: str,
    schedule: str,
    *,
    at_zero: bool,
    plain: bool = False,
    drop: bool = False,
    cost: tuple[int, int, int] = (1, 0, 1),
    stochastic: bool = False,
    step: dict[str, Any] | None = None,
    **options: Any,
) -> Peer:
    getattr(diffusers, name)  # loads the scheduler's module

    def run(look: Look, y: Tensor, num_steps: int, seed: int) -> Tensor:
        made = scheduler(name, look, **options)
        end = 0.0 if at_zero else look.nsr_min
        return drive(made, look, y, num_steps, seed=seed, plain=plain, end=end, drop=drop, **(step or {}))

    return Peer("diffusers", label, schedule, run, at_zero, stochastic, *cost, name in _BY_INDEX)


def _exponential(
    label: str, name: str, grids: tuple[str, ...], ends: tuple[str, ...], **options: Any
) -> Iterator[Peer]:
    """A family of exponential schedulers on all its grids and ends."""
    for grid, end in itertools.product(grids, ends):
        at_zero = end == "zero"
        more = {"final_sigmas_type": end} if name in _WITH_FINAL else {}
        if name in _WITH_SPACING:
            more["timestep_spacing"] = GRIDS[grid]["timestep_spacing"]
        yield _peer(
            label,
            name,
            grid,
            at_zero=at_zero,
            drop=not at_zero and grid not in OF_INDICES,
            **{k: v for k, v in GRIDS[grid].items() if k != "timestep_spacing"},
            **more,
            **options,
        )


_WITH_FINAL = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")
_WITH_SPACING = (
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
_ALL = ("trailing", "karras", "exponential")
_BOTH, _SMALLEST = ("zero", "sigma_min"), ("sigma_min",)


def deterministic() -> Iterator[Peer]:
    """Every scheduler of the probability flow, under each of its schedules."""
    for grid in ("trailing", "leading"):
        for one in (True, False):
            yield _peer(
                "DDIM",
                "DDIMScheduler",
                grid,
                at_zero=one,
                timestep_spacing=grid,
                set_alpha_to_one=one,
                clip_sample=False,
            )
            for skip in (True, False):
                label = "PNDM, linear multistep" if skip else "PNDM, Runge-Kutta start"
                spacing = {"timestep_spacing": grid, "set_alpha_to_one": one, "skip_prk_steps": skip}
                cost = (1, 1, 2) if skip else (1, 9, 4)
                yield _peer(label, "PNDMScheduler", grid, at_zero=one, cost=cost, **spacing)
    multistep = "DPMSolverMultistepScheduler"
    for order in (2, 3):
        grids = (*_ALL, "beta") if order == 2 else _ALL
        for kind in ("midpoint", "heun") if order == 2 else ("midpoint",):
            label = f"DPM-Solver++({order}M{', ' + kind if kind == 'heun' else ''})"
            options = {"solver_order": order, "solver_type": kind}
            yield from _exponential(label, multistep, grids, _BOTH, **options)
        label, options = f"DPM-Solver({order}M)", {"solver_order": order, "algorithm_type": "dpmsolver"}
        yield from _exponential(label, multistep, grids, _SMALLEST, **options)
        label = f"DPM-Solver++({order}S)"
        grids = ("linspace", "karras", "exponential")
        yield from _exponential(label, "DPMSolverSinglestepScheduler", grids, _BOTH, solver_order=order)
        options = {"solver_order": order, "algorithm_type": "dpmsolver"}
        yield from _exponential(
            f"DPM-Solver-{order}", "DPMSolverSinglestepScheduler", grids, _SMALLEST, **options
        )
    for order, kind in itertools.product((1, 2, 3), ("bh1", "bh2")):
        label, options = f"UniPC-{order}, {kind}", {"solver_order": order, "solver_type": kind}
        yield from _exponential(label, "UniPCMultistepScheduler", _ALL, _BOTH, **options)
    for order in (1, 2, 3):
        yield from _exponential(
            f"DEIS-{order}", "DEISMultistepScheduler", _ALL, _SMALLEST, solver_order=order
        )
    yield from map(_ipndm, _ALL)
    for label, name in (
        ("Euler", "EulerDiscreteScheduler"),
        ("Heun", "HeunDiscreteScheduler"),
        ("LMS", "LMSDiscreteScheduler"),
        ("KDPM2", "KDPM2DiscreteScheduler"),
    ):
        cost = (2, -1, 1) if label in ("Heun", "KDPM2") else (1, 0, 1)
        for grid in (*_ALL, "linspace"):
            yield _peer(label, name, grid, at_zero=True, plain=True, cost=cost, **GRIDS[grid])


def _ipndm(grid: str) -> Peer:
    """IPNDM is given its grid as noise levels; those that DPM-Solver++ chooses for the option."""

    def run(look: Look, y: Tensor, num_steps: int, seed: int) -> Tensor:
        other = scheduler("DPMSolverMultistepScheduler", look, **GRIDS[grid], final_sigmas_type="sigma_min")
        other.set_timesteps(num_steps + (grid not in OF_INDICES))
        ratios = other.sigmas.double()[: num_steps + 1]
        alphas = (1 + ratios.square()).rsqrt()
        made = diffusers.IPNDMScheduler(trained_betas=(ratios * alphas).tolist())
        made.set_timesteps(num_steps)
        made.set_begin_index(0)
        made.betas, made.alphas = ratios * alphas, alphas  # in float64
        sample = y * alphas[0]
        for i in range(num_steps):
            z_hat = look.noise(sample / alphas[i], float(ratios[i]))
            velocity = (z_hat - sample * made.betas[i]) / alphas[i]
            sample = made.step(velocity, made.timesteps[i], sample).prev_sample
        return sample / alphas[-1]

    return Peer("diffusers", "IPNDM", grid, run, False)


def stochastic() -> Iterator[Peer]:
    """The schedulers that draw, under each of their schedules.

    Left out: ScoreSdeVe, whose corrector's step is an average over the batch; CosineDPMSolverMultistep, the
    SDE variant of DPM-Solver++ under another preconditioning; DPMSolverSDE, whose two draws per step are of
    one Brownian path.
    """
    drawn = {"stochastic": True}
    for grid in ("trailing", "leading"):
        for kind in ("small", "large"):
            options = {"timestep_spacing": grid, "variance_type": f"fixed_{kind}", "clip_sample": False}
            yield _peer(f"DDPM, {kind} variance", "DDPMScheduler", grid, at_zero=True, **drawn, **options)
        for eta in (0.5, 1.0):
            options = {"timestep_spacing": grid, "clip_sample": False, "step": {"eta": eta}}
            yield _peer(f"DDIM, eta {eta:g}", "DDIMScheduler", grid, at_zero=True, **drawn, **options)
    multistep = "DPMSolverMultistepScheduler"
    for order in (1, 2, 3):
        options = {"solver_order": order, "algorithm_type": "sde-dpmsolver++", **drawn}
        yield from _exponential(f"SDE-DPM-Solver++({order}M)", multistep, _ALL, _BOTH, **options)
    for order in (1, 2):
        options = {"solver_order": order, "algorithm_type": "sde-dpmsolver", **drawn}
        yield from _exponential(f"SDE-DPM-Solver({order}M)", multistep, _ALL, _SMALLEST, **options)
    for past, corrector, tau in itertools.product((2, 3), (2, 3), (0.2, 0.5, 1.0)):
        label = f"SA-Solver, P{past} C{corrector}, tau {tau:g}"
        options = {"predictor_order": past, "corrector_order": corrector, **drawn}
        options["tau_func"] = lambda t, tau=tau: tau
        yield from _exponential(label, "SASolverScheduler", _ALL, _SMALLEST, **options)
    for grid in ("trailing", "linspace"):
        options = {"plain": True, **drawn, **GRIDS[grid]}
        yield _peer("Euler ancestral", "EulerAncestralDiscreteScheduler", grid, at_zero=True, **options)
    for grid in ("trailing", "karras", "exponential"):
        options = {"plain": True, "cost": (2, -1, 1), **drawn, **GRIDS[grid]}
        yield _peer("KDPM2 ancestral", "KDPM2AncestralDiscreteScheduler", grid, at_zero=True, **options)
