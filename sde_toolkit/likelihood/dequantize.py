"""Probabilities of discrete data under a continuous density: dequantisation, importance-weighted.

A score model gives a density p of the state x at a time t_min, and so the probability of grey levels v, its
integral over their bin.  Any density q on the bin (``sde_toolkit.likelihood.bins``) gives an
importance-weighted bound:

    P(v) = int_bin(v) p(x) dx = E_q[ p(x) / q(x | v) ]
    log P(v)  >=  E[ log 1/K sum_k p(x_k) / q(x_k | v) ]  =: L_K,       L_1 <= L_2 <= ... -> log P(v)
    bits/dim = -L_K / (D log 2)

The bin's volume is counted once, in q.  The gap log P - L_1 is the divergence of q from p on the bin, the
cost of dequantisation; L_K - L_1 is the part of it that K draws measure.

Training needs the score alone, not the density: with x = x(theta, u') the gradient of E[log p(x) - log q(x)]
is E[score(x, t_min) . dx/dtheta - d log q/dtheta].

The draws of a sample are keyed by (seed, sample, draw index), and a density found with random probes uses the
same ones for every draw of a sample.  An error that is the same in all K weights passes through the logarithm
of the mean unchanged.  An error that differs between the draws raises it, by about half its variance, and the
result is no longer a bound.  A second density with probes of its own makes it one again: with p_k chosen by
the one and the logarithms w_k = log p(x_k) - log q(x_k | v) taken from the other,

    log 1/K sum exp(w_k)  >=  sum p_k (w_k - log p_k) - log K,        p = softmax(w')

is linear in the noise of w, whatever w' is, and equal where w' = w.  Both ways round are averaged.

References: Theis et al., "A Note on the Evaluation of Generative Models" (1511.01844); Burda et al.,
"Importance Weighted Autoencoders" (1509.00519).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_toolkit.data import batch_indices
from sde_toolkit.likelihood.bins import Dequantizer, VariationalDequantizer
from sde_toolkit.likelihood.flow import values_only
from sde_toolkit.metrics import Estimate
from sde_toolkit.models import Condition, ScoreModel, evaluated, evaluating, recording
from sde_toolkit.utils import UNSIGNED, check_called, checked, integer, returned
from solvers import Normals


class HasNats(Protocol):
    """Any record of log-densities: ``LogLikelihood``, ``Bound``, ``DiscreteLogLikelihood``, ..."""

    @property
    def nats(self) -> Tensor:
        """Log-densities with shape (B,)."""
        ...


class TimedDensity(Protocol):
    """log p_{t_min}(x): ``log_likelihood`` with other options bound, or a function like it."""

    def __call__(self, model: ScoreModel, x: Tensor, /, **options: Any) -> HasNats:
        """Log-densities of x with shape (B, *).

        Args:
            model: the score model.
            x: states at ``t_min``.
            options: ``t_min``; ``first_sample``, to key the probes of row i by first_sample + i; and where
                there are conditions ``condition``, with one row per sample.
        """
        ...


@checked
@recording()
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
    and no derivative of it.  The flow is trained in place.

    Args:
        dequantizer: holds the flow.
        model: any ``ScoreModel``.
        values: grey levels with shape (N, *), integers.
        condition: a tensor with one row per example, or a class for all examples.
        num_steps: updates.
        batch_size: examples per update.
        learning_rate: of the first update.
        seed: of the batches and the draws.

    Raises:
        ValueError, TypeError: values that are not levels, a count below 1, or a condition that the model does
            not take; before any evaluation.
    """
    integer("num_steps", num_steps, 1)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a finite positive number, got {learning_rate}")
    _check_values(values, dequantizer, model)
    t = torch.tensor(dequantizer.t_min, dtype=torch.float64)
    given = model.conditions(condition, len(values))
    optimizer = torch.optim.Adam(dequantizer.flow.parameters(), lr=learning_rate)
    for step in range(num_steps):
        rows = batch_indices(len(values), batch_size, step, seed)
        source = Normals(seed, rows.tolist(), model.event_shape, torch.float64)
        x, log_q = dequantizer.draw(values[rows], source, step)
        with torch.no_grad(), evaluating(model):
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
        nats: the bound of all K draws together, in nats, with shape (B,).
        bits_per_dim: -nats / (D log 2) with shape (B,).
        gap: what the K draws gain over the mean of their one-sample bounds, in nats, with shape (B,): the
            part of the cost of dequantisation that was measured.
        standard_error: of ``nats``, in nats, from the spread of the K weights, with shape (B,); None for
            K = 1.
        standard_error_bits_per_dim: the same error in bits per dimension, with shape (B,); None for K = 1.
        log_weights: log p(x_k) - log q(x_k | v), in nats, with shape (B, K); the mean of both densities if
            there are two.
        nfe: network evaluations with shape (B,), of all draws; None if the density does not count them.
        seconds: wall time.
        settings: the options, as plain values.
    """

    nats: Tensor
    bits_per_dim: Tensor
    gap: Tensor
    standard_error: Tensor | None
    standard_error_bits_per_dim: Tensor | None
    log_weights: Tensor = field(repr=False)
    nfe: Tensor | None
    seconds: float
    settings: Mapping[str, Any]

    @property
    def mean_bits_per_dim(self) -> Estimate:
        """The mean over the samples with its standard error over the samples, in bits per dimension."""
        bits = self.bits_per_dim
        spread = float(bits.std()) if len(bits) > 1 else math.nan
        return Estimate(float(bits.mean()), spread / math.sqrt(len(bits)), "standard error of the mean")


@checked
@evaluated
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
    """An importance-weighted lower bound on log P(values), in nats.

    Args:
        model: any ``ScoreModel``.
        values: grey levels with shape (B, *), integers.
        dequantizer: the density q, with the time that it belongs to.
        condition: a tensor with one row per sample, or a class for all samples; for log P(values |
            condition).
        num_samples: K, draws per sample.
        seed, first_sample: draw k of row i is keyed by (seed, first_sample + i, k).
        log_likelihood: log p at the dequantizer's t_min, called once per draw with the same ``first_sample``;
            other options are bound by ``functools.partial``.
        second: the same density with other, independent probes (another ``seed``), at the same cost again;
            with random probes and K > 1 the result is a bound on average only with it.

    Raises:
        ValueError, TypeError: values that are not levels of the model's shape, no draws, or a condition that
            the model does not take; before any evaluation.
    """
    integer("num_samples", num_samples, 1)
    integer("first_sample", first_sample, 0)
    for name, density in (("log_likelihood", log_likelihood), ("second", second)):
        if density is not None:
            check_called(name, density, 2, ("t_min", "first_sample"))
    _check_values(values, dequantizer, model)
    start, given = time.perf_counter(), model.conditions(condition, len(values))
    rows = range(first_sample, first_sample + len(values))
    source, values = Normals(seed, rows, model.event_shape, torch.float64), values.to("cpu")
    densities = [log_likelihood] if second is None else [log_likelihood, second]
    options = {} if given is None else {"condition": given}
    columns: list[list[Tensor]] = [[] for _ in densities]
    nfe: list[Tensor | None] = []
    for index in range(num_samples):
        with evaluating(getattr(dequantizer, "flow", None)):
            x, log_q = dequantizer.draw(values, source, index)
        x = x.to(model.device, model.dtype)
        for name, density, column in zip(("log_likelihood", "second"), densities, columns, strict=False):
            found = density(model, x, t_min=dequantizer.t_min, first_sample=first_sample, **options)
            returned(name, found, "nats")
            column.append(found.nats.to(log_q) - log_q)
            nfe.append(getattr(found, "nfe", None))
    spent = [count for count in nfe if count is not None]
    each = [torch.stack(column, 1) for column in columns]
    settings = {"dequantizer": type(dequantizer).__name__, "t_min": dequantizer.t_min, "seed": seed}
    settings |= {"num_samples": num_samples, "levels": dequantizer.levels, "densities": len(densities)}
    return _summary(each, torch.stack(spent).sum(0) if spent else None, values[0].numel(), start, settings)


def _summary(
    each: list[Tensor], nfe: Tensor | None, dims: int, start: float, settings: dict[str, Any]
) -> DiscreteLogLikelihood:
    """The bound from the log-weights with shape (B, K) of one or two densities."""
    num_samples = each[0].shape[1]
    weights = torch.stack(each).mean(0)
    nats = 0.5 * (_chosen_by(each[0], each[-1]) + _chosen_by(each[-1], each[0]))
    error = None
    if num_samples > 1:
        error = (weights - weights.logsumexp(1, keepdim=True)).exp().std(1) * math.sqrt(num_samples)
    unit = dims * math.log(2)
    return DiscreteLogLikelihood(
        nats=nats,
        bits_per_dim=-nats / unit,
        gap=nats - weights.mean(1),
        standard_error=error,
        standard_error_bits_per_dim=None if error is None else error / unit,
        log_weights=weights,
        nfe=nfe,
        seconds=time.perf_counter() - start,
        settings=settings,
    )


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
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype in (torch.bool, *UNSIGNED):
        raise ValueError(f"values must be integer grey levels, got {values.dtype}; use Scaling.to_levels")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= dequantizer.levels:
        raise ValueError(f"values must be among 0 .. {dequantizer.levels - 1}, got {low} .. {high}")
