"""A U-Net for images: residual blocks on levels of falling resolution, with skip connections between them.

    input    x, and for every exponent k in ``fourier``
             exp(-(2^k pi s)^2 / 2) cos(2^k pi x)  and  exp(-(2^k pi s)^2 / 2) sin(2^k pi x)
    level k  channels[k] channels on H / (2^k P) x W / (2^k P) positions

The Fourier features let a network see differences far below the data's scale.  The factor in front, with s
the standard deviation of the noise in x, is what the noise leaves of the clean image's wave: without it the
fine features are rapidly varying noise wherever s is large.

The network maps the scaled state x with shape (B, C, H, W) to the shape of x.  What its output means (noise,
clean data, ...) is decided by ``sde_toolkit.models.NetworkModel``, which also scales the input.

Weights are drawn from ``seed`` alone; the global generator is left as it was.  The last layer starts at zero,
so that an untrained network returns 0.

References: Ronneberger, Fischer and Brox, "U-Net" (1505.04597); Ho, Jain and Abbeel, "Denoising Diffusion
Probabilistic Models" (2006.11239); Kingma et al., "Variational Diffusion Models" (2107.00630), section 5.3,
for the Fourier features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.networks.blocks import MOST_LAYERS, check_levels
from sde_toolkit.networks.conditions import RowEmbedding, condition_or_null, condition_sizes
from sde_toolkit.networks.embeddings import MAX_ANGLE, angle_rate, check_event_shape
from sde_toolkit.utils import checked, integer, seeded


class UNet(nn.Module):
    """diffusers' ``UNet2DModel`` for images, called ``network(x, c)``; from the extra ``images``.

    Patches of P x P pixels are first folded into channels (P = ``patch_size``), so level k works on images of
    H / (2^k P) x W / (2^k P) positions, with ``channels[k]`` channels, kept in memory with the channels last,
    which is faster on a CPU.  The defaults are for the 8 x 8 digits.

    Args:
        event_shape: (C, H, W); H and W divisible by P 2^(number of levels - 1).
        channels: number of channels of each level, each divisible by ``num_groups``.
        layers_per_block: residual layers per level on the way down (one more on the way up).
        attention_levels: the levels with self-attention; the lowest also gets it in the middle.
        num_groups: of the group normalisation.
        patch_size: P.
        dropout: probability.
        fourier: exponents k of the input features cos(2^k pi x) and sin(2^k pi x), which let a network see
            differences far below the data's scale (2107.00630, section 5.3); () for none.
        max_angle: angle of the time features at the prior end.
        num_classes: number of classes; 0 for a network without labels.
        condition_shape: (d,) for conditions that are vectors, (L, d) for tokens, of which it takes the mean
            of their embeddings; () for neither.
        noise_level: c with shape (B,) -> standard deviation s of the noise in x, with shape (B,).  The
            features are then multiplied by exp(-(2^k pi s)^2 / 2), what is left of the clean state's wave:
            without it the fine ones are rapidly varying noise wherever s is large.
        seed: of the initial weights.

    Attributes:
        arguments: those above by name, as JSON holds them, but for ``noise_level``.

    Raises:
        ValueError: an event shape that is not (C, H, W) or not divisible, channels that num_groups does not
            divide, a level that does not exist, classes together with ``condition_shape``, or max_angle
            not positive.
        ImportError: diffusers is not installed, or cannot be imported.
    """

    embeds_real_times = True
    """Whether the time feature may be any real number."""

    @checked
    def __init__(
        self,
        event_shape: tuple[int, ...],
        channels: tuple[int, ...] = (32, 64),
        layers_per_block: int = 1,
        attention_levels: tuple[int, ...] = (),
        num_groups: int = 8,
        patch_size: int = 1,
        dropout: float = 0.0,
        fourier: tuple[int, ...] = (),
        max_angle: float = MAX_ANGLE,
        num_classes: int = 0,
        condition_shape: tuple[int, ...] = (),
        noise_level: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape, self.fourier = tuple(event_shape), tuple(fourier)
        self.noise_level, self._angle_rate = noise_level, angle_rate(max_angle)
        self.patch_size = integer("patch_size", patch_size, 1)
        self.num_classes, self.condition_shape = condition_sizes(num_classes, condition_shape)
        integer("num_groups", num_groups, 1)
        check_levels(
            "a U-Net", "an MLP for vectors and a UNet1D for signals", self.event_shape, 2, channels,
            attention_levels, num_groups, dropout, patch_size,
        )  # fmt: skip
        self.arguments = {
            "event_shape": list(self.event_shape), "channels": list(channels),
            "layers_per_block": layers_per_block, "attention_levels": list(attention_levels),
            "num_groups": num_groups, "patch_size": self.patch_size, "dropout": float(dropout),
            "fourier": list(self.fourier), "max_angle": float(max_angle), "num_classes": self.num_classes,
            "condition_shape": list(self.condition_shape), "noise_level": noise_level, "seed": seed,
        }  # fmt: skip
        network = _diffusers_unet()
        size, height, width = self.event_shape
        size *= patch_size**2
        levels = range(len(channels))
        down = tuple("AttnDownBlock2D" if k in attention_levels else "DownBlock2D" for k in levels)
        up = tuple("AttnUpBlock2D" if k in attention_levels else "UpBlock2D" for k in reversed(levels))
        with seeded(seed):
            self.unet = network(
                sample_size=(height // patch_size, width // patch_size),
                in_channels=size * (1 + 2 * len(self.fourier)),
                out_channels=size,
                block_out_channels=tuple(channels),
                layers_per_block=integer("layers_per_block", layers_per_block, 1, MOST_LAYERS),
                down_block_types=down,
                up_block_types=up,
                add_attention=levels[-1] in attention_levels,
                norm_num_groups=num_groups,
                dropout=dropout,
                num_class_embeds=num_classes + 1 if num_classes else None,
                class_embed_type="identity" if self.condition_shape else None,
            )
            if self.condition_shape:
                self.rows = RowEmbedding(self.condition_shape, 4 * channels[0])
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        self.unet.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the prediction with shape (B, C, H, W), for x with that shape, c with shape (B,), and labels
        with shape (B,) or rows with shape (B, *condition_shape)."""
        check_event_shape(x, self.event_shape)
        condition = condition_or_null(condition, self.num_classes, self.condition_shape, x)
        if self.condition_shape:
            condition = self.rows(condition)
        folded = nn.functional.pixel_unshuffle(self._features(x, c), self.patch_size).contiguous(
            memory_format=torch.channels_last
        )
        out = self.unet(folded, self._angle_rate * c, class_labels=condition, return_dict=False)[0]
        return nn.functional.pixel_shuffle(out, self.patch_size)

    def _features(self, x: Tensor, c: Tensor) -> Tensor:
        features, level = [x], None if self.noise_level is None else self.noise_level(c).reshape(-1, 1, 1, 1)
        for k in self.fourier:
            frequency = 2.0**k * math.pi
            left = 1.0 if level is None else torch.exp(-0.5 * (frequency * level).square()).to(x.dtype)
            features += [left * torch.cos(frequency * x), left * torch.sin(frequency * x)]
        return torch.cat(features, 1) if self.fourier else x


def _diffusers_unet() -> Any:
    """diffusers' ``UNet2DModel``.

    Raises:
        ImportError: diffusers is not installed, or cannot be imported.
    """
    try:
        from diffusers import UNet2DModel
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise ImportError(_broken(error)) from error
        raise ImportError(
            "a U-Net is built from diffusers, which is not installed; run pip install 'sde-toolkit[images]' "
            "(networks for vectors, exact models and solvers work without it)",
            name="diffusers",
        ) from None
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ImportError(_broken(error)) from error
    return UNet2DModel


def _broken(error: BaseException) -> str:
    while error.__cause__ is not None:  # lazy imports of others wrap the reason
        error = error.__cause__
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return (
        f"a U-Net is built from diffusers, which is installed but fails to import: {reason[0]}; the usual "
        "cause is a torchvision made for another version of torch: install a pair that fits, or run pip "
        "uninstall torchvision (it is not needed here)"
    )
