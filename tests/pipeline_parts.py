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


def vae(channels: int = 4, seed: int = 3) -> Any:
    """Images (3, 16, 16) from and to latents (4, 8, 8)."""
    import diffusers

    torch.manual_seed(seed)
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    ).eval()  # fmt: skip


def texts(folder: Any, width: int = 8, places: int = 6, tokens: int = 0) -> tuple[Any, Any]:
    """A tokenizer of letters and a text encoder."""
    import json

    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(97 + i) for i in range(26)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    words += [f"more{i}</w>" for i in range(tokens)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=places
    )
    torch.manual_seed(4)
    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return tokenizer, transformers.CLIPTextModel(config).eval()


def stable_diffusion(folder: Any, other: Any, **options: Any) -> Any:
    """A pipeline of Stable Diffusion's layout."""
    import diffusers

    torch.manual_seed(5)
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=8, attention_head_dim=2,
    ).eval()  # fmt: skip
    tokenizer, encoder = texts(folder / "texts", **options)
    return diffusers.StableDiffusionPipeline(
        vae(), encoder, tokenizer, network, other, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def dit(other: Any, classes: int = 1000) -> Any:
    """A pipeline of DiT's layout with learned variances."""
    import diffusers

    torch.manual_seed(6)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=classes, norm_num_groups=4,
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return diffusers.DiTPipeline(network, vae(), other)
