"""The networks of score_sde, rebuilt from the blocks of ``sde_toolkit.networks``.

    embedding of a noise level sigma   [sin(2 pi w log sigma), cos(2 pi w log sigma)],   w random and fixed
    embedding of a label c             [sin(c w_k), cos(c w_k)],   w_k = 10000^(-k / (K - 1)), k = 0 .. K - 1
    output                             the last layer's, divided by the noise level with ``scale_by_sigma``

The states enter unscaled; those in [0, 1] are mapped onto [-1, 1] first.  Filters that change the resolution
are ordinary convolutions, so that no extension is needed.  The frequencies w_k are those of float32, which
the networks were trained with, in every type.

Not promised: the same bits as the published code.  Equal weights give equal outputs up to rounding.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), appendix H; Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.interop.score_sde.parts import Part, groups_of, parts_of
from sde_toolkit.interop.score_sde.settings import ScoreSDEConfig
from sde_toolkit.networks import AttentionBlock, Resample, ResidualBlock, Shape
from sde_toolkit.utils import checked


class LogFourier(nn.Module):
    """Random Fourier features of the logarithm of a noise level.

    Args:
        count: number of frequencies.
    """

    frequencies: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(count))

    def forward(self, sigma: Tensor) -> Tensor:
        """The features with shape (B, 2 count), for noise levels with shape (B,)."""
        angles = sigma.log()[:, None] * self.frequencies * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], 1)


class LabelFeatures(nn.Module):
    """The features of a label, with slowest frequency 1e-4.

    Args:
        count: number of features.
    """

    frequencies: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        half = count // 2
        k = torch.arange(half, dtype=torch.float32)
        rate = -math.log(10000) / (half - 1)
        self.register_buffer("frequencies", torch.exp(k * rate), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        """The features with shape (B, count), for labels with shape (B,)."""
        angles = c[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class Nearest(nn.Module):
    """Half the resolution by means of 2 x 2 places, or twice the resolution by repeating every place.

    Args:
        up: twice, not half.
    """

    def __init__(self, up: bool) -> None:
        super().__init__()
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        """The state with shape (B, C, H, W) at the other resolution."""
        if self.up:
            return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        return nn.functional.avg_pool2d(x, 2)


class Halving(nn.Module):
    """A convolution that halves the resolution, behind the filter (1, 3, 3, 1) / 8 or without.

    Args:
        inward, outward: numbers of channels.
        fir: with the filter; without, the state is padded at its right and lower ends.
    """

    kernel: Tensor

    def __init__(self, inward: int, outward: int, fir: bool) -> None:
        super().__init__()
        self.fir, self.conv = fir, nn.Conv2d(inward, outward, 3, stride=2)
        self.register_buffer("kernel", Resample(2, up=False).kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The state with shape (B, outward, H / 2, W / 2)."""
        if not self.fir:
            return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return self.conv(nn.functional.conv2d(x, weight, padding=2, groups=x.shape[1]))


class Doubling(nn.Module):
    """Twice the resolution by repeating every place, then a convolution.

    Args:
        inward, outward: numbers of channels.
    """

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.conv, self.twice = nn.Conv2d(inward, outward, 3, padding=1), Nearest(up=True)

    def forward(self, x: Tensor) -> Tensor:
        """The state with shape (B, outward, 2 H, 2 W)."""
        return self.conv(self.twice(x))


class ScoreSDENetwork(nn.Module):
    """A network of score_sde, ``network(x, c)``: DDPM, DDPM++ or NCSN++.

    Its weights are what torch draws, until a checkpoint's are loaded.

    Args:
        config: its settings.

    Attributes:
        event_shape: (C, H, W).
        sigmas: the noise levels of its indices, the largest first, with shape (N,).

    Raises:
        ValueError: channels that the groups of its normalisations do not divide.
    """

    embeds_real_times = True
    """Whether the label may be any real number."""

    sigmas: Tensor

    @checked
    def __init__(self, config: ScoreSDEConfig) -> None:
        super().__init__()
        self.config, self.event_shape = config, config.event_shape
        plus = config.name == "ncsnpp"
        self.fir = plus and config.fir
        self.fourier = plus and config.embedding_type == "fourier"
        self.plan = parts_of(config)
        self.register_buffer("sigmas", config.noise_levels)
        self.shape = Shape(2, None, config.dropout, 4 * config.nf, plus and config.skip_rescale, ())
        if not plus:
            self.shape = Shape(2, 32, config.dropout, 4 * config.nf, False, ())
        self.features = nn.Identity() if self.fourier else LabelFeatures(config.nf)
        self.halving, self.doubling = self._resample(up=False), self._resample(up=True)
        self.parts = nn.ModuleList(self._module(part) for part in self.plan)

    def _resample(self, up: bool) -> nn.Module:
        """A change of resolution without weights."""
        return Resample(2, up) if self.fir else Nearest(up)

    def _module(self, part: Part) -> nn.Module:
        inward, outward, config = part.inward, part.outward, self.config
        convolved = part.role != "change" or config.resamp_with_conv
        makers: dict[str, Callable[[], nn.Module]] = {
            "fourier": lambda: LogFourier(inward),
            "dense": lambda: nn.Linear(inward, outward),
            "conv": lambda: nn.Conv2d(inward, outward, 3, padding=1),
            "point": lambda: nn.Conv2d(inward, outward, 1),
            "norm": lambda: nn.GroupNorm(groups_of(config, inward), inward, eps=1e-6),
            "attention": lambda: AttentionBlock(self.shape, inward),
            "half": lambda: Halving(inward, outward, self.fir) if convolved else self._resample(up=False),
            "double": lambda: Doubling(inward, outward) if convolved else self._resample(up=True),
            "block": lambda: ResidualBlock(
                self.shape, inward, outward, self._resample(part.change == "up") if part.change else None
            ),
        }
        return makers[part.kind]()

    def _embedded(self, c: Tensor) -> Tensor:
        """silu of the embedding, with shape (B, 4 nf), for labels or noise levels c with shape (B,)."""
        e = self.features(c)
        embedding = [part for role, part in zip(self.plan, self.parts, strict=True) if role.role == "embed"]
        *first, second, third = embedding
        for part in first:
            e = part(e)
        return nn.functional.silu(third(nn.functional.silu(second(e))))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The output with shape (B, C, H, W), for x with that shape and c with shape (B,): the noise level
        itself for a network with Fourier features, else a label."""
        c = c.to(x.dtype)
        state = _State(self, x if self.config.centered else 2 * x - 1, self._embedded(c))
        for role, part in zip(self.plan, self.parts, strict=True):
            if role.role != "embed":
                state.apply(role, part)
        out = state.h if state.output is None else state.output
        if self.config.scale_by_sigma:
            level = c if self.fourier else self.sigmas[c.long()].to(x.dtype)
            out = out / level.reshape(-1, 1, 1, 1)
        return out


class _State:
    """What is on its way through a network: the state h, those kept, the pyramids of input and output."""

    def __init__(self, network: ScoreSDENetwork, x: Tensor, e: Tensor) -> None:
        self.network, self.e = network, e
        self.h = self.input = x
        self.output: Tensor | None = None
        self.normal = x
        self.kept: list[Tensor] = []

    def apply(self, plan: Part, part: Any) -> None:
        """Do with a part what its role says."""
        getattr(self, plan.role)(part)
        if plan.keep:
            self.kept.append(self.h)

    def first(self, part: nn.Module) -> None:
        """The first layer, and any that changes the resolution."""
        self.h = part(self.h)

    change = first

    def step(self, part: nn.Module) -> None:
        """A block."""
        self.h = part(self.h, self.e)

    def attend(self, part: nn.Module) -> None:
        """Attention of the places to each other."""
        self.h = part(self.h, None)

    def join(self, part: nn.Module) -> None:
        """A block that is handed a state of the way down."""
        self.h = part(torch.cat([self.h, self.kept.pop()], 1), self.e)

    def append(self, part: nn.Module) -> None:
        """The halved input beside the state."""
        self.input = self.network.halving(self.input)
        self.h = torch.cat([part(self.input), self.h], 1)

    def add(self, part: nn.Module) -> None:
        """The halved input on top of the state."""
        self.input = self.network.halving(self.input)
        self.h = part(self.input) + self.h

    def shrink(self, part: nn.Module) -> None:
        """The state on top of the halved pyramid of the input."""
        self.h = self.input = self.network.shape.scale * (part(self.input) + self.h)

    def normalise(self, part: nn.Module) -> None:
        """silu of the normalised state, for the layer that comes next."""
        self.normal = nn.functional.silu(part(self.h))

    def project(self, part: nn.Module) -> None:
        """The last layer."""
        self.h = part(self.normal)

    def paint(self, part: nn.Module) -> None:
        """What a level adds to the pyramid of the output."""
        painted = part(self.normal)
        self.output = painted if self.output is None else self.network.doubling(self.output) + painted
