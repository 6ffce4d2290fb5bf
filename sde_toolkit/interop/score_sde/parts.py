"""The networks of score_sde as lists of parts, in the order of their parameters.

A network is one list; the parameters of part n are named ``all_modules.n.*`` in a checkpoint.  A part says
what is done with it on the way from the input to the output (``Part.role``) and what it is (``Part.kind``):

    embedding       [fourier], dense, dense
    first           3 x 3 convolution
    per level down  num_res_blocks x (block [, attention]), then a change of resolution
                    with the input pyramid:   "input_skip", a 1 x 1 convolution of the halved input, which is
                    added or appended; "residual", a convolution that halves the pyramid, which is added
    middle          block, attention, block
    per level up    (num_res_blocks + 1) x block, each joined with a state of the way down [, attention]; with
                    the output pyramid ("output_skip"): a normalisation and a convolution, whose output is
                    added to the doubled pyramid; then a change of resolution
    last            normalisation, 3 x 3 convolution, but with "output_skip", whose pyramid is the output

DDPM is the same list with its own blocks and 32 groups everywhere; NCSN++ has min(C // 4, 32) groups.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), appendix H; Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239),
appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sde_toolkit.interop.score_sde.settings import ScoreSDEConfig

Kind = Literal["fourier", "dense", "conv", "point", "norm", "block", "attention", "half", "double"]
Role = Literal[
    "embed", "first", "step", "change", "append", "add", "shrink", "join", "attend",
    "normalise", "project", "paint",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One part of a network.

    Attributes:
        role: what is done with it.
        kind: what it is.
        inward, outward: numbers of channels.
        change: "down" or "up" for a block that changes the resolution.
        keep: whether the state after it is kept for the way up.
    """

    role: Role
    kind: Kind
    inward: int
    outward: int
    change: str = ""
    keep: bool = False


def parts_of(config: ScoreSDEConfig) -> list[Part]:
    """The parts of the network in their order.

    Raises:
        ValueError: channels that its groups do not divide.
    """
    down, kept, width = _down(config)
    lowest = [
        Part("step", "block", width, width),
        Part("attend", "attention", width, width),
        Part("step", "block", width, width),
    ]
    parts = [*_embedding(config), *down, *lowest, *_up(config, kept, width)]
    for part in parts:
        for count in (part.inward, part.outward) if part.kind in ("block", "norm", "attention") else ():
            if count % groups_of(config, count):
                raise ValueError(
                    f"config: model.nf and model.ch_mult must give channels that the groups of their "
                    f"normalisation divide, got {count} channels in {groups_of(config, count)} groups"
                )
    return parts


def groups_of(config: ScoreSDEConfig, channels: int) -> int:
    """The number of groups of the normalisation of this many channels."""
    return 32 if config.name == "ddpm" else min(channels // 4, 32)


def _embedding(config: ScoreSDEConfig) -> list[Part]:
    nf = config.nf
    fourier = config.name == "ncsnpp" and config.embedding_type == "fourier"
    features = 2 * nf if fourier else nf
    random = [Part("embed", "fourier", nf, features)] if fourier else []
    return [*random, Part("embed", "dense", features, 4 * nf), Part("embed", "dense", 4 * nf, 4 * nf)]


def _change(config: ScoreSDEConfig, width: int, up: bool) -> Part:
    """What changes the resolution between two levels."""
    if config.name == "ncsnpp":
        return Part("step", "block", width, width, "up" if up else "down")
    return Part("change", "double" if up else "half", width, width)


def _down(config: ScoreSDEConfig) -> tuple[list[Part], list[int], int]:
    """The way down: its parts, the channels of the states that it keeps, and those it ends with."""
    size, channels = config.num_channels, config.channels
    way = config.progressive_input if config.name == "ncsnpp" else "none"
    parts, width, pyramid = [Part("first", "conv", size, channels[0], keep=True)], channels[0], size
    for k, count in enumerate(channels):
        attends = k in config.attention_levels
        for _ in range(config.num_res_blocks):
            parts.append(Part("step", "block", width, count, keep=not attends))
            width = count
            if attends:
                parts.append(Part("attend", "attention", width, width, keep=True))
        if k == len(channels) - 1:
            break
        change = _change(config, width, up=False)
        if way == "none":
            parts.append(Part(change.role, change.kind, width, width, change.change, keep=True))
            continue
        parts.append(change)
        if way == "residual":
            parts.append(Part("shrink", "half", pyramid, width, keep=True))
            pyramid = width
        else:
            appends = config.progressive_combine == "cat"
            parts.append(Part("append" if appends else "add", "point", size, width, keep=True))
            width *= 1 + appends
    return parts, _kept(parts), width


def _kept(parts: list[Part]) -> list[int]:
    """Channels of the states that are kept; what is appended comes on top of the state's own."""
    return [part.outward * (2 if part.role == "append" else 1) for part in parts if part.keep]


def _up(config: ScoreSDEConfig, kept: list[int], width: int) -> list[Part]:
    """The way up, and what makes the output."""
    size, channels = config.num_channels, config.channels
    way = config.progressive if config.name == "ncsnpp" else "none"
    parts: list[Part] = []
    for k in reversed(range(len(channels))):
        for _ in range(config.num_res_blocks + 1):
            parts.append(Part("join", "block", width + kept.pop(), channels[k]))
            width = channels[k]
        if k in config.attention_levels:
            parts.append(Part("attend", "attention", width, width))
        if way == "output_skip":
            parts += [Part("normalise", "norm", width, width), Part("paint", "conv", width, size)]
        if k:
            parts.append(_change(config, width, up=True))
    if way != "output_skip":
        parts += [Part("normalise", "norm", width, width), Part("project", "conv", width, size)]
    return parts
