"""The density of data under a model's probability flow, for every column of the divergence's estimate.

A run in whitened coordinates (``sde_toolkit.likelihood.whitened``) carries u and the terms of log q from
t_min to T:

    log p_t(x_t) = log prior(x_T) + log |dx/du| (T) - log |dx/du| (t_min)
                   + int (div_y z_hat - sum n / (l + n^2)) dn

What this says of the clean x depends on the correction; y = x_t / alpha and n = sigma / alpha at t_min:

    none             x_t = x, the value is log p_t(x): clean data are treated as draws of the model at t_min
    tweedie          x_t = alpha x, by Bayes' rule  log p_0(x) = log p_n(y) + log p(x | y) - log N(x; y, n^2)
                     at y = x with Tweedie's mean and covariance of x given y.  To first order in n^2
                         log p_0(x) = log p_n(x) - n^2 / 2 (div s + |s|^2),     s = grad log p_n = -z_hat / n
                     which serves for what the model adds to the Gaussian with the moments used; that
                     Gaussian's own log N(x; m, S) - log N(x; m, S + n^2) is exact, however small S is
    reconstruction   x_t = alpha x + sigma z, the value is log p_t(x_t) + log r(x | x_t) - log N(x_t; alpha x,
                     sigma^2), a lower bound in the mean over z: reconstruction minus entropy.  r is the
                     Gaussian with Tweedie's mean and the covariance U diag(l n^2 / (l + n^2)) U^T, which
                     makes every single z exact for Gaussian data

References: Song et al. (2011.13456), appendix D.2; Song et al., "Maximum Likelihood Training of Score-Based
Diffusion Models" (2101.09258), for the reconstruction; Efron, "Tweedie's Formula and Selection Bias" (2011).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sde_toolkit.likelihood.divergence import Divergence, Hutchinson
from sde_toolkit.likelihood.whitened import LEAST_VARIANCE, Levels, WhitenedFlow, WhitenedLevel
from sde_toolkit.utils import Stream
from solvers import Adaptive, FixedGrid, Integrator, Method, Normals

Correction = Literal["none", "tweedie", "reconstruction"]
CORRECTIONS: tuple[str, ...] = get_args(Correction)
"""The corrections at the data end by name."""

LogDensity = Callable[[Tensor], Tensor]
"""x with shape (B, *) -> nats with shape (B,)."""

PRIORS = ("gaussian", "process")
"""N(alpha m, alpha^2 S + sigma^2 I) with the moments of the data, or N(0, prior_std^2 I) of the process."""

_LOG_2PI = math.log(2 * math.pi)


MOST_MORE = 64
"""Most probes that are added in one run."""


class Columns(NamedTuple):
    """Log-densities of B samples.

    Attributes:
        nats: one for each column of the divergence's estimate, with shape (B, k).
        u: the end of the run in whitened coordinates, with shape (B, n).
        nfe: evaluations with shape (B,).
    """

    nats: Tensor
    u: Tensor
    nfe: Tensor


class Values(NamedTuple):
    """Log-densities of B samples, with what is known of their columns.

    Attributes:
        nats: the means over the columns, with shape (B,).
        std, skewness: of the columns, with shape (B,); 0 for a single one.
        num_columns: int64 with shape (B,).
        columns: the columns of the first run, with shape (B, k).
        u, nfe: as in ``Columns``, of the first run and of all runs.
    """

    nats: Tensor
    std: Tensor
    skewness: Tensor
    num_columns: Tensor
    columns: Tensor
    u: Tensor
    nfe: Tensor


@dataclass(frozen=True)
class FlowDensity:
    """A density of the module's head, x with shape (B, *) -> ``Columns``.

    Args:
        flow: model, moments and t_min.
        divergence: how the trace is found.
        method, steps: of ``solvers``, over the flow's clock from tau_min to tau_max.
        prior: one of ``PRIORS``, or a log-density of x_T.
        correction: one of ``CORRECTIONS``.
        seed: of the probes and of the reconstruction's z.
        skip: so many first probes are left out.
    """

    flow: WhitenedFlow
    divergence: Divergence
    method: Method | Integrator
    steps: Adaptive | FixedGrid
    prior: str | LogDensity = "gaussian"
    correction: Correction = "none"
    seed: int = 0
    skip: int = 0

    @functools.cached_property
    def levels(self) -> Levels:
        """The noise levels of the run; those of a grid are made once."""
        return self.flow.levels(self.steps)

    def __call__(
        self,
        x: Tensor,
        samples: Sequence[int],
        condition: Tensor | None = None,
        differentiable: bool = False,
    ) -> Columns:
        """Log-densities of x with shape (B, *).

        Args:
            x: data in model scale.
            samples: the numbers of the rows, which key their draws.
            condition: one row per sample, as ``ScoreModel.conditions`` gives it, or None.
            differentiable: autograd records the values as functions of x; on a fixed grid, whose steps are
                repeated in the backward pass.
        """
        flow = self.flow
        n = flow.num_features
        normals = Normals(self.seed, samples, (n,), torch.float64, x.device)
        probes = self.probes(samples, x.device)
        x_t, offset, extra = self._start(x.to(torch.float64), normals, probes, condition)
        u = flow.whiten(x_t, flow.start)
        count = self.divergence.columns(n) - self.skip
        term = flow.densities(self.divergence, self.levels, probes, condition, differentiable)
        state = torch.cat([u, u.new_zeros(len(u), count)], dim=1)
        solution = flow.solve(term, state, self.method, self.steps, samples, checkpoint=differentiable)
        u, change = solution.y[:, :n], solution.y[:, n:]
        nats = self.log_prior(u)[:, None] + change - flow.log_scale(flow.start) + offset
        return Columns(nats, u, solution.stats.nfe + extra)

    def values(
        self,
        x: Tensor,
        samples: Sequence[int],
        condition: Tensor | None = None,
        target: float = math.inf,
    ) -> Values:
        """Log-densities whose standard error is at most ``target`` nats: samples that are not there run again
        with further probes, twice as many in all, at most ``MOST_MORE`` in one run.

        Arguments are those of a call.
        """
        first, n = self(x, samples, condition), self.flow.num_features
        columns, rows, nfe = first.nats, torch.arange(len(x), device=x.device), first.nfe.clone()
        found = torch.stack([*_summary(columns), torch.full_like(columns[:, 0], columns.shape[1])])
        while isinstance(self.divergence, Hutchinson):
            count = columns.shape[1]
            known = self.divergence.at_least(count, n)
            more = known.at_least(count + min(count, MOST_MORE), n)
            open_ = known.error_of_mean(found[1, rows], n) > target
            if more == known or not bool(open_.any()):
                break
            rows, columns = rows[open_], columns[open_]
            given = None if condition is None else condition[rows]
            further = replace(self, divergence=more, skip=count)
            added = further(x[rows], [samples[i] for i in rows.tolist()], given)
            columns, nfe[rows] = torch.cat([columns, added.nats], 1), nfe[rows] + added.nfe
            counts = torch.full_like(columns[:, 0], columns.shape[1])
            found[:, rows] = torch.stack([*_summary(columns), counts])
        nats, std, skewness, counts = found
        return Values(nats, std, skewness, counts.long(), first.nats, first.u, nfe)

    def probes(self, samples: Sequence[int], device: torch.device) -> Tensor | None:
        """The probes of these samples, along the axes, with shape (B, m, n); None for the exact divergence.

        They are drawn feature by feature, since Jacobians of images are nearly diagonal there.
        """
        n = self.flow.num_features
        probes = self.divergence.probes(Normals(self.seed, samples, (n,), torch.float64, device))
        if probes is None:
            return None
        probes = probes[:, self.skip :]
        features = probes.reshape(-1, *self.flow.model.event_shape)
        return self.flow.moments.project(features).reshape(probes.shape)

    def log_prior(self, u: Tensor) -> Tensor:
        """Log-density of u at T with shape (B,), for u with shape (B, n)."""
        if self.prior == "gaussian":
            return -0.5 * (u.square() + _LOG_2PI).sum(1)
        end = self.flow.end
        prior = self.flow.model.sde.prior_log_prob if isinstance(self.prior, str) else self.prior
        return prior(self.flow.unwhiten(u, end)) + self.flow.log_scale(end)

    def finer(self) -> FlowDensity:
        """The same with a tenth of the tolerances, or with four steps for one, two from order 3 on."""
        steps = self.steps
        if isinstance(steps, Adaptive):
            return replace(self, steps=replace(steps, rtol=steps.rtol / 10, atol=steps.atol / 10))
        count = 2 if getattr(self.method, "order", 1) >= 3 else 4
        parts = torch.arange(count, dtype=torch.float64) / count
        points = (steps.ts[:-1, None] + steps.ts.diff()[:, None] * parts).flatten()
        return replace(self, steps=FixedGrid(torch.cat([points, steps.ts[-1:]])))

    def _start(
        self, x: Tensor, normals: Normals, probes: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor | float, int]:
        """Where the run starts, what is added to its value, and the evaluations that this took."""
        if self.correction == "none":
            return x, 0.0, 0
        alpha = self.flow.start.alpha
        if self.correction == "tweedie":
            blur = self.noise_correction(alpha * x, probes, condition)
            return alpha * x, blur + x[0].numel() * alpha.log(), 1
        z = normals.draw(0, Stream.RECONSTRUCTION).reshape(x.shape)
        x_t, more = self._reconstruct(x, z, condition)
        return x_t, more[:, None], 1

    def noise_correction(self, x_t: Tensor, probes: Tensor | None, condition: Tensor | None) -> Tensor:
        """log p_0(y) - log p_n(y) at y = x_t / alpha with shape (B, k): exact for the Gaussian of the
        moments, to first order for what the model adds to it."""
        start = self.flow.start
        y = x_t / start.alpha
        return self._residual(y, start, probes, condition)[0] + self._gaussian_blur(y)[0][:, None]

    def truncation(self, x: Tensor, probes: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """log p_0(x) less the value log p_t(x_t = x) that "none" gives, and how far off that may be, each
        with shape (B,).

        The second holds how much the rate of what the model adds changes from n^2 to 2 n^2, the spread of its
        probes, what the noise hides of the law, and the whole where the Gaussian has no clean density.
        """
        flow = self.flow
        start, alpha = flow.start, flow.start.alpha
        twice = flow.level(flow.clock.of(start.nsr * math.sqrt(2)))
        rate, added = self._residual(x, start, probes, condition)
        later, _ = self._residual(x, twice, probes, condition)
        blur, flat = self._gaussian_blur(x)
        # from y = x / alpha to y = x, of the Gaussian exactly, of the rest along its score -added / n
        apart = (1 / alpha - 1) * flow.moments.project(x)
        u, step = flow.whiten(alpha * x, start), apart / start.std
        moved = (step * (u + 0.5 * step)).sum(1) + (added * apart).sum(1) / start.nsr
        rest = rate.mean(1)
        shift = blur + rest + moved + x[0].numel() * alpha.log()
        probes_error = self.divergence.error_of_mean(_summary(rate)[1], flow.num_features)
        measured = torch.hypot(rest - later.mean(1) / 2, probes_error)
        return shift, torch.hypot(measured, self._hidden(x)) + flat

    def _hidden(self, x: Tensor) -> Tensor:
        """What the noise at t_min hides of the data's law, in nats, with shape (B,).

        With the noise's share h = n^2 / (l + n^2) of every axis: what a Gaussian with its hidden variances
        rescaled would gain at x, 1/2 sum h (c - 1 - log c) at the best c, and 1/2 for each of the unknowns
        of a hidden axis, mean and variance.
        """
        start, variances = self.flow.start, self.flow.whitening.variances
        share = (start.nsr / start.std).square()
        share = torch.where(variances <= LEAST_VARIANCE * variances.amax(), 0.0, share)
        total = share.sum().clamp(min=torch.finfo(share.dtype).tiny)
        squares = (self.flow.whiten(start.alpha * x, start) * start.std).square() / variances
        c = ((share * squares).sum(1) / total).clamp(min=1e-8)
        return 0.5 * total * (c - 1 - c.log()) + total.clamp(max=1.0)

    def _residual(
        self, y: Tensor, level: WhitenedLevel, probes: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """-n^2 / 2 (div s + |s|^2) at y less the same of the Gaussian, with shape (B, k), and what the model
        adds to the Gaussian's noise, with shape (B, n)."""
        flow = self.flow
        u = flow.whiten(level.alpha * y, level)
        z_hat, columns = flow.evaluate_with_divergence(u, level, self.divergence, probes, condition)
        known = level.nsr / level.std * u
        added = z_hat - known  # nothing cancels where the model is the Gaussian
        return 0.5 * (level.nsr * columns - (added * (z_hat + known)).sum(1, keepdim=True)), added

    def _gaussian_blur(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """log N(y; m, S) - log N(y; m, S + n^2), each with shape (B,), and the size of the part along axes
        without variance.  That part, infinite in truth, is left at first order."""
        start, variances = self.flow.start, self.flow.whitening.variances
        total, square = start.std.square(), self.flow.whiten(start.alpha * y, start).square()
        part = start.nsr.square() / total
        first = 0.5 * part * (1 - square)
        exact = 0.5 * (torch.log1p(start.nsr.square() / variances) - square * start.nsr.square() / variances)
        flat = variances <= LEAST_VARIANCE * variances.amax()
        return torch.where(flat, first, exact).sum(1), torch.where(flat, first, 0.0).sum(1).abs()

    def _reconstruct(self, x: Tensor, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """x_t = alpha x + sigma z, and log r(x | x_t) - log N(x_t; alpha x, sigma^2) with shape (B,)."""
        flow = self.flow
        alpha, nsr = flow.start.alpha, flow.start.nsr
        x_t = alpha * (x + nsr * z)
        with torch.no_grad():
            x0_hat = flow.model.denoise(x_t.to(flow.model.dtype), flow.start.time, condition).to(x)
        variances = flow.whitening.variances
        variances = variances * nsr.square() / (variances + nsr.square())
        error = flow.moments.project(x - x0_hat)
        decoder = (error.square() / variances + variances.log()).sum(1)
        entropy = (z.flatten(1).square() + 2 * (alpha * nsr).log()).sum(1)
        return x_t, 0.5 * (entropy - decoder)


def _summary(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and skewness of the columns (B, k), with shape (B,); 0 for a single one."""
    count, mean = columns.shape[1], columns.mean(1)
    apart = columns - mean[:, None]
    square = apart.square().sum(1)
    third = apart.pow(3).sum(1) / count / (square / count).pow(1.5).clamp(min=torch.finfo(square.dtype).tiny)
    return mean, (square / max(1, count - 1)).sqrt(), third
