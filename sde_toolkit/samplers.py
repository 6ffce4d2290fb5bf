"""All samplers by name.

    from sde_toolkit import samplers
    samples = samplers.dpm_solver_pp(20, order=3).sample(model, 64, seed=0)

``Sampler`` (``sde_toolkit.sampler``) puts an equation, a method, a grid and options together; the functions
below are the literature's choices (``sde_toolkit.presets``).
"""

from __future__ import annotations

from sde_toolkit.presets.adaptive import adaptive, adaptive_sde, bosh3, dopri5, foreign_sde
from sde_toolkit.presets.classic import (
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
from sde_toolkit.presets.multistep import (
    b1,
    b2,
    deis,
    dpm_solver_pp,
    exponential_adams,
    ipndm,
    lms,
    pndm,
    unip,
    unipc,
)
from sde_toolkit.presets.singlestep import KUTTA3, deis_rho_rk, dpm_solver, dpm_solver_pp_2s, edm
from sde_toolkit.presets.stochastic import er_sde, sa_solver, sde_dpm_solver_pp
from sde_toolkit.presets.wrappers import predictor_corrector, restarting, thresholded
from sde_toolkit.residual import default
from sde_toolkit.restarts import Restart
from sde_toolkit.sampler import PRIOR, T_MIN, CountedModel, Sampler, Samples, StepInfo
from sde_toolkit.thresholds import DynamicThreshold, StaticThreshold, Threshold

__all__ = [
    "KUTTA3",
    "PRIOR",
    "T_MIN",
    "CountedModel",
    "DynamicThreshold",
    "Restart",
    "Sampler",
    "Samples",
    "StaticThreshold",
    "StepInfo",
    "Threshold",
    "adaptive",
    "adaptive_sde",
    "ancestral",
    "b1",
    "b2",
    "bosh3",
    "ddim",
    "ddpm",
    "default",
    "deis",
    "deis_rho_rk",
    "dopri5",
    "dpm_solver",
    "dpm_solver_pp",
    "dpm_solver_pp_2s",
    "edm",
    "er_sde",
    "eta_family",
    "euler",
    "euler_maruyama",
    "exponential_adams",
    "exponential_integrator",
    "foreign_sde",
    "heun",
    "ipndm",
    "lms",
    "pndm",
    "predictor_corrector",
    "restarting",
    "reverse_diffusion",
    "sa_solver",
    "sde_dpm_solver_pp",
    "sra",
    "stochastic_heun",
    "thresholded",
    "unip",
    "unipc",
]
