"""Names of grids, distances, parts of the data and number types, and the objects that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from sde_toolkit import data
from sde_toolkit.samplers import grids

REAL: dict[str, Callable[[data.Dataset], Tensor]] = {
    "train": lambda dataset: dataset.scaled_train(),
    "test": lambda dataset: dataset.scaled_test(),
    "all": lambda dataset: torch.cat([dataset.scaled_train(), dataset.scaled_test()]),
}
"""Part of the data -> its examples in model scale, with shape (M, *)."""

GRIDS = grids.BY_NAME

OWN_GRID = "own"
"""Stands for the grid of the sampler's own paper."""

OWN_MODEL = "model"
"""Stands for the trained model of the run among the problems of a comparison."""

EXPLICIT_GRID, CALIBRATED_GRID = "explicit", "calibrated"
"""Stand for the times of ``config.sampling.times``, and for those found for the model."""

DATA_NAMES: dict[str, Collection[str]] = {
    "layout": data.LAYOUTS, "colour": data.COLOURS, "alpha": data.ALPHA, "on_error": data.ON_ERROR,
    "scaling": data.SCALINGS, "flip": data.FLIPS, "missing": data.MISSING, "training": data.BIN_VARIANCE,
}  # fmt: skip
"""Fields of ``config.data`` for data of your own that hold a name, and the names."""

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}

CHAINS = ("ddpm", "ddpm_cosine", "smld")
"""The processes of ``config.sde`` that are discrete chains."""

INDEX_SAMPLINGS = ("uniform", "importance")
"""Laws of the indices of a chain in ``config.loss``."""

AUTOCAST: dict[str, torch.dtype | None] = {"none": None, "bfloat16": torch.bfloat16}
"""Types of the network's products in training; None for that of its parameters."""
