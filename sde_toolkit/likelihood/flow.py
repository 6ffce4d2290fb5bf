"""Log-likelihoods by the probability-flow ODE, with their error budget.

The flow carries the density along with the points, so one run from the data to the prior gives log p(x).  The
equation, in coordinates where the Gaussian with the data's moments does not move, is in the module
``whitened`` of this room; the trace in it in ``divergence``, the two ends of the run in ``density``, and the
errors of the result in ``budget``.

Drift and divergence come from one forward pass of the network, which counts as one evaluation.  Every probe
carries an integral of its own; the spread of these integrals gives the standard error of their mean.

Data w on another scale, x = scale w + shift, have log p(w) = log p(x) + D log(scale).  For grey levels with
uniform noise, -log2 of that density per dimension bounds the bits per dimension of the discrete data.

Draws belong to samples: the probes and normals of a sample are the same for any batch size and any number of
processes.  Values are then equal bit for bit if the model computes rows independently of each other, as exact
models do; with a network they agree to rounding.

Not promised: that p_{t_min} is the density of the data at t = 0, or that the prior is the law at T.  The
budget says how far apart they are.

References: Song et al. (2011.13456), appendix D.2; Grathwohl et al., "FFJORD" (1810.01367) for the estimator;
Theis, van den Oord and Bethge, "A Note on the Evaluation of Generative Models" (1511.01844) for
dequantisation.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.likelihood.budget import Budget, LikelihoodCost, measure, standard_errors
from sde_toolkit.likelihood.density import CORRECTIONS, PRIORS, Correction, FlowDensity, LogDensity, Values
from sde_toolkit.likelihood.divergence import (
    DEFAULT_PROBES,
    Auto,
    Divergence,
    ExactDivergence,
    Hutchinson,
    chosen_divergence,
    unskewed_ratio,
)
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN, WhitenedFlow
from sde_toolkit.models import Condition, EvaluatedModel, Moments, ScoreModel, check_states, evaluated
from sde_toolkit.utils import ALONE, Processes, check_fields, checked, integer, per_sample
from solvers import DOPRI5, MAX_STEPS, ODE, RK4, Adaptive, FixedGrid, Integrator, Method

DIAGNOSTIC_SAMPLES = 8
"""Default number of samples that the budget is measured on."""


@dataclass(frozen=True)
class FlowSolver:
    """How the flow's equation is integrated.

    Args:
        method: of ``solvers``; it needs an error estimate unless ``num_steps`` is given.
        rtol, atol: tolerances of an adaptive run, on the whitened state, whose entries are of order one, and
            on the integral of the divergence, in nats.
        max_steps: attempted steps of an adaptive run after which a sample has failed.
        num_steps: so many equal steps in the flow's clock, without tolerances; None for an adaptive run.

    Raises:
        TypeError: an argument of another type.
        ValueError: no steps, tolerances out of range, or a method without an error estimate and no number of
            steps.
    """

    method: Method | Integrator = DOPRI5
    rtol: float = 1e-5
    atol: float = 1e-5
    num_steps: int | None = None
    max_steps: int = MAX_STEPS

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_steps is None and isinstance(self.method, Method) and not self.method.has_error:
            raise ValueError(
                f"method {self.method.name} has no error estimate for tolerances; give num_steps, or take "
                "dopri5"
            )
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        self.steps(0.0, 1.0)

    def steps(self, start: float, end: float) -> Adaptive | FixedGrid:
        """The rule for the steps from one time of the flow's clock to another.

        Raises:
            ValueError: tolerances out of range.
        """
        if self.num_steps is None:
            return Adaptive(start, end, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps)
        return FixedGrid(torch.linspace(start, end, self.num_steps + 1, dtype=torch.float64))

    @property
    def settings(self) -> dict[str, Any]:
        """The options that have an effect, as plain values."""
        known: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol}
        if self.max_steps != MAX_STEPS:
            known["max_steps"] = self.max_steps
        return {
            "method": self.method.name,
            **(known if self.num_steps is None else {"num_steps": self.num_steps}),
        }


@dataclass(frozen=True)
class Endpoint:
    """What is assumed at the two ends of the run, see ``sde_toolkit.likelihood.density``.

    Args:
        correction: for the noise at t_min: "none", "tweedie" or "reconstruction".
        prior: at T: "gaussian", the Gaussian that data with these moments have there; "process", N(0,
            prior_std^2 I); or a log-density, (B, *) -> (B,).
        moments: mean and covariance of the data; the model's own when None.  They fix the coordinates of the
            run and the prior "gaussian".

    Raises:
        ValueError: an unknown name.
    """

    correction: Correction = "none"
    prior: str | LogDensity = "gaussian"
    moments: Moments | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.prior, str) and self.prior not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)} or a log-density, got {self.prior!r}")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction must be one of {', '.join(CORRECTIONS)}, got {self.correction!r}")


TARGET_SE = 0.02
"""Standard error of every value, in bits per dimension, up to which "auto" adds probes."""

DEFAULT_SOLVER = FlowSolver()
"""Adaptive steps of Dormand and Prince, with tolerances of 1e-5."""

_DEFAULT_GRID = FlowSolver(RK4, num_steps=32)
_DEFAULT_ENDPOINT = Endpoint()


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of B samples and how they were found.

    Attributes:
        nats: log p, in nats and in the units of x, with shape (B,).
        bits_per_dim: -(nats + D log_det_per_dim) / (D log 2) with shape (B,).
        standard_error: of ``nats``, in nats, from the spread of the probes, with shape (B,); None for the
            exact divergence and for one probe.
        num_probes, skewness: number of the probes of every sample, int64, and skewness of their terms, each
            with shape (B,).
        latent: the point x_T that x flows to, with shape (B, *).
        nfe: network evaluations with shape (B,), counted; those of the budget are not among them.
        budget: what ``nats`` may be off by, and why; None if it was not asked for.
        seconds: wall time, that of the budget included.
        settings: the options, as plain values.
    """

    nats: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor | None
    num_probes: Tensor
    skewness: Tensor
    latent: Tensor
    nfe: Tensor
    budget: Budget | None
    seconds: float
    settings: Mapping[str, Any]

    @property
    def standard_error_bits_per_dim(self) -> Tensor | None:
        """Of ``bits_per_dim``, in bits per dimension, with shape (B,); None where ``standard_error`` is."""
        if self.standard_error is None:
            return None
        return self.standard_error / (self.latent[0].numel() * math.log(2))

    @checked
    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Confidence interval of every value, in nats, for the probes alone; two tensors (B,).

        Student's, joined from 8 probes on with Hall's, which corrects for their skewness (see
        ``sde_toolkit.likelihood.divergence``); fewer say too little of it.

        Raises:
            ValueError: there is no standard error, or a level outside (0, 1).
        """
        from scipy.special import stdtrit

        if self.standard_error is None:
            raise ValueError("an interval needs the spread of at least two probes; give divergence=2 or more")
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}")
        degrees = self.num_probes.cpu().numpy() - 1
        reach = torch.from_numpy(stdtrit(degrees, (1 + level) / 2)).to(self.nats)
        skewness = torch.where(self.num_probes < DEFAULT_PROBES.num_probes, 0.0, self.skewness)
        low = torch.minimum(-reach, unskewed_ratio(-reach, skewness, self.num_probes))
        high = torch.maximum(reach, unskewed_ratio(reach, skewness, self.num_probes))
        return self.nats - high * self.standard_error, self.nats - low * self.standard_error


@checked
@evaluated
def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    divergence: Divergence | int | Auto | None = "auto",
    target_se: float | None = None,
    solver: FlowSolver = DEFAULT_SOLVER,
    endpoint: Endpoint = _DEFAULT_ENDPOINT,
    t_min: float = LIKELIHOOD_T_MIN,
    num_diagnostic_samples: int = DIAGNOSTIC_SAMPLES,
    seed: int = 0,
    first_sample: int = 0,
    batch_size: int | None = None,
    log_det_per_dim: float | Tensor = 0.0,
    processes: Processes = ALONE,
) -> LogLikelihood:
    """Log-likelihood of x under the probability flow of a model, in nats.

    Args:
        model: any ``ScoreModel``.
        x: data in model scale with shape (B, *), of the model's dtype.
        condition: a tensor with one row per sample, or a class for all samples; for log p(x | condition).
        divergence: how the divergence is found.  "auto" is exact up to 64 features and 8 of Walsh's probes
            beyond; a number is that of Hutchinson's probes, None is exact.
        target_se: the standard error of every value, in bits per dimension, up to which probes are added,
            twice as many in all at a time, from 8 on, for fewer tell too little of their spread; when None
            ``TARGET_SE`` for "auto", and no probes are added to those that were asked for.
        solver: the method and its steps or tolerances.
        endpoint: the correction for the noise at t_min, the prior at T, and the moments of the data.
        t_min: where the run starts, 0 <= t_min < T, with sigma(t_min) > 0; the default stands for the first
            index of a chain.
        num_diagnostic_samples: so many first samples measure the budget; 0 for no budget.
        seed, first_sample: the probes of row i are keyed by (seed, first_sample + i).
        batch_size: samples per evaluation; all at once when None.
        log_det_per_dim: log |dx/dw| per dimension of the data's scaling, for the bits per dimension; with
            shape (B,) where it depends on the sample.
        processes: those of torch.distributed that share the batches; each gets the whole result.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong shape or type; before any evaluation.
        solvers.SolverError: a run became nan or inf, or stalled.
    """
    check_states(model, x)
    _check_counts(batch_size, num_diagnostic_samples)
    integer("first_sample", first_sample, 0)
    given = model.conditions(condition, len(x))
    log_det = per_sample("log_det_per_dim", log_det_per_dim, x)
    start, dims = time.perf_counter(), x[0].numel()
    density = _density(model, dims, divergence, solver, endpoint, t_min, seed)
    density, target = _aimed(density, target_se, divergence)

    def run(first: int, rows: Tensor) -> Values:
        last = first + len(rows)
        mine = None if given is None else given[first:last]
        return density.values(rows, range(first_sample + first, first_sample + last), mine, target)

    found = processes.map(run, x, batch_size or len(x))
    few = min(num_diagnostic_samples, len(x))
    head = Values(*(column[:few] for column in found))
    samples, of_few = range(first_sample, first_sample + few), None if given is None else given[:few]
    return LogLikelihood(
        nats=found.nats,
        bits_per_dim=-(found.nats / dims + log_det) / math.log(2),
        standard_error=standard_errors(density, found),
        num_probes=found.num_columns,
        skewness=found.skewness,
        latent=density.flow.unwhiten(found.u, density.flow.end).to(x.dtype),
        nfe=found.nfe,
        budget=measure(density, x[:few], samples, of_few, head, len(x)) if few else None,
        seconds=time.perf_counter() - start,
        settings=_settings(density, dims, solver, endpoint, seed)
        | {"log_det_per_dim": float(log_det.mean())}
        | ({} if math.isinf(target) else {"target_se": target / (dims * math.log(2))}),
    )


@checked
@evaluated
def likelihood_cost(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    divergence: Divergence | int | Auto | None = "auto",
    target_se: float | None = None,
    solver: FlowSolver = DEFAULT_SOLVER,
    endpoint: Endpoint = _DEFAULT_ENDPOINT,
    t_min: float = LIKELIHOOD_T_MIN,
) -> LikelihoodCost:
    """What ``log_likelihood`` of x with shape (B, *) will take, before it is run.

    With ``num_steps`` nothing is evaluated.  With tolerances the first sample runs once, without derivatives.
    Arguments and errors are those of ``log_likelihood``.
    """
    check_states(model, x)
    given = model.conditions(condition, len(x))
    density = _density(model, x[0].numel(), divergence, solver, endpoint, t_min, 0)
    density, target = _aimed(density, target_se, divergence)
    flow, steps = density.flow, density.steps
    u, row = flow.whiten(x[:1], flow.start), None if given is None else given[:1]
    term = ODE(lambda tau, y: torch.zeros_like(y)) if solver.num_steps else flow.states(density.levels, row)
    with torch.no_grad():
        nfe = int(flow.solve(term, u, solver.method, steps, (0,)).stats.nfe)
    nfe += endpoint.correction != "none"
    products = density.divergence.products(flow.num_features)
    return LikelihoodCost(len(x), nfe, products, math.isfinite(target))


def _aimed(density: FlowDensity, target_se: float | None, divergence: object) -> tuple[FlowDensity, float]:
    """The density with probes enough for a standard error, and the error to reach, in nats."""
    if target_se is None:
        target_se = TARGET_SE if divergence == "auto" else math.inf
    if not target_se > 0:
        raise ValueError(f"target_se must be positive, got {target_se}; the exact divergence has no error")
    own, n = density.divergence, density.flow.num_features
    if math.isinf(target_se) or isinstance(own, ExactDivergence):
        return density, math.inf
    if not isinstance(own, Hutchinson):
        raise ValueError(
            f"target_se must be None but for divergences by Hutchinson's probes, got {type(own).__name__}"
        )
    return replace(density, divergence=own.at_least(DEFAULT_PROBES.num_probes, n)), target_se * n * math.log(
        2
    )


def _settings(
    density: FlowDensity, dims: int, solver: FlowSolver, endpoint: Endpoint, seed: int
) -> dict[str, Any]:
    """The options as plain values."""
    return {
        "divergence": repr(density.divergence),
        "columns": density.divergence.columns(dims),
        "t_min": density.flow.t_min,
        **solver.settings,
        "prior": endpoint.prior if isinstance(endpoint.prior, str) else "callable",
        "correction": endpoint.correction,
        "seed": seed,
        "moments": density.flow.moments.kind,
    }


values_only = functools.partial(log_likelihood, num_diagnostic_samples=0)
"""``log_likelihood`` without a budget, for computations that call it many times."""


@checked
def differentiable_log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    divergence: Divergence | int | Auto | None = "auto",
    solver: FlowSolver = _DEFAULT_GRID,
    endpoint: Endpoint = _DEFAULT_ENDPOINT,
    t_min: float = LIKELIHOOD_T_MIN,
    seed: int = 0,
) -> Tensor:
    """log p_{t_min}(x) with shape (B,), in nats, as a function of x that autograd records: a prior for x.

    The derivative is that of the computed value, by backpropagation through the steps; only the states
    between the steps are kept in memory.  For an exact model it converges to ``model.score(x, t_min)``.

    Args:
        model: any ``ScoreModel`` whose predictions can be differentiated twice.
        x: data in model scale with shape (B, *), of the model's dtype.
        condition, divergence, t_min, seed: as for ``log_likelihood``, with no more than the first probes.
        solver: a method of ``solvers`` and its number of steps.
        endpoint: without a correction.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong shape or type; before any evaluation.
        solvers.SolverError: the run became nan or inf.
    """
    check_states(model, x)
    if solver.num_steps is None:
        raise ValueError("solver must have num_steps: gradients need a fixed grid, got tolerances")
    if endpoint.correction != "none":
        raise ValueError(f"correction must be 'none' for gradients, got {endpoint.correction!r}")
    given = model.conditions(condition, len(x))
    kept = EvaluatedModel(model)
    density = _density(kept, x[0].numel(), divergence, solver, endpoint, t_min, seed)
    return density(x, range(len(x)), given, differentiable=True).nats.mean(1).to(x.dtype)


def _density(
    model: ScoreModel,
    dims: int,
    divergence: Divergence | int | Auto | None,
    solver: FlowSolver,
    endpoint: Endpoint,
    t_min: float,
    seed: int,
) -> FlowDensity:
    """The density that these options name; raises ValueError for those that do not fit the model."""
    chosen = chosen_divergence(divergence, dims)
    flow = WhitenedFlow(model, t_min, endpoint.moments)
    steps = solver.steps(flow.tau_min, flow.tau_max)
    return FlowDensity(flow, chosen, solver.method, steps, endpoint.prior, endpoint.correction, seed)


def _check_counts(batch_size: int | None, num_diagnostic_samples: int) -> None:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if num_diagnostic_samples < 0:
        raise ValueError(
            f"num_diagnostic_samples must be at least 0, got {num_diagnostic_samples}; 0 is for no budget"
        )
