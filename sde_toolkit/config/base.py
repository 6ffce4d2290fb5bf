"""The sections of a configuration, their fields and their defaults.

    seed          of the training run and of the initial weights
    device        where the network runs: auto, cpu, cuda, cuda:1, mps
    dtype         of its weights and states: float32, float64
    data          name of the data set and its options
    sde           name of the forward process and its parameters
    model         name of the network, its sizes, and what it predicts
    loss          name of the objective and its options: denoising score matching, at the indices of a chain,
                  with learned variances, or sliced
    optimization  learning rate, clipping, moving average
    training      numbers of steps, batch size, checkpoints
    sampling      the sampler, its own options and those of all samplers
    likelihood    held-out log-likelihoods
    comparison    problems x samplers x grids x step counts x classes x seeds, and the metrics

The fields of data, sde, model and loss depend on the field ``name`` of the section, those of sampling on
``sampler``.
"""

from __future__ import annotations

from sde_toolkit import networks
from sde_toolkit.config import likelihood_fields, names, sampler_fields
from sde_toolkit.config.schema import Fields, Schema, Variants, defaults
from sde_toolkit.config.trees import ConfigDict

_TOY = {"num_train": 8192, "num_test": 2048, "seed": 0}
_FILES = {"source": "", "digest": "", "layout": "auto", "shape": (), "levels": 0, "key": "", "labels": "",
          "conditions": "", "columns": "", "colour": "auto", "alpha": "raise", "resize": 0, "crop": 0,
          "on_error": "raise", "scaling": "auto", "bounds": "", "angles": "", "missing": "raise",
          "held_out": "0.1", "split_seed": 0,
          "flip": "none", "training": "uniform", "workers": 0}  # fmt: skip
_NETWORK = {"predicts": "residual", "num_classes": 0, "condition_shape": (), "max_angle": networks.MAX_ANGLE,
            "self_conditioning": False}  # fmt: skip
_LEVELS = {
    "channels": (32, 64),
    "layers_per_block": 1,
    "attention_levels": (),
    "num_groups": 8,
    "dropout": 0.0,
}
_BETA = {"beta_min": 0.1, "beta_max": 20.0}
_STEPS = {"num_steps": 1000}
_SIGMA = {"sigma_min": 0.01, "sigma_max": 50.0}
_INDICES = {"stratified": True, "index_sampling": "uniform"}


class _Processes(dict[str, Fields]):
    """The fields of every process; one of yours, as in mine.py:process, has none."""

    def __missing__(self, name: str) -> Fields:
        if ":" in name:
            return {}
        raise KeyError(name)


SCHEMA: Schema = {
    "seed": 0,
    "device": "auto",
    "dtype": "float32",
    "data": Variants(
        {"digits": {"training": "uniform"},
         "mnist": {"training": "uniform", "validation": False, "factors": 64},
         "ring": _TOY, "checkerboard": _TOY,
         "moons": _TOY | {"noise": 0.05}, "swissroll": _TOY | {"noise": 0.5}, "files": _FILES}
    ),
    "sde": Variants(_Processes(
        {"vp": _BETA, "vp_cosine": {"s": 0.008}, "subvp": _BETA, "ve": _SIGMA,
         "rectified": {"T": 0.999}, "ddpm": _STEPS | _BETA,
         "ddpm_cosine": _STEPS | {"s": 0.008, "max_beta": 0.999}, "smld": _STEPS | _SIGMA}
    )),
    "model": Variants(
        {"unet": _NETWORK | _LEVELS | {"patch_size": 1, "fourier": ()},
         "mlp": _NETWORK | {"width": 128, "depth": 3, "num_frequencies": 32},
         "dit": _NETWORK | {"patch_size": 2, "width": 128, "depth": 4, "num_heads": 4, "mlp_ratio": 4.0,
                            "num_frequencies": 64},
         "ncsnpp": _NETWORK | _LEVELS | {"layers_per_block": 2, "time_embedding": "fourier"},
         "unet1d": _NETWORK | _LEVELS}
    ),
    "loss": Variants(
        {"denoising": {"weighting": "likelihood", "time_sampling": "moments", "t_min": 1e-5,
                       "antithetic_nsr": 0.0, "second_order": 0.0, "levels": 0, "offset_noise": 0.0},
         "discrete": _INDICES,
         "hybrid": {"vlb_weight": 1e-3, "simple_weight": 1.0, "fixed_mean": True, **_INDICES,
                    "levels": 0},
         "sliced": {"weighting": "noise", "t_min": 1e-3, "num_slices": 1, "variance_reduced": True,
                    "simulated_steps": 0}}
    ),
    "optimization": {"learning_rate": 1e-3, "warmup_steps": 100, "decay_steps": 0, "schedule": "linear",
                     "betas": (0.9, 0.99), "weight_decay": 0.0, "max_grad_norm": 1.0, "ema_decay": 0.9995,
                     "ema_profile": "warmup", "ema_sigma_rel": 0.1},
    "training": {"num_steps": 2000, "batch_size": 128, "checkpoint_every": 250, "log_every": 10, "keep": 2,
                 "label_dropout": 0.1, "snapshot_every": 0, "snapshot_lengths": (0.05, 0.1),
                 "evaluate_every": 0, "evaluate_examples": 512, "evaluate_bins": 8, "keep_best": False,
                 "patience": 0, "sample_every": 0, "spike_factor": 0.0, "trackers": "", "changes": "",
                 "accumulate": 1, "shard": False, "autocast": "none", "compile": False,
                 "checkpointing": False},
    "sampling": Variants(sampler_fields.OwnFields(), "sampler", sampler_fields.COMMON),
    "likelihood": dict(likelihood_fields.FIELDS),
    "comparison": {"problems": (names.OWN_MODEL,), "samplers": ("ddim",), "grids": (names.OWN_GRID,),
                   "num_steps": (5, 10, 20, 50), "labels": (), "conditions": "", "prompts": "",
                   "num_samples": 600,
                   "seeds": (0,),
                   "metrics": ("energy",), "real": "all", "max_nfe": 0, "time_budget": 0.0},
}  # fmt: skip
"""All sections and fields of a configuration, with their defaults."""


NAMES = {"data": "digits", "sde": "vp", "model": "unet", "loss": "denoising",
         "sampling": sampler_fields.SAMPLER}  # fmt: skip
"""The variants of sections that a file does not name."""


def base_config(
    data: str = NAMES["data"],
    sde: str = NAMES["sde"],
    model: str = NAMES["model"],
    sampler: str = NAMES["sampling"],
    loss: str = NAMES["loss"],
) -> ConfigDict:
    """A configuration with every default, for a ``get_config()`` to start from and change.

    Args:
        data, sde, model, sampler, loss: the names that decide which fields these sections have.

    Raises:
        ValueError: an unknown name.
    """
    return defaults(SCHEMA, {"data": data, "sde": sde, "model": model, "sampling": sampler, "loss": loss})
