"""Log-likelihoods by the probability-flow ODE.

The flow dx = v(x, t) dt, v = f x - g^2 score / 2, carries the density along with the points:

    log p_{t_min}(x) = log p_T(x_T) + integral from t_min to T of div v(x_t, t) dt,      x_{t_min} = x

so one run from the data to the prior gives log p(x), with x taken as a draw of the model at t_min.  With

    div v = f D - g^2 / 2 div score

the divergence of the score is either exact (D vector-Jacobian products) or Hutchinson's estimate, the mean of
k terms p^T (d score / dx) p with Rademacher probes p that stay the same along the run.  Drift and divergence
come from one forward pass of the network, which counts as one evaluation.  Every probe carries an integral of
its own, so their spread gives the standard error of the estimate.

Continuous data on a scale x = scale w + shift have log p(w) = log p(x) + D log(scale); for grey levels made
continuous by uniform noise, -log2 of that density per dimension bounds the bits per dimension of the discrete
data.

Not promised: that p_{t_min} is the density of the data at t = 0, nor that the prior is the law at T.  Choose
t_min so small that sigma(t_min) is far below the scale at which the data vary, and hand over ``prior`` where
N(0, prior_std^2 I) is too coarse: ``moment_matched_prior`` has the right mean and covariance.

References: Song et al. (2011.13456), appendix D.2; Grathwohl et al., "FFJORD" (1810.01367) for the estimator;
Theis, van den Oord and Bethge, "A Note on the Evaluation of Generative Models" (1511.01844) for
dequantisation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.score import ScoreModel
from sde_toolkit.sde import ForwardSDE
from solvers import DOPRI5, ODE, Adaptive, Integrator, Method, Normals, expand_like, solve

PROBES = 3
"""Stream of the noise source for Hutchinson's probes."""

T_MIN = 1e-5
"""Default start of the run; sigma there is .001 under VP."""

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of B samples and how they were found.

    Attributes:
        nats: log p at t_min with shape (B,), in the units of x.
        bits_per_dim: -(nats + D log_det_per_dim) / (D log 2) with shape (B,).
        standard_error: of nats from the spread of the probes, shape (B,); None when exact or with one probe.
        latent: the point x_T that x flows to, with shape (B, *).
        nfe: network evaluations with shape (B,), counted.
        seconds: wall time.
        settings: the options, as plain values.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor | None
    latent: Tensor
    nfe: Tensor
    seconds: float
    settings: Mapping[str, Any]


def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    num_probes: int | None = None,
    seed: int = 0,
    first_sample: int = 0,
    t_min: float = T_MIN,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: Method | Integrator = DOPRI5,
    prior: LogDensity | None = None,
    log_det_per_dim: float = 0.0,
    batch_size: int | None = None,
) -> LogLikelihood:
    """Log-likelihood of x under the probability flow of a model.

    Args:
        model: any ``ScoreModel``.
        x: data in model scale with shape (B, *), of the model's dtype.
        num_probes: Hutchinson probes per sample; None for the exact divergence.
        seed, first_sample: the probes of row i are keyed by (seed, first_sample + i).
        t_min: where the run starts, 0 <= t_min < T, with sigma(t_min) > 0.
        rtol, atol: tolerances of the adaptive method, on x and on the integral of the divergence.
        method: of ``solvers``, with an error estimate.
        prior: log-density at T, (B, *) -> (B,); N(0, prior_std^2 I) of the process when None.
        log_det_per_dim: log |dx/dw| per dimension of the data's scaling, for the bits per dimension.
        batch_size: samples per evaluation; all at once when None.

    Raises:
        ValueError: an argument out of range or of the wrong shape or type; before any evaluation.
        solvers.SolverError: a run became nan or inf, or stalled.
    """
    _check(model, x, num_probes, t_min, batch_size)
    start = time.perf_counter()
    control = Adaptive(t_min, model.sde.T, rtol=rtol, atol=atol)
    batch = batch_size or len(x)
    parts = []
    for first in range(0, len(x), batch):
        rows = x[first : first + batch]
        indices = range(first_sample + first, first_sample + first + len(rows))
        probes = None if num_probes is None else _probes(model, indices, num_probes, seed)
        parts.append(_run(model, rows, probes, control, method, prior))
    per_probe, latent, nfe = (torch.cat(column) for column in zip(*parts, strict=True))
    nats, dims = per_probe.mean(1), x[0].numel()
    several = num_probes is not None and num_probes > 1
    error = per_probe.std(1) / math.sqrt(per_probe.shape[1]) if several else None
    bits = -(nats / dims + log_det_per_dim) / math.log(2)
    settings = {"num_probes": num_probes, "t_min": t_min, "rtol": rtol, "atol": atol, "method": method.name}
    settings |= {"seed": seed, "log_det_per_dim": log_det_per_dim}
    return LogLikelihood(nats, bits, error, latent, nfe, time.perf_counter() - start, settings)


def _check(
    model: ScoreModel, x: Tensor, num_probes: int | None, t_min: float, batch_size: int | None
) -> None:
    wanted = tuple(model.event_shape)
    if x.ndim < 1 or len(x) < 1 or tuple(x.shape[1:]) != wanted:
        raise ValueError(f"x must have shape (B, {', '.join(map(str, wanted))}), got {tuple(x.shape)}")
    if x.dtype != model.dtype:
        raise ValueError(
            f"x must have the model's type {model.dtype}, got {x.dtype}; convert it with x.to(...)"
        )
    if not bool(x.isfinite().all()):
        raise ValueError("x must be finite, got nan or inf")
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, or None for the exact divergence, got {num_probes}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= t_min < model.sde.T:
        raise ValueError(f"t_min must lie in [0, T) with T = {model.sde.T}, got {t_min}")
    if float(model.sde.sigma(torch.tensor(t_min, dtype=torch.float64))) == 0:
        raise ValueError(f"the score needs noise, but sigma(t_min = {t_min}) = 0; raise t_min")


def _probes(model: ScoreModel, indices: range, num_probes: int, seed: int) -> Tensor:
    """Rademacher probes with shape (B, k, *)."""
    normals = Normals(seed, indices, model.event_shape, model.dtype, model.device)
    draws = torch.stack([normals.draw(k, PROBES) for k in range(num_probes)], dim=1)
    return torch.where(draws < 0, -1.0, 1.0).to(draws)


def _run(
    model: ScoreModel,
    x: Tensor,
    probes: Tensor | None,
    control: Adaptive,
    method: Method | Integrator,
    prior: LogDensity | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-densities per probe with shape (B, k), the latent (B, *), and evaluations (B,)."""
    columns = 1 if probes is None else probes.shape[1]
    y0 = torch.cat([x.flatten(1), x.new_zeros(len(x), columns)], dim=1)
    term = ODE(_augmented(model, x.shape[1:], columns), args=() if probes is None else (probes,))
    solution = solve(term, y0, method, control)
    latent = solution.y[:, :-columns].reshape(x.shape)
    log_prior = (model.sde.prior_log_prob if prior is None else prior)(latent)
    return log_prior[:, None] + solution.y[:, -columns:], latent, solution.stats.nfe


def _augmented(model: ScoreModel, event_shape: torch.Size, columns: int) -> Callable[..., Tensor]:
    """The drift of (x, integrals of div v), with shape (B, D + k)."""
    sde = model.sde

    def drift(t: Tensor, y: Tensor, probes: Tensor | None = None) -> Tensor:
        x = y[:, :-columns].reshape(-1, *event_shape)
        score, divergence = score_and_divergence(model, x, t, probes)
        f, half_g2 = sde.f(t), 0.5 * sde.g_squared(t)
        v = expand_like(f, x) * x - expand_like(half_g2, x) * score
        rate = expand_like(f, divergence) * x[0].numel() - expand_like(half_g2, divergence) * divergence
        return torch.cat([v.flatten(1), rate], dim=1)

    return drift


def score_and_divergence(
    model: ScoreModel, x: Tensor, t: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The score with shape (B, *) and its divergence, from one forward pass.

    Args:
        model: any ``ScoreModel``.
        x: states with shape (B, *).
        t: times with shape () or (B,).
        probes: with shape (B, k, *) for Hutchinson's estimates, one column each; None for the exact
            divergence, one column.

    Returns:
        The score with shape (B, *) and the divergence with shape (B, k).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = model.score(x, t)
        if probes is None:
            directions = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
            vectors = [row.reshape(x.shape[1:]).expand_as(x) for row in directions]
        else:
            vectors = list(probes.unbind(1))
        terms = []
        for number, vector in enumerate(vectors):
            more = number + 1 < len(vectors)
            (product,) = torch.autograd.grad(score, x, vector, retain_graph=more)
            terms.append((product * vector).flatten(1).sum(1))
    columns = torch.stack(terms, dim=1)
    return score.detach(), columns.sum(1, keepdim=True) if probes is None else columns


def moment_matched_prior(sde: ForwardSDE, mean: Tensor, covariance: Tensor) -> LogDensity:
    """The Gaussian at T with the mean and covariance that data with these moments have there.

    Args:
        sde: the forward process.
        mean: of the data, with the event's shape D.
        covariance: of the flattened data with shape (n, n), or variances with the event's shape.

    Returns:
        x with shape (B, *) -> log-density in nats with shape (B,), computed in float64.
    """
    end = torch.tensor(sde.T, dtype=torch.float64)
    alpha, sigma = sde.alpha(end), sde.sigma(end)
    centre = alpha * mean.to(torch.float64).flatten()
    full = covariance.to(torch.float64)
    full = full if full.ndim == 2 and len(full) == centre.numel() else full.flatten().diag()
    noise = sigma.square() * torch.eye(len(centre), dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(centre, alpha.square() * full + noise)

    def log_prob(x: Tensor) -> Tensor:
        return law.log_prob(x.flatten(1).to("cpu", torch.float64)).to(x)

    return log_prob
