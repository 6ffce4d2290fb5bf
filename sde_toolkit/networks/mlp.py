"""A residual multi-layer perceptron for vectors.

With e the embedding of the time feature c, plus that of the condition where there is one
(``sde_toolkit.networks.conditions``):

    h_0     = W x + b
    h_{i+1} = h_i + W_2 silu(W_1 norm(h_i) + V silu(e)),      i = 0 .. depth - 1
    output  = W' silu(norm(h_depth)) + b'

The network maps the scaled state x with shape (B, *) to the shape of x.  What its output means (noise, clean
data, ...) is decided by ``sde_toolkit.models.NetworkModel``, which also scales the input.

Weights are drawn from ``seed`` alone; the global generator is left as it was.  The last layer starts at zero,
so that an untrained network returns 0: the posterior mean of the noise at t = 0 and of centred data at t = T.

Reference: He et al., "Identity Mappings in Deep Residual Networks" (1603.05027).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from sde_toolkit.networks.conditions import RowEmbedding, condition_or_null, condition_sizes
from sde_toolkit.networks.embeddings import MAX_ANGLE, angle_rate, check_event_shape, time_features
from sde_toolkit.utils import checked, integer, seeded

MOST_BLOCKS = 1024
"""Most residual blocks."""


class _ResidualBlock(nn.Module):
    """h + W2 silu(W1 norm(h) + V e), with the time embedding e."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.time, self.second = (nn.Linear(width, width) for _ in range(3))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Return the next h with shape (B, width), for the time embedding e with shape (B, width)."""
        return h + self.second(nn.functional.silu(self.first(self.norm(h)) + self.time(e)))


class MLP(nn.Module):
    """A residual multi-layer perceptron for vectors, and for any event shape taken as a flat vector.

    Args:
        event_shape: the shape D of one sample.
        width: number of hidden units.
        depth: number of residual blocks, each of two layers.
        num_frequencies: K, of the time features.
        max_angle: angle of the time features at the prior end.
        num_classes: number of classes; 0 for a network without labels.
        condition_shape: (d,) for conditions that are vectors, (L, d) for tokens, of which it takes the mean
            of their embeddings; () for neither.
        seed: of the initial weights.

    Attributes:
        arguments: those above by name, as JSON holds them.

    Raises:
        ValueError: a size below 1, classes together with ``condition_shape``, or max_angle not positive.
    """

    embeds_real_times = True
    """Whether the time feature may be any real number."""

    @checked
    def __init__(
        self,
        event_shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
        num_frequencies: int = 32,
        max_angle: float = MAX_ANGLE,
        num_classes: int = 0,
        condition_shape: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        width, depth = integer("width", width, 1), integer("depth", depth, 1, MOST_BLOCKS)
        self.event_shape = tuple(integer("event_shape", size, 1) for size in event_shape)
        self.num_frequencies = integer("num_frequencies", num_frequencies, 1)
        self.num_classes, self.condition_shape = condition_sizes(num_classes, condition_shape)
        self._angle_rate = angle_rate(max_angle)
        self.arguments = {
            "event_shape": list(self.event_shape), "width": width, "depth": depth,
            "num_frequencies": self.num_frequencies, "max_angle": float(max_angle),
            "num_classes": self.num_classes, "condition_shape": list(self.condition_shape), "seed": seed,
        }  # fmt: skip
        dim = math.prod(self.event_shape)
        with seeded(seed):
            self.embed = nn.Sequential(
                nn.Linear(2 * self.num_frequencies, width), nn.SiLU(), nn.Linear(width, width)
            )
            self.first = nn.Linear(dim, width)
            self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.last = nn.Linear(width, dim)
            if num_classes:
                self.classes = nn.Embedding(num_classes + 1, width)
            if self.condition_shape:
                self.rows = RowEmbedding(self.condition_shape, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the prediction with shape (B, *), for x with shape (B, *), c with shape (B,), and labels
        with shape (B,) or rows with shape (B, *condition_shape)."""
        return self.last(self.features(x, c, condition)).reshape(x.shape)

    def features(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return what the last layer is given, with shape (B, width)."""
        check_event_shape(x, self.event_shape)
        condition = condition_or_null(condition, self.num_classes, self.condition_shape, x)
        e = self.embed(time_features(self._angle_rate * c, self.num_frequencies))
        if condition is not None:
            e = e + (self.classes if self.num_classes else self.rows)(condition)
        e = nn.functional.silu(e)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, e)
        return nn.functional.silu(self.norm(h))


class ClassifierMLP(nn.Module):
    """A residual multi-layer perceptron that puts out K logits, for classifiers of noised states.

    Args:
        event_shape: the shape D of one sample.
        num_classes: K.
        width, depth, num_frequencies, max_angle, seed: as for ``MLP``.

    Raises:
        ValueError: a size below 1, fewer than two classes, or max_angle not positive.
    """

    @checked
    def __init__(
        self,
        event_shape: tuple[int, ...],
        num_classes: int,
        width: int = 128,
        depth: int = 3,
        num_frequencies: int = 32,
        max_angle: float = MAX_ANGLE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        count = integer("num_classes", num_classes, 2)
        self.body = MLP(event_shape, width, depth, num_frequencies, max_angle, seed=seed)
        self.body.last = nn.Linear(width, count)
        nn.init.zeros_(self.body.last.weight)
        nn.init.zeros_(self.body.last.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return logits with shape (B, K), for x with shape (B, *) and c with shape (B,)."""
        return self.body.last(self.body.features(x, c))
