"""Convolutional U-shaped networks in one or two dimensions, of residual blocks that resample inside
themselves.

    residual block      (skip(R x) + conv(drop(silu(norm(conv(R silu(norm(x))) + W silu(e)))))) / r

with R nothing, or halving or doubling the resolution behind a filter (1, 3, 3, 1) / 8 in every direction,
which keeps fine structure from folding into coarse structure; e the embedding of the call; and r = sqrt(2),
so that the variance does not grow from block to block, or 1.

    level k       channels[k] channels at 1 / 2^k of the resolution
    downwards     layers_per_block blocks, then one that halves; with ``pyramid`` the input itself is halved
                  too and added, through a convolution
    middle        a block, attention, a block
    upwards       layers_per_block + 1 blocks, each of which is handed a state of the way down, then one that
                  doubles

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), appendix H; Brock, Donahue and Simonyan, "Large Scale GAN Training" (1809.11096) for blocks that
resample; Zhang, "Making Convolutional Networks Shift-Invariant Again" (1904.11486) for the filter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sde_toolkit.models import masks_again
from sde_toolkit.networks.attention import CrossAttention, SelfAttention
from sde_toolkit.utils import checked

MOST_LAYERS = 64
"""Most residual layers of a level."""

_FILTER = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


@dataclass(frozen=True)
class Shape:
    """What the blocks of one network have in common.

    Attributes:
        dims: 1 for signals, 2 for images.
        num_groups: of the group normalisation; None for min(C // 4, 32), C the channels that are normalised.
        dropout: probability.
        embedding: width of the embedding e.
        rescale: whether r is sqrt(2).
        condition_shape: (L, d) for attention to the tokens of a condition too.
    """

    dims: int
    num_groups: int | None
    dropout: float
    embedding: int
    rescale: bool
    condition_shape: tuple[int, ...]

    @property
    def scale(self) -> float:
        """1 / r."""
        return math.sqrt(0.5) if self.rescale else 1.0

    def conv(self, inward: int, outward: int, size: int = 3) -> nn.Conv1d | nn.Conv2d:
        """A convolution that keeps the resolution."""
        kind = nn.Conv1d if self.dims == 1 else nn.Conv2d
        return kind(inward, outward, size, padding=size // 2)

    def norm(self, channels: int) -> nn.GroupNorm:
        """The normalisation of this many channels."""
        groups = min(channels // 4, 32) if self.num_groups is None else self.num_groups
        return nn.GroupNorm(groups, channels, eps=1e-6)


class Resample(nn.Module):
    """Half or twice the resolution, with the filter (1, 3, 3, 1) / 8 in every direction.

    Args:
        dims: 1 or 2.
        up: twice, not half.
    """

    kernel: Tensor

    def __init__(self, dims: int, up: bool) -> None:
        super().__init__()
        row = torch.tensor(_FILTER)
        kernel = row if dims == 1 else row[:, None] * row
        self.dims, self.up = dims, up
        self.register_buffer("kernel", kernel * 2**dims if up else kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The state with shape (B, C, *) at the other resolution, each channel by itself."""
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, *self.kernel.shape)
        f, groups = nn.functional, x.shape[1]
        if self.up:
            turned = f.conv_transpose1d if self.dims == 1 else f.conv_transpose2d
            return turned(x, weight, None, 2, 1, 0, groups)
        return (f.conv1d if self.dims == 1 else f.conv2d)(x, weight, None, 2, 1, 1, groups)


class ResidualBlock(nn.Module):
    """The residual block of the module's first line.

    Args:
        shape: of the network.
        inward, outward: numbers of channels.
        resample: R, ``Resample`` or another layer without weights; None to keep the resolution.
    """

    def __init__(self, shape: Shape, inward: int, outward: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.scale, self.resample = shape.scale, resample
        self.first_norm, self.second_norm = shape.norm(inward), shape.norm(outward)
        self.first, self.second = shape.conv(inward, outward), shape.conv(outward, outward)
        self.embedding = nn.Linear(shape.embedding, outward)
        self.dropout = nn.Dropout(shape.dropout)
        same = inward == outward and resample is None
        self.skip = nn.Identity() if same else shape.conv(inward, outward, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """The next state with shape (B, outward, *), for x with shape (B, inward, *) and silu(e)."""
        h = nn.functional.silu(self.first_norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        embedded = self.embedding(e)
        h = self.first(h) + embedded.reshape(*embedded.shape, *[1] * (x.ndim - 2))
        h = self.second(self.dropout(nn.functional.silu(self.second_norm(h))))
        return self.scale * (self.skip(x) + h)


class AttentionBlock(nn.Module):
    """Attention of the places to each other, and to the tokens of a condition, added to the state.

    Args:
        shape: of the network.
        channels: of the state.
    """

    def __init__(self, shape: Shape, channels: int) -> None:
        super().__init__()
        self.scale, self.norm = shape.scale, shape.norm(channels)
        self.attention = SelfAttention(channels, 1)
        tokens = len(shape.condition_shape) == 2
        self.cross = CrossAttention(channels, 1, shape.condition_shape) if tokens else None

    def forward(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """The next state with shape (B, C, *), for x with that shape and the condition."""
        h = self.norm(x).flatten(2).mT
        mixed = self.attention(h)
        if self.cross is not None:
            mixed = mixed + self.cross(h, rows)
        return self.scale * (x + mixed.mT.reshape(x.shape))


class _Level(nn.Module):
    """The blocks of one level in one direction, and the change of resolution after them.

    Args:
        shape: of the network.
        sizes: channels that enter each block.
        channels: that leave it.
        attention: the blocks that are followed by attention.
        resample: after the last; None for none.
    """

    def __init__(
        self, shape: Shape, sizes: list[int], channels: int, attention: range, resample: Resample | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(shape, size, channels) for size in sizes)
        self.attention = nn.ModuleDict({str(j): AttentionBlock(shape, channels) for j in attention})
        self.change = None if resample is None else ResidualBlock(shape, channels, channels, resample)

    def step(self, j: int, h: Tensor, e: Tensor, rows: Tensor | None) -> Tensor:
        """Block j, and its attention where it has some."""
        h = self.blocks[j](h, e)
        return self.attention[str(j)](h, rows) if str(j) in self.attention else h


class Levels(nn.Module):
    """The whole way down and up, from and to ``size`` channels; its last layer starts at zero.

    Args:
        shape: of the blocks.
        size: channels of the input and of the output.
        channels: of each level.
        layers_per_block: residual blocks per level on the way down.
        attention_levels: the levels with attention, after every block on the way down and the last one on the
            way up.
        pyramid: whether the input is handed to every level.
    """

    def __init__(
        self,
        shape: Shape,
        size: int,
        channels: tuple[int, ...],
        layers_per_block: int,
        attention_levels: tuple[int, ...],
        pyramid: bool,
    ) -> None:
        super().__init__()
        last, lowest = len(channels) - 1, channels[-1]
        self.scale = shape.scale
        self.first = shape.conv(size, channels[0])
        self.down, self.up, kept, now = nn.ModuleList(), nn.ModuleList(), [channels[0]], channels[0]
        for k, count in enumerate(channels):
            change = Resample(shape.dims, up=False) if k < last else None
            sizes = [now, *[count] * (layers_per_block - 1)]
            attention = range(layers_per_block if k in attention_levels else 0)
            self.down.append(_Level(shape, sizes, count, attention, change))
            kept += [count] * (layers_per_block + (k < last))
            now = count
        self.middle = nn.ModuleList(ResidualBlock(shape, lowest, lowest) for _ in range(2))
        self.attention = AttentionBlock(shape, lowest)
        for k in reversed(range(len(channels))):
            count = channels[k]
            sizes = [(count if j else now) + kept.pop() for j in range(layers_per_block + 1)]
            change = Resample(shape.dims, up=True) if k else None
            attention = range(layers_per_block, layers_per_block + (k in attention_levels))
            self.up.append(_Level(shape, sizes, count, attention, change))
            now = count
        self.halved = Resample(shape.dims, up=False) if pyramid else None
        inputs = [size, *channels][:last] if pyramid else []
        self.pyramid = nn.ModuleList(shape.conv(a, b) for a, b in zip(inputs, channels, strict=False))
        self.norm, self.last = shape.norm(channels[0]), shape.conv(channels[0], size)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, e: Tensor, rows: Tensor | None) -> Tensor:
        """The output with shape (B, size, *), for x with that shape, silu(e) and the condition."""
        h, kept, pyramid = self.first(x), [], x
        kept.append(h)
        for k, level in enumerate(cast(Iterable[_Level], self.down)):
            for j in range(len(level.blocks)):
                h = level.step(j, h, e, rows)
                kept.append(h)
            if level.change is not None:
                h = level.change(h, e)
                if self.halved is not None:
                    h = pyramid = self.scale * (h + self.pyramid[k](self.halved(pyramid)))
                kept.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, e), rows), e)
        for level in cast(Iterable[_Level], self.up):
            for j in range(len(level.blocks)):
                h = level.step(j, torch.cat([h, kept.pop()], 1), e, rows)
            if level.change is not None:
                h = level.change(h, e)
        return self.last(nn.functional.silu(self.norm(h)))


def check_levels(
    name: str,
    other: str,
    event_shape: tuple[int, ...],
    dims: int,
    channels: tuple[int, ...],
    attention_levels: tuple[int, ...],
    num_groups: int,
    dropout: float,
    patch_size: int = 1,
) -> None:
    """Refuse, with a ValueError, sizes that such a network cannot have.

    Args:
        name: of the network, with its article.
        other: what to use for another event shape.
        event_shape, dims: of the states, (C, *) with ``dims`` more dimensions.
        channels, attention_levels, num_groups, dropout, patch_size: of the network.
    """
    wanted = "(C, H, W)" if dims == 2 else "(C, L)"
    if len(event_shape) != dims + 1 or min(event_shape) < 1:
        raise ValueError(f"event_shape must be {wanted} for {name}, got {event_shape}; use {other}")
    if not channels or any(count < 1 or count % num_groups for count in channels):
        raise ValueError(
            f"channels must be positive multiples of num_groups = {num_groups}, got {tuple(channels)}"
        )
    divisor = patch_size * 2 ** (len(channels) - 1)
    if any(size % divisor for size in event_shape[1:]):
        patches = f" and patch_size {patch_size}" if patch_size > 1 else ""
        sides, got = ("height and width", event_shape[1:]) if dims == 2 else ("length", event_shape[1])
        raise ValueError(
            f"{sides} must be divisible by {divisor} for {len(channels)} levels{patches}, got {got}; use "
            f"fewer levels or pad the {'images' if dims == 2 else 'signals'}"
        )
    if any(level not in range(len(channels)) for level in attention_levels):
        raise ValueError(
            f"attention_levels must be among 0 .. {len(channels) - 1}, got {tuple(attention_levels)}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


@checked
def checkpoint_blocks(network: nn.Module) -> int:
    """Let a network keep what enters its blocks, and evaluate them again in the backward pass (1604.06174).

    Memory falls to the states between blocks, for one more evaluation of each; gradients are the same up to
    rounding, with the same masks of dropout.  Outside of training, and without gradients, nothing changes.

    Args:
        network: changed in place.  Of modules of diffusers it is their own ``enable_gradient_checkpointing``;
            else the blocks are the members of lists of modules.

    Returns:
        The number of blocks.

    Raises:
        ValueError: a network without blocks.
    """
    count = 0
    for part in network.modules():
        if getattr(part, "_supports_gradient_checkpointing", False):
            part.enable_gradient_checkpointing(gradient_checkpointing_func=_evaluated_again)  # type: ignore[operator]
            count += sum(bool(getattr(inner, "gradient_checkpointing", False)) for inner in part.modules())
    if not count:
        for block in list(_blocks(network)):
            block.forward = MethodType(_forward, block)
            count += 1
    if not count:
        raise ValueError(
            f"network must have blocks to be evaluated again, got {type(network).__name__} without a list of "
            "modules (nn.ModuleList); leave checkpointing out"
        )
    return count


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of lists that are called, and have parameters."""
    for child in module.children():
        for part in child if isinstance(child, nn.ModuleList) else (child,):
            called = type(part).forward is not nn.Module.forward and next(part.parameters(), None) is not None
            if isinstance(child, nn.ModuleList) and called:
                yield part
            else:
                yield from _blocks(part)


def _evaluated_again(module: Any, *arguments: Any) -> Any:
    return checkpoint(module, *arguments, use_reentrant=False, context_fn=masks_again)


def _forward(block: nn.Module, *arguments: Any) -> Any:
    """The block's own forward; bound to the block, so that copies of it have their own."""
    own = MethodType(type(block).forward, block)
    if block.training and torch.is_grad_enabled():
        return _evaluated_again(own, *arguments)
    return own(*arguments)
