"""Densities on the bins of grey levels: uniform, truncated normal, learned.

Grey levels v in {0, ..., L - 1}^D and model scale are related by x0 = scale (v + u) + shift, u in [0, 1)^D
the place in the bin (``sde_toolkit.data.Scaling``).  A dequantizer is a density q(u | v), and so a density of
the state x = alpha x0 at a time t_min, alpha = alpha(t_min):

    log q(x | v) = log q(u | v) - sum log(alpha scale)

    uniform            q(u | v) = 1
    truncated normal   u = 1/2 + s z, z ~ N(0, 1) given |z| < 1 / (2 s), with s = nsr(t_min) / scale: the
                       noise that the process itself adds by t_min, kept within the bin.  Nothing is trained;
                       t_min is where half a bin is ``ratio`` standard deviations, 3 by default.  It fits
                       models trained on the centres of bins, and none that are flat within their bins.
    variational        u = sigmoid(y), y = logit(u') through affine maps whose shifts and scales a network
                       reads from v, u' uniform; trained to raise the bound.  It begins as the uniform one.

References: Zheng et al., "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs"
(2305.03935) for the truncated normal; Ho et al., "Flow++" (1902.00275) for the variational one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sde_toolkit.data import Scaling
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN, data_end
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream, checked, integer, seeded
from solvers import NoiseSource

RATIO = 3.0
"""Standard deviations from the centre of a bin to its edge, of the truncated normal."""

_LARGEST_U = 1 - 2**-53


class Dequantizer(ABC):
    """A density on every bin, with draws from it.

    Attributes:
        scaling: of the levels.
        t_min: the time of the density.
        alpha: signal scale there.
    """

    def __init__(self, scaling: Scaling, sde: ForwardSDE, t_min: float) -> None:
        if scaling.levels is None:
            raise ValueError("scaling must have grey levels, got continuous data; use Scaling.grey(levels)")
        if not 0 <= t_min < sde.T:
            raise ValueError(f"t_min must lie in [0, T) with T = {sde.T}, got {t_min}")
        self.scaling, self.t_min = scaling, data_end(sde, float(t_min))
        self.levels = scaling.levels
        self.alpha = float(sde.alpha(torch.tensor(self.t_min, dtype=torch.float64)))

    @abstractmethod
    def place(self, values: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The place u in the bin, with shape (B, *) in [0, 1], and log q(u | v) with shape (B,).

        Args:
            values: levels with shape (B, *).
            z: standard normals with shape (B, *), float64, the only randomness.
        """

    def draw(self, values: Tensor, source: NoiseSource, index: int = 0) -> tuple[Tensor, Tensor]:
        """One draw of x for every row of values with shape (B, *).

        Args:
            values: integers 0 to L - 1.
            source: of float64 normals, keyed per sample.
            index: number of the draw.

        Returns:
            x, the state at t_min, with shape (B, *), and log q(x | v) in nats, in the units of x, with shape
            (B,); float64 both.
        """
        u, log_q = self.place(values, source.draw(index, Stream.BINS))
        x = self.alpha * self.scaling.dequantize(values, u, torch.float64)
        edges = (self.alpha * self.scaling.scale).log().expand(values.shape[1:]).sum()
        return x, log_q - edges.to(log_q)


class UniformDequantizer(Dequantizer):
    """q(u | v) = 1.

    Args:
        scaling: of the levels.
        sde: the forward process.
        t_min: the time of the density.
    """

    @checked
    def __init__(self, scaling: Scaling, sde: ForwardSDE, t_min: float = LIKELIHOOD_T_MIN) -> None:
        super().__init__(scaling, sde, t_min)

    def place(self, values: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Dequantizer``."""
        return torch.special.ndtr(z), z.new_zeros(len(z))


class TruncatedNormalDequantizer(Dequantizer):
    """The noise of the process at t_min, kept within the bin (2305.03935).

    Args:
        scaling: of the levels.
        sde: the forward process.
        ratio: standard deviations from the centre of a bin to its edge; sets t_min.
        t_min: the time, if not the one that ``ratio`` sets.

    Raises:
        ValueError: a process that has more noise than that at its start.
    """

    @checked
    def __init__(
        self, scaling: Scaling, sde: ForwardSDE, ratio: float = RATIO, t_min: float | None = None
    ) -> None:
        super().__init__(scaling, sde, _bin_time(scaling, sde, ratio) if t_min is None else t_min)
        nsr = float(sde.nsr(torch.tensor(self.t_min, dtype=torch.float64)))
        if nsr == 0:
            raise ValueError(f"t_min must be a time with noise, got {t_min}")
        self.std = nsr / scaling.scale

    def place(self, values: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Dequantizer``."""
        std = self.std.to(z).expand(z.shape[1:])
        edge = 0.5 / std
        mass = torch.special.erf(edge / math.sqrt(2))
        e = torch.special.ndtri(torch.special.ndtr(-edge) + torch.special.ndtr(z) * mass).clamp(-edge, edge)
        log_q = -0.5 * e.square() - 0.5 * math.log(2 * math.pi) - std.log() - mass.log()
        return 0.5 + std * e, log_q.flatten(1).sum(1)


def _bin_time(scaling: Scaling, sde: ForwardSDE, ratio: float) -> float:
    """The time at which half of the smallest bin is ``ratio`` sigma / alpha."""
    if not 1e-6 < ratio < 1e6:
        raise ValueError(f"ratio must be positive and finite, from 1e-6 to 1e6, got {ratio}; try {RATIO}")
    nsr, start = (
        0.5 * float(scaling.scale.min()) / ratio,
        float(sde.nsr(torch.zeros((), dtype=torch.float64))),
    )
    if nsr <= start:
        raise ValueError(
            f"the process must have less noise at its start than a {2 * ratio:.3g}th of a bin, {nsr:.3g}, "
            f"got {start:.3g}; lower the ratio or sigma_min, or give t_min"
        )
    return float(sde.inverse_nsr(torch.tensor(nsr, dtype=torch.float64)))


class VariationalDequantizer(Dequantizer):
    """A learned density, see ``PlaceFlow`` and ``train_dequantizer``.

    Args:
        flow: of the places, for events of the model's shape.
        scaling: of the levels.
        sde: the forward process.
        t_min: the time of the density; that of the truncated normal when None.  A flow learns from the score
            there, which has to be accurate within a bin.  That of a network is -z_hat / sigma, and at a sigma
            far below the bins its errors exceed the signal many times.
    """

    @checked
    def __init__(
        self, flow: PlaceFlow, scaling: Scaling, sde: ForwardSDE, t_min: float | None = None
    ) -> None:
        super().__init__(scaling, sde, _bin_time(scaling, sde, RATIO) if t_min is None else t_min)
        self.flow = flow

    def place(self, values: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Dequantizer``; differentiable in the parameters of the flow."""
        return self.flow((2 * values.to(z) + 1) / self.levels - 1, z)


class PlaceFlow(nn.Module):
    """u = sigmoid(y_n), y_0 = logit(Phi(z)), y_{i+1} = m y_i + (1 - m) (a_i + exp(b_i) y_i), in float64.

    The first map moves every feature, with a and b read from v alone.  The others move every second feature
    in turn, with a and b read from v and the features that stay (m = 1).  With n = 1 the features are
    independent given v.  All maps begin as the identity, so that u is uniform.

    Args:
        event_shape: the shape D of one sample; (C, H, W) is read by convolutions of 3 x 3, else by layers.
        num_maps: n, at least 1.
        width: of the two hidden layers of every map's network.
        seed: of the initial weights.

    Raises:
        ValueError: a size below 1.
    """

    @checked
    def __init__(
        self, event_shape: tuple[int, ...], num_maps: int = 1, width: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        integer("num_maps", num_maps, 1, 1024)
        integer("width", width, 1)
        self.event_shape = tuple(event_shape)
        with seeded(seed):
            self.networks = nn.ModuleList(self._reader(width) for _ in range(num_maps))
        self.double()

    def _reader(self, width: int) -> nn.Sequential:
        image = len(self.event_shape) == 3
        size = self.event_shape[0] if image else math.prod(self.event_shape)

        def layer(into: int, out: int) -> nn.Module:
            return nn.Conv2d(into, out, 3, padding=1) if image else nn.Linear(into, out)

        last = layer(width, 2 * size)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        return nn.Sequential(layer(2 * size, width), nn.SiLU(), layer(width, width), nn.SiLU(), last)

    def _mask(self, number: int, like: Tensor) -> Tensor:
        """1 where a feature stays in map ``number``, with the event's shape: a checkerboard."""
        if number == 0:
            return torch.zeros(self.event_shape, dtype=like.dtype, device=like.device)
        axes = [torch.arange(size, device=like.device) for size in self.event_shape]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)
        return ((places + number) % 2).to(like)

    def forward(self, centre: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """u with shape (B, *) and log q(u | v) with shape (B,).

        Args:
            centre: middles of the bins, scaled to [-1, 1], with shape (B, *).
            z: standard normals with shape (B, *).
        """
        y = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)
        log_q = _log_logistic(y)
        for number, network in enumerate(self.networks):
            mask = self._mask(number, y)
            seen = mask * torch.tanh(0.5 * y)
            if len(self.event_shape) == 3:
                read = network(torch.cat([centre, seen], 1))
            else:
                read = network(torch.cat([centre.flatten(1), seen.flatten(1)], 1))
            shift, log_scale = (part.reshape(y.shape) for part in read.chunk(2, dim=1))
            log_scale = (1 - mask) * 3 * torch.tanh(log_scale / 3)
            y = log_scale.exp() * y + (1 - mask) * shift
            log_q = log_q - log_scale
        return torch.sigmoid(y).clamp(max=_LARGEST_U), (log_q - _log_logistic(y)).flatten(1).sum(1)


def _log_logistic(y: Tensor) -> Tensor:
    """Log-density of the logistic distribution: log sigmoid'(y)."""
    return -nn.functional.softplus(y) - nn.functional.softplus(-y)
