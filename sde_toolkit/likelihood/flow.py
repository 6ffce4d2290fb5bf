"""Log-likelihoods by the probability-flow ODE, with their error budget.

The flow carries the density along with the points, so one run from the data to the prior gives log p(x): see
``whitened`` for the equation, in coordinates where the Gaussian with the data's moments is at
rest, ``divergence`` for the trace in it, ``density`` for the two ends of the run, and
``budget`` for what the result is uncertain by.

Drift and divergence come from one forward pass of the network, which counts as one evaluation.  Every probe
carries an integral of its own, so their spread gives the standard error of the estimate.

Continuous data on a scale x = scale w + shift have log p(w) = log p(x) + D log(scale); for grey levels made
continuous by noise, -log2 of that density per dimension bounds the bits per dimension of the discrete data.

Not promised: that p_{t_min} is the density of the data at t = 0, nor that the prior is the law at T.  The
budget says how far they are from each other.

References: Song et al. (2011.13456), appendix D.2; Grathwohl et al., "FFJORD" (1810.01367) for the estimator;
Theis, van den Oord and Bethge, "A Note on the Evaluation of Generative Models" (1511.01844) for
dequantisation.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from sde_toolkit.likelihood.budget import Budget, measure
from sde_toolkit.likelihood.density import CORRECTIONS, PRIORS, Columns, FlowDensity, LogDensity
from sde_toolkit.likelihood.divergence import Divergence, ExactDivergence, Hutchinson
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN, WhitenedFlow
from sde_toolkit.models import Condition, Moments, ScoreModel, check_states
from sde_toolkit.utils import ALONE, Processes
from solvers import DOPRI5, RK4, Adaptive, FixedGrid, Integrator, Method

NUM_DIAGNOSTIC_SAMPLES = 8
"""Samples that the budget is measured on."""


@dataclass(frozen=True)
class FlowSolver:
    """How the flow is integrated, from the data to the prior.

    Args:
        method: of ``solvers``; with an error estimate unless ``num_steps`` is given.
        rtol, atol: tolerances of an adaptive method, on the whitened state, whose parts are of order one, and
            on the integral of the divergence, in nats.
        num_steps: for a fixed grid of so many equal steps in the flow's clock, in place of tolerances.
    """

    method: Method | Integrator = DOPRI5
    rtol: float = 1e-5
    atol: float = 1e-5
    num_steps: int | None = None

    def control(self, start: float, end: float) -> Adaptive | FixedGrid:
        """Tolerances or times from ``start`` to ``end`` of the flow's clock.

        Raises:
            ValueError: a method without an error estimate and no number of steps, or a number out of range.
        """
        if self.num_steps is None and isinstance(self.method, Method) and not self.method.has_error:
            raise ValueError(
                f"method {self.method.name} has no error estimate for tolerances; give num_steps, or take "
                "dopri5"
            )
        if self.num_steps is None:
            return Adaptive(start, end, rtol=self.rtol, atol=self.atol)
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        return FixedGrid(torch.linspace(start, end, self.num_steps + 1, dtype=torch.float64))

    @property
    def settings(self) -> dict[str, Any]:
        """The options as plain values, for records."""
        steps = {"rtol": self.rtol, "atol": self.atol}
        return {"method": self.method.name} | (
            steps if self.num_steps is None else {"num_steps": self.num_steps}
        )


@dataclass(frozen=True)
class Endpoint:
    """What is assumed at the two ends of the flow, see ``sde_toolkit.likelihood.density``.

    Args:
        correction: at the data end, for the noise that is left at t_min: "none", "tweedie" or
            "reconstruction".
        prior: at T: "gaussian", that with the moments that such data have there; "process", N(0, prior_std^2
            I); or a log-density, (B, *) -> (B,).
        moments: mean and covariance of the data, for the prior and for the coordinates; the model's own when
            None.

    Raises:
        ValueError: an unknown correction or prior.
    """

    correction: str = "none"
    prior: str | LogDensity = "gaussian"
    moments: Moments | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prior, str) and self.prior not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)} or a log-density, got {self.prior!r}")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction must be one of {', '.join(CORRECTIONS)}, got {self.correction!r}")


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of B samples and how they were found.

    Attributes:
        nats: log p with shape (B,), in the units of x.
        bits_per_dim: -(nats + D log_det_per_dim) / (D log 2) with shape (B,).
        standard_error: of nats, in nats, from the spread of the probes, with shape (B,); None when exact or
            with one probe.
        latent: the point x_T that x flows to, with shape (B, *).
        nfe: network evaluations with shape (B,), counted; those of the budget are not among them.
        budget: what nats may be off by, and why; None where it was not asked for.
        seconds: wall time, that of the budget included.
        settings: the options, as plain values.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor | None
    latent: Tensor
    nfe: Tensor
    budget: Budget | None
    seconds: float
    settings: Mapping[str, Any]

    @property
    def standard_error_bits_per_dim(self) -> Tensor | None:
        """The standard error of ``bits_per_dim``, in bits per dimension, with shape (B,)."""
        return None if self.standard_error is None else self.standard_error / self._nats_per_bit

    @property
    def _nats_per_bit(self) -> float:
        return math.log(2) * self.latent[0].numel()

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Student's confidence interval of every value for the probes alone, two tensors with shape (B,).

        Raises:
            ValueError: there is no standard error, or a level outside (0, 1).
        """
        if self.standard_error is None:
            raise ValueError(
                "an interval needs the spread of at least two probes; take a divergence with more"
            )
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}")
        reach = float(stats.t.ppf((1 + level) / 2, self.settings["columns"] - 1)) * self.standard_error
        return self.nats - reach, self.nats + reach


def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    divergence: Divergence | int | None = None,
    solver: FlowSolver = FlowSolver(),
    endpoint: Endpoint = Endpoint(),
    t_min: float = LIKELIHOOD_T_MIN,
    num_diagnostic_samples: int = NUM_DIAGNOSTIC_SAMPLES,
    seed: int = 0,
    first_sample: int = 0,
    batch_size: int | None = None,
    log_det_per_dim: float = 0.0,
    processes: Processes = ALONE,
) -> LogLikelihood:
    """Log-likelihood of x under the probability flow of a model.

    Args:
        model: any ``ScoreModel``.
        x: data in model scale with shape (B, *), of the model's dtype.
        condition: a class for all samples, or a tensor with one row per sample, for log p(x | condition).
        divergence: how the divergence is found, see ``sde_toolkit.likelihood.divergence``: exactly when None;
            a number k is short for ``Hutchinson(k)``.
        solver: method, and tolerances or number of steps.
        endpoint: correction at the data end, prior, and the moments of the data.
        t_min: where the run starts, 0 <= t_min < T, with sigma(t_min) > 0.
        num_diagnostic_samples: the first samples, on which the budget is measured; 0 for no budget.
        seed, first_sample: the probes of row i are keyed by (seed, first_sample + i).
        batch_size: samples per evaluation; all at once when None.
        log_det_per_dim: log |dx/dw| per dimension of the data's scaling, for the bits per dimension.
        processes: those of torch.distributed that share the work, batch by batch; each gets the whole result.

    For a model that treats rows alike the values do not depend, bit for bit, on the batch size and the number
    of processes; for a network they agree to rounding.

    Raises:
        ValueError: an argument out of range or of the wrong shape or type; before any evaluation.
        solvers.SolverError: a run became nan or inf, or stalled.
    """
    divergence = as_divergence(divergence)
    _check(model, x, batch_size, num_diagnostic_samples)
    given = model.conditions(condition, len(x))
    columns = divergence.columns(x[0].numel())
    start = time.perf_counter()
    flow = WhitenedFlow(model, t_min, endpoint.moments)
    control = solver.control(flow.tau_min, flow.tau_max)
    density = FlowDensity(flow, divergence, solver.method, control, endpoint.prior, endpoint.correction, seed)

    def run(first: int, rows: Tensor) -> Columns:
        numbers = range(first_sample + first, first_sample + first + len(rows))
        return density(rows, numbers, None if given is None else given[first : first + len(rows)])

    found = processes.map(run, x, batch_size or len(x))
    few = min(num_diagnostic_samples, len(x))
    budget = None
    if few:
        head, numbers = Columns(*(column[:few] for column in found)), range(first_sample, first_sample + few)
        budget = measure(density, x[:few], numbers, head, None if given is None else given[:few])
    nats, dims = found.nats.mean(1), x[0].numel()
    settings = {"divergence": repr(divergence), "columns": columns, "t_min": t_min, **solver.settings}
    settings |= {"prior": endpoint.prior if isinstance(endpoint.prior, str) else "callable", "seed": seed}
    settings |= {"correction": endpoint.correction, "moments": flow.moments.kind}
    settings |= {"log_det_per_dim": log_det_per_dim}
    return LogLikelihood(
        nats=nats,
        bits_per_dim=-(nats / dims + log_det_per_dim) / math.log(2),
        standard_error=divergence.standard_error(found.nats, dims),
        latent=flow.unwhiten(found.u, flow.end).to(x.dtype),
        nfe=found.nfe,
        budget=budget,
        seconds=time.perf_counter() - start,
        settings=settings,
    )


values_only = functools.partial(log_likelihood, num_diagnostic_samples=0)
"""``log_likelihood`` without a budget: what other computations call again and again."""


def differentiable_log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    divergence: Divergence | int | None = None,
    solver: FlowSolver = FlowSolver(RK4, num_steps=32),
    endpoint: Endpoint = Endpoint(),
    t_min: float = LIKELIHOOD_T_MIN,
    seed: int = 0,
) -> Tensor:
    """log p_{t_min}(x) with shape (B,), in nats, as a function of x that autograd knows: a prior for x.

    The derivative is that of the computed value, by backpropagation through the steps, of which only the
    states in between are kept.  For an exact model it converges to ``model.score(x, t_min)``.

    Args:
        model: any ``ScoreModel`` whose predictions can be differentiated twice.
        x: data in model scale with shape (B, *), of the model's dtype.
        condition, divergence, endpoint, t_min, seed: as for ``log_likelihood``; no correction.
        solver: on a fixed grid.

    Raises:
        ValueError: an argument out of range or of the wrong shape or type; before any evaluation.
        solvers.SolverError: the run became nan or inf.
    """
    _check(model, x, None, 0)
    if solver.num_steps is None or endpoint.correction != "none":
        raise ValueError("gradients need num_steps in solver, and no correction at the data end")
    found = as_divergence(divergence)
    found.columns(x[0].numel())
    flow = WhitenedFlow(model, t_min, endpoint.moments)
    control = solver.control(flow.tau_min, flow.tau_max)
    density = FlowDensity(flow, found, solver.method, control, endpoint.prior, seed=seed)
    given = model.conditions(condition, len(x))
    return density(x, range(len(x)), given, differentiable=True).nats.mean(1).to(x.dtype)


def as_divergence(divergence: Divergence | int | None) -> Divergence:
    """The exact divergence for None, so many Hutchinson probes for a number."""
    if divergence is None:
        return ExactDivergence()
    return Hutchinson(divergence) if isinstance(divergence, int) else divergence


def _check(model: ScoreModel, x: Tensor, batch_size: int | None, num_diagnostic_samples: int) -> None:
    check_states(model, x)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if num_diagnostic_samples < 0:
        raise ValueError(
            f"num_diagnostic_samples must be at least 0, got {num_diagnostic_samples}; 0 is for no budget"
        )
