"""The laws of products of powers of densities: what compositions of exact models are compared with.

    q(x)  =  prod_i p_i(x)^a_i / Z

``product_law`` gives q in closed form where every p_i is a Gaussian, of any power a_i, or a mixture of
Gaussians with a power that is a whole number: a product of Gaussians is one, with the precision and the shift

    P = sum_i a_i C_i^-1,      P m = sum_i a_i C_i^-1 m_i,

and a product of mixtures is the mixture of the products of their components.

``product_on_grid`` takes any powers, such as the p(x | c)^w p(x)^(1 - w) of classifier-free guidance, for one
or two features: q is summed on the points of an even grid, over the box where log q is within ``DEPTH`` of
its maximum.  The sum over an even grid of a smooth density that vanishes at the ends is exact but for terms
that fall faster than any power of the spacing; it is made again on half the points, and refused where both
differ.  q has a mass if

    sum_i a_i min_k u . C_ik^-1 u  >  0          in every direction u,

because far out in a direction the widest component of a mixture is all that is left of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_toolkit.models import ExactData, GaussianMixture
from sde_toolkit.utils import Stream, checked
from solvers import Normals

MOST_COMPONENTS = 4096
"""Most Gaussians that a product may be made of."""

POINTS = 801
"""Points of a grid, on every axis."""

DEPTH = 50.0
"""By how much log q may fall below its maximum inside the box of a grid."""

_COARSE, _ROUNDS, _DIRECTIONS, _AGREEMENT = 257, 60, 720, 1e-6


@checked
def product_law(laws: Sequence[ExactData], powers: Sequence[float]) -> GaussianMixture:
    """The law prod_i p_i^a_i, normalised, in closed form.

    Args:
        laws: p_i, of one event shape.
        powers: a_i: any number for a Gaussian, a whole number >= 0 for a mixture.

    Raises:
        ValueError: no law, laws of several event shapes, another number of powers, a power that a mixture
            cannot have, a law without a density, a product that has no finite mass, or one of more than
            ``MOST_COMPONENTS`` Gaussians.
    """
    _check(laws, powers)
    factors, count = [], 1
    for law, power in zip(laws, map(float, powers), strict=True):
        single = len(law.components.weights) == 1
        if not (math.isfinite(power) if single else power >= 0 and power == int(power)):
            raise ValueError(
                f"powers must be finite for a Gaussian, and 0, 1, 2, ... for a mixture, got {power} for "
                f"{law!r}; product_on_grid takes any power of laws of one or two features"
            )
        if power == 0:
            continue
        count *= len(law.components.weights) ** (1 if single else int(power))
        if count > MOST_COMPONENTS:
            raise ValueError(f"laws must have a product of at most {MOST_COMPONENTS} Gaussians, got more")
        factors += [_naturals(law, power)] if single else [_naturals(law, 1.0)] * int(power)
    shape = laws[0].event_shape
    if not factors:
        raise ValueError("powers must not all be 0: the product 1 is no density")
    made = [_multiplied(chosen) for chosen in itertools.product(*factors)]
    log_weights = torch.stack([log for log, _, _ in made])
    means = torch.stack([mean for _, mean, _ in made])
    covariances = torch.stack([covariance for _, _, covariance in made])
    weights = log_weights.softmax(0)
    kept = weights > 0  # those that underflow are nothing
    return GaussianMixture(
        weights[kept] / weights[kept].sum(), means[kept].unflatten(-1, shape), covariances[kept]
    )


_Natural = tuple[Tensor, Tensor, Tensor]
"""c, h, P of a factor exp(c + h . x - x . P x / 2)."""


def _naturals(law: ExactData, power: float) -> list[_Natural]:
    """The components of a law to a power; its only one, if the power is not 1."""
    c, found = law.components, []
    if not bool((c.variances > 0).all()):
        raise ValueError(f"laws must have densities, got {law!r} with a covariance that is singular")
    for k, mean in enumerate(c.means):
        axes = torch.eye(len(mean), dtype=mean.dtype) if c.axes is None else c.axes[k]
        P = axes / c.variances[k] @ axes.mT
        h = P @ mean
        log_norm = 0.5 * (c.variances[k].log().sum() + len(mean) * math.log(2 * math.pi))
        found.append((power * (-log_norm - 0.5 * mean @ h) + c.weights[k].log(), power * h, power * P))
    return found


def _multiplied(factors: Sequence[_Natural]) -> _Natural:
    """The logarithm of the mass of a product of Gaussian factors, its mean and its covariance."""
    c, h, P = (torch.stack(parts).sum(0) for parts in zip(*factors, strict=True))
    values, axes = torch.linalg.eigh(0.5 * (P + P.mT))
    if not float(values.min()) > 1e-12 * float(values.abs().max()):
        raise ValueError(
            "powers must make a density, got a product without a finite mass: one of its Gaussians has the "
            f"precision {float(values.min()):.4g}; take a smaller negative power"
        )
    covariance = axes / values @ axes.mT
    mean = covariance @ h
    log_mass = c + 0.5 * (mean @ h - values.log().sum() + len(h) * math.log(2 * math.pi))
    return log_mass, mean, 0.5 * (covariance + covariance.mT)


def _check(laws: Sequence[ExactData], powers: Sequence[float]) -> None:
    if not len(laws) or len({law.event_shape for law in laws}) != 1 or len(powers) != len(laws):
        raise ValueError(
            f"laws must be one or more of one event shape, with a power for each, got "
            f"{[law.event_shape for law in laws]} and {len(powers)} powers"
        )


@dataclass(frozen=True, eq=False)
class GridLaw:
    """A law whose density is known up to a factor, with sums over a grid for its integrals.

    Attributes:
        laws, powers: p_i and a_i.
        log_mass: log Z.
        axes: the points along every feature, each with shape (P,).
        masses: of the points, with sum 1 and shape (P,) or (P, P).
    """

    laws: Sequence[ExactData]
    powers: Sequence[float]
    log_mass: float
    axes: tuple[Tensor, ...] = field(repr=False)
    masses: Tensor = field(repr=False)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape D of a draw."""
        return self.laws[0].event_shape

    @property
    def mean(self) -> Tensor:
        """With shape D, float64."""
        masses, points = self.masses.flatten(), self._points()
        mode = points[masses.argmax()]  # masses sum to 1 but for rounding, which this keeps small
        return (mode + masses @ (points - mode)).reshape(self.event_shape)

    @property
    def covariance(self) -> Tensor:
        """With shape (n, n), n the number of features, float64."""
        away = self._points() - self.mean.flatten()
        return (away * self.masses.flatten()[:, None]).mT @ away

    @checked
    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x) with shape (B,), for x with shape (B, *D); the density itself, not that of the grid."""
        return _log_product(self.laws, self.powers, x) - self.log_mass

    @checked
    def sample(self, num_samples: int, seed: int) -> Tensor:
        """Draws with shape (num_samples, *D), float64; draw i of a seed is one for every num_samples.

        They are uniform in the cells of the grid, which adds a twelfth of the squared spacing to variances.

        Raises:
            ValueError: ``num_samples`` below 1, or a seed outside 0 .. 2^64 - 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        steps = torch.stack([axis[1] - axis[0] for axis in self.axes])
        inside = torch.special.ndtr(Normals(seed, num_samples, steps.shape).draw(0, Stream.DATA)) - 0.5
        u = torch.special.ndtr(Normals(seed, num_samples, (1,)).draw(0, Stream.COMPONENTS)).flatten()
        cell = torch.searchsorted(self.masses.flatten().cumsum(0)[:-1].contiguous(), u)
        return (self._points()[cell] + inside * steps).unflatten(-1, self.event_shape)

    def _points(self) -> Tensor:
        return _cells(self.axes)


@checked
def product_on_grid(laws: Sequence[ExactData], powers: Sequence[float], points: int = POINTS) -> GridLaw:
    """The law prod_i p_i^a_i, normalised, of one or two features, on a grid.

    Args:
        laws: p_i, of one event shape.
        powers: a_i, any numbers.
        points: on every axis, at least 65.

    Raises:
        ValueError: no law, laws of several event shapes or of more than two features, another number of
            powers, powers that are not finite, a law without a density, a product that has no finite mass, or
            one that needs more points.
    """
    _check(laws, powers)
    if math.prod(laws[0].event_shape) > 2:
        raise ValueError(f"laws must have one or two features for a grid, got {laws[0].event_shape}")
    if points < 65:
        raise ValueError(f"points must be at least 65, got {points}")
    if not all(map(math.isfinite, powers)):
        raise ValueError(f"powers must be finite, got {list(powers)}")
    _need_mass(laws, powers)
    box = _box(laws, powers)
    log_mass, axes, masses = _summed(laws, powers, box, points)
    half, _, _ = _summed(laws, powers, box, points // 2)
    if abs(log_mass - half) > _AGREEMENT:
        raise ValueError(
            f"points must be more than {points} for these laws: with half of them log Z is {half:.6f}, with "
            f"all {log_mass:.6f}"
        )
    return GridLaw(tuple(laws), tuple(map(float, powers)), log_mass, axes, masses)


def _log_product(laws: Sequence[ExactData], powers: Sequence[float], x: Tensor) -> Tensor:
    """sum_i a_i log p_i(x) with shape (B,)."""
    x = x.double()
    return torch.stack([a * law.log_prob(x) for law, a in zip(laws, powers, strict=True) if a != 0]).sum(0)


def _need_mass(laws: Sequence[ExactData], powers: Sequence[float]) -> None:
    """Refuse, with a ValueError, a product that does not fall off in some direction."""
    if not any(powers):
        raise ValueError("powers must not all be 0: the product 1 is no density")
    n = math.prod(laws[0].event_shape)
    angle = torch.arange(_DIRECTIONS, dtype=torch.float64) * (math.pi / _DIRECTIONS)
    u = torch.stack([angle.cos(), angle.sin()], -1) if n == 2 else torch.ones(1, 1, dtype=torch.float64)
    total, scale = u.new_zeros(len(u)), u.new_zeros(len(u))
    for law, power in zip(laws, powers, strict=True):
        P = torch.stack([P for _, _, P in _naturals(law, 1.0)])
        widest = torch.einsum("di,kij,dj->kd", u, P, u).amin(0)
        total, scale = total + power * widest, scale + abs(power) * widest
    if not bool((total > 1e-9 * scale).all()):
        raise ValueError(
            "powers must make a density, got a product without a finite mass, which does not fall off far "
            "out; take a smaller negative power"
        )


_Box = list[tuple[float, float]]


def _box(laws: Sequence[ExactData], powers: Sequence[float]) -> _Box:
    """The ends of every axis, between which log q is within ``DEPTH`` of its maximum."""
    means = torch.cat([law.components.means for law in laws])
    reach = 12 * max(float(law.components.variances.max()) for law in laws) ** 0.5
    box = [(float(m.min()) - reach, float(m.max()) + reach) for m in means.mT]
    for _ in range(_ROUNDS):
        axes = _axes(box, _COARSE)
        logs = _log_product(laws, powers, _cells(axes).unflatten(-1, laws[0].event_shape))
        high = (logs > logs.max() - DEPTH).reshape([_COARSE] * len(axes))
        found = [_end(high, k, axis) for k, axis in enumerate(axes)]
        small = all(new[1] - new[0] > 0.8 * (old[1] - old[0]) for new, old in zip(found, box, strict=True))
        grown = any(new[0] < old[0] or new[1] > old[1] for new, old in zip(found, box, strict=True))
        box = found
        if small and not grown:
            return box
    raise ValueError("powers must make a density whose bulk fits a box, got one that spreads without end")


def _end(high: Tensor, k: int, axis: Tensor) -> tuple[float, float]:
    """One cell beyond the points that are high along axis k; twice as far where these reach an end."""
    others = [d for d in range(high.ndim) if d != k]
    at = (high.any(others[0]) if others else high).nonzero().flatten()
    step, width = float(axis[1] - axis[0]), float(axis[-1] - axis[0])
    first, last = int(at[0]), int(at[-1])
    low = float(axis[0]) - width if first == 0 else float(axis[first]) - step
    top = float(axis[-1]) + width if last == len(axis) - 1 else float(axis[last]) + step
    return low, top


def _axes(box: _Box, points: int) -> tuple[Tensor, ...]:
    return tuple(torch.linspace(low, high, points, dtype=torch.float64) for low, high in box)


def _cells(axes: Sequence[Tensor]) -> Tensor:
    """The points of a grid with shape (P or P^2, n)."""
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def _summed(
    laws: Sequence[ExactData], powers: Sequence[float], box: _Box, points: int
) -> tuple[float, tuple[Tensor, ...], Tensor]:
    """log Z, the axes and the masses of their points."""
    axes = _axes(box, points)
    logs = _log_product(laws, powers, _cells(axes).unflatten(-1, laws[0].event_shape))
    volume = math.prod(float(axis[1] - axis[0]) for axis in axes)
    total = float(logs.logsumexp(0))
    return total + math.log(volume), axes, (logs - total).exp().reshape([points] * len(axes))
