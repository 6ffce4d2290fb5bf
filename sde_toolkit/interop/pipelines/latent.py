"""Latent diffusion: a directory of Stable Diffusion's or DiT's layout as a conditional score model of
latents.

    x0 = scaling_factor (E(image) - shift_factor),       image = D(x0 / scaling_factor + shift_factor)

with E and D of an ``AutoencoderKL``.  The score model lives in the space of x0, where every sampler,
comparison and likelihood runs; a log-likelihood is one of latents, not of images.

    vae, unet, text_encoder, tokenizer, scheduler     condition: rows (L, d) of ``condition(prompts)``; the
                                                      embedding of the empty text where there is none
    vae, transformer, scheduler                       condition: labels

Classifier-free guidance is ``guidance.guided(sampler, w)``, w = guidance_scale.

Reference: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2112.10752).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.interop.folders import existing_folder, json_object
from sde_toolkit.interop.libraries import other_library
from sde_toolkit.interop.pipelines.networks import PipelineNetwork
from sde_toolkit.interop.pipelines.opening import (
    class_name,
    event_shape_of,
    learned_variances,
    load_part,
    model_of,
    open_parts,
)
from sde_toolkit.interop.pipelines.schedules import read_schedule
from sde_toolkit.models import ModuleModel, Moments
from sde_toolkit.utils import as_device, checked, integer


@dataclass(frozen=True)
class LatentDiffusion:
    """A score model of latents, and the way between them, images and prompts.

    Attributes:
        model: of the latents; its samples' ``data`` are images.
        vae: an ``AutoencoderKL``.
        tokenizer, text_encoder: of the prompts; None for labels.
    """

    model: ModuleModel
    vae: Any
    tokenizer: Any = None
    text_encoder: Any = None

    def __repr__(self) -> str:
        return f"LatentDiffusion({self.model!r})"

    @torch.no_grad()
    def condition(self, prompts: str | Sequence[str]) -> Tensor:
        """Embeddings of texts, one row for each, with shape (B, L, d).

        Raises:
            ValueError: a model of labels.
            TypeError: no texts.
        """
        if self.text_encoder is None:
            raise ValueError(
                "prompts need a text encoder, got a model of labels; give sample(..., condition=labels)"
            )
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"prompts must be a text or a list of texts, got {prompts!r}")
        return embedded(self.tokenizer, self.text_encoder, texts)

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 8) -> Tensor:
        """Images in [0, 1] with shape (B, C, H, W), of latents with shape (B, *).

        Raises:
            ValueError: latents of another shape, or no batch size.
        """
        integer("batch_size", batch_size, 1)
        if not isinstance(latents, Tensor) or tuple(latents.shape[1:]) != self.model.event_shape:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"latents must have shape (B, *{self.model.event_shape}), got {got}")
        scale, shift = _scale(self.vae)
        like = next(self.vae.parameters())
        parts = [
            self.vae.decode((part / scale + shift).to(like.device, like.dtype)).sample
            for part in latents.split(batch_size)
        ]
        return (torch.cat(parts).to(latents.dtype) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor, z: Tensor | None = None) -> Tensor:
        """Latents with shape (B, *), of images in [0, 1] with shape (B, C, H, W).

        Args:
            images: as ``decode`` returns them.
            z: standard normals with the shape of the latents, to draw from the encoder's law; its mean when
                None.

        Raises:
            ValueError: images of another shape.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise ValueError(f"images must be a tensor with shape (B, C, H, W), got {type(images).__name__}")
        scale, shift = _scale(self.vae)
        like = next(self.vae.parameters())
        law = self.vae.encode((2 * images - 1).to(like.device, like.dtype)).latent_dist
        drawn = law.mean if z is None else law.mean + law.std * z.to(law.mean)
        return scale * (drawn - shift)


@dataclass(frozen=True)
class LatentScale:
    """From latents to images, as ``Samples.data`` asks for them."""

    space: LatentDiffusion

    def to_data(self, x: Tensor, /) -> Tensor:
        """Images in [0, 1] with shape (B, C, H, W)."""
        return self.space.decode(x)


def _scale(vae: Any) -> tuple[float, float]:
    shift = vae.config.get("shift_factor")
    return float(vae.config["scaling_factor"]), 0.0 if shift is None else float(shift)


def embedded(tokenizer: Any, text_encoder: Any, texts: list[str]) -> Tensor:
    """The last hidden states of the text encoder with shape (B, L, d), padded to its longest input."""
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    device = next(text_encoder.parameters()).device
    return text_encoder(tokens.input_ids.to(device))[0]


@checked
def open_latent(
    directory: str | Path,
    *,
    scheduler: object | None = None,
    learned_variance: bool | None = None,
    event_shape: tuple[int, ...] | None = None,
    data_std: float | None = None,
    moments: Moments | None = None,
    tiling: bool = False,
    slicing: bool = False,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> LatentDiffusion:
    """Open a directory of Stable Diffusion's or DiT's layout.

    Args:
        directory: with a vae, a network and a scheduler, and a tokenizer and a text_encoder for prompts.
        scheduler: with whose configuration the network was trained; the directory's own when None.
        learned_variance: as for ``from_diffusers``; DiT's second half is one.
        event_shape: of the latents, (C, H, W); the network's own when None.
        data_std, moments: of the latents.
        tiling, slicing: whether images are decoded in tiles, and one at a time, to save memory.
        variant, device, dtype: as for ``from_diffusers``.

    Raises:
        ValueError, TypeError, ImportError: as for ``from_diffusers``; ValueError also for parts that do not
            fit each other, such as another text encoder's tokenizer.
    """
    folder = existing_folder(directory, "directory")
    index = json_object(folder / "model_index.json", "directory")
    if index.get("vae") is None:
        raise ValueError(
            f"directory must have a vae in its model_index.json, got {folder} without; use from_diffusers"
        )
    parts = open_parts(folder, scheduler, variant)
    schedule = read_schedule(parts.scheduler, parts.config)
    vae = load_part(folder / "vae", index["vae"], variant)
    if type(vae).__name__ != "AutoencoderKL":
        raise ValueError(f"vae must be an AutoencoderKL, got {type(vae).__name__}")
    shape, out = event_shape_of(parts.network, event_shape)
    latent_channels = int(vae.config["latent_channels"])  # type: ignore[index]
    if latent_channels != shape[0]:
        raise ValueError(
            f"vae must have the {shape[0]} channels of the network's latents, got {latent_channels}; take "
            "the vae that the network was trained with"
        )
    learned = learned_variances(parts, schedule, learned_variance, out / shape[0])
    channels = shape[0] if out == 2 * shape[0] and not learned else None
    tokenizer, encoder, null = _texts(folder, index, parts.network, variant)
    network = PipelineNetwork(parts.network, schedule.sign, channels, null_condition=null)
    place = as_device("device", device)
    rows = None if null is None else tuple(null.shape)
    model = model_of(network.to(place, dtype), schedule, shape, data_std, moments, learned, rows)
    model.eval()
    whole: Any = vae.to(place, dtype)
    if tiling:
        whole.enable_tiling()
    if slicing:
        whole.enable_slicing()
    space = LatentDiffusion(model, whole, tokenizer, None if encoder is None else encoder.to(place, dtype))
    model.scaling = LatentScale(space)
    return space


def _texts(
    folder: Path, index: dict[str, Any], network: nn.Module, variant: str | None
) -> tuple[Any, Any, Tensor | None]:
    """Tokenizer, text encoder and the embedding of the empty text; None for networks without texts."""
    width = getattr(network, "config", {}).get("cross_attention_dim")
    if type(network).__name__ != "UNet2DConditionModel":
        return None, None, None
    for name in ("tokenizer", "text_encoder"):
        if index.get(name) is None or not (folder / name).is_dir():
            raise ValueError(f"directory must have a {name} for a network of prompts, got {folder} without")
    encoder: Any = load_part(folder / "text_encoder", index["text_encoder"], variant, "transformers")
    hidden = int(encoder.config.hidden_size)
    if hidden != width:
        raise ValueError(
            f"text_encoder must have the {width} features that the network attends to, got {hidden}; take "
            "the text encoder that the network was trained with"
        )
    tokenizer = _tokenizer(folder / "tokenizer", index["tokenizer"])
    known, longest = int(encoder.config.vocab_size), int(encoder.config.max_position_embeddings)
    if len(tokenizer) > known or tokenizer.model_max_length > longest:
        raise ValueError(
            f"tokenizer must be the text encoder's, with at most {known} tokens and {longest} places, got "
            f"one with {len(tokenizer)} tokens and {tokenizer.model_max_length} places"
        )
    with torch.no_grad():
        return tokenizer, encoder, embedded(tokenizer, encoder, [""])[0]


def _tokenizer(folder: Path, entry: Any) -> Any:
    peer = other_library("transformers", "a tokenizer", "latent")
    name = class_name(entry, "transformers", "tokenizer")
    cls: Any = getattr(peer, name, None)
    base: Any = peer.PreTrainedTokenizerBase
    known = isinstance(cls, type) and issubclass(cls, base)
    if not known:
        raise ValueError(f"tokenizer must be a tokenizer of transformers, got the class {name!r}")
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"tokenizer in {folder} cannot be read as a {name}: {reason}") from error
