"""Networks: a residual MLP for vectors and a U-Net for images.

A network maps the scaled state x with shape (B, *) and a time feature c with shape (B,), 0 at the data
end and 1000 at the prior end, to the shape of x.  What its output means (noise, clean data, ...) is not
its business: that is said by ``sde_toolkit.score.NetworkModel``, which also scales the input.  The time
enters through the angle a = c max_angle / 1000,

    [cos(a w_k), sin(a w_k)],    w_k = 10000^(-k / K),    k = 0 .. K - 1                          (2006.11239)

With max_angle = 1000, that paper's choice, a network may change a hundred and sixty times on the way from T
to 0, and one that was trained that way does ripple: a sampler of fifty steps cannot see what it integrates.
With an angle of about 10 its probability flow is smooth and as likely, but it knows the noise levels next to
the data less well, which costs the variational bound a little.

A network of K > 0 classes also takes labels k with shape (B,), 0 to K - 1, and adds a learned vector for
each to the embedding of the time.  There is one more such vector, for the null class K: it stands for "no
label", which is also what a call without labels means.

Weights are drawn from ``seed`` alone; the global generator is left as it was.  The last layer starts at
zero, so that an untrained network puts out 0: the posterior mean of the noise at t = 0 and of centred
data at t = T.

References: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239); He et al.,
"Identity Mappings in Deep Residual Networks" (1603.05027); Ronneberger, Fischer and Brox, "U-Net"
(1505.04597); Ho and Salimans, "Classifier-Free Diffusion Guidance" (2207.12598) for the null class; Kingma et
al., "Variational Diffusion Models" (2107.00630) for Fourier features of the state.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from sde_toolkit.networks.embeddings import MAX_ANGLE, _check_state, _labels, _turn, time_features
from sde_toolkit.utils import integer, seeded


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
        seed: of the initial weights.

    Raises:
        ValueError: a size below 1, or max_angle not positive.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
        num_frequencies: int = 32,
        max_angle: float = MAX_ANGLE,
        num_classes: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width, depth = integer("width", width, 1), integer("depth", depth, 1)
        self.event_shape = tuple(integer("event_shape", size, 1) for size in event_shape)
        self.num_frequencies = integer("num_frequencies", num_frequencies, 1)
        self.num_classes = integer("num_classes", num_classes, 0)
        self._turn = _turn(max_angle)
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
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, c: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction with shape (B, *), for x with shape (B, *), c and labels with shape (B,)."""
        _check_state(x, self.event_shape)
        labels = _labels(labels, self.num_classes, x)
        e = self.embed(time_features(self._turn * c, self.num_frequencies))
        e = nn.functional.silu(e if labels is None else e + self.classes(labels))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, e)
        return self.last(nn.functional.silu(self.norm(h))).reshape(x.shape)
