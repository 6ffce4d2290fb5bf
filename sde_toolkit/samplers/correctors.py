"""Correctors: Langevin dynamics that bring a sample nearer to the law p_t at a fixed time t.

    x <- x + e score(x, t) + sqrt(2 e) z,        z ~ N(0, I)

keeps p_t as the step size e goes to 0.  A predictor-corrector sampler runs a few such steps after every step
of its predictor.  The rules for e use the norms of z and of the score, or the noise level alone; none uses
the other samples of a batch, so that a sample does not depend on them, but for the option
``batch_mean_norms``, the rule of the papers.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), algorithms 4 and 5; Song and Ermon, "Generative Modeling by Estimating Gradients of the Data
Distribution" (1907.05600), algorithm 1.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.utils import Stream, check_fields
from solvers import Interval, NoiseSource, expand_like


class AfterStep(ABC):
    """What is done to the state at the end of an interval, with ``num_steps`` evaluations."""

    num_steps: int

    @abstractmethod
    def __call__(
        self,
        model: ScoreModel,
        interval: Interval,
        x: Tensor,
        noise: NoiseSource,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The new state with shape (B, *), for x with shape (B, *) and a condition with B rows or None."""


@dataclass(frozen=True)
class InTurn(AfterStep):
    """One after the other.

    Args:
        first, second: what is done.
    """

    first: AfterStep
    second: AfterStep

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        """Evaluations of both."""
        return self.first.num_steps + self.second.num_steps

    def __call__(
        self,
        model: ScoreModel,
        interval: Interval,
        x: Tensor,
        noise: NoiseSource,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The state after both, with shape (B, *)."""
        x = self.first(model, interval, x, noise, condition)
        return self.second(model, interval, x, noise, condition)


class Corrector(AfterStep):
    """A few Langevin steps at the end of an interval; one evaluation each."""

    snr: float

    @abstractmethod
    def step_size(self, model: ScoreModel, interval: Interval, z: Tensor, score: Tensor) -> Tensor:
        """The step size e with shape () or (B,), for z and score with shape (B, *)."""

    def __call__(
        self,
        model: ScoreModel,
        interval: Interval,
        x: Tensor,
        noise: NoiseSource,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Correct x with shape (B, *), given a condition with B rows or None, at the end of the interval."""

        def score(x: Tensor) -> Tensor:
            return model.score(x, interval.s, condition)

        draws = langevin_draws(self.num_steps, interval, noise)
        return langevin_steps(x, draws, score, lambda z, score: self.step_size(model, interval, z, score))

    def _check(self) -> None:
        if not (0 < self.snr < math.inf and operator.index(self.num_steps) >= 1):
            raise ValueError(f"the corrector needs snr > 0, num_steps >= 1, got {self.snr}, {self.num_steps}")


def langevin_draws(num_steps: int, interval: Interval, noise: NoiseSource) -> Iterator[Tensor]:
    """The draws of the Langevin steps at the end of an interval, each with shape (B, *)."""
    first = interval.number * num_steps
    return (noise.draw(number, Stream.CORRECTOR) for number in range(first, first + num_steps))


def langevin_steps(
    x: Tensor,
    draws: Iterable[Tensor],
    score: Callable[[Tensor], Tensor],
    step_size: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """x with shape (B, *) after one Langevin step for every draw.

    Args:
        x: the state.
        draws: standard normals with shape (B, *).
        score: of a state.
        step_size: e with shape () or (B,) for a draw and a score.
    """
    for z in draws:
        gradient = score(x)
        e = expand_like(step_size(z, gradient), x)
        x = x + e * gradient + (2 * e).sqrt() * z
    return x


def norm_ratio(z: Tensor, score: Tensor, batch_mean: bool) -> Tensor:
    """|z| / |score| of every sample with shape (B,), or the ratio of their means over the batch, shape ()."""
    norms = z.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
    return norms[0].mean() / norms[1].mean() if batch_mean else norms[0] / norms[1]


@dataclass(frozen=True)
class Langevin(Corrector):
    """Step sizes from norms, per sample (2011.13456, algorithms 4 and 5, which average norms over the batch).

        e = 2 (r snr |z| / |score|)^2

    with r the mean factor of the forward transition over the step just taken: 1 for VE, sqrt(1 - beta_i) for
    VP. Norms vary little in many dimensions, but in few the step grows where the score is small and the
    dynamics settle near p |score|^2 instead of p: there take ``AnnealedLangevin``.

    Args:
        snr: signal-to-noise ratio of a step.
        num_steps: steps per time.
        batch_mean_norms: take the means of the norms over the batch, as the paper does: a sample then depends
            on the others of its batch, and on the batch size.
    """

    snr: float = 0.16
    num_steps: int = 1
    batch_mean_norms: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        self._check()

    def step_size(self, model: ScoreModel, interval: Interval, z: Tensor, score: Tensor) -> Tensor:
        """Step sizes with shape (B,), or () with means over the batch."""
        r = (model.sde.log_alpha(interval.t) - model.sde.log_alpha(interval.s)).exp()
        return 2 * (r * self.snr * norm_ratio(z, score, self.batch_mean_norms)).square()


@dataclass(frozen=True)
class AnnealedLangevin(Corrector):
    """Step sizes from the noise level alone: e = 2 (snr sigma)^2, which keeps p_t up to the size of e, in any
    dimension.

    Annealed Langevin dynamics (Song and Ermon, 1907.05600, algorithm 1) in the scaling of ``Langevin``, to
    which it is equal where |score| = |z| / sigma.

    Args:
        snr: signal-to-noise ratio of a step.
        num_steps: steps per time.
    """

    snr: float = 0.16
    num_steps: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        self._check()

    def step_size(self, model: ScoreModel, interval: Interval, z: Tensor, score: Tensor) -> Tensor:
        """The step size with shape ()."""
        return 2 * (self.snr * model.sde.sigma(interval.s)).square()
