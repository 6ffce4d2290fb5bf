"""Reverse-time samplers: equations, time grids, presets, correctors, restarts, calibration."""

from sde_toolkit.samplers import equations, grids
from sde_toolkit.samplers.calibration import (
    Calibration,
    calibrate,
    calibrated,
)
from sde_toolkit.samplers.catalogue import COMMON, PRESETS, Preset, find_preset
from sde_toolkit.samplers.checks import check_draw
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.correctors import (
    AfterStep,
    AnnealedLangevin,
    Corrector,
    InTurn,
    Langevin,
)
from sde_toolkit.samplers.equations import (
    NoiseLevels,
    ReverseSteps,
    in_angle,
    in_lam,
    in_nsr,
    in_time,
    probability_flow,
    reverse_family,
    reverse_sde,
    scheme,
    semilinear,
)
from sde_toolkit.samplers.gaussian import default, gaussian_residual, sampled_moments
from sde_toolkit.samplers.grids import (
    Grid,
    Snapped,
    label,
)
from sde_toolkit.samplers.presets.adaptive_steps import (
    adaptive,
    adaptive_sde,
    bosh3,
    dop853,
    dopri5,
    tsit5,
)
from sde_toolkit.samplers.presets.dpm_multistep import (
    dpm_solver_pp,
    multistep_dpm_solver,
    sde_dpm_solver,
    sde_dpm_solver_pp,
)
from sde_toolkit.samplers.presets.multistep import (
    b1,
    b2,
    deis,
    exponential_adams,
    ipndm,
    lms,
    pndm,
    unip,
    unipc,
)
from sde_toolkit.samplers.presets.one_step import (
    ancestral,
    ddim,
    ddpm,
    eta_family,
    euler,
    euler_maruyama,
    exponential_integrator,
    heun,
    reverse_diffusion,
    sra,
    stochastic_heun,
)
from sde_toolkit.samplers.presets.reference import torchsde_sampler
from sde_toolkit.samplers.presets.score_sde import (
    score_sde_subvp,
    score_sde_ve,
    score_sde_vp,
)
from sde_toolkit.samplers.presets.singlestep import (
    KUTTA3,
    deis_rho_rk,
    dpm_solver,
    dpm_solver_pp_2s,
    edm,
)
from sde_toolkit.samplers.presets.stochastic import (
    er_scale,
    er_sde,
    sa_solver,
)
from sde_toolkit.samplers.presets.wrappers import (
    predictor_corrector,
    restarting,
    without_last_draw,
)
from sde_toolkit.samplers.records import Callback, CountedModel, Guidance, Samples, StepInfo
from sde_toolkit.samplers.restarts import (
    Restart,
)
from sde_toolkit.samplers.sampler import (
    PreparedSampler,
    Sampler,
)
from sde_toolkit.samplers.starts import (
    STARTS,
    Start,
    start_state,
)

__all__ = [
    "COMMON",
    "KUTTA3",
    "PRESETS",
    "STARTS",
    "T_MIN",
    "AfterStep",
    "AnnealedLangevin",
    "Calibration",
    "Callback",
    "Corrector",
    "CountedModel",
    "Grid",
    "Guidance",
    "InTurn",
    "Langevin",
    "NoiseLevels",
    "PreparedSampler",
    "Preset",
    "Restart",
    "ReverseSteps",
    "Sampler",
    "Samples",
    "Snapped",
    "Start",
    "StepInfo",
    "adaptive",
    "adaptive_sde",
    "ancestral",
    "b1",
    "b2",
    "bosh3",
    "calibrate",
    "calibrated",
    "check_draw",
    "ddim",
    "ddpm",
    "default",
    "deis",
    "deis_rho_rk",
    "dop853",
    "dopri5",
    "dpm_solver",
    "dpm_solver_pp",
    "dpm_solver_pp_2s",
    "edm",
    "equations",
    "er_scale",
    "er_sde",
    "eta_family",
    "euler",
    "euler_maruyama",
    "exponential_adams",
    "exponential_integrator",
    "find_preset",
    "gaussian_residual",
    "grids",
    "heun",
    "in_angle",
    "in_lam",
    "in_nsr",
    "in_time",
    "ipndm",
    "label",
    "lms",
    "multistep_dpm_solver",
    "pndm",
    "predictor_corrector",
    "probability_flow",
    "restarting",
    "reverse_diffusion",
    "reverse_family",
    "reverse_sde",
    "sa_solver",
    "sampled_moments",
    "scheme",
    "score_sde_subvp",
    "score_sde_ve",
    "score_sde_vp",
    "sde_dpm_solver",
    "sde_dpm_solver_pp",
    "semilinear",
    "sra",
    "start_state",
    "stochastic_heun",
    "torchsde_sampler",
    "tsit5",
    "unip",
    "unipc",
    "without_last_draw",
]

globals().update({name: preset.function for name, preset in PRESETS.items() if name not in globals()})
