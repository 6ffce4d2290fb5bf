"""A U-Net for signals: convolutions along one dimension on levels of falling resolution.

    level k      channels[k] channels at L / 2^k places

The blocks are those of ``sde_toolkit.networks.blocks``, which change the resolution behind a filter (1, 3, 3,
1): a signal's fine structure is not folded into its coarse structure.  The time enters as in the U-Net for
images.

The network maps the scaled state x with shape (B, C, L) to the shape of x.  What its output means (noise,
clean data, ...) is decided by ``sde_toolkit.models.NetworkModel``, which also scales the input.

Weights are drawn from ``seed`` alone; the global generator is left as it was.  The last layer starts at zero,
so that an untrained network returns 0.

References: Ronneberger, Fischer and Brox, "U-Net" (1505.04597); Ho, Jain and Abbeel, "Denoising Diffusion
Probabilistic Models" (2006.11239); Kong et al., "DiffWave" (2009.09761), for diffusion models of signals.
"""

from __future__ import annotations

from torch import Tensor, nn

from sde_toolkit.networks.blocks import MOST_LAYERS, Levels, Shape, check_levels
from sde_toolkit.networks.conditions import CallEmbedding, condition_sizes
from sde_toolkit.networks.embeddings import MAX_ANGLE, check_event_shape
from sde_toolkit.utils import checked, integer, seeded


class UNet1D(nn.Module):
    """A U-Net for signals, called ``network(x, c[, condition])``.

    Args:
        event_shape: (C, L); L divisible by 2^(number of levels - 1).
        channels: number of channels of each level, each divisible by ``num_groups``.
        layers_per_block: residual blocks per level on the way down (one more on the way up).
        attention_levels: the levels with self-attention; there is some in the middle always.
        num_groups: of the group normalisation.
        dropout: probability.
        max_angle: angle of the time features at the prior end.
        num_classes: number of classes; 0 for a network without labels.
        condition_shape: (d,) for conditions that are vectors, (L, d) for tokens, which the attention reads
            too; () for neither.
        seed: of the initial weights.

    Attributes:
        arguments: those above by name, as JSON holds them.

    Raises:
        ValueError: an event shape that is not (C, L) or not divisible, channels that num_groups does not
            divide, a level that does not exist, classes together with ``condition_shape``, or max_angle not
            positive.
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
        dropout: float = 0.0,
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
            "a UNet1D", "a UNet for images and an MLP for vectors", self.event_shape, 1, channels,
            attention_levels, num_groups, dropout,
        )  # fmt: skip
        self.arguments = {
            "event_shape": list(self.event_shape), "channels": list(channels),
            "layers_per_block": layers_per_block, "attention_levels": list(attention_levels),
            "num_groups": num_groups, "dropout": float(dropout), "max_angle": float(max_angle),
            "num_classes": self.num_classes, "condition_shape": list(self.condition_shape), "seed": seed,
        }  # fmt: skip
        width = 4 * channels[0]
        shape = Shape(1, num_groups, dropout, width, False, self.condition_shape)
        layers = integer("layers_per_block", layers_per_block, 1, MOST_LAYERS)
        with seeded(seed):
            self.embed = CallEmbedding(
                width, max(1, channels[0] // 2), max_angle, num_classes, self.condition_shape
            )
            self.levels = Levels(shape, event_shape[0], tuple(channels), layers, attention_levels, False)

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the prediction with shape (B, C, L), for x with that shape, c with shape (B,), and labels
        with shape (B,) or rows with shape (B, *condition_shape)."""
        check_event_shape(x, self.event_shape)
        e, rows = self.embed(x, c, condition)
        return self.levels(x, nn.functional.silu(e), rows)
