"""What a configuration of diffusers' schedulers says of the process, of the times and of the network.

    family  schedulers                         x of the network       its time tau          process, t here
    chain   DDPM, DDIM, PNDM, DPM-Solver,      x_t (schedulers in     i - 1, from 0         ``ChainSDE``,
            UniPC, DEIS, SA-Solver; Euler,     sigma hold x_t/alpha   to N - 1              t = (tau + 1) / N
            Heun, LMS, KDPM2                   between the calls)
            timestep_type="continuous"         x_t                    log(nsr) / 4          the same
    ve      ScoreSdeVe                         x_t                    sigma                 ``VESDE``
    edm     EDMEuler, EDMDPMSolver             x_t / (sigma^2 +       log(sigma) / 4        ``VESDE``
            CosineDPMSolver                    sigma_data^2)^(1/2)    2 / pi arctan(sigma)  ``VESDE``
    flow    FlowMatchEuler, FlowMatchHeun,     x_t                    N t                   ``RectifiedFlow``,
            those with use_flow_sigmas                                                      t = sigma
    sine    IPNDM                              x_t                    t                     ``VPSDE``, alpha =
                                                                                            cos(pi t / 2)
    cm      CMStochasticIterative              x_t / (sigma^2 +       250 log(sigma)        ``VESDE``
                                               sigma_data^2)^(1/2)

A consistency model (cm) puts out F, and f(x, sigma) = c_skip x + c_out F is the end of the flow that leads
through x, at sigma_min, where f(x, sigma_min) = x: the boundary condition, by c_skip = d^2 / ((sigma -
sigma_min)^2 + d^2) and c_out = (sigma - sigma_min) d (sigma^2 + d^2)^(-1/2), d = sigma_data.  f is taken as
the prediction of the data, which it is to first order in sigma - sigma_min alone: ``matching_sampler`` is
what it is for.  IPNDM's network puts out the velocity, whatever its configuration calls it.

The table of a chain is computed in float64 from the numbers of the configuration, where diffusers rounds to
float32: its 1 - alpha_1^2 = 1e-4 is off by some 1e-4 of itself.  ``shift`` of flow matching changes which
times a run visits, not what the network is told of them; ``steps_offset`` and ``timestep_spacing`` likewise
(``matching``).  A flow and a sine begin at t = T = .999 and not 1, where nothing of the data is left.

References: Karras et al. (2206.00364) for EDM; Lin et al., "Common Diffusion Noise Schedules and Sample Steps
are Flawed" (2305.08891), algorithm 1, for the table that ends in noise alone; Esser et al. (2403.03206) for
the shift; Song et al., "Consistency Models" (2303.01469), appendix C, for the boundary condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.interop.denoisers import Time
from sde_toolkit.interop.variances import VarianceKind
from sde_toolkit.models import PREDICTION_ALIASES
from sde_toolkit.sdes import VESDE, VPSDE, Chain, ChainSDE, CosineBeta, ForwardSDE, RectifiedFlow
from sde_toolkit.utils import Partial

Family = Literal["chain", "ve", "edm", "flow", "sine", "cm"]
TimeFeature = Literal["index", "log_sigma/4", "250 log_sigma", "sigma", "arctan", "time"]

_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_COSINE = "CosineDPMSolverMultistepScheduler"
_VE = "ScoreSdeVeScheduler"
_CM = "CMStochasticIterativeScheduler"
_IPNDM = "IPNDMScheduler"
_OTHER = {
    "LCMScheduler": "it is made for consistency models, which predict no score",
    "TCDScheduler": "it is made for consistency models, which predict no score",
    "FlowMatchLCMScheduler": "it is made for consistency models, which predict no score",
    "VQDiffusionScheduler": "its states are classes of a code book",
    "AmusedScheduler": "its states are masked tokens",
    "UnCLIPScheduler": "its network predicts an embedding with a variance of its own",
    "KarrasVeScheduler": "it was removed from diffusers",
}
_CLIPPED_BETA = 0.999
_NO_OFFSET, _SINE_T = 1e-12, 0.999
"""IPNDM has the offset 0, at which the inverse of its clock is 0 / 0."""


@dataclass(frozen=True)
class Schedule:
    """A forward process, and how a network under it is called.

    Attributes:
        family: one of the table above.
        sde: the process.
        predicts: what the network puts out.
        feature: which function of the time the network is told.
        scale: of that feature: N under "time", else 1.
        scaled: whether the network sees x_t / (sigma^2 + data_std^2)^(1/2).
        data_std: EDM's sigma_data, else 1.
        sign: by which the network's output is multiplied.
        learned_variance: whether the second half of the channels is one; None where the configuration does
            not say.
        variance: what that half is, see ``variances``.
    """

    family: Family
    sde: ForwardSDE
    predicts: str
    feature: TimeFeature
    scale: float = 1.0
    scaled: bool = False
    data_std: float = 1.0
    sign: float = 1.0
    learned_variance: bool | None = None
    variance: VarianceKind = "range"

    def time(self) -> Time:
        """The feature as a ``ForeignModel`` takes it."""
        if self.feature == "arctan":
            return Partial(_arctan, self.sde)
        if self.feature == "time":
            return Partial(_times, self.scale)
        if self.feature == "250 log_sigma":
            return Partial(_log_sigmas, self.sde)
        assert self.feature != "index"
        return self.feature


def _arctan(t: Tensor, sde: ForwardSDE) -> Tensor:
    return 2 / math.pi * sde.nsr(t).arctan()


def _log_sigmas(t: Tensor, sde: ForwardSDE) -> Tensor:
    return 250 * sde.nsr(t).log()


def _times(t: Tensor, scale: float) -> Tensor:
    return scale * t


def read_schedule(name: str, config: Mapping[str, Any]) -> Schedule:
    """The schedule in a scheduler's configuration.

    Args:
        name: of the scheduler's class.
        config: its configuration.

    Raises:
        ValueError: a scheduler without a process in continuous time, or one that is not known; numbers that
            are no schedule.
    """
    if name in _OTHER:
        raise ValueError(
            f"scheduler must be one with a process in continuous time, got {name}: {_OTHER[name]}; give the "
            "scheduler that the network was trained with, as scheduler="
        )
    if name in _FLOWS or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return _flow(config)
    if name in _EDMS or name == _COSINE:
        return _edm(config, name == _COSINE)
    if name == _CM:
        sde = VESDE(_number(config, "sigma_min", 0.002), _number(config, "sigma_max", 80.0))
        std = _number(config, "sigma_data", 0.5)
        return Schedule("cm", sde, "data", "250 log_sigma", scaled=True, data_std=std)
    if name == _IPNDM:
        if config.get("trained_betas") is not None:
            raise ValueError(
                "trained_betas must be left out for IPNDMScheduler, which then takes them for the levels of "
                "one number of steps, got a table; give the scheduler that the network was trained with"
            )
        return Schedule("sine", VPSDE(CosineBeta(_NO_OFFSET, _SINE_T)), "velocity", "time")
    if name == _VE:
        sde = VESDE(_number(config, "sigma_min", 0.01), _number(config, "sigma_max", 1348.0))
        return Schedule("ve", sde, "score", "sigma")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(
            "scheduler must have a table of betas, or be one of "
            f"{', '.join((*_EDMS, _COSINE, _VE, *_FLOWS))}, got "
            f"{name}, which has no process in continuous time that is known here; give another as scheduler="
        )
    return _chain(config)


def _chain(config: Mapping[str, Any]) -> Schedule:
    predicts = _prediction(config, ("epsilon", "sample", "v_prediction"))
    variance = config.get("variance_type")
    learned = None if variance is None else variance in ("learned_range", "learned")
    kind: VarianceKind = "value" if variance == "learned" else "range"
    continuous = config.get("timestep_type") == "continuous" and predicts == "velocity"
    feature: TimeFeature = "log_sigma/4" if continuous else "index"
    return Schedule(
        "chain", ChainSDE(beta_chain(config)), predicts, feature, learned_variance=learned, variance=kind
    )


def _edm(config: Mapping[str, Any], cosine: bool) -> Schedule:
    least, most = (0.3, 500.0) if cosine else (0.002, 80.0)
    sde = VESDE(_number(config, "sigma_min", least), _number(config, "sigma_max", most))
    predicts = config.get("prediction_type") or ("v_prediction" if cosine else "epsilon")
    if predicts not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type of EDM's preconditioning must be epsilon or v_prediction, got {predicts!r}"
        )
    return Schedule(
        "edm", sde, "edm", "arctan" if cosine else "log_sigma/4", scaled=True,
        data_std=_number(config, "sigma_data", 1.0 if cosine else 0.5),
        sign=1.0 if predicts == "epsilon" else -1.0,
    )  # fmt: skip


def _flow(config: Mapping[str, Any]) -> Schedule:
    known = {"flow_prediction": "flow", "epsilon": "noise", "sample": "data"}
    name = config.get("prediction_type") or "flow_prediction"
    if name not in known:
        raise ValueError(
            f"prediction_type of flow matching must be one of {', '.join(known)}, got {name!r}, whose "
            "formula needs alpha^2 + sigma^2 = 1"
        )
    return Schedule("flow", RectifiedFlow(), known[name], "time", scale=float(_count(config)))


def beta_chain(config: Mapping[str, Any]) -> Chain:
    """The chain of a table of betas, in float64.

    Raises:
        ValueError: an unknown table, or betas outside (0, 1).
    """
    betas = _betas(config)
    if not config.get("rescale_betas_zero_snr"):
        return Chain.from_betas(betas)
    root = (1 - betas).cumprod(0).sqrt()
    first, last = root[0], root[-1]
    return Chain.from_alphas_cumprod(((root - last) * first / (first - last)).square())


def _betas(config: Mapping[str, Any]) -> Tensor:
    given = config.get("trained_betas")
    if given is not None:
        try:
            return torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"trained_betas must be a list of numbers, got {given!r}") from error
    count, name = _count(config), config.get("beta_schedule", "linear")
    start, end = _number(config, "beta_start", 1e-4), _number(config, "beta_end", 0.02)
    if name == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64).square()
    if name == "sigmoid":
        return torch.linspace(-6, 6, count, dtype=torch.float64).sigmoid() * (end - start) + start
    if name not in _ALPHA_BAR:
        raise ValueError(f"beta_schedule must be one of {', '.join(_BETAS)}, got {name!r}")
    f = [_ALPHA_BAR[name](i / count) for i in range(count + 1)]
    ratios = [1 - f[i + 1] / f[i] for i in range(count)]
    return torch.tensor([min(ratio, _CLIPPED_BETA) for ratio in ratios], dtype=torch.float64)


def _laplace(t: float) -> float:
    lam = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(lam) / (1 + math.exp(lam)))


_ALPHA_BAR: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda t: math.exp(-12.0 * t),
    "laplace": _laplace,
}


def _prediction(config: Mapping[str, Any], known: tuple[str, ...]) -> str:
    name = config.get("prediction_type") or "epsilon"
    if name not in known:
        raise ValueError(f"prediction_type must be one of {', '.join(known)}, got {name!r}")
    return PREDICTION_ALIASES[name]


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    """A positive number of the configuration."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite positive number, got {value!r}")
    return float(value)


def _count(config: Mapping[str, Any]) -> int:
    count = config.get("num_train_timesteps", 1000)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10**6:
        raise ValueError(f"num_train_timesteps must be an integer from 1 to a million, got {count!r}")
    return count
