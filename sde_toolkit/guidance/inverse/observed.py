"""An observation that was made: what ``sample(model, n, observation=...)`` and ``ExactModel.posterior``
take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.gains import GaussianInformed
from sde_toolkit.guidance.inverse.likelihoods import DPS, MMPS
from sde_toolkit.guidance.inverse.observations import LinearObservation, Observation
from sde_toolkit.guidance.inverse.posterior import Method, PosteriorModel, linear_system
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.samplers import InTurn, Sampler
from sde_toolkit.utils import checked, require


@dataclass(frozen=True, eq=False)
class Observed:
    """What was observed, and how to guide by it.

    Args:
        observation: the law of y given x0.
        y: with shape Y for all samples, or (n, *Y) with one row per sample.
        method: how; when None ``default_method``.

    Raises:
        TypeError: an observation or a method of another type.
        ValueError: another shape of y.
    """

    observation: Observation
    y: Any
    method: Method | None = None

    def __post_init__(self) -> None:
        require("observation", self.observation, Observation)
        if self.method is not None:
            require("method", self.method, Method)
        self.observation.rows(self.y)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape D of a sample."""
        return self.observation.event_shape

    @property
    def shared(self) -> bool:
        """Whether one y stands for all samples."""
        return tuple(torch.as_tensor(self.y).shape) == self.observation.shape

    def model(self, model: ScoreModel) -> PosteriorModel:
        """The guided model; where y differs by row, y is the condition of its calls."""
        method = default_method(model, self.observation) if self.method is None else self.method
        y = self.y if isinstance(self.y, Tensor) else torch.as_tensor(self.y, dtype=torch.float64)
        return PosteriorModel(model, self.observation, method, y if self.shared else None)

    def on(self, sampler: Sampler) -> Sampler:
        """The sampler with what the method does after every step."""
        after = None if self.method is None else self.method.after_step()
        if after is None:
            return sampler
        after = after if sampler.corrector is None else InTurn(sampler.corrector, after)
        return replace(sampler, corrector=after)

    def conditions(self, posed: ScoreModel, condition: Condition | None, count: int) -> Tensor | None:
        """The condition of the guided model for ``count`` samples: of one y, that of the model inside."""
        assert isinstance(posed, PosteriorModel)
        inner = posed.model.conditions(condition, count)
        if self.shared:
            return inner
        y = posed.conditions(self.y, count)
        assert y is not None
        return posed.joined(y, inner)

    def linear(self) -> tuple[Tensor, Tensor, Tensor]:
        """A with shape (m, n), y with shape (m,) and the variances of the noise with shape (m,), in float64.

        Raises:
            ValueError: an observation that is not linear, or several observations.
        """
        if not isinstance(self.observation, LinearObservation):
            raise ValueError(f"the exact posterior needs a LinearObservation, got {self.observation!r}")
        rows = self.observation.rows(torch.as_tensor(self.y).double())
        if len(rows) > 1:
            raise ValueError(
                f"the exact posterior needs one y with shape {self.observation.shape}, got {len(rows)} "
                f"rows; take "
                "them one by one"
            )
        return linear_system(self.observation, rows)


@checked
def default_method(model: ScoreModel, observation: Observation) -> Method:
    """GaussianInformed for linear observations of a model that has moments, MMPS without; else DPS.

    MMPS is nearer to the truth on exact mixtures and costs several times as much.  On images to train of the
    shipped networks neither is ahead: means of MMPS are better from coarse pixels, worse in large gaps.
    """
    if not isinstance(observation, LinearObservation):
        return DPS()
    return MMPS() if model.moments is None else GaussianInformed()
