"""The probability flow and its density in whitened coordinates, where a Gaussian is at rest.

In the scale-free state y = x_t / alpha with the ratio n = sigma / alpha the flow is dy/dn = z_hat(y, n).
With the data's mean m and covariance S = U diag(l) U^T (``sde_toolkit.moments``) let

    u = (l + n^2)^{-1/2} U^T (y - m),        x = alpha (m + U (l + n^2)^{1/2} u)

Then only what the model knows beyond the Gaussian N(m, S) moves points and densities:

    du/dn        =  (l + n^2)^{-1/2} [ U^T z_hat - n (l + n^2)^{-1/2} u ]
    d log q/dn   = -( div_y z_hat - sum_i n / (l_i + n^2) ),                  q the density of u

where the divergence is the trace of d z_hat / dy less that of the Gaussian's n U (l + n^2)^{-1} U^T.  A
multiple of this known matrix is taken off before a trace is estimated (a control variate); with all of it,
every estimate for a Gaussian with these moments is exact.  Where noise dominates, u is N(0, I) up to the
third cumulant of the data over n^3.

The equation is solved in the clock

    dn/dtau = (n^2 + a^2)^{1/2} (1 + n / b),        tau(0) = 0

linear in n below a, logarithmic between a and b, and in 1 / n beyond, where the flow has a series in 1 / n.
In w = tanh(arcsinh(n / a) / 2), with e = a / b and k^2 = 1 + e^2, it is

    k tau = log(1 + w (k + e)) - log(1 - w (k - e))

Any l > 0, m, a and b give correct values; those of the data make the flow slow.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), appendix D; Wang and Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation"
(2412.09726).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.likelihood.divergence import Divergence, JacobianProducts, Product
from sde_toolkit.models import ROW_BLOCK, Moments, ScoreModel, known_moments
from solvers import ODE
from solvers.terms import expand_like

LIKELIHOOD_T_MIN = 1e-5
"""Default first time of likelihoods and bounds; sigma there is .001 under VP."""

INNER, OUTER = 0.15, 1.5
"""a and b, in units of the data's scale."""

_LEAST = 1e-12
"""Smallest l, in units of the largest: coordinates along an axis without variance."""


@dataclass(frozen=True)
class Clock:
    """tau of the module's head, for positive lengths a and b."""

    a: float
    b: float

    @property
    def _k(self) -> float:
        return math.hypot(1, self.a / self.b)

    def of(self, nsr: Tensor) -> Tensor:
        """tau, with the shape of ``nsr``."""
        k, e = self._k, self.a / self.b
        w = nsr / (self.a + (nsr.square() + self.a**2).sqrt())
        return (torch.log1p(w * (k + e)) - torch.log1p(-w * (k - e))) / k

    def ratio(self, tau: Tensor) -> Tensor:
        """n, with the shape of ``tau``."""
        k, e = self._k, self.a / self.b
        grown = torch.expm1(k * tau)
        w = grown / (k + e + (k - e) * (1 + grown))
        return 2 * self.a * w / ((1 - w) * (1 + w))

    def rate(self, nsr: Tensor) -> Tensor:
        """dn/dtau, with the shape of ``nsr``."""
        return (nsr.square() + self.a**2).sqrt() * (1 + nsr / self.b)


class WhitenedLevel(NamedTuple):
    """A noise level, or one for each of B samples.

    Attributes:
        nsr, time, alpha: n, t and alpha with shape () or (B,).
        std: (l + n^2)^{1/2} with shape (n,) or (B, n).
        rate: dn/dtau with shape () or (B,).
    """

    nsr: Tensor
    time: Tensor
    alpha: Tensor
    std: Tensor
    rate: Tensor

    @property
    def known(self) -> Tensor:
        """The Gaussian's part of d z_hat / dy along the axes, n / (l + n^2), with shape (n,) or (B, n)."""
        return self.nsr[..., None] / self.std.square()


class WhitenedFlow:
    """The flow of a model between t_min and T, in the coordinates and the clock of the module's head.

    States u have shape (B, n) and type float64, whatever the model's; times tau are float64.

    Args:
        model: any ``ScoreModel``.
        t_min: the earliest time; the process must have noise there.
        moments: of the data; the model's own when None, mean 0 and variance data_std^2 where it has none.

    Attributes:
        variances: l with shape (n,), float64; num_features: n.
        clock, tau_min, tau_max: the clock and its range.
        start, end: the levels at t_min and at T.

    Raises:
        ValueError: a t_min out of range or without noise, or moments of another event shape.
    """

    def __init__(self, model: ScoreModel, t_min: float, moments: Moments | None = None) -> None:
        self.model, self.t_min = model, t_min
        if not 0 <= t_min < model.sde.T:
            raise ValueError(f"t_min must lie in [0, T) with T = {model.sde.T}, got {t_min}")
        if float(model.sde.sigma(torch.tensor(t_min, dtype=torch.float64))) == 0:
            raise ValueError(f"the score needs noise, but sigma(t_min = {t_min}) = 0; raise t_min")
        self.moments = known_moments(model) if moments is None else moments
        known, wanted = self.moments.event_shape, tuple(model.event_shape)
        if known != wanted:
            raise ValueError(f"moments must have the event shape {wanted}, got {known}")
        scale = self.moments.scale
        self.clock = Clock(INNER * scale, OUTER * scale)
        variances = self.moments.variances
        self.variances = variances.clamp(min=_LEAST * float(variances.amax())).to(model.device)
        self._mean = self.moments.mean.to(model.device)
        self.num_features = self._mean.numel()
        self._project, self._embed = self.moments.rotations(self.variances)
        ends = torch.tensor([t_min, model.sde.T], dtype=torch.float64)
        ratios = model.sde.nsr(ends)
        self.tau_min, self.tau_max = self.clock.of(ratios).tolist()
        self.start, self.end = (self._level(n, t) for n, t in zip(ratios, ends, strict=True))

    def _level(self, nsr: Tensor, time: Tensor) -> WhitenedLevel:
        std = (self.variances + nsr.square()[..., None]).sqrt()
        return WhitenedLevel(nsr, time, self.model.sde.alpha(time), std, self.clock.rate(nsr))

    def at(self, tau: Tensor) -> WhitenedLevel:
        """The level at a time of the clock with shape () or (B,)."""
        nsr = self.clock.ratio(tau)
        return self._level(nsr, self.model.sde.inverse_nsr(nsr).clamp(self.t_min, self.model.sde.T))

    def whiten(self, x: Tensor, level: WhitenedLevel) -> Tensor:
        """u with shape (B, n), for x with shape (B, *)."""
        return self._project(x.to(torch.float64) / level.alpha - self._mean) / level.std

    def unwhiten(self, u: Tensor, level: WhitenedLevel) -> Tensor:
        """x with shape (B, *), float64, for u with shape (B, n)."""
        y = self._mean + self._embed(level.std * u)
        return expand_like(level.alpha, y) * y

    def log_scale(self, level: WhitenedLevel) -> Tensor:
        """log |dx/du|, in nats, with shape () or (B,)."""
        return (level.alpha[..., None] * level.std).log().sum(-1)

    def states(self, condition: Tensor | None = None) -> ODE:
        """du/dtau, for u with shape (B, n), given a condition with B rows or None."""

        def drift(tau: Tensor, u: Tensor, *rows: Tensor) -> Tensor:
            level = self.at(tau)
            return self._motion(self.noise(u, level, *rows), u, level)

        return ODE(drift, args=() if condition is None else (condition,))

    def densities(
        self,
        divergence: Divergence,
        probes: Tensor | None = None,
        condition: Tensor | None = None,
        create_graph: bool = False,
    ) -> ODE:
        """d/dtau of u and of the k columns of -log q, together with shape (B, n + k).

        Args:
            divergence: how the trace is found.
            probes: what it drew, with shape (B, m, n).
            condition: one row per sample, or None.
            create_graph: whether autograd shall know the result as a function of the state.

        Probes and condition are the term's ``args``, and so follow their samples.
        """
        count = 0 if probes is None else 1

        def drift(tau: Tensor, y: Tensor, *rows: Tensor) -> Tensor:
            u, level = y[:, : self.num_features], self.at(tau)
            drawn, given = (rows[0] if count else None), (rows[count] if len(rows) > count else None)
            z_hat, columns = self.evaluate(u, level, divergence, drawn, given, create_graph)
            change = expand_like(level.rate, columns) * columns
            return torch.cat([self._motion(z_hat, u, level), change], dim=1)

        return ODE(drift, args=tuple(rows for rows in (probes, condition) if rows is not None))

    def noise(self, u: Tensor, level: WhitenedLevel, condition: Tensor | None = None) -> Tensor:
        """One evaluation: U^T z_hat with shape (B, n), given a condition with B rows or None."""
        count = len(u)
        u, level = _padded(u, level)
        with torch.no_grad():
            x = self.unwhiten(u, level).to(self.model.dtype)
            z_hat = self.model.noise(x, level.time, _repeated(condition))
        return self._project(z_hat.to(u))[:count]

    def evaluate(
        self,
        u: Tensor,
        level: WhitenedLevel,
        divergence: Divergence,
        probes: Tensor | None = None,
        condition: Tensor | None = None,
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One evaluation: U^T z_hat with shape (B, n), and div_y z_hat - sum n / (l + n^2) with shape (B, k).

        Args:
            u: with shape (B, n).
            level: where.
            divergence, probes, condition, create_graph: as for ``densities``.
        """
        count = len(u)
        probes, condition = _repeated(probes), _repeated(condition)
        u, level = _padded(u if create_graph else u.detach(), level)
        with torch.enable_grad():
            x = self.unwhiten(u, level).to(self.model.dtype)
            x = x if x.requires_grad else x.requires_grad_()
            z_hat = self.model.noise(x, level.time, condition)
            known = level.known
            product = self._product(
                JacobianProducts(z_hat, x, create_graph), level, divergence.control * known
            )
            away = (divergence.control - 1) * known.sum(-1)
            columns = divergence.trace(product, probes, u) + expand_like(away, u)
            z_hat = self._project(z_hat.to(u))
        if not create_graph:
            z_hat, columns = z_hat.detach(), columns.detach()
        return z_hat[:count], columns[:count]

    def log_ratio(self, u: Tensor, condition: Tensor | None = None, num_points: int = 4) -> Tensor:
        """log p_T(x) - log p_T(x at u = 0) less the same for the Gaussian, with shape (B,), in nats.

        The integral of the model's score less the Gaussian's along the straight line from u = 0, by the
        Gauss-Legendre rule; ``num_points`` evaluations.
        """
        end, total = self.end, u.new_zeros(len(u))
        for point, weight in zip(*np.polynomial.legendre.leggauss(num_points), strict=True):
            here = (1 + point) / 2 * u
            residual = self.noise(here, end, condition) - end.nsr / end.std * here
            total -= weight / 2 * (end.std / end.nsr * residual * u).sum(1)
        return total

    @staticmethod
    def _motion(z_hat: Tensor, u: Tensor, level: WhitenedLevel) -> Tensor:
        """du/dtau with shape (B, n), for z_hat along the axes."""
        speed = level.rate[..., None] / level.std
        return speed * z_hat - speed * level.nsr[..., None] / level.std * u

    def _product(self, jacobian: JacobianProducts, level: WhitenedLevel, diagonal: Tensor) -> Product:
        """Products with U^T (d z_hat / dy) U less a diagonal with shape (n,) or (B, n)."""
        alpha, diagonal, shape = level.alpha, diagonal.unsqueeze(-2), self.model.event_shape

        def product(vectors: Tensor) -> Tensor:
            batch, count, n = vectors.shape
            across = self._embed(vectors.reshape(-1, n)).reshape(batch, count, *shape)
            found = jacobian(across.to(self.model.dtype)).to(vectors).reshape(-1, *shape)
            along = self._project(found).reshape(batch, count, n)
            return expand_like(alpha, along) * along - diagonal * vectors

        return product


def _padded(u: Tensor, level: WhitenedLevel) -> tuple[Tensor, WhitenedLevel]:
    """A few rows, and the first of them again, up to where their number has no influence on rounding."""
    if len(u) >= ROW_BLOCK:
        return u, level
    return _repeated(u), WhitenedLevel(*map(_repeated, level)) if level.nsr.ndim else level


Rows = TypeVar("Rows", Tensor, Tensor | None)


def _repeated(rows: Rows) -> Rows:
    if rows is None or len(rows) >= ROW_BLOCK:
        return rows
    return torch.cat([rows, rows[:1].expand(ROW_BLOCK - len(rows), *rows.shape[1:])])
