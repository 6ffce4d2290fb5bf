"""Probabilities of discrete data under a continuous density: dequantisation, importance-weighted.

Grey levels v in {0, ..., L - 1}^D and model scale are tied by x0 = scale (v + u) + shift, u in [0, 1)^D the
place in the bin (``sde_toolkit.data.Scaling``).  A score model gives a density p of x = alpha x0 at a time
t_min, alpha = alpha(t_min), and so the probability of a level, the integral over its bin, for which any
density q of x on the bin gives an importance-weighted bound:

    P(v) = int_bin(v) p(x) dx = E_q[ p(x) / q(x | v) ]
    log P(v)  >=  E[ log 1/K sum_k p(x_k) / q(x_k | v) ]  =: L_K,       L_1 <= L_2 <= ... -> log P(v)
    log q(x | v) = log q(u | v) - sum log(alpha scale),      bits/dim = -L_K / (D log 2)

so the bin's volume is counted once, in q.  The gap log P - L_1 is the divergence of q from p on the bin, what
dequantisation costs; L_K - L_1 is as much of it as K draws can see.

    uniform            q(u | v) = 1
    truncated normal   u = 1/2 + s z, z ~ N(0, 1) given |z| < 1 / (2 s), with s = nsr(t_min) / scale: the
                       noise that the process itself adds by t_min, kept within the bin.  Nothing to train;
                       t_min is where half a bin is ``ratio`` standard deviations, 3 by default.  It fits
                       models trained on the centres of bins, and none that are flat within their bins.
    variational        u = sigmoid(y), y = logit(u') through affine maps whose shifts and scales a network
                       reads from v, u' uniform; trained to raise L_1.  It begins as the uniform one.

Training needs the score alone, not the density: with x = x(theta, u') the gradient of E[log p(x) - log q(x)]
is E[score(x, t_min) . dx/dtheta - d log q/dtheta].

The draws of a sample are keyed by (seed, sample, draw index), and a density found with random probes uses the
same ones for every draw of a sample.  What of their error is the same in all K weights goes through the
logarithm of the mean unchanged, but what differs between the draws raises it, by about half its variance: the
bound is no longer one.  A second density with probes of its own makes it one again, since with p_k chosen
by the one and the logarithms w_k = log p(x_k) - log q(x_k | v) taken from the other

    log 1/K sum exp(w_k)  >=  sum p_k (w_k - log p_k) - log K,        p = softmax(w')

is linear in the noise of w, whatever w' is, and equal where w' = w.  Both ways round are averaged.

References: Theis et al., "A Note on the Evaluation of Generative Models" (1511.01844); Burda et al.,
"Importance Weighted Autoencoders" (1509.00519); Zheng et al., "Improved Techniques for Maximum Likelihood
Estimation for Diffusion ODEs" (2305.03935) for the truncated normal; Ho et al., "Flow++" (1902.00275) for the
variational one.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sde_toolkit.data import Scaling, batch_indices
from sde_toolkit.likelihood.flow import values_only
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN
from sde_toolkit.metrics import Estimate
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream, integer, seeded
from solvers import NoiseSource, Normals

RATIO = 3.0
"""Standard deviations from the centre of a bin to its edge, of the truncated normal."""

_LARGEST_U = 1 - 2**-53


class HasNats(Protocol):
    """Any record of log-densities: ``LogLikelihood``, ``Bound``, ``DiscreteLogLikelihood``, ..."""

    @property
    def nats(self) -> Tensor:
        """Log-densities with shape (B,)."""
        ...


class TimedDensity(Protocol):
    """log p_{t_min}(x): ``likelihood.log_likelihood`` with its other options bound, or what looks like it."""

    def __call__(self, model: ScoreModel, x: Tensor, /, **options: Any) -> HasNats:
        """Log-densities of x with shape (B, *).

        Args:
            model, x: of what.
            options: ``t_min``; ``first_sample``, where probes of row i are keyed by first_sample + i; and
                ``condition`` for models that are given one.
        """
        ...


class Dequantizer(ABC):
    """A density on every bin, with draws from it.

    Attributes:
        scaling: of the levels.
        t_min: the time whose density is meant.
        alpha: signal scale there.
    """

    def __init__(self, scaling: Scaling, sde: ForwardSDE, t_min: float) -> None:
        if scaling.levels is None:
            raise ValueError("scaling must have grey levels, got continuous data; use Scaling.grey(levels)")
        if not 0 <= t_min < sde.T:
            raise ValueError(f"t_min must lie in [0, T) with T = {sde.T}, got {t_min}")
        self.scaling, self.t_min = scaling, float(t_min)
        self.levels = scaling.levels
        self.alpha = float(sde.alpha(torch.tensor(t_min, dtype=torch.float64)))

    @abstractmethod
    def place(self, values: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The place u in the bin, with shape (B, *) in [0, 1], and log q(u | v) with shape (B,).

        Args:
            values: levels with shape (B, *).
            z: standard normals with shape (B, *), float64, the only source of chance.
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
        t_min: the time whose density is meant.
    """

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
        t_min: the time, in place of that which ``ratio`` sets.

    Raises:
        ValueError: a process that has more noise than that at its start.
    """

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
    if not 0 < ratio < math.inf:
        raise ValueError(f"ratio must be positive and finite, got {ratio}; try {RATIO}")
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
    """A density that was learned: see ``PlaceFlow`` and ``train_dequantizer``.

    Args:
        flow: of the places, for events of the model's shape.
        scaling: of the levels.
        sde: the forward process.
        t_min: the time whose density is meant; that of the truncated normal when None.  A flow learns from
            the score there, which has to be good within a bin: that of a network is -z_hat / sigma, and at a
            sigma far below the bins its errors are many times what there is to learn.
    """

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

    The first map moves every feature, with a and b read from v alone; the others move every second feature,
    with a and b read from v and the features that stay (m = 1), and take turns.  With n = 1 the features are
    independent given v.  All maps begin as the identity, which makes u uniform.

    Args:
        event_shape: the shape D of one sample; (C, H, W) is read by convolutions of 3 x 3, else by layers.
        num_maps: n, at least 1.
        width: of the two hidden layers of every map's network.
        seed: of the initial weights.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self, event_shape: tuple[int, ...], num_maps: int = 1, width: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        integer("num_maps", num_maps, 1)
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


def train_dequantizer(
    dequantizer: VariationalDequantizer,
    model: ScoreModel,
    values: Tensor,
    *,
    condition: Condition | None = None,
    num_steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> None:
    """Raise the one-sample bound of ``values`` with shape (N, *) under a frozen score model.

    Adam with a rate that falls linearly to zero.  Every step costs one evaluation of the model per example
    and no derivative of it.  The flow is trained in place.  A condition has one row per example.

    Raises:
        ValueError: values that are not levels, or a count below 1; before any evaluation.
    """
    integer("num_steps", num_steps, 1)
    _check_values(values, dequantizer, model)
    t = torch.tensor(dequantizer.t_min, dtype=torch.float64)
    given = model.conditions(condition, len(values))
    optimizer = torch.optim.Adam(dequantizer.flow.parameters(), lr=learning_rate)
    for step in range(num_steps):
        rows = batch_indices(len(values), batch_size, step, seed)
        source = Normals(seed, rows.tolist(), model.event_shape, torch.float64)
        x, log_q = dequantizer.draw(values[rows], source, step)
        with torch.no_grad():
            mine = None if given is None else given[rows.to(given.device)]
            score = model.score(x.to(model.device, model.dtype), t, mine).to(x)
        loss = (log_q - (score * x).flatten(1).sum(1)).mean()
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@dataclass(frozen=True, eq=False)
class DiscreteLogLikelihood:
    """Bounds on the log-probabilities of B samples of grey levels.

    Attributes:
        nats: the bound of all K draws together with shape (B,).
        bits_per_dim: -nats / (D log 2) with shape (B,).
        gap: what the K draws gain over the mean of their one-sample bounds, in nats, with shape (B,): the
            part of the cost of dequantisation that was measured.
        standard_error: of nats from the spread of the K weights, with shape (B,); None for K = 1.
        log_weights: log p(x_k) - log q(x_k | v) with shape (B, K); the mean of both densities if there are
            two.
        nfe: network evaluations with shape (B,), of all draws; None where the density does not count them.
        seconds: wall time.
        settings: the options, as plain values.
    """

    nats: Tensor
    bits_per_dim: Tensor
    gap: Tensor
    standard_error: Tensor | None
    log_weights: Tensor = field(repr=False)
    nfe: Tensor | None
    seconds: float
    settings: Mapping[str, Any]

    @property
    def mean_bits_per_dim(self) -> Estimate:
        """The mean over the samples with its standard error."""
        bits = self.bits_per_dim
        spread = float(bits.std()) if len(bits) > 1 else math.nan
        return Estimate(float(bits.mean()), spread / math.sqrt(len(bits)), "standard error of the mean")


@torch.no_grad()
def discrete_log_likelihood(
    model: ScoreModel,
    values: Tensor,
    dequantizer: Dequantizer,
    *,
    condition: Condition | None = None,
    num_samples: int = 1,
    seed: int = 0,
    first_sample: int = 0,
    log_likelihood: TimedDensity = values_only,
    second: TimedDensity | None = None,
) -> DiscreteLogLikelihood:
    """An importance-weighted lower bound on log P(values).

    Args:
        model: any ``ScoreModel``.
        values: grey levels with shape (B, *), integers.
        dequantizer: the density q, with the time that it belongs to.
        condition: a class for all samples, or a tensor with one row per sample, handed to ``log_likelihood``.
        num_samples: K, draws per sample.
        seed, first_sample: draw k of row i is keyed by (seed, first_sample + i, k).
        log_likelihood: log p at the dequantizer's t_min, called once per draw with the same ``first_sample``;
            other options are bound by ``functools.partial``.
        second: the same density with other, independent probes (another ``seed``), at the same cost again;
            with random probes and K > 1 the result is a bound on average only with it.

    Raises:
        ValueError: values that are not levels of the model's shape, or no draws; before any evaluation.
    """
    integer("num_samples", num_samples, 1)
    _check_values(values, dequantizer, model)
    start, given = time.perf_counter(), model.conditions(condition, len(values))
    rows = range(first_sample, first_sample + len(values))
    source, values = Normals(seed, rows, model.event_shape, torch.float64), values.to("cpu")
    densities = [log_likelihood] if second is None else [log_likelihood, second]
    columns: list[list[Tensor]] = [[] for _ in densities]
    nfe: list[Tensor | None] = []
    for index in range(num_samples):
        x, log_q = dequantizer.draw(values, source, index)
        x = x.to(model.device, model.dtype)
        for density, column in zip(densities, columns, strict=True):
            options = {"t_min": dequantizer.t_min, "first_sample": first_sample}
            found = density(model, x, **options, **({} if given is None else {"condition": given}))
            column.append(found.nats.to(log_q) - log_q)
            nfe.append(getattr(found, "nfe", None))
    each = [torch.stack(column, 1) for column in columns]
    weights = torch.stack(each).mean(0)
    nats = 0.5 * (_chosen_by(each[0], each[-1]) + _chosen_by(each[-1], each[0]))
    error = None
    if num_samples > 1:
        error = (weights - weights.logsumexp(1, keepdim=True)).exp().std(1) * math.sqrt(num_samples)
    spent = [count for count in nfe if count is not None]
    settings = {"dequantizer": type(dequantizer).__name__, "t_min": dequantizer.t_min, "seed": seed}
    settings |= {"num_samples": num_samples, "levels": dequantizer.levels, "densities": len(densities)}
    bits = -nats / (values[0].numel() * math.log(2))
    seconds = time.perf_counter() - start
    gap, counted = nats - weights.mean(1), torch.stack(spent).sum(0) if spent else None
    return DiscreteLogLikelihood(nats, bits, gap, error, weights, counted, seconds, settings)


def _chosen_by(chooser: Tensor, weights: Tensor) -> Tensor:
    """sum p (w - log p) - log K with p = softmax(chooser), with shape (B,), for arguments of shape (B, K)."""
    log_p = chooser.log_softmax(1)
    return (log_p.exp() * (weights - log_p)).sum(1) - math.log(weights.shape[1])


def _check_values(values: Tensor, dequantizer: Dequantizer, model: ScoreModel) -> None:
    wanted = tuple(model.event_shape)
    if values.ndim < 1 or len(values) < 1 or tuple(values.shape[1:]) != wanted:
        raise ValueError(
            f"values must have shape (B, {', '.join(map(str, wanted))}), got {tuple(values.shape)}"
        )
    if values.dtype.is_floating_point or values.dtype == torch.bool:
        raise ValueError(f"values must be integer grey levels, got {values.dtype}; use Scaling.to_levels")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= dequantizer.levels:
        raise ValueError(f"values must be among 0 .. {dequantizer.levels - 1}, got {low} .. {high}")
