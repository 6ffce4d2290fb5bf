"""Small checkpoints and configurations of score_sde, with the names and shapes of its own as data.

``interop/score_sde_keys.txt`` lists the parameters of four networks; ``OUTPUTS`` holds what the published
code computes with the weights of ``tensors`` at ``INPUT``, in float64.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEYS = Path(__file__).parent / "interop" / "score_sde_keys.txt"
INPUT = torch.sin(0.11 * torch.arange(2 * 3 * 64, dtype=torch.float64)).reshape(2, 3, 8, 8)
LEVELS = torch.tensor([0.05, 3.0], dtype=torch.float64)
LABELS = torch.tensor([2.25, 731.5], dtype=torch.float64)
OUTPUTS = {
    "NCSNPP": (
        LEVELS,
        [24.2875389367, 32.7675843464, 20.6636599754, 0.257048625295, 0.606382199564, 0.499789880732],
        11.6537354275,
    ),
    "DDPM": (
        LABELS,
        [1.12489146632, 1.07262689465, 1.02104877231, 0.654836192159, 0.643907184574, 0.661207879643],
        0.903272575774,
    ),
    "PYRAMIDS": (
        LEVELS,
        [31.1697462459, 42.8654478167, 43.7018300776, 0.430010256273, 0.445619187195, 0.637726153679],
        19.3229778795,
    ),
    "DDPMPP": (
        LABELS,
        [0.0912775955139, 0.658492574072, 1.70754900884, 0.457861076875, 1.04254043809, 1.38973563108],
        0.742131461148,
    ),
}
"""Labels, outputs at the place (0, 5) of both images, and the mean size of all."""

COMMON = {
    "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "dropout": 0.1, "conditional": True,
    "resamp_with_conv": True, "num_scales": 1000, "sigma_min": 0.01, "sigma_max": 50, "beta_min": 0.1,
    "beta_max": 20.0, "nonlinearity": "swish",
}  # fmt: skip
PLUS = COMMON | {
    "name": "ncsnpp", "nf": 8, "scale_by_sigma": True, "fir": True, "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": True, "resblock_type": "biggan", "progressive": "none", "progressive_input": "residual",
    "progressive_combine": "sum", "embedding_type": "fourier",
}  # fmt: skip
PYRAMIDS = {
    "progressive": "output_skip", "progressive_input": "input_skip", "sigma_max": 1348, "num_scales": 2000,
}  # fmt: skip
FLAT = {"progressive_input": "none", "embedding_type": "positional", "fir": False, "scale_by_sigma": False}


def _fields(sde: str, continuous: bool, centered: bool, model: dict[str, Any]) -> dict[str, Any]:
    data = {"image_size": 8, "num_channels": 3, "centered": centered}
    return {"training": {"sde": sde, "continuous": continuous}, "data": data, "model": model}


FIELDS: dict[str, dict[str, Any]] = {
    "NCSNPP": _fields("vesde", True, False, PLUS),
    "DDPM": _fields(
        "vpsde", False, True, COMMON | {"name": "ddpm", "nf": 32, "scale_by_sigma": False, "num_scales": 1000}
    ),
    "PYRAMIDS": _fields("vesde", True, False, PLUS | PYRAMIDS),
    "DDPMPP": _fields("subvpsde", True, True, PLUS | FLAT),
}
"""Configurations by network."""


def keys(name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters of a network, in their order."""
    text = KEYS.read_text(encoding="utf-8")
    found = []
    for line in text.partition(f"[{name}]\n")[2].partition("[")[0].splitlines():
        number, rest = line.split(" ", 1)
        for entry in rest.split("; "):
            key, *shape = entry.split()
            found.append((f"all_modules.{number}.{key}", tuple(map(int, shape))))
    return found


def weight(n: int, shape: tuple[int, ...]) -> Tensor:
    """The n-th tensor of a model."""
    z = torch.cos(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + n).reshape(shape)
    return (1 + 0.1 * z if len(shape) == 1 else z / math.sqrt(math.prod(shape[1:]))).float()


def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a model by name; the table of noise levels comes first."""
    model = FIELDS[name]["model"]
    ends = math.log(model["sigma_max"]), math.log(model["sigma_min"])
    table = torch.linspace(*ends, model["num_scales"], dtype=torch.float64).exp()
    return {"sigmas": table} | {key: weight(n + 1, shape) for n, (key, shape) in enumerate(keys(name))}


def random_frequencies(key: str) -> bool:
    """Whether a tensor is the one that is not trained."""
    return key.endswith(".W") and ".NIN_" not in key


def checkpoint(name: str) -> dict[str, Any]:
    """What a checkpoint holds: other weights of the last step than their moving averages."""
    averaged = tensors(name)
    model = OrderedDict()
    for key, value in averaged.items():
        trained = key != "sigmas" and not random_frequencies(key)
        model[f"module.{key}"] = value + 0.5 if trained else value
    model._metadata = OrderedDict({"": {"version": 1}})  # as state_dict() leaves it
    shadows = [v for key, v in averaged.items() if key != "sigmas" and not random_frequencies(key)]
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]}
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": shadows}
    return {"optimizer": optimizer, "model": model, "ema": ema, "step": 3}


def write(folder: Path, name: str) -> Path:
    """A checkpoint in a folder."""
    path = folder / f"{name}.pth"
    torch.save(checkpoint(name), path)
    return path
