"""What a network is told besides the state: the time, and a condition, as one vector for every sample.

    e = W_2 silu(W_1 features(c)) + embedding of the condition

    class k of 0 .. K              a learned vector; K is the null class, "no label"
    vector y with shape (d,)       V_2 silu(V_1 y)
    tokens y_1 .. y_L, (L, d)      V_2 mean_l silu(V_1 y_l), and networks with cross-attention read them one
    by one no condition                   a learned vector in place of the last two

A row of conditions is "no condition" where all its numbers are nan, and a token that is nan throughout is
left out, so that texts of different lengths fit one shape.  The value travels with its sample as the null
class
does: through batches, processes, and the two halves of classifier-free guidance.  A row that is nan in part
is a mistake, and makes the output nan.  A call without a condition is one in which all rows are "no
condition".

Tokens have no order but what their numbers say: a text encoder's output knows its positions.

References: Peebles and Xie, "Scalable Diffusion Models with Transformers" (2212.09748); Ho and Salimans,
"Classifier-Free Diffusion Guidance" (2207.12598); Song et al., "Score-Based Generative Modeling through
Stochastic Differential Equations" (2011.13456), appendix H, for random Fourier features of the time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sde_toolkit.networks.embeddings import angle_rate, labels_or_null, time_features
from sde_toolkit.utils import integer


def condition_sizes(num_classes: int, condition_shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The number of classes and the shape of a condition, of which one at most is given.

    Raises:
        ValueError: both are given, or a shape that is not (), (d,) or (L, d).
    """
    num_classes = integer("num_classes", num_classes, 0)
    condition_shape = tuple(integer("condition_shape", size, 1) for size in condition_shape)
    if len(condition_shape) > 2:
        raise ValueError(
            f"condition_shape must be (d,) for vectors or (L, d) for tokens, got {condition_shape}; "
            "flatten it"
        )
    if condition_shape and num_classes:
        raise ValueError(
            f"condition_shape must be left out for a network with classes, got {condition_shape} and "
            f"num_classes {num_classes}; put the class into the vector, one-hot"
        )
    return num_classes, condition_shape


def condition_or_null(
    condition: Tensor | None, num_classes: int, condition_shape: tuple[int, ...], x: Tensor
) -> Tensor | None:
    """Labels with shape (B,) or rows with shape (B, *condition_shape), null where none are given; None for a
    network without conditions.

    Raises:
        ValueError: a condition of another shape, or one that the network does not take.
    """
    if not condition_shape:
        return labels_or_null(condition, num_classes, x)
    wanted = (x.shape[0], *condition_shape)
    if condition is None:
        return x.new_full(wanted, math.nan)
    if tuple(condition.shape) != wanted:
        raise ValueError(
            f"condition must have shape {wanted}, one row per sample, got {tuple(condition.shape)}"
        )
    return condition.to(x.device, x.dtype)


def present_tokens(rows: Tensor, condition_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Tokens with shape (B, L, d), 0 for those left out, and which are there, with shape (B, L); L is 1 for
    vectors."""
    tokens = rows.reshape(rows.shape[0], -1, condition_shape[-1])
    present = ~tokens.isnan().all(-1)
    return torch.where(present[..., None], tokens, 0.0), present


class RowEmbedding(nn.Module):
    """Vectors or tokens as one vector per sample.

    Args:
        condition_shape: (d,) or (L, d).
        width: of the result.
    """

    def __init__(self, condition_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.condition_shape = condition_shape
        self.first, self.second = nn.Linear(condition_shape[-1], width), nn.Linear(width, width)
        self.null = nn.Parameter(torch.randn(width))

    def forward(self, rows: Tensor) -> Tensor:
        """The embedding with shape (B, width), for rows with shape (B, *condition_shape)."""
        tokens, present = present_tokens(rows, self.condition_shape)
        hidden = nn.functional.silu(self.first(tokens))
        share = present.to(hidden.dtype) / present.sum(1, keepdim=True).clamp(min=1)
        pooled = self.second((share[..., None] * hidden).sum(1))
        return torch.where(present.any(1, keepdim=True), pooled, self.null)


def condition_embedding(
    num_classes: int, condition_shape: tuple[int, ...], width: int
) -> nn.Embedding | RowEmbedding | None:
    """The part of a network that embeds its conditions; None for a network without."""
    if condition_shape:
        return RowEmbedding(condition_shape, width)
    return nn.Embedding(num_classes + 1, width) if num_classes else None


class CallEmbedding(nn.Module):
    """The time and the condition of a call as one vector e per sample.

    Args:
        width: of e.
        num_frequencies: K, of the time features.
        max_angle: angle of the time features at the prior end.
        num_classes, condition_shape: of the conditions.
        random: whether the time features are cos(a w_k) and sin(a w_k) with fixed w_k ~ N(0, 1), those of
            2011.13456, and not a geometric series.  That paper's angle is 2 pi 16 log sigma, which spans
            about 860 under its process: the default 1000 is of this size.
    """

    frequencies: Tensor | None

    def __init__(
        self,
        width: int,
        num_frequencies: int,
        max_angle: float,
        num_classes: int,
        condition_shape: tuple[int, ...],
        random: bool = False,
    ) -> None:
        super().__init__()
        self.num_frequencies, self._angle_rate = num_frequencies, angle_rate(max_angle)
        self.num_classes, self.condition_shape = num_classes, condition_shape
        self.register_buffer("frequencies", torch.randn(num_frequencies) if random else None)
        self.time = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = condition_embedding(num_classes, condition_shape, width)

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """e with shape (B, width), and the condition with one row per sample, None for none."""
        condition = condition_or_null(condition, self.num_classes, self.condition_shape, x)
        angles = self._angle_rate * c
        if self.frequencies is None:
            features = time_features(angles, self.num_frequencies)
        else:
            turned = angles[:, None] * self.frequencies
            features = torch.cat([turned.cos(), turned.sin()], 1)
        e = self.time(features)
        return (e if self.condition is None else e + self.condition(condition)), condition
