"""NCSN++: a U-Net for images with the changes that Song et al. found to help.

    residual blocks of BigGAN's kind, that resample inside themselves
    a filter (1, 3, 3, 1) wherever the resolution changes
    sums divided by sqrt(2)
    the input handed to every level on the way down ("residual" input pyramid), the output left as it is
    random Fourier features of the time, fixed from ``seed``

This is the network of the paper's experiments on CIFAR-10, with its initial weights: Xavier's law, and zero
where a block or attention adds to its input.  What differs: the output is what ``NetworkModel`` is told that
it is, and is not divided by sigma here; the times are 1000 t / T, affine in log sigma for the
variance-exploding process; and the pyramid's convolutions act at the lower resolution, after the filter.  The
last layer starts at zero, so that an untrained network returns 0.

The network maps the scaled state x with shape (B, C, H, W) to the shape of x.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), section 4.4 and appendix H.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from sde_toolkit.networks.attention import CrossAttention, SelfAttention
from sde_toolkit.networks.blocks import MOST_LAYERS, Levels, ResidualBlock, Shape, check_levels
from sde_toolkit.networks.conditions import CallEmbedding, condition_sizes
from sde_toolkit.networks.embeddings import MAX_ANGLE, check_event_shape
from sde_toolkit.utils import checked, integer, seeded

TIME_EMBEDDINGS = ("fourier", "positional")
"""Kinds of time features: random frequencies, or the geometric series of the other networks."""


class NCSNpp(nn.Module):
    """NCSN++ for images (2011.13456), called ``network(x, c[, condition])``.

    The paper's for CIFAR-10 is ``channels=(128, 256, 256, 256), layers_per_block=4, attention_levels=(1,),
    num_groups=32, dropout=0.1``.  The defaults are for small images.

    Args:
        event_shape: (C, H, W); H and W divisible by 2^(number of levels - 1).
        channels: number of channels of each level, each divisible by ``num_groups``.
        layers_per_block: residual blocks per level on the way down (one more on the way up).
        attention_levels: the levels with self-attention; there is some in the middle always.
        num_groups: of the group normalisation.
        dropout: probability.
        time_embedding: "fourier" for random frequencies, "positional" for a geometric series.
        max_angle: angle of the time features at the prior end, for frequency 1.
        num_classes: number of classes; 0 for a network without labels.
        condition_shape: (d,) for conditions that are vectors, (L, d) for tokens, which the attention reads
            too; () for neither.
        seed: of the initial weights.

    Attributes:
        arguments: those above by name, as JSON holds them.

    Raises:
        ValueError: an event shape that is not (C, H, W) or not divisible, channels that num_groups does not
            divide, a level or an embedding that does not exist, classes together with ``condition_shape``, or
            max_angle not positive.
    """

    embeds_real_times = True
    """Whether the time feature may be any real number."""

    @checked
    def __init__(
        self,
        event_shape: tuple[int, ...],
        channels: tuple[int, ...] = (32, 64),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (),
        num_groups: int = 8,
        dropout: float = 0.0,
        time_embedding: str = "fourier",
        max_angle: float = MAX_ANGLE,
        num_classes: int = 0,
        condition_shape: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.num_classes, self.condition_shape = condition_sizes(num_classes, condition_shape)
        integer("num_groups", num_groups, 1)
        check_levels(
            "an NCSN++", "an MLP for vectors and a UNet1D for signals", self.event_shape, 2, channels,
            attention_levels, num_groups, dropout,
        )  # fmt: skip
        if time_embedding not in TIME_EMBEDDINGS:
            raise ValueError(f"time_embedding must be one of {TIME_EMBEDDINGS}, got {time_embedding!r}")
        self.arguments = {
            "event_shape": list(self.event_shape), "channels": list(channels),
            "layers_per_block": layers_per_block, "attention_levels": list(attention_levels),
            "num_groups": num_groups, "dropout": float(dropout), "time_embedding": time_embedding,
            "max_angle": float(max_angle), "num_classes": self.num_classes,
            "condition_shape": list(self.condition_shape), "seed": seed,
        }  # fmt: skip
        width = 4 * channels[0]
        shape = Shape(2, num_groups, dropout, width, True, self.condition_shape)
        layers = integer("layers_per_block", layers_per_block, 1, MOST_LAYERS)
        with seeded(seed):
            random = time_embedding == "fourier"
            frequencies = channels[0] if random else max(1, channels[0] // 2)
            self.embed = CallEmbedding(
                width, frequencies, max_angle, num_classes, self.condition_shape, random
            )
            self.levels = Levels(shape, event_shape[0], tuple(channels), layers, attention_levels, True)
            self._draw()

    def _draw(self) -> None:
        """Weights as in the paper."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.second.weight)
            elif isinstance(module, (SelfAttention, CrossAttention)):
                nn.init.zeros_(module.outward.weight)
        nn.init.zeros_(self.levels.last.weight)

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the prediction with shape (B, C, H, W), for x with that shape, c with shape (B,), and labels
        with shape (B,) or rows with shape (B, *condition_shape)."""
        check_event_shape(x, self.event_shape)
        e, rows = self.embed(x, c, condition)
        return self.levels(x, nn.functional.silu(e), rows)
