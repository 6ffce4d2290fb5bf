"""Attention of the places of a state to each other, and to the tokens of a condition.

    heads h:    softmax(Q_h K_h^T / sqrt(d_h)) V_h,        Q = q(x),  K, V = k(y), v(y)

with y = x for self-attention, and the tokens of the condition for cross-attention.  One more token, learned
and always there, is what a sample without a condition attends to.

On the CPU the formula is computed as it stands, so that it can be differentiated twice, as second-order
losses and derivatives of divergences ask; on accelerators by torch's ``scaled_dot_product_attention``, whose
fused kernels have one derivative: ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around the call gives
the rest.

Reference: Vaswani et al., "Attention Is All You Need" (1706.03762).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_toolkit.networks.conditions import present_tokens


def attend(q: Tensor, k: Tensor, v: Tensor, present: Tensor | None = None) -> Tensor:
    """The values with shape (B, heads, N, d), for q with that shape, k and v with shape (B, heads, M, d), and
    ``present``, which says what takes part, with shape (B, M)."""
    mask = None if present is None else present[:, None, None]
    if q.device.type != "cpu":
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q @ (k * q.shape[-1] ** -0.5).mT
    return (scores if mask is None else torch.where(mask, scores, -torch.inf)).softmax(-1).to(v.dtype) @ v


class SelfAttention(nn.Module):
    """Attention of N places to each other.

    Args:
        width: of every place.
        num_heads: divides ``width``.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """The mixture with shape (B, N, width), for h with that shape."""
        q, k, v = (_heads(part, self.num_heads) for part in self.inward(h).chunk(3, -1))
        return self.outward(_joined(attend(q, k, v)))


class CrossAttention(nn.Module):
    """Attention of N places to the tokens of a condition; its output is 0 at the start.

    Args:
        width: of every place.
        num_heads: divides ``width``.
        condition_shape: (L, d).
    """

    def __init__(self, width: int, num_heads: int, condition_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_heads, self.condition_shape = num_heads, condition_shape
        self.query, self.token = nn.Linear(width, width), nn.Linear(condition_shape[-1], width)
        self.null = nn.Parameter(torch.randn(width))
        self.inward, self.outward = nn.Linear(width, 2 * width), nn.Linear(width, width)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, h: Tensor, rows: Tensor) -> Tensor:
        """The mixture with shape (B, N, width), for h with that shape and rows with shape (B, L, d)."""
        tokens, present = present_tokens(rows, self.condition_shape)
        embedded = self.token(tokens)
        null = self.null.to(embedded.dtype).expand(h.shape[0], 1, -1)
        present = torch.cat([present.new_ones(h.shape[0], 1), present], 1)
        k, v = self.inward(torch.cat([null, embedded], 1)).chunk(2, -1)
        q, k, v = (_heads(part, self.num_heads) for part in (self.query(h), k, v))
        return self.outward(_joined(attend(q, k, v, present)))


def _heads(h: Tensor, num_heads: int) -> Tensor:
    """(B, N, heads d) as (B, heads, N, d)."""
    return h.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _joined(h: Tensor) -> Tensor:
    """(B, heads, N, d) as (B, N, heads d)."""
    return h.transpose(1, 2).flatten(2)
