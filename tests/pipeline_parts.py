"""Tiny parts of diffusers' pipelines with random weights, of the real classes; nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def unet(seed: int = 0, **options: Any) -> Any:
    """A U-Net for images (1, 8, 8)."""
    import diffusers

    torch.manual_seed(seed)
    kind = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8)}
    return diffusers.UNet2DModel(
        **{**kind, **size, "layers_per_block": 1, "norm_num_groups": 4, **options}
    ).eval()


def scheduler(name: str, **options: Any) -> Any:
    """A scheduler by the name of its class without the last word."""
    import diffusers

    return getattr(diffusers, f"{name}Scheduler")(**options)


def save(folder: Any, network: Any, made: Any) -> str:
    """A directory of DDPMPipeline's layout."""
    import diffusers

    diffusers.DDPMPipeline(network, made).save_pretrained(folder)
    return str(folder)


fourier = functools.partial(unet, time_embedding_type="fourier")
PLAIN = {"clip_sample": False}
BETAS = torch.linspace(1e-3, 0.03, 400).tolist()
TRAILING = {"timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
X0 = {"prediction_type": "sample"}
ZERO = {"rescale_betas_zero_snr": True}
FAMILIES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "ddpm linear epsilon": (unet, "DDPM", {"clip_sample": False}),
    "ddpm squaredcos v": (unet, "DDPM", {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, **V}),
    "ddpm learned range": (
        functools.partial(unet, out_channels=2), "DDPM", {"variance_type": "learned_range", **PLAIN}),
    "ddim scaled_linear sample": (unet, "DDIM", {"beta_schedule": "scaled_linear", **PLAIN, **X0}),
    "ddim zero terminal v": (
        unet, "DDIM", {"timestep_spacing": "trailing", "clip_sample": False, **ZERO, **V}),
    "pndm linear epsilon": (unet, "PNDM", {"steps_offset": 1}),
    "dpm squaredcos v": (unet, "DPMSolverMultistep", {"beta_schedule": "squaredcos_cap_v2", **TRAILING, **V}),
    "unipc custom betas v": (
        unet, "UniPCMultistep", {"trained_betas": BETAS, "num_train_timesteps": 400, **V}),
    "heun linear epsilon": (unet, "HeunDiscrete", TRAILING),
    "euler linear v": (unet, "EulerDiscrete", {**TRAILING, **V}),
    "lms scaled_linear epsilon": (unet, "LMSDiscrete", {"beta_schedule": "scaled_linear", **TRAILING}),
    "edm euler": (unet, "EDMEuler", {}),
    "edm dpm v": (unet, "EDMDPMSolverMultistep", V),
    "flow matching shift": (unet, "FlowMatchEulerDiscrete", {"shift": 3.0}),
    "score_sde_ve": (fourier, "ScoreSdeVe", {"num_train_timesteps": 200, "sigma_max": 50.0}),
}  # fmt: skip
"""Name -> network, scheduler and its options: fifteen directories, one or more for every family."""
QUICK = ("ddpm learned range", "ddim zero terminal v", "edm dpm v", "flow matching shift", "score_sde_ve")
"""Those that quick tests look at."""


def states(count: int = 3, shape: tuple[int, ...] = (1, 8, 8), seed: int = 1) -> Tensor:
    """Standard normals with shape (count, *shape)."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
