"""The probability flow and its density in whitened coordinates, where a Gaussian does not move.

In the scale-free state y = x_t / alpha with the ratio n = sigma / alpha the flow is dy/dn = z_hat(y, n).  The
coordinates are those of the Gaussian N(m, S), S = U diag(l) U^T, with the data's moments
(``sde_toolkit.models.Whitening``):

    u = (l + n^2)^{-1/2} U^T (y - m),        x = alpha (m + U (l + n^2)^{1/2} u)

Only what the model adds to that Gaussian then moves points and densities:

    du/dn        =  (l + n^2)^{-1/2} [ U^T z_hat - n (l + n^2)^{-1/2} u ]
    d log q/dn   = -( div_y z_hat - sum_i n / (l_i + n^2) ),                  q the density of u

The divergence in brackets is the trace of d z_hat / dy less that of the Gaussian's n U (l + n^2)^{-1} U^T.  A
multiple of this known matrix is subtracted before a trace is estimated (a control variate).  With the whole
matrix every estimate for a Gaussian with these moments is exact.  Where noise dominates, u is N(0, I) up to
the third cumulant of the data over n^3.

The independent variable is the clock tau with

    dn/dtau = (n^2 + a^2)^{1/2} (1 + n / b),        tau(0) = 0

It is linear in n below a, logarithmic between a and b, and linear in 1 / n beyond, where the flow has a
series in 1 / n.  In w = tanh(arcsinh(n / a) / 2), with e = a / b and k^2 = 1 + e^2, it is

    k tau = log(1 + w (k + e)) - log(1 - w (k - e))

Any l > 0, m, a and b give correct values; those of the data need the fewest steps.

A condition has one row per sample.  The solver hands the rows that are still running to the model, so a
condition stays with its sample when others finish early.  The coordinates are the same for all conditions.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), appendix D; Wang and Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation"
(2412.09726).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.likelihood.divergence import Divergence, JacobianProducts, Product
from sde_toolkit.models import ROW_BLOCK, Moments, ScoreModel, Whitening, known_moments
from sde_toolkit.sdes import ChainSDE, ForwardSDE
from solvers import ODE, Adaptive, FixedGrid, Integrator, Method, Solution, SolverError, expand_like, solve

LIKELIHOOD_T_MIN = 1e-5
"""Default earliest time of likelihoods, bounds and latents; sigma there is .001 under VP.  On a chain it
stands for the first index."""

INNER, OUTER = 0.15, 1.5
"""a and b, in units of the data's scale."""

LEAST_VARIANCE = 1e-12
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


def data_end(sde: ForwardSDE, t_min: float) -> float:
    """t_min, or, where that is the default, the process' own default."""
    own = sde.default_t_min if t_min == LIKELIHOOD_T_MIN else None
    return t_min if own is None else own


def refuse_noise_alone(sde: ForwardSDE) -> None:
    """Refuse a chain with alpha_N = 0: x_T says nothing of x, and its index N is no state of the flow."""
    if isinstance(sde, ChainSDE) and sde.chain.ends_in_noise:
        raise ValueError(
            "a likelihood needs signal at T, but the chain ends in noise alone (alpha_N = 0); leave its last "
            f"index out, as in IndexedModel(network, chain.first({sde.chain.num_steps - 1}), ...)"
        )


Levels = Callable[[Tensor], WhitenedLevel]
"""tau with shape () or (B,) -> the level there."""


class WhitenedFlow:
    """The flow of a model between t_min and T, in the coordinates and the clock of the module's head.

    States u have shape (B, n) and type float64, whatever the model's; times tau are float64.

    Args:
        model: any ``ScoreModel``.
        t_min: the earliest time; the process must have noise there.  The default is a chain's first index.
        moments: of the data; the model's own when None, mean 0 and variance data_std^2 where it has none.
        fill: evaluate at least ``ROW_BLOCK`` rows at a time, where bits do not depend on their number.

    Attributes:
        whitening: the coordinates; num_features: n.
        clock, tau_min, tau_max: the clock and its range.
        start, end: the levels at t_min and at T.

    Raises:
        ValueError: a t_min out of range or without noise, a chain that ends in noise alone, or moments of
            another event shape.
    """

    def __init__(
        self, model: ScoreModel, t_min: float, moments: Moments | None = None, fill: bool = True
    ) -> None:
        t_min = data_end(model.sde, t_min)
        refuse_noise_alone(model.sde)
        self.model, self.t_min, self.least = model, t_min, ROW_BLOCK if fill else 1
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
        self.whitening = Whitening(self.moments, LEAST_VARIANCE, model.device)
        self.num_features = len(self.whitening.variances)
        ends = torch.tensor([t_min, model.sde.T], dtype=torch.float64)
        ratios = model.sde.nsr(ends)
        self.tau_min, self.tau_max = self.clock.of(ratios).tolist()
        self.start, self.end = (self._level(n, t) for n, t in zip(ratios, ends, strict=True))

    def tau(self, t: float | None) -> float:
        """The clock at a time of the process, t_min < t <= T; at T for None.

        Raises:
            ValueError: a time out of range.
        """
        if t is None:
            return self.tau_max
        if not self.t_min < t <= self.model.sde.T:
            raise ValueError(
                f"t_end must lie above t_min = {self.t_min} and at most at T = {self.model.sde.T}, got {t}"
            )
        return float(self.clock.of(self.model.sde.nsr(torch.tensor(t, dtype=torch.float64))))

    def _level(self, nsr: Tensor, time: Tensor) -> WhitenedLevel:
        std = self.whitening.std(nsr)
        return WhitenedLevel(nsr, time, self.model.sde.alpha(time), std, self.clock.rate(nsr))

    def level(self, tau: Tensor) -> WhitenedLevel:
        """The level at a time of the clock with shape () or (B,)."""
        nsr = self.clock.ratio(tau)
        return self._level(nsr, self.model.sde.inverse_nsr(nsr).clamp(self.t_min, self.model.sde.T))

    def levels(self, steps: Adaptive | FixedGrid) -> Levels:
        """The levels of a run: those at the points of a grid are computed once, here; others on demand."""
        if isinstance(steps, Adaptive):
            return self.level
        table = {float(tau): self.level(tau) for tau in steps.ts}

        def look_up(tau: Tensor) -> WhitenedLevel:
            found = None if tau.ndim else table.get(float(tau))
            return self.level(tau) if found is None else found

        return look_up

    def solve(
        self,
        term: ODE,
        state: Tensor,
        method: Method | Integrator,
        steps: Adaptive | FixedGrid,
        samples: Sequence[int],
        checkpoint: bool = False,
    ) -> Solution:
        """``solvers.solve`` in the clock; a failure names the times of the process.

        Args:
            term, state, method, steps, checkpoint: as for ``solvers.solve``.
            samples: the numbers of the rows, for failures.
        """
        try:
            return solve(term, state, method, steps, checkpoint=checkpoint)
        except SolverError as error:
            raise error.located(samples, self._time) from None

    def _time(self, tau: float) -> float:
        """The time of the process."""
        inside = min(max(tau, self.tau_min), self.tau_max)
        return float(self.level(torch.tensor(inside, dtype=torch.float64)).time)

    def whiten(self, x: Tensor, level: WhitenedLevel) -> Tensor:
        """u with shape (B, n), for x with shape (B, *)."""
        return self.whitening.whiten(x.to(torch.float64) / level.alpha, level.nsr)

    def unwhiten(self, u: Tensor, level: WhitenedLevel) -> Tensor:
        """x with shape (B, *), float64, for u with shape (B, n)."""
        y = self.whitening.unwhiten(u, level.nsr)
        return expand_like(level.alpha, y) * y

    def log_scale(self, level: WhitenedLevel) -> Tensor:
        """log |dx/du|, in nats, with shape () or (B,)."""
        return (level.alpha[..., None] * level.std).log().sum(-1)

    def states(self, levels: Levels, condition: Tensor | None = None) -> ODE:
        """du/dtau, for u with shape (B, n).

        Args:
            levels: those of the run.
            condition: one row per sample, or None.
        """

        def drift(tau: Tensor, u: Tensor, *rows: Tensor) -> Tensor:
            level = levels(tau)
            return self._motion(self.noise(u, level, *rows), u, level)

        return ODE(drift, args=() if condition is None else (condition,))

    def densities(
        self,
        divergence: Divergence,
        levels: Levels,
        probes: Tensor | None = None,
        condition: Tensor | None = None,
        create_graph: bool = False,
    ) -> ODE:
        """d/dtau of u and of the k columns of -log q, together with shape (B, n + k).

        Args:
            divergence: how the trace is found.
            levels: those of the run.
            probes: what the divergence drew, with shape (B, m, n).
            condition: one row per sample, or None.
            create_graph: whether autograd records the result as a function of the state.
        """

        def drift(tau: Tensor, y: Tensor, *rows: Tensor) -> Tensor:
            u, level = y[:, : self.num_features], levels(tau)
            drawn = rows[0] if probes is not None else None
            given = rows[-1] if condition is not None else None
            z_hat, columns = self.evaluate_with_divergence(u, level, divergence, drawn, given, create_graph)
            change = expand_like(level.rate, columns) * columns
            return torch.cat([self._motion(z_hat, u, level), change], dim=1)

        return ODE(drift, args=tuple(rows for rows in (probes, condition) if rows is not None))

    def noise(self, u: Tensor, level: WhitenedLevel, condition: Tensor | None = None) -> Tensor:
        """One evaluation: U^T z_hat with shape (B, n), for u with shape (B, n)."""
        count = len(u)
        u, level, condition = _padded(u, level, condition, self.least)
        with torch.no_grad():
            x = self.unwhiten(u, level).to(self.model.dtype)
            z_hat = self.model.noise(x, level.time, condition)
        return self.whitening.project(z_hat.to(u))[:count]

    def evaluate_with_divergence(
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
        if probes is not None and count < self.least:
            probes = _repeated(probes)
        u, level, condition = _padded(u if create_graph else u.detach(), level, condition, self.least)
        with torch.enable_grad():
            x = self.unwhiten(u, level).to(self.model.dtype)
            x = x if x.requires_grad else x.requires_grad_()
            z_hat = self.model.noise(x, level.time, condition)
            known = level.known
            product = self._product(
                JacobianProducts(z_hat, x, create_graph), level, divergence.control * known
            )
            rest = (divergence.control - 1) * known.sum(-1)
            columns = divergence.trace(product, probes, u) + expand_like(rest, u)
            z_hat = self.whitening.project(z_hat.to(u))
        if not create_graph:
            z_hat, columns = z_hat.detach(), columns.detach()
        return z_hat[:count], columns[:count]

    def log_ratio(self, u: Tensor, condition: Tensor | None = None, num_points: int = 4) -> Tensor:
        """log p_T(x) - log p_T(x at u = 0) less the same for the Gaussian, with shape (B,), in nats.

        The integral of the model's score less the Gaussian's along the straight line from u = 0, by the
        Gauss-Legendre rule with ``num_points`` evaluations.
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
            across = self.whitening.embed(vectors.reshape(-1, n)).reshape(batch, count, *shape)
            found = jacobian(across.to(self.model.dtype)).to(vectors).reshape(-1, *shape)
            along = self.whitening.project(found).reshape(batch, count, n)
            return expand_like(alpha, along) * along - diagonal * vectors

        return product


def _padded(
    u: Tensor, level: WhitenedLevel, condition: Tensor | None, least: int
) -> tuple[Tensor, WhitenedLevel, Tensor | None]:
    """Fill up with the first row to ``ROW_BLOCK`` rows where there are fewer than ``least``."""
    if len(u) >= least:
        return u, level, condition
    if level.nsr.ndim:
        level = WhitenedLevel(*map(_repeated, level))
    return _repeated(u), level, None if condition is None else _repeated(condition)


def _repeated(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows[:1].expand(ROW_BLOCK - len(rows), *rows.shape[1:])])
