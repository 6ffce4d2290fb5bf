"""Whether a method samples the posterior: calibration over many pairs of data and observations.

Truths x_i are drawn from the law of the data and y_i given x_i by the observation.  Then x_i is a draw of
p(x | y_i), and so it cannot be told from the K draws that an exact method makes given y_i: ranks are uniform
(``sde_toolkit.metrics.truth_ranks``, simulation-based calibration, and ``tarp_ranks``, TARP), and intervals
hold the truth as often as they say.  ``calibrate`` makes the pairs and the draws, and tells

    sbc         the test of the ranks in every feature; narrow and wide draws, and moved ones, fail it
    tarp        the test of the ranks in distance
    coverage    of the intervals, with its standard error over the pairs, beside the level of exact draws

Of an exact model the truths are drawn from its law.  For a network, truths from held-out data test network
and method together; truths that the network has sampled itself test the method alone.

Features that are observed without noise are known, and left out.  Draws by particles are taken each from a
group of its own, because those of one group are not independent.

Not promised: power.  A method that ignores y and samples the prior is calibrated (2302.03026, section 3).

References: Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based Calibration"
(1804.06788); Lemos et al., "Sampling-Based Accuracy Testing of Posterior Estimators for General Inference"
(2302.03026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.draws import (
    NUM_DRAWS,
    NUM_STEPS,
    PosteriorSampler,
    Progress,
    draw_given,
    plan_draws,
)
from sde_toolkit.guidance.inverse.maps import EntriesMap, MaskMap
from sde_toolkit.guidance.inverse.observations import LinearObservation, Observation
from sde_toolkit.guidance.inverse.posterior import Method
from sde_toolkit.metrics import Estimate, RankTest, coverage, interval, rank_test, tarp_ranks, truth_ranks
from sde_toolkit.models import ExactModel, ScoreModel, check_states
from sde_toolkit.samplers import Sampler, dpm_solver_pp
from sde_toolkit.utils import checked

LEAST_PAIRS = 40
"""Pairs that a test of ranks needs."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What N pairs say of a method.

    Attributes:
        ranks: of the truths among K draws in every feature that is not known, 0 .. K, with shape (N, m).
        sbc: their test.
        distance_ranks: of the truths in distance from references, with shape (N,).
        tarp: their test.
        coverage: of the intervals, with its standard error.
        level: the coverage of an exact method.
        num_draws: K.
        nfe: network evaluations per draw.
        seconds: wall time.
        settings: the method's and the sampler's, as plain values.
    """

    ranks: Tensor = field(repr=False)
    sbc: RankTest = field(repr=False)
    distance_ranks: Tensor = field(repr=False)
    tarp: RankTest = field(repr=False)
    coverage: Estimate
    level: float
    num_draws: int
    nfe: float
    seconds: float
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def p_value(self) -> float:
        """The smaller of the p-values of both tests, times two: below a, with probability at most a for an
        exact method."""
        return min(1.0, 2 * min(self.sbc.p_value, self.tarp.p_value))

    @property
    def sentence(self) -> str:
        """The result in one line."""
        return (
            f"{len(self.ranks)} pairs by {self.num_draws} draws: coverage {self.coverage.value:.3f} +- "
            f"{self.coverage.standard_error:.3f} of {self.level:.3f}; p-values of uniform ranks "
            f"{self.sbc.p_value:.3g} (features), {self.tarp.p_value:.3g} (distances)"
        )

    def curve(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of TARP: credibilities j / (K + 1), j = 1 .. K, the shares of truths within them, and the standard
        errors of these for an exact method, each with shape (K,)."""
        levels = torch.arange(1, self.num_draws + 1, dtype=torch.float64) / (self.num_draws + 1)
        below = self.distance_ranks.cpu()[:, None] < torch.arange(1, self.num_draws + 1)
        return levels, below.double().mean(0), (levels * (1 - levels) / len(below)).sqrt()


@checked
def calibrate(
    model: ScoreModel,
    observation: Observation,
    *,
    method: Method | None = None,
    sampler: Sampler | PosteriorSampler | None = None,
    truths: Tensor | None = None,
    num_pairs: int = 400,
    num_draws: int = NUM_DRAWS,
    level: float = 0.9,
    seed: int = 0,
    batch_size: int = 4096,
    progress: Progress | None = None,
) -> Calibration:
    """Draw pairs of data and observations, and draws given every observation, and compare them.

    Everything is in model scale; ``in_model_scale`` brings an observation of raw data there.

    Args:
        model: of the data.
        observation: the law of y given x0; the same features for all pairs.
        method: how y guides; when None ``default_method``.
        sampler: when None, DPM-Solver++ with 50 steps; ``TwistedSMC`` and ``SplitGibbs`` need no method.
        truths: with shape (N, *D), of the law that is tested; drawn from an exact model when None.
        num_pairs: N, where ``truths`` are not given; at least ``LEAST_PAIRS``.
        num_draws: K, at least 2.
        level: of the intervals.
        seed: of truths, observations and draws.
        batch_size: draws per evaluation of the network.
        progress: told how many draws are finished, batch by batch.

    Raises:
        ValueError: no truths for a model that is not exact, too few of them, a number out of range, an
            observation that a method cannot have, or one of all features without noise.
        solvers.SolverError: a draw became nan or inf.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws must be at least 2, for intervals, got {num_draws}")
    sampler = dpm_solver_pp(NUM_STEPS) if sampler is None else sampler  # whose draws are independent
    plan = plan_draws(model, observation, method, sampler, num_draws, level, seed, batch_size)
    unknown = _unknown(observation)
    x = _truths(model, truths, num_pairs, seed)
    y = observation.draw(x, seed)
    draws, nfe, seconds = draw_given(model, plan, y, torch.arange(len(x)), None, progress, apart=True)
    chosen, flat = draws.flatten(2)[..., unknown], x.flatten(1)[:, unknown]
    ranks, distances = truth_ranks(flat, chosen), tarp_ranks(flat, chosen)
    settings = {
        "method": repr(plan.sampler if plan.method is None else plan.method), "seed": seed,
        "observation": repr(observation), **plan.sampler.settings,
    }  # fmt: skip
    return Calibration(
        ranks, rank_test(ranks, num_draws), distances, rank_test(distances, num_draws),
        coverage(chosen, flat, level), interval(chosen, level).level, num_draws, nfe, seconds, settings,
    )  # fmt: skip


def _truths(model: ScoreModel, truths: Tensor | None, num_pairs: int, seed: int) -> Tensor:
    """The truths with shape (N, *D), given or drawn."""
    if truths is None:
        if not isinstance(model, ExactModel):
            raise ValueError(
                "truths must be given for a model whose data are not known in closed form: held-out data in "
                "model scale, or samples of the model itself"
            )
        if num_pairs < LEAST_PAIRS:
            raise ValueError(f"num_pairs must be at least {LEAST_PAIRS}, got {num_pairs}")
        return model.data.sample(num_pairs, seed).to(model.device, model.dtype)
    check_states(model, truths, "truths")
    if len(truths) < LEAST_PAIRS:
        raise ValueError(f"truths must be at least {LEAST_PAIRS}, got {len(truths)}")
    return truths


def _unknown(observation: Observation) -> Tensor:
    """Which features are not observed without noise, bool with shape (n,)."""
    unknown = torch.ones(observation.event_shape, dtype=torch.bool).flatten()
    if not isinstance(observation, LinearObservation):
        return unknown
    if isinstance(observation.A, EntriesMap):
        raise ValueError("observation must have one mask for all pairs, got entries; give the mask itself")
    if isinstance(observation.A, MaskMap) and not bool(observation.std.any()):
        unknown = observation.A.backward(torch.ones(1, observation.A.count)).flatten().cpu() == 0
    if not bool(unknown.any()):
        raise ValueError("observation must leave a feature unknown, got all of them without noise")
    return unknown
