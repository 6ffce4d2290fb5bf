"""The names of the parameters of score_sde's checkpoints, their shapes, and their places in our networks.

    Conv_i, Dense_i, GroupNorm_i    layers of a block with ``weight`` and ``bias``, in the order of their use
    NIN_i                           a linear map of the channels, W with shape (inward, outward) and b
    Conv2d_0                        the convolution behind a filter
    all_modules.n.weight, .bias     a layer that is a part by itself

The order of the entries is that in which the parameters are averaged: a checkpoint's moving averages have no
names.  What is not trained, the random frequencies, is not averaged and left out there.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), whose checkpoints have these names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.interop.score_sde.parts import Part, parts_of
from sde_toolkit.interop.score_sde.settings import ScoreSDEConfig

NOISE_LEVELS = "sigmas"
"""The table of noise levels, which is no parameter."""


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
        key: its name in a checkpoint.
        shape: its shape there.
        target: the name of our tensor that it is, or is a part of: the next rows.
        turned: whether ours is its transpose.
        averaged: whether it has a moving average.
    """

    key: str
    shape: tuple[int, ...]
    target: str
    turned: bool = False
    averaged: bool = True


def entries_of(config: ScoreSDEConfig) -> list[Entry]:
    """All parameters in their order."""
    found = []
    for number, part in enumerate(parts_of(config)):
        for entry in _entries(config, part):
            key, target = f"all_modules.{number}.{entry.key}", f"parts.{number}.{entry.target}"
            found.append(Entry(key, entry.shape, target, entry.turned, entry.averaged))
    return found


def _layer(name: str, target: str, *shape: int) -> Iterator[Entry]:
    """A weight and a bias."""
    start, ours = (f"{name}." if name else ""), (f"{target}." if target else "")
    yield Entry(f"{start}weight", shape, f"{ours}weight")
    yield Entry(f"{start}bias", shape[:1], f"{ours}bias")


def _map(name: str, target: str, inward: int, outward: int) -> Iterator[Entry]:
    """A linear map of the channels."""
    yield Entry(f"{name}.W", (inward, outward), f"{target}.weight", turned=True)
    yield Entry(f"{name}.b", (outward,), f"{target}.bias")


def _entries(config: ScoreSDEConfig, part: Part) -> Iterator[Entry]:
    a, b = part.inward, part.outward
    if part.kind == "fourier":
        yield Entry("W", (a,), "frequencies", averaged=False)
    elif part.kind == "block":
        yield from _block(config, part)
    elif part.kind == "attention":
        yield from _layer("GroupNorm_0", "norm", a)
        for k in range(3):
            yield from _map(f"NIN_{k}", "attention.inward", a, a)
        yield from _map("NIN_3", "attention.outward", a, a)
    elif part.kind in ("half", "double"):
        if part.role != "change" or config.resamp_with_conv:
            fir = config.name == "ncsnpp" and config.fir
            yield from _layer("Conv2d_0" if fir else "Conv_0", "conv", b, a, 3, 3)
    elif part.kind == "point":
        yield from _layer("Conv_0", "", b, a, 1, 1)
    else:
        shapes = {"dense": (b, a), "conv": (b, a, 3, 3), "norm": (b,)}
        yield from _layer("", "", *shapes[part.kind])


def _block(config: ScoreSDEConfig, part: Part) -> Iterator[Entry]:
    a, b = part.inward, part.outward
    yield from _layer("GroupNorm_0", "first_norm", a)
    yield from _layer("Conv_0", "first", b, a, 3, 3)
    yield from _layer("Dense_0", "embedding", b, 4 * config.nf)
    yield from _layer("GroupNorm_1", "second_norm", b)
    yield from _layer("Conv_1", "second", b, b, 3, 3)
    if config.name == "ncsnpp" and (a != b or part.change):
        yield from _layer("Conv_2", "skip", b, a, 1, 1)
    elif a != b:
        yield from _map("NIN_0", "skip", a, b)


def to_ours(config: ScoreSDEConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by their names there, under the names and in the shapes of our network."""
    pieces: dict[str, list[Tensor]] = {}
    skips = {e.target for e in entries_of(config) if e.target.endswith("skip.weight")}
    for entry in entries_of(config):
        tensor = tensors[entry.key]
        if entry.turned:
            tensor = tensor.mT
        if entry.target in skips and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # a convolution of one place
        pieces.setdefault(entry.target, []).append(tensor)
    found = {target: torch.cat(parts) for target, parts in pieces.items()}
    return found | {NOISE_LEVELS: tensors[NOISE_LEVELS]}
