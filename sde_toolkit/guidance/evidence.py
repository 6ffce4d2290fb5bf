"""The evidence of an observation, p(y), from independent groups of particles, and with it log p(x0 | y).

Group g gives an unbiased estimate z_g of p(y) (``TwistedSMC``).  With the mean z of G of them and v their
variance,

    log p(y)  ~  log z + v / (2 G z^2),       standard error  sqrt(v / G) / z

to first order (delta method): the second term is what the logarithm of a mean is too low by.  Both are those
of the model in the steps of the sampler; that they are finite is not accounted for.  By Bayes' rule

    log p(x0 | y) = log p(x0) + log p(y | x0) - log p(y)

Reference: Wu et al. (2306.17775), proposition 1, for the estimates without bias.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.observed import Observed
from sde_toolkit.guidance.inverse.particles import TwistedSMC
from sde_toolkit.models import ScoreModel
from sde_toolkit.utils import checked, integer


class Evidence(NamedTuple):
    """log p(y) in nats.

    Attributes:
        value: the estimate.
        standard_error: of it, from the groups; to be trusted well below 1.
        groups: the log of each group's own estimate, with shape (G,).
    """

    value: float
    standard_error: float
    groups: Tensor


class Conditional(NamedTuple):
    """log p(x0 | y) in nats, and its standard error, each with shape (B,)."""

    value: Tensor
    standard_error: Tensor


@checked
def log_evidence(
    model: ScoreModel,
    observation: Observed,
    smc: TwistedSMC | None = None,
    groups: int = 16,
    seed: int = 0,
    batch_size: int | None = None,
) -> Evidence:
    """log p(y) of one observation, with a standard error.

    Args:
        model: of the data.
        observation: the law of y given x0, and one y.
        smc: the particles of a group; ``TwistedSMC(50)`` when None.
        groups: independent ones, at least 2.
        seed: of the particles.
        batch_size: particles per evaluation, rounded down to whole groups; all at once when None.

    Raises:
        ValueError: fewer than 2 groups, several observations, or what the particles cannot do.
        solvers.SolverError: no particle of a group has a weight above 0.
    """
    integer("groups", groups, 2)
    if not observation.shared:
        raise ValueError(
            f"observation must hold one y with shape {observation.observation.shape}, got one row per "
            "sample; take them one by one"
        )
    smc = TwistedSMC(50) if smc is None else smc
    found = smc.sample(
        model, groups * smc.particles, observation=observation, seed=seed, batch_size=batch_size
    ).log_evidence.cpu()
    highest = float(found.amax())
    ratios = (found - highest).exp()
    mean = float(ratios.mean())
    error = float(ratios.std()) / math.sqrt(groups) / mean
    return Evidence(highest + math.log(mean) + 0.5 * error**2, error, found)


@checked
def conditional_log_prob(
    log_prob: Tensor,
    x0: Tensor,
    observation: Observed,
    evidence: Evidence,
    standard_error: Tensor | float = 0.0,
) -> Conditional:
    """log p(x0 | y) by Bayes' rule.

    Args:
        log_prob: log p(x0) of the data in nats with shape (B,), in the scale of the model.
        x0: with shape (B, *D).
        observation: the law of y given x0, and y.
        evidence: from ``log_evidence``.
        standard_error: of ``log_prob``, with shape (B,) or one number.

    Raises:
        ValueError: shapes that do not fit.
    """
    if not x0.ndim or not x0.is_floating_point():
        raise ValueError(
            f"x0 must be floating-point rows with shape (B, *D), got {x0.dtype} {tuple(x0.shape)}"
        )
    if log_prob.shape != x0.shape[:1]:
        raise ValueError(
            f"log_prob must have shape ({len(x0)},), one number per row of x0, got {tuple(log_prob.shape)}"
        )
    y = torch.as_tensor(observation.y)
    likelihood = observation.observation.log_likelihood(y, x0)
    own = torch.as_tensor(standard_error)
    if own.shape not in ((), log_prob.shape) or own.is_complex() or own.dtype == torch.bool:
        raise ValueError(
            f"standard_error must be a number or have shape ({len(x0)},), got {own.dtype} {tuple(own.shape)}"
        )
    own = own.to(log_prob).expand(len(x0))
    return Conditional(
        log_prob + likelihood - evidence.value, (own.square() + evidence.standard_error**2).sqrt()
    )
