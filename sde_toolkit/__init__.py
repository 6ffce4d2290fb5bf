"""A laboratory for score-based generative models in PyTorch.

    data -> forward process -> network -> score matching -> samplers, likelihoods -> comparison, report

The names below are the ones most programs need; they, and every module, load on first use.

    from sde_toolkit import VPSDE, ExactModel, GaussianMixture, ddim, log_likelihood
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "sde": ("ForwardSDE", "VPSDE", "SubVPSDE", "VESDE", "CustomSDE", "LinearBeta", "CosineBeta"),
    "ddpm": ("Chain",),
    "exact": ("Gaussian", "GaussianMixture", "ExactModel"),
    "score": ("ScoreModel", "NetworkModel"),
    "moments": ("Moments",),
    "networks": ("MLP", "UNet"),
    "data": ("Dataset", "Scaling", "digits", "from_array"),
    "loss": ("DenoisingLoss", "ChainLoss"),
    "state": ("TrainState", "Optimization"),
    "train": ("fit",),
    "runs": ("Run", "open_run", "open_shipped"),
    "samplers": (
        "Restart",
        "Sampler",
        "Samples",
        "StepInfo",
        "DynamicThreshold",
        "StaticThreshold",
        "adaptive",
        "adaptive_sde",
        "ancestral",
        "bosh3",
        "ddim",
        "ddpm",
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
    ),
    "discrete": ("ChainSDE", "IndexedModel"),
    "correctors": ("Langevin", "AnnealedLangevin"),
    "budget": ("Budget",),
    "divergence": ("ExactDivergence", "HutchPlusPlus", "Hutchinson"),
    "latent": ("Latents", "decode", "encode", "interpolate"),
    "likelihood": ("LogLikelihood", "differentiable_log_likelihood", "log_likelihood"),
    "classify": ("Classification", "fit_temperature"),
    "dequantize": (
        "TruncatedNormalDequantizer",
        "UniformDequantizer",
        "VariationalDequantizer",
        "discrete_log_likelihood",
        "train_dequantizer",
    ),
    "bounds": ("Bound", "continuous_bound", "discrete_bound"),
    "metrics": ("Estimate", "energy_distance", "frechet_distance", "mmd", "sliced_wasserstein"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
_MODULES = (*_HOME, "batches", "calibrate", "compare", "config", "features", "grids", "report", "residual")

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    """Import a public name or module when it is first used."""
    if name in _MODULE:
        return getattr(importlib.import_module(f"sde_toolkit.{_MODULE[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"sde_toolkit.{name}")
    raise AttributeError(f"module 'sde_toolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE, *_MODULES})
