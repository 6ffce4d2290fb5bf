"""The sampler of ours that takes the steps of one of diffusers' schedulers.

    DDPM             ddpm, its variance       DPMSolverMultistep   dpm_solver_pp, multistep_dpm_solver,
                                                                   sde_dpm_solver_pp, sde_dpm_solver
    DDIM             ddim                     UniPC, DEIS, SA      unipc, deis, sa_solver
    PNDM             pndm                     EDMEuler, EDMDPM     ddim, dpm_solver_pp
    Euler, LMS       ddim, lms                FlowMatchEuler       euler
    EulerAncestral   ddim(eta=1)              FlowMatchHeun        heun
    Heun             edm                      ScoreSdeVe           predictor_corrector
    IPNDM            ipndm                    CMStochasticIterative  consistency sampling, below

The times are those that the scheduler's own ``set_timesteps`` visits: its spacing, offset, shift and Karras,
exponential or beta grids.  ``clip_sample`` and ``thresholding`` are thresholds on the sampler.

Consistency models predict the end of the flow, and a step of theirs (2303.01469, algorithm 1) puts noise on
it again, up to the next level: x_s = x0_hat + (sigma_s^2 - sigma_min^2)^(1/2) z.  It is no sampler of a
denoiser's law, and therefore no preset.

Where theirs depart from their papers, ours do not follow, and the samples differ by it:

    PNDM          skip_prk_steps=True starts with two steps of low order, not with Runge-Kutta
    learned       (DDPM, variance_type) keeps the variance of one index's step for a step of several
    DDIM          clips x0_hat and leaves the noise that belongs to the clipped one (use_clipped_model_output)
    Karras grids  round the index that the network is told, and not the level that they go on to use
    FlowMatch     begins at t = 1, where ours begins at T = .999; shifts a grid whose ends are shifted already
    zero SNR      begins at alpha = 0, where ours begins at 1e-4
    sde++, 3      (DPMSolverMultistep, order 3) subtracts 1/2 in the weight of the second difference where the
                  expansion of the integral, and ours, add it: theirs has weak order 1, ours 2
    SA-Solver     h^2/2 in the place of an exact integral: taken over here as ``released=True``; its default
                  tau_func draws between the indices 200 and 800 alone, which no configuration says: tau = 1
                      here
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.guidance import DynamicThreshold, StaticThreshold, thresholded
from sde_toolkit.interop.libraries import part_of
from sde_toolkit.interop.pipelines.schedules import Schedule, read_schedule
from sde_toolkit.samplers import Langevin, Sampler, grids
from sde_toolkit.samplers.equations import ReverseSteps, scheme
from sde_toolkit.sdes import ChainSDE, ForwardSDE
from sde_toolkit.utils import Partial, checked, integer
from solvers import Form, SchemeMethod

Make = Callable[..., Sampler]
_OWN_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_FINAL = ("lower_order_final", True)


@checked
def matching_sampler(scheduler: object, num_steps: int) -> Sampler:
    """The sampler that takes the steps of a scheduler of diffusers, on its own times, see the module's table.

    Args:
        scheduler: of diffusers.
        num_steps: for its ``set_timesteps``; the scheduler itself is left as it is.

    Raises:
        ValueError: a scheduler without a counterpart here.
        TypeError: something else than a scheduler.
    """
    integer("num_steps", num_steps, 1)
    config = part_of(scheduler, "config")
    if config is None or not hasattr(type(scheduler), "from_config"):
        raise TypeError(f"scheduler must be one of diffusers' schedulers, got {type(scheduler).__name__}")
    name, config = type(scheduler).__name__, dict(config)
    if name not in _MATCHES:
        raise ValueError(
            f"scheduler must be one of {', '.join(_MATCHES)}, got {name}; any sampler of ours runs on its "
            "model"
        )
    schedule = read_schedule(name, config)
    made = type(scheduler).from_config(scheduler.config)  # type: ignore[attr-defined]
    made.set_timesteps(num_steps)
    ts, to_zero = visited_times(made, schedule)
    sampler = replace(
        _MATCHES[name](config, len(ts) - 1), grid=grids.Explicit(ts), t_min=float(ts[-1]), denoise=to_zero
    )
    if config.get("thresholding"):
        q, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
        return thresholded(sampler, DynamicThreshold(q, 1.0, most))
    if config.get("clip_sample") or config.get("clip_denoised"):
        return thresholded(sampler, StaticThreshold(config.get("clip_sample_range", 1.0)))
    return sampler


def visited_times(made: Any, schedule: Schedule) -> tuple[Tensor, bool]:
    """Times that a scheduler visits after ``set_timesteps``, with shape (n + 1,), and whether a last step to
    sigma = 0 is missing in them, since the process has noise at 0."""
    sde, config = schedule.sde, made.config
    if isinstance(sde, ChainSDE) and not any(config.get(name) for name in _OWN_GRIDS):
        tau = made.timesteps.double().cpu()
        if hasattr(made, "plms_timesteps"):  # the others are stages of Runge-Kutta
            tau = torch.as_tensor(made._timesteps, dtype=torch.float64)
        if config.get("timestep_type") != "continuous":
            steps = torch.unique(tau).flip(0)
            return _with_end((steps + 1) / sde.chain.num_steps, _end(made, sde)), False
    if schedule.family == "ve":
        N = len(made.discrete_sigmas)
        indices = (made.timesteps.double() * (N - 1)).long().unique().flip(0)
        return (indices / (N - 1)).double(), False
    if schedule.family == "sine":
        return _with_end(made.timesteps.double().cpu().clamp(max=sde.T), 0.0), False
    nsr = made.sigmas.double().cpu()
    if schedule.family == "flow":
        nsr = (nsr / (1 - nsr)).clamp(max=float(sde.nsr(torch.tensor(sde.T, dtype=torch.float64))))
    nsr = torch.unique(nsr).flip(0)
    to_zero = schedule.family == "edm" and float(nsr[-1]) == 0
    ts = sde.inverse_nsr(nsr[:-1] if to_zero else nsr).clamp(0, sde.T)
    return ts, to_zero


def _with_end(ts: Tensor, end: float) -> Tensor:
    return torch.cat([ts[ts > end], ts.new_tensor([end])])


def _end(made: Any, sde: ChainSDE) -> float:
    """The last time of a chain's run: 0, or that of the first index."""
    first, config = float(sde.chain.times[1]), made.config
    if "set_alpha_to_one" in config:
        return 0.0 if config["set_alpha_to_one"] else first
    if type(made).__name__ in ("DEISMultistepScheduler", "SASolverScheduler"):
        return first
    return first if config.get("final_sigmas_type") == "sigma_min" else 0.0


def _ddpm(config: Mapping[str, Any], n: int) -> Sampler:
    kind = str(config.get("variance_type", "fixed_small")).removesuffix("_log")
    known = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned", "learned": "learned"}
    if (variance := known.get(kind)) is None:
        raise ValueError(f"variance_type must be one of {', '.join(known)}, got {kind!r}")
    return samplers.ddpm(n, variance=variance)  # type: ignore[arg-type]


_FEW = 15
"""Steps below which theirs lower the order of the last two."""


def _falling(config: Mapping[str, Any], n: int) -> bool | tuple[int, ...]:
    """The most nodes of the last steps of ours, by theirs' rules."""
    edm = "sigma_data" in config  # whose last step is the denoised end
    few = bool(config.get("lower_order_final", True)) and n + edm < _FEW
    if edm:
        return (2,) if few else False
    if few:
        return True
    last = config.get("euler_at_final", False) or config.get("final_sigmas_type", "zero") == "zero"
    return (1,) if last else False


def _dpm(config: Mapping[str, Any], n: int) -> Sampler:
    order, kind = config.get("solver_order", 2), config.get("algorithm_type", "dpmsolver++")
    made = {
        "dpmsolver++": samplers.dpm_solver_pp, "sde-dpmsolver++": samplers.sde_dpm_solver_pp,
        "dpmsolver": samplers.multistep_dpm_solver, "sde-dpmsolver": samplers.sde_dpm_solver,
    }.get(kind)  # fmt: skip
    if made is None:
        raise ValueError(
            "algorithm_type must be dpmsolver, dpmsolver++, sde-dpmsolver or sde-dpmsolver++, got "
            f"{kind!r}; any sampler of ours runs on its model"
        )
    if kind == "sde-dpmsolver" and order > 2:
        raise ValueError(
            f"solver_order must be 1 or 2 for sde-dpmsolver, which has no formula of more nodes, got {order};"
            " algorithm_type sde-dpmsolver++ has three"
        )
    return made(n, order=order, form=config.get("solver_type", "midpoint"), lower_final=_falling(config, n))


def _unipc(config: Mapping[str, Any], n: int) -> Sampler:
    b = {"bh1": samplers.b1, "bh2": samplers.b2}[config.get("solver_type", "bh2")]
    predicts: Literal["data", "noise"] = "data" if config.get("predict_x0", True) else "noise"
    return samplers.unipc(
        n, order=config.get("solver_order", 2), b=b, predicts=predicts, lower_final=bool(config.get(*_FINAL))
    )


def _deis(config: Mapping[str, Any], n: int) -> Sampler:
    degree, few = config.get("solver_order", 2) - 1, bool(config.get(*_FINAL)) and n < _FEW
    return samplers.deis(n, degree=degree, clock=samplers.in_lam, lower_final=few)


def _sa(config: Mapping[str, Any], n: int) -> Sampler:
    return samplers.sa_solver(
        n, predictor_steps=config.get("predictor_order", 2),
        corrector_steps=config.get("corrector_order", 2) - 1, tau=1.0, released=True,
        lower_final=bool(config.get(*_FINAL)),
    )  # fmt: skip


def _ve(config: Mapping[str, Any], n: int) -> Sampler:
    corrector = Langevin(snr=config.get("snr", 0.15), num_steps=config.get("correct_steps", 1))
    return samplers.predictor_corrector(samplers.reverse_diffusion(n), corrector)


def _noised_end(k: ReverseSteps, sigma_min: float, s_noise: float) -> Form:
    s = k.s
    noise = (s.sigma.square() - sigma_min**2).clamp(min=0).sqrt()
    return k.m[0] + s_noise * noise * k.z


def _consistency(config: Mapping[str, Any], n: int) -> Sampler:
    rule = Partial(_noised_end, config.get("sigma_min", 0.002), config.get("s_noise", 1.0))
    equation = scheme(rule, "data", noisy=True)
    return Sampler("consistency", equation, SchemeMethod(name="consistency", order=1, nodes=1), n)


_MATCHES: dict[str, Callable[[Mapping[str, Any], int], Sampler]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": lambda config, n: samplers.ddim(n),
    "PNDMScheduler": lambda config, n: samplers.pndm(n),
    "DPMSolverMultistepScheduler": _dpm,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "SASolverScheduler": _sa,
    "EulerDiscreteScheduler": lambda config, n: samplers.ddim(n),
    "EulerAncestralDiscreteScheduler": lambda config, n: samplers.ddim(n, eta=1.0),
    "HeunDiscreteScheduler": lambda config, n: samplers.edm(n),
    "LMSDiscreteScheduler": lambda config, n: samplers.lms(n),
    "EDMEulerScheduler": lambda config, n: samplers.ddim(n),
    "EDMDPMSolverMultistepScheduler": _dpm,
    "FlowMatchEulerDiscreteScheduler": lambda config, n: samplers.euler(n),
    "FlowMatchHeunDiscreteScheduler": lambda config, n: samplers.heun(n),
    "ScoreSdeVeScheduler": _ve,
    "IPNDMScheduler": lambda config, n: samplers.ipndm(n),
    "CMStochasticIterativeScheduler": _consistency,
}


def first_steps(sampler: Sampler, sde: ForwardSDE, first: int, count: int) -> Sampler:
    """The sampler on a part of its times, from the step ``first`` on, without a denoised end.

    Args:
        sampler: on a fixed grid.
        sde: the process.
        first, count: the steps.
    """
    ts = sampler.grid(sde, int(sampler.num_steps or 0), sampler.t_min, sde.T)[first : first + count + 1]
    return replace(sampler, num_steps=count, grid=grids.Explicit(ts), t_min=float(ts[-1]), denoise=False)
