"""Log-likelihoods by the probability-flow ODE, with their error budget.

The flow carries the density along with the points, so one run from the data to the prior gives log p(x): see
``sde_toolkit.whitened`` for the equation, in coordinates where the Gaussian with the data's moments is at
rest, ``sde_toolkit.divergence`` for the trace in it, ``sde_toolkit.density`` for the two ends of the run, and
``sde_toolkit.budget`` for what the result is uncertain by.

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
from sde_toolkit.likelihood.density import DATA_ENDS, PRIORS, Columns, FlowDensity, LogDensity
from sde_toolkit.likelihood.divergence import Divergence, ExactDivergence, Hutchinson
from sde_toolkit.likelihood.whitened import WhitenedFlow
from sde_toolkit.models import Condition, Moments, ScoreModel, check_states
from sde_toolkit.utils import ALONE, Processes
from solvers import DOPRI5, RK4, Adaptive, FixedGrid, Integrator, Method

T_MIN = 1e-5
"""Default start of the run; sigma there is .001 under VP."""

CHECKED = 8
"""Samples that the budget is measured on."""


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of B samples and how they were found.

    Attributes:
        nats: log p with shape (B,), in the units of x.
        bits_per_dim: -(nats + D log_det_per_dim) / (D log 2) with shape (B,).
        standard_error: of nats from the spread of the probes, shape (B,); None when exact or with one probe.
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

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Student's confidence interval of every value for the probes alone, two tensors with shape (B,).

        Raises:
            ValueError: there is no standard error, or a level outside (0, 1).
        """
        if self.standard_error is None:
            raise ValueError("an interval needs the spread of at least two probes; raise num_probes")
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}")
        reach = float(stats.t.ppf((1 + level) / 2, self.settings["columns"] - 1)) * self.standard_error
        return self.nats - reach, self.nats + reach


def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    num_probes: int | None = None,
    divergence: Divergence | None = None,
    seed: int = 0,
    first_sample: int = 0,
    t_min: float = T_MIN,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: Method | Integrator = DOPRI5,
    num_steps: int | None = None,
    moments: Moments | None = None,
    prior: str | LogDensity = "gaussian",
    data_end: str = "none",
    log_det_per_dim: float = 0.0,
    batch_size: int | None = None,
    checked: int = CHECKED,
    processes: Processes = ALONE,
) -> LogLikelihood:
    """Log-likelihood of x under the probability flow of a model.

    Args:
        model: any ``ScoreModel``.
        x: data in model scale with shape (B, *), of the model's dtype.
        condition: a class for all samples, or a tensor with one row per sample, for log p(x | condition).
        num_probes: short for ``divergence=Hutchinson(num_probes)``; the exact divergence when None.
        divergence: how the divergence is found, see ``sde_toolkit.divergence``.
        seed, first_sample: the probes of row i are keyed by (seed, first_sample + i).
        t_min: where the run starts, 0 <= t_min < T, with sigma(t_min) > 0.
        rtol, atol: tolerances of an adaptive method, on the whitened state, whose parts are of order one, and
            on the integral of the divergence, in nats.
        method: of ``solvers``; with an error estimate unless ``num_steps`` is given.
        num_steps: for a fixed grid of so many equal steps in the flow's clock, in place of tolerances.
        moments: mean and covariance of the data; the model's own when None.
        prior: "gaussian", that with the moments that such data have at T; "process", N(0, prior_std^2 I); or
            a log-density at T, (B, *) -> (B,).
        data_end: "none", "tweedie" or "reconstruction", see ``sde_toolkit.density``.
        log_det_per_dim: log |dx/dw| per dimension of the data's scaling, for the bits per dimension.
        batch_size: samples per evaluation; all at once when None.
        checked: the first samples, on which the budget is measured; 0 for no budget.
        processes: those of torch.distributed that share the work, batch by batch; each gets the whole result.

    Raises:
        ValueError: an argument out of range or of the wrong shape or type; before any evaluation.
        solvers.SolverError: a run became nan or inf, or stalled.
    """
    if num_probes is not None and divergence is not None:
        raise ValueError("give num_probes or divergence, not both; Hutchinson(num_probes) is a divergence")
    if num_probes is not None:
        divergence = Hutchinson(num_probes)
    divergence = ExactDivergence() if divergence is None else divergence
    _check(model, x, batch_size, prior, data_end, checked)
    columns = divergence.columns(x[0].numel())
    start = time.perf_counter()
    flow = WhitenedFlow(model, t_min, moments)
    control = _control(flow, method, rtol, atol, num_steps)
    density = FlowDensity(flow, divergence, method, control, prior, data_end, seed)

    given = model.conditions(condition, len(x))

    def run(first: int, rows: Tensor) -> Columns:
        numbers = range(first_sample + first, first_sample + first + len(rows))
        return density(rows, numbers, None if given is None else given[first : first + len(rows)])

    found = processes.map(run, x, batch_size or len(x))
    few = min(checked, len(x))
    budget = None
    if few:
        head = Columns(*(column[:few] for column in found))
        budget = measure(
            density,
            x[:few],
            range(first_sample, first_sample + few),
            head,
            None if given is None else given[:few],
        )
    nats, dims = found.nats.mean(1), x[0].numel()
    settings = {"divergence": repr(divergence), "columns": columns, "t_min": t_min, "method": method.name}
    settings |= {"rtol": rtol, "atol": atol} if num_steps is None else {"num_steps": num_steps}
    settings |= {"prior": prior if isinstance(prior, str) else "callable", "data_end": data_end, "seed": seed}
    settings |= {"moments": flow.moments.kind, "log_det_per_dim": log_det_per_dim}
    return LogLikelihood(
        nats=nats,
        bits_per_dim=-(nats / dims + log_det_per_dim) / math.log(2),
        standard_error=divergence.standard_error(found.nats, dims),
        latent=flow.leave(found.u, flow.end).to(x.dtype),
        nfe=found.nfe,
        budget=budget,
        seconds=time.perf_counter() - start,
        settings=settings,
    )


values_only = functools.partial(log_likelihood, checked=0)
"""``log_likelihood`` without a budget: what other computations call again and again."""


def differentiable_log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    num_steps: int = 32,
    method: Method = RK4,
    num_probes: int | None = None,
    seed: int = 0,
    t_min: float = T_MIN,
    moments: Moments | None = None,
    prior: str | LogDensity = "gaussian",
) -> Tensor:
    """log p_{t_min}(x) with shape (B,), in nats, as a function of x that autograd knows: a prior for x.

    The derivative is that of the computed value, by backpropagation through the steps, of which only the
    states in between are kept.  For an exact model it converges to ``model.score(x, t_min)``.

    Args:
        model: any ``ScoreModel`` whose predictions can be differentiated twice.
        x: data in model scale with shape (B, *), of the model's dtype.
        condition: a class for all samples, or a tensor with one row per sample.
        num_steps: equal steps in the flow's clock.
        method: of ``solvers``, for fixed grids.
        num_probes, seed, t_min, moments, prior: as for ``log_likelihood``.

    Raises:
        ValueError: an argument out of range or of the wrong shape or type; before any evaluation.
        solvers.SolverError: the run became nan or inf.
    """
    _check(model, x, None, prior, "none", 0)
    divergence = ExactDivergence() if num_probes is None else Hutchinson(num_probes)
    divergence.columns(x[0].numel())
    flow = WhitenedFlow(model, t_min, moments)
    density = FlowDensity(
        flow, divergence, method, _control(flow, method, 0.0, 0.0, num_steps), prior, seed=seed
    )
    given = model.conditions(condition, len(x))
    return density(x, range(len(x)), given, differentiable=True).nats.mean(1).to(x.dtype)


def _control(
    flow: WhitenedFlow, method: Method | Integrator, rtol: float, atol: float, num_steps: int | None
) -> Adaptive | FixedGrid:
    if num_steps is None and isinstance(method, Method) and not method.has_error:
        raise ValueError(
            f"method {method.name} has no error estimate for tolerances; give num_steps, or take dopri5"
        )
    if num_steps is None:
        return Adaptive(flow.tau_min, flow.tau_max, rtol=rtol, atol=atol)
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return FixedGrid(torch.linspace(flow.tau_min, flow.tau_max, num_steps + 1, dtype=torch.float64))


def _check(
    model: ScoreModel,
    x: Tensor,
    batch_size: int | None,
    prior: str | LogDensity,
    data_end: str,
    checked: int,
) -> None:
    check_states(model, x)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if checked < 0:
        raise ValueError(f"checked must be at least 0, got {checked}; 0 is for no budget")
    if isinstance(prior, str) and prior not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)} or a log-density, got {prior!r}")
    if data_end not in DATA_ENDS:
        raise ValueError(f"data_end must be one of {', '.join(DATA_ENDS)}, got {data_end!r}")
