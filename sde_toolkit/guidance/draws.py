"""Draws of p(x0 | y) for many observations: K of each, by a sampler that a method guides, or by a sampler
that is made for observations (particles, split Gibbs).

Draw k of example i of a seed has the noise of sample i 2^32 + k, whatever else is drawn: more draws, other
examples and other batches leave it as it is, up to rounding.  The draws of one example by particles are of
one group, as far as it goes, and depend on each other; ``apart`` takes each from a group of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.gibbs import Chains, SplitGibbs
from sde_toolkit.guidance.inverse.observations import LinearObservation, Observation
from sde_toolkit.guidance.inverse.observed import Observed, default_method
from sde_toolkit.guidance.inverse.particles import TwistedSMC
from sde_toolkit.guidance.inverse.posterior import Method
from sde_toolkit.models import ScoreModel, in_run
from sde_toolkit.samplers import Sampler, dpm_solver_pp
from sde_toolkit.utils import checked
from solvers import Normals

NUM_DRAWS = 19
"""Draws of every example: the least whose intervals can hold the truth with probability 90%."""

NUM_STEPS = 50
"""Steps of the sampler that is taken where none is given."""

NUM_PARTICLES = 128
"""Particles of every example, where they are taken without being asked for."""

MOST_FEATURES = 64
"""Most features of vectors that are drawn by particles without being asked for."""

Progress = Callable[[int], object]
"""Told after every batch how many draws it finished."""

MOST_STD = 1e15
"""The largest noise that tells anything in double precision."""

_APART = 1 << 32

PosteriorSampler = TwistedSMC | SplitGibbs
"""Samplers that are made for observations: no method guides them."""


@checked
def default_sampler(model: ScoreModel, num_steps: int = NUM_STEPS) -> Sampler | TwistedSMC:
    """What draws given a linear observation where neither a sampler nor a method is named.

    ``TwistedSMC`` with ``NUM_PARTICLES`` particles for vectors of at most ``MOST_FEATURES`` features of a
    model that has moments: on tables its conditional means are several times nearer to the exact ones than
    those of guided samplers (``python -m benchmarks imputation``), with more evaluations.  Else
    DPM-Solver++, which ``default_method`` guides.

    Args:
        model: of the data.
        num_steps: of the sampler, at least 2.

    Raises:
        ValueError: fewer steps.
    """
    if len(model.event_shape) == 1 and model.event_shape[0] <= MOST_FEATURES and model.moments is not None:
        return TwistedSMC(num_steps, particles=NUM_PARTICLES)
    return dpm_solver_pp(num_steps)


@dataclass(frozen=True)
class Plan:
    """What all batches share, checked before the first.

    Attributes:
        observation: in model scale.
        method: None for a sampler that is made for observations.
        sampler, num_draws, level, seed, batch_size: as asked for.
    """

    observation: Observation
    method: Method | None
    sampler: Sampler | PosteriorSampler
    num_draws: int
    level: float
    seed: int
    batch_size: int


def plan_draws(
    model: ScoreModel,
    observation: Observation,
    method: Method | None,
    sampler: Sampler | PosteriorSampler | None,
    num_draws: int,
    level: float,
    seed: int,
    batch_size: int,
) -> Plan:
    """What is asked for, with what is taken where nothing is said: ``default_sampler`` without a sampler and
    a method, DPM-Solver++ for a method, and ``default_method`` for a sampler.

    Raises:
        ValueError: numbers out of range, and a method that cannot have this observation.
    """
    for name, value in (("num_draws", num_draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if isinstance(observation, LinearObservation) and float(observation.std.amax()) > MOST_STD:
        raise ValueError(
            f"std must be at most {MOST_STD:g} in model scale, got {float(observation.std.amax()):.4g}"
        )
    if sampler is None:
        sampler = default_sampler(model) if method is None else dpm_solver_pp(NUM_STEPS)
    if isinstance(sampler, PosteriorSampler):
        if method is not None:
            raise ValueError(f"method must be left out for {type(sampler).__name__}, got {method!r}")
        sampler.on(model, observation)
        return Plan(observation, None, sampler, num_draws, level, seed, batch_size)
    method = default_method(model, observation) if method is None else method
    method.check(model, observation)
    return Plan(observation, method, sampler, num_draws, level, seed, batch_size)


def draw_given(
    model: ScoreModel,
    plan: Plan,
    values: Tensor,
    numbers: Tensor,
    condition: Tensor | None,
    progress: Progress | None,
    apart: bool = False,
) -> tuple[Tensor, float, float]:
    """Draws with shape (K, n, *D) in model scale, network evaluations per draw, and seconds.

    Args:
        values: observations with shape (n, *Y).
        numbers: of the examples, with shape (n,), which key their noise.
        condition: one row per example, or None.
        apart: the draws of one example are independent.
    """
    if isinstance(plan.sampler, TwistedSMC):
        return _by_particles(model, plan, plan.sampler, values, numbers, condition, progress, apart)
    K, n = plan.num_draws, len(values)
    example, draw = torch.arange(n).repeat_interleave(K), torch.arange(K).repeat(n)
    keys = numbers.cpu()[example] * _APART + draw
    run: _Guided | Chains = (
        plan.sampler.chains(model, plan.observation, plan.seed)
        if isinstance(plan.sampler, SplitGibbs)
        else _Guided(model, plan, plan.sampler, values)
    )
    parts = []
    for first in range(0, n * K, plan.batch_size):
        at = example[first : first + plan.batch_size]
        given = None if condition is None else condition[at.to(condition.device)]
        parts.append(run(keys[first : first + plan.batch_size], values[at], given))
        if progress is not None:
            progress(len(at))
    x = torch.cat(parts).unflatten(0, (n, K)).transpose(0, 1)
    return x.contiguous(), run.rows / (n * K), run.seconds


class _Guided:
    """Runs of a sampler that a method guides, batch by batch, and what they cost by now."""

    def __init__(self, model: ScoreModel, plan: Plan, sampler: Sampler, values: Tensor) -> None:
        self.model, self.plan, self.rows, self.seconds = model, plan, 0.0, 0.0
        self._prepared = sampler.prepare(model, Observed(plan.observation, values, plan.method))

    def __call__(self, keys: Tensor, y: Tensor, condition: Tensor | None) -> Tensor:
        """Samples with the numbers ``keys``, with shape (B, *D), given y with shape (B, *Y)."""
        model, plan = self.model, self.plan
        noise = Normals(plan.seed, keys, model.event_shape, in_run(model).dtype, model.device)
        seen = Observed(plan.observation, y, plan.method)
        found = dataclasses.replace(self._prepared, observation=seen).sample(
            len(keys), condition=condition, seed=plan.seed, noise=noise
        )
        self.rows, self.seconds = self.rows + found.nfe * len(keys), self.seconds + found.seconds
        return found.x


def _by_particles(
    model: ScoreModel,
    plan: Plan,
    sampler: TwistedSMC,
    values: Tensor,
    numbers: Tensor,
    condition: Tensor | None,
    progress: Progress | None,
    apart: bool,
) -> tuple[Tensor, float, float]:
    """The same by groups of particles."""
    every = sampler.particles if apart else 1
    count = plan.num_draws * every
    starts = [-(-number * _APART // every) * every for number in numbers.tolist()]

    def told(samples: int) -> None:
        if progress is not None:
            progress(samples // every)

    parts, rows, seconds = sampler.sample_given(
        model, plan.observation, values, condition, [range(first, first + count) for first in starts],
        plan.seed, plan.batch_size, told,
    )  # fmt: skip
    x = torch.stack([part[::every] for part in parts], 1).to(model.dtype)
    return x, rows / (plan.num_draws * len(values)), seconds
