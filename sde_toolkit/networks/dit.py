"""A diffusion transformer for images: patches as tokens, and a time that scales and shifts every block.

    h_0     = W patches(x) + positions
    a       = h + g_1 attention((1 + s_1) norm(h) + b_1)
    h'      = a + g_2 mlp((1 + s_2) norm(a) + b_2),          (b, s, g)_{1, 2} = A silu(e)    [adaLN-Zero]
    output  = unpatch(W' ((1 + s) norm(h_depth) + b)),       (b, s) = A' silu(e)

with e the embedding of the time and of the condition (``sde_toolkit.networks.conditions``) and fixed
positions of sines and cosines in both directions.  Where the condition is tokens, cross-attention to them
stands between the two lines of a block.  All A start at zero, so that every block starts as the identity, and
so does W'.

The blocks are written here and not taken from diffusers, whose ``DiTTransformer2DModel`` takes square images
alone, draws from the global generator which labels it drops, and embeds the time anew in every block.

The network maps the scaled state x with shape (B, C, H, W) to the shape of x.  What its output means (noise,
clean data, ...) is decided by ``sde_toolkit.models.NetworkModel``, which also scales the input.

Weights are drawn from ``seed`` alone; the global generator is left as it was.

References: Peebles and Xie, "Scalable Diffusion Models with Transformers" (2212.09748); Chen et al.,
"PixArt-alpha" (2310.00426), for the cross-attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_toolkit.networks.attention import CrossAttention, SelfAttention
from sde_toolkit.networks.conditions import CallEmbedding, condition_sizes
from sde_toolkit.networks.embeddings import MAX_ANGLE, check_event_shape, time_features
from sde_toolkit.utils import checked, integer, seeded

MOST_BLOCKS = 1024
"""Most transformer blocks."""


class _Block(nn.Module):
    """A transformer block that the embedding e modulates."""

    def __init__(self, width: int, num_heads: int, hidden: int, condition_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width, num_heads)
        tokens = len(condition_shape) == 2
        self.cross = CrossAttention(width, num_heads, condition_shape) if tokens else None
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, h: Tensor, e: Tensor, rows: Tensor | None) -> Tensor:
        """The next h with shape (B, N, width), for silu(e) with shape (B, width) and the condition."""
        b_1, s_1, g_1, b_2, s_2, g_2 = self.modulation(e)[:, None].chunk(6, -1)
        h = h + g_1 * self.attention((1 + s_1) * self.norm(h) + b_1)
        if self.cross is not None:
            h = h + self.cross(h, rows)
        return h + g_2 * self.mlp((1 + s_2) * self.norm(h) + b_2)


class DiT(nn.Module):
    """A diffusion transformer for images (2212.09748, adaLN-Zero), called ``network(x, c[, condition])``.

    The paper's DiT-S, B, L and XL are width 384, 768, 1024, 1152, depth 12, 12, 24, 28 and 6, 12, 16, 16
    heads.  The defaults are for small images.

    Args:
        event_shape: (C, H, W); H and W divisible by ``patch_size``.
        patch_size: P, of patches of P x P pixels, each a token.
        width: of a token, divisible by ``num_heads`` and by 4.
        depth: number of blocks.
        num_heads: of the attention.
        mlp_ratio: hidden units of a block's MLP per unit of ``width``.
        num_frequencies: K, of the time features.
        max_angle: angle of the time features at the prior end.
        num_classes: number of classes; 0 for a network without labels.
        condition_shape: (d,) for conditions that are vectors, (L, d) for tokens, which cross-attention reads;
            () for neither.
        seed: of the initial weights.

    Attributes:
        arguments: those above by name, as JSON holds them.

    Raises:
        ValueError: a size below 1 or that does not divide, classes together with ``condition_shape``, or
            max_angle not positive.
    """

    embeds_real_times = True
    """Whether the time feature may be any real number."""

    @checked
    def __init__(
        self,
        event_shape: tuple[int, ...],
        patch_size: int = 2,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_frequencies: int = 64,
        max_angle: float = MAX_ANGLE,
        num_classes: int = 0,
        condition_shape: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape, self.patch_size = tuple(event_shape), integer("patch_size", patch_size, 1)
        depth = integer("depth", depth, 1, MOST_BLOCKS)
        self.num_classes, self.condition_shape = condition_sizes(num_classes, condition_shape)
        _check_sizes(
            self.event_shape, patch_size, integer("width", width, 1), integer("num_heads", num_heads, 1)
        )
        if not 1 <= width * mlp_ratio <= 1e9:
            raise ValueError(f"mlp_ratio must give 1 to 10^9 hidden units, got {mlp_ratio}")
        self.arguments = {
            "event_shape": list(self.event_shape), "patch_size": patch_size, "width": width, "depth": depth,
            "num_heads": num_heads, "mlp_ratio": float(mlp_ratio), "num_frequencies": num_frequencies,
            "max_angle": float(max_angle), "num_classes": self.num_classes,
            "condition_shape": list(self.condition_shape), "seed": seed,
        }  # fmt: skip
        size, (height, wide) = self.event_shape[0] * patch_size**2, self.event_shape[1:]
        self.register_buffer("positions", _positions(height // patch_size, wide // patch_size, width))
        with seeded(seed):
            self.embed = CallEmbedding(
                width, integer("num_frequencies", num_frequencies, 1), max_angle, num_classes,
                self.condition_shape,
            )  # fmt: skip
            self.first = nn.Linear(size, width)
            self.blocks = nn.ModuleList(
                _Block(width, num_heads, int(width * mlp_ratio), self.condition_shape) for _ in range(depth)
            )
            self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
            self.modulation, self.last = nn.Linear(width, 2 * width), nn.Linear(width, size)
            self._draw()

    def _draw(self) -> None:
        """Weights as in the paper: Xavier's law, and zero where the blocks are modulated and at the end."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, CrossAttention):
                nn.init.zeros_(module.outward.weight)
            elif isinstance(module, (_Block, DiT)):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the prediction with shape (B, C, H, W), for x with that shape, c with shape (B,), and labels
        with shape (B,) or rows with shape (B, *condition_shape)."""
        check_event_shape(x, self.event_shape)
        e, rows = self.embed(x, c, condition)
        e = nn.functional.silu(e)
        folded = nn.functional.pixel_unshuffle(x, self.patch_size)
        h = self.first(folded.flatten(2).mT) + self.positions
        for block in self.blocks:
            h = block(h, e, rows)
        b, s = self.modulation(e)[:, None].chunk(2, -1)
        out = self.last((1 + s) * self.norm(h) + b).mT.reshape(folded.shape)
        return nn.functional.pixel_shuffle(out, self.patch_size)


def _positions(height: int, width: int, features: int) -> Tensor:
    """Sines and cosines of the row and of the column, with shape (height width, features)."""
    rows, columns = (
        time_features(torch.arange(count, dtype=torch.float32), features // 4) for count in (height, width)
    )
    grid = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return torch.cat(grid, -1).flatten(0, 1)


def _check_sizes(event_shape: tuple[int, ...], patch_size: int, width: int, num_heads: int) -> None:
    if len(event_shape) != 3 or min(event_shape) < 1:
        raise ValueError(
            f"event_shape must be (C, H, W) for a DiT, got {event_shape}; use an MLP for vectors and a "
            "UNet1D for signals"
        )
    if any(size % patch_size for size in event_shape[1:]):
        raise ValueError(
            f"height and width must be divisible by patch_size {patch_size}, got {event_shape[1:]}; use "
            "smaller patches or pad the images"
        )
    if width % num_heads or width % 4:
        raise ValueError(
            f"width must be divisible by 4 and by num_heads = {num_heads}, got {width}; use a "
            "multiple of both"
        )
