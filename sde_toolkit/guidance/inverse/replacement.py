"""Guidance between the steps: what was observed is put into the state, at the noise of its time.

With A = U diag(a) V^T, u = x_s / alpha_s the state after a step, n = sigma_s / alpha_s, and the observation
along the singular vectors, u_bar = V^T u and y_bar = U^T y / a with noise of std tau = s / a,

    replacement   u_bar <- y_bar + sqrt(n^2 - tau^2) z                        where n >= tau
    DDRM          the same with eta_b = 1, and where n < tau
                  u_bar <- x0_bar + sqrt(1 - eta^2) (n / tau) (y_bar - x0_bar) + eta n z

RePaint replaces, goes back to the time before the step by the forward process, and steps down again:

    for u = 1 .. U:  x_s <- a step from x_t;  replace in x_s;  x_t <- a draw of q(x_t | x_s) unless u = U

its repeated steps are ancestral ones, DDPM's, and are made only where n >= tau somewhere: further down
nothing is replaced, and repetitions would forget what was observed.  All are biased: what is not observed is
drawn as if the noised observation were independent of it, given its clean prediction; RePaint's repetitions
make that smaller.

References: Song et al. (2011.13456), appendix I.2, for replacement; Lugmayr et al., "RePaint" (2201.09865),
algorithm 1; Kawar et al., "Denoising Diffusion Restoration Models" (2201.11793), eq. 7-8.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.observations import LinearObservation, Measured, reciprocal
from sde_toolkit.guidance.inverse.posterior import Method, PosteriorModel, Query
from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers import AfterStep
from sde_toolkit.utils import Stream, check_fields
from solvers import Interval, NoiseSource


class _Between(Method):
    """A method that leaves the prediction as it is."""

    def denoise(self, query: Query) -> Tensor:
        """The model's own clean prediction, with shape (B, *D)."""
        return query.x0_hat()


@dataclass(frozen=True)
class Replacement(_Between):
    """The noised observation in the place of the observed part, after every step (2011.13456)."""

    def after_step(self) -> AfterStep:
        """The replacement."""
        return _Replace()


@dataclass(frozen=True)
class RePaint(_Between):
    """Replacement with repeated steps (2201.09865), jumps of one step.

    Args:
        resamplings: U, how often each step is made; U - 1 evaluations more for each.

    Raises:
        ValueError: resamplings below 1.
    """

    resamplings: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if operator.index(self.resamplings) < 1:
            raise ValueError(f"resamplings must be at least 1, got {self.resamplings}")

    def after_step(self) -> AfterStep:
        """The replacement, and the steps that are made again."""
        return _Replace(self.resamplings)


@dataclass(frozen=True)
class DDRM(_Between):
    """Denoising diffusion restoration (2201.11793), with eta_b = 1; one evaluation more after every step.

    Args:
        eta: how much of the noise is drawn anew where the state is less noisy than the observation.

    Raises:
        ValueError: eta outside 0 .. 1.
    """

    eta: float = 0.85

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be 0 to 1, got {self.eta}")

    def after_step(self) -> AfterStep:
        """The rule along the singular vectors."""
        return _Restore(self.eta)


@dataclass(frozen=True)
class _Replace(AfterStep):
    resamplings: int = 1

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        """Evaluations after a step."""
        return self.resamplings - 1

    def __call__(
        self,
        model: ScoreModel,
        interval: Interval,
        x: Tensor,
        noise: NoiseSource,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The state after U replacements, with shape (B, *D)."""
        first = 3 * self.resamplings * interval.number
        repeats = self.resamplings if _still_replaced(model, interval.s, x, condition) else 1
        for k in range(repeats):
            if k:
                x = _back_and_down(model, interval, x, noise, condition, first + 3 * k)
            z = noise.draw(first + 3 * k, Stream.REPLACEMENT)
            x = _replaced(model, interval.s, x, z, condition)
        return x


@dataclass(frozen=True)
class _Restore(AfterStep):
    eta: float
    num_steps = 1

    def __call__(
        self,
        model: ScoreModel,
        interval: Interval,
        x: Tensor,
        noise: NoiseSource,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The state after DDRM's rule, with shape (B, *D)."""
        z = noise.draw(interval.number, Stream.REPLACEMENT)
        x0_hat = model.denoise(x, interval.s, condition)
        changed = _replaced(model, interval.s, x, z, condition)
        seen, n, alpha = _levels(model, interval.s, x, condition)
        if seen.std == 0:
            return changed
        s, keep = seen.std, math.sqrt(1 - self.eta**2)

        def low(gain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda e: torch.where(n * n * e < s * s, gain(e) * reciprocal(e), 0.0)

        u = changed / alpha
        parts = seen.of_gram(low(torch.ones_like), seen.forward(x0_hat - u))
        parts = parts + seen.of_gram(low(lambda e: keep * n * e.sqrt() / s), seen.residual(x0_hat))
        parts = parts + seen.of_gram(low(lambda e: self.eta * n * torch.ones_like(e)), seen.forward(z))
        return changed + alpha * seen.backward(parts)


def _still_replaced(model: ScoreModel, time: Tensor, x: Tensor, condition: Tensor | None) -> bool:
    """Whether the state is noisier than the observation along some singular vector."""
    seen, n, _ = _levels(model, time, x, condition)
    return float(n) ** 2 * float(seen.map.spectrum.amax()) >= seen.std**2


def _levels(
    model: ScoreModel, time: Tensor, x: Tensor, condition: Tensor | None
) -> tuple[Measured, Tensor, Tensor]:
    """What was observed, nsr and alpha at a time with shape ()."""
    assert isinstance(model, PosteriorModel)
    assert isinstance(model.observation, LinearObservation)
    y, _ = model.split(x, condition)
    return model.observation.measured(y, x), model.sde.nsr(time).to(x), model.sde.alpha(time).to(x)


def _replaced(model: ScoreModel, time: Tensor, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
    """x with the observed part drawn anew around the observation, where its noise is the smaller one."""
    seen, n, alpha = _levels(model, time, x, condition)

    def high(gain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda e: torch.where(n * n * e >= seen.std**2, gain(e) * reciprocal(e), 0.0)

    def spread(e: Tensor) -> Tensor:
        return (n * n - seen.std**2 * reciprocal(e)).clamp(min=0).sqrt()

    parts = seen.of_gram(high(torch.ones_like), seen.residual(x / alpha))
    parts = parts + seen.of_gram(high(spread), seen.forward(z))
    return x + alpha * seen.backward(parts)


def _back_and_down(
    model: ScoreModel,
    interval: Interval,
    x: Tensor,
    noise: NoiseSource,
    condition: Tensor | None,
    index: int,
) -> Tensor:
    """From x at s back to t by the forward process, and down again by an ancestral step."""
    sde, t, s = model.sde, interval.t, interval.s
    n_t, n_s = (sde.nsr(time).to(x) for time in (t, s))
    alpha_t, alpha_s = (sde.alpha(time).to(x) for time in (t, s))
    y = x / alpha_s + (n_t.square() - n_s.square()).sqrt() * noise.draw(index + 1, Stream.REPLACEMENT)
    x0_hat = model.denoise(alpha_t * y, t, condition)
    share = (n_s / n_t).square()
    mean = share * y + (1 - share) * x0_hat
    spread = n_s * (1 - share).sqrt()
    return alpha_s * (mean + spread * noise.draw(index + 2, Stream.REPLACEMENT))
