"""Names of samplers and of their options, for ``sde_toolkit.config``.

``SAMPLERS`` maps a name to a ``Choice``: the fields of ``config.sampling`` that have an effect on it, and how
it is built from them.  A field whose default means "the sampler's own" (order 0, grid "own") is left out of
the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sde_toolkit import guidance, samplers
from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers import AnnealedLangevin, Corrector, Grid, Langevin, Sampler, equations
from solvers import DOP853, HEUN, MIDPOINT, RK4, SHARK, SOSRA, SRA1, STOCHASTIC_HEUN, TSIT5
from solvers.reference import SCIPY_METHODS, TORCHSDE_METHODS, SciPy, TorchSDE

FIELDS: dict[str, Any] = {
    "sampler": "ddim", "num_steps": 50, "num_samples": 64, "seed": 0, "batch_size": 256,
    "t_min": 1e-3, "grid": "own", "times": (1.0, 1e-3), "calibration_samples": 32, "calibration_cache": "",
    "denoise": True, "lower_final": False,
    "order": 0, "eta": 0.0, "variance": "small", "predicts": "data", "clock": "lam", "b": "b2",
    "tableau": "kutta3", "tau": 1.0, "corrections": 1, "released": False,
    "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 1e9, "s_noise": 1.0,
    "predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16, "corrector_steps": 1,
    "restart_min": 0.0, "restart_max": 1.0, "restart_steps": 5, "restart_repeats": 1,
    "threshold": "none", "limit": 1.0, "quantile": 0.995,
    "rtol": 1e-3, "atol": 1e-3, "method": "sra1",
}  # fmt: skip
"""Fields of ``config.sampling`` with their defaults.

    grid         a name, or "own": that of the sampler's paper; "explicit": times, from T to t_min;
                 "calibrated": found for the model on calibration_samples starts, from the sampler's own, and
                 kept in the directory calibration_cache if one is named
    order        of the multistep and singlestep samplers, 0: the sampler's own default
    clock        of DEIS and of exponential Adams methods: t, nsr, lam, angle
    corrections  past evaluations in SA-Solver's corrector, 0 for none
    restart_min  the nsr at which the run restarts, 0 for none; it goes back to restart_max
    threshold    none, static (limit) or dynamic (quantile, limit)
    method       of sra and adaptive_sde
"""

CLOCKS = {
    "t": equations.in_time, "nsr": equations.in_nsr, "lam": equations.in_lam, "angle": equations.in_angle,
}  # fmt: skip
B_OF_H = {"b1": samplers.b1, "b2": samplers.b2}
TABLEAUS = {"heun": HEUN, "midpoint": MIDPOINT, "kutta3": samplers.KUTTA3, "rk4": RK4}
SDE_METHODS = {"stochastic_heun": STOCHASTIC_HEUN, "sra1": SRA1, "shark": SHARK, "sosra": SOSRA}
CORRECTORS: dict[str, Callable[[float, int], Corrector]] = {
    "langevin": Langevin, "annealed": AnnealedLangevin,
}  # fmt: skip
THRESHOLDS: dict[str, Callable[[Mapping[str, Any]], guidance.Threshold | None]] = {
    "none": lambda s: None,
    "static": lambda s: guidance.StaticThreshold(s["limit"]),
    "dynamic": lambda s: guidance.DynamicThreshold(s["quantile"], s["limit"]),
}

NAMES: dict[str, Mapping[str, Any]] = {
    "clock": CLOCKS, "b": B_OF_H, "tableau": TABLEAUS, "method": SDE_METHODS, "corrector": CORRECTORS,
    "threshold": THRESHOLDS,
}  # fmt: skip
"""Fields of ``config.sampling`` that hold names, and what the names stand for."""

Build = Callable[[int | None, Mapping[str, Any], Grid | None, ScoreModel | None], Sampler]


@dataclass(frozen=True)
class Choice:
    """A sampler by name: the fields that it takes, and ``build(num_steps, fields, grid, model)``.

    The grid None is its own; the model matters only to a sampler that is made for one.
    """

    fields: tuple[str, ...]
    build: Build

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its own steps."""
        return "num_steps" not in self.fields


def _values(s: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Arguments from fields: names are looked up, an order of 0 is left out."""
    found = {argument: NAMES[f][s[f]] if f in NAMES else s[f] for argument, f in fields.items()}
    return {argument: v for argument, v in found.items() if not (fields[argument] == "order" and v == 0)}


def _fixed(make: Callable[..., Sampler], *same: str, gridded: bool = True, **renamed: str) -> Choice:
    """A sampler on a fixed grid; ``renamed`` maps its arguments to fields of other names."""
    fields = {**{name: name for name in same}, **renamed}

    def build(
        num_steps: int | None, s: Mapping[str, Any], grid: Grid | None, model: ScoreModel | None
    ) -> Sampler:
        more = {} if grid is None or not gridded else {"grid": grid}
        sampler = make(num_steps, t_min=s["t_min"], denoise=s["denoise"], **more, **_values(s, fields))
        return _wrapped(sampler, s)

    common = ("num_steps", "t_min", *(_GRID if gridded else ()), "denoise")
    return Choice((*common, *fields.values(), *_RESTART, *_THRESHOLD), build)


def _adaptive(make: Callable[..., Sampler], *same: str) -> Choice:
    names = ("rtol", "atol", "t_min", "denoise", *same)

    def build(
        num_steps: int | None, s: Mapping[str, Any], grid: Grid | None, model: ScoreModel | None
    ) -> Sampler:
        return _thresholded(make(**_values(s, {name: name for name in names})), s)

    return Choice((*names, *_THRESHOLD), build)


_GRID = ("grid", "times", "calibration_samples", "calibration_cache")
_RESTART = ("restart_min", "restart_max", "restart_steps", "restart_repeats")
_THRESHOLD = ("threshold", "limit", "quantile")


def _thresholded(sampler: Sampler, s: Mapping[str, Any]) -> Sampler:
    threshold = THRESHOLDS[s["threshold"]](s)
    return sampler if threshold is None else guidance.thresholded(sampler, threshold)


def _wrapped(sampler: Sampler, s: Mapping[str, Any]) -> Sampler:
    sampler = _thresholded(sampler, s)
    if not s["restart_min"]:
        return sampler
    restart = (s["restart_min"], s["restart_max"], s["restart_steps"], s["restart_repeats"])
    return samplers.restarting(sampler, samplers.Restart(*restart))


def _deis(num_steps: int, *, order: int = 4, **options: Any) -> Sampler:
    return samplers.deis(num_steps, degree=order - 1, **options)


def _sa_solver(num_steps: int, *, order: int = 2, **options: Any) -> Sampler:
    return samplers.sa_solver(num_steps, predictor_steps=order, **options)


def _torchsde(name: str) -> Callable[..., Sampler]:
    return lambda num_steps, **options: samplers.foreign_sde(TorchSDE(name), num_steps, **options)


PREDICTORS: dict[str, Choice] = {
    "euler_maruyama": _fixed(samplers.euler_maruyama),
    "reverse_diffusion": _fixed(samplers.reverse_diffusion),
    "ancestral": _fixed(samplers.ancestral),
    "ddpm": _fixed(samplers.ddpm, "variance"),
    "ddim": _fixed(samplers.ddim, "eta"),
    "euler": _fixed(samplers.euler),
    "heun": _fixed(samplers.heun),
    "eta_family": _fixed(samplers.eta_family, "eta"),
    "exponential_integrator": _fixed(samplers.exponential_integrator, "eta"),
    "stochastic_heun": _fixed(samplers.stochastic_heun),
    "sra": _fixed(samplers.sra, "method"),
    "dpm_solver": _fixed(samplers.dpm_solver, "order"),
    "dpm_solver_pp": _fixed(samplers.dpm_solver_pp, "order", "lower_final"),
    "dpm_solver_pp_2s": _fixed(samplers.dpm_solver_pp_2s),
    "sde_dpm_solver_pp": _fixed(samplers.sde_dpm_solver_pp, "order", "lower_final"),
    "deis": _fixed(_deis, "order", "clock", "lower_final"),
    "deis_rho_rk": _fixed(samplers.deis_rho_rk, "tableau"),
    "lms": _fixed(samplers.lms, "order"),
    "ipndm": _fixed(samplers.ipndm, "order"),
    "pndm": _fixed(samplers.pndm, "order"),
    "exponential_adams": _fixed(samplers.exponential_adams, "order", "predicts", "clock", "lower_final"),
    "unip": _fixed(samplers.unip, "order", "b", "predicts", "lower_final"),
    "unipc": _fixed(samplers.unipc, "order", "b", "predicts", "lower_final"),
    "edm": _fixed(samplers.edm, "s_churn", "s_tmin", "s_tmax", "s_noise"),
    "sa_solver": _fixed(_sa_solver, "order", "tau", "released", "lower_final", corrector_steps="corrections"),
    "er_sde": _fixed(samplers.er_sde, "order", "lower_final"),
}


def _predictor_corrector(
    num_steps: int | None, s: Mapping[str, Any], grid: Grid | None, model: ScoreModel | None
) -> Sampler:
    predictor = PREDICTORS[s["predictor"]].build(num_steps, s, grid, model)
    return samplers.predictor_corrector(predictor, CORRECTORS[s["corrector"]](s["snr"], s["corrector_steps"]))


def _default(
    num_steps: int | None, s: Mapping[str, Any], grid: Grid | None, model: ScoreModel | None
) -> Sampler:
    if model is None:
        raise ValueError("sampler 'default' uses the moments of the data: build it with model=")
    assert num_steps is not None
    return _thresholded(samplers.default(model, num_steps, t_min=s["t_min"], eta=s["eta"]), s)


def fields_of(name: str, s: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Fields that have an effect on a sampler; for a predictor-corrector those of its own predictor, if the
    fields ``s`` tell which one it is."""
    if name == "predictor_corrector" and s is not None:
        return (*PREDICTORS[s["predictor"]].fields, *_CORRECTOR)
    return SAMPLERS[name].fields


_CORRECTOR = ("predictor", "corrector", "snr", "corrector_steps")

SAMPLERS: dict[str, Choice] = {
    "default": Choice(("num_steps", "t_min", "eta", *_THRESHOLD), _default),
    **PREDICTORS,
    "predictor_corrector": Choice(
        (*sorted({name for choice in PREDICTORS.values() for name in choice.fields}), *_CORRECTOR),
        _predictor_corrector,
    ),
    "dopri5": _adaptive(samplers.dopri5),
    "bosh3": _adaptive(samplers.bosh3),
    "tsit5": _adaptive(lambda **options: samplers.adaptive(TSIT5, **options)),
    "dop853": _adaptive(lambda **options: samplers.adaptive(DOP853, **options)),
    "adaptive_sde": _adaptive(samplers.adaptive_sde, "method"),
    **{
        f"scipy_{name.lower()}": _adaptive(
            lambda name=name, **options: samplers.adaptive(SciPy(name), **options)
        )
        for name in SCIPY_METHODS
    },
    **{
        f"torchsde_{name}": _fixed(_torchsde(name), gridded=False)
        for name, (_, areas) in TORCHSDE_METHODS.items()
        if areas != "foster"  # asks for areas that a path of single numbers has not
    },
}
"""Every sampler by name."""
