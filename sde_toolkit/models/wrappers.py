"""Models made of models: everything that a wrapper does not change is that of the model inside.

A wrapper overrides ``raw`` (and ``predicts``, where its prediction is another one), or any other method or
attribute; thresholds, guidance, counting and fixed conditions are wrappers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_toolkit.models.moments import Moments
from sde_toolkit.models.score import Condition, DataScale, ScoreModel
from sde_toolkit.sdes import ForwardSDE


class Wrapper(ScoreModel):
    """A model that forwards to another one.

    Args:
        model: the model inside.
    """

    def __init__(self, model: ScoreModel) -> None:
        self.model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def sde(self) -> ForwardSDE:  # type: ignore[override]
        """That of the model inside."""
        return self.model.sde

    @property
    def predicts(self) -> str:  # type: ignore[override]
        """That of the model inside."""
        return self.model.predicts

    @property
    def event_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """That of the model inside."""
        return self.model.event_shape

    @property
    def data_std(self) -> float:  # type: ignore[override]
        """That of the model inside."""
        return self.model.data_std

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Those of the model inside."""
        return self.model.moments

    @property
    def scaling(self) -> DataScale | None:  # type: ignore[override]
        """That of the model inside."""
        return self.model.scaling

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """That of the model inside."""
        return self.model.num_classes

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """That of the model inside."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """That of the model inside."""
        return self.model.device

    def conditions(self, condition: Condition | None, count: int) -> Tensor | None:
        """The condition as the model inside takes it."""
        return self.model.conditions(condition, count)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction of the model inside, with shape (B, *)."""
        return self.model.raw(x_t, t, condition)


class GivenModel(Wrapper):
    """The score model of p_t(x_t | c) for one condition c that all samples share.

    Args:
        model: takes conditions.
        condition: the class, or the row of a condition.
        moments: of the data given c; the model's own when None.
    """

    def __init__(self, model: ScoreModel, condition: Condition, moments: Moments | None = None) -> None:
        super().__init__(model)
        rows = condition[None] if isinstance(condition, Tensor) else condition
        row = model.conditions(rows, 1)
        if row is None:
            raise ValueError("condition must be a class or a row for a model that is given one, got None")
        self.condition, self._moments = row, moments

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Of the data given the condition, where they are known."""
        return self.model.moments if self._moments is None else self._moments

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """0: the condition is chosen."""
        return 0

    def conditions(self, condition: Condition | None, count: int) -> None:
        """Refuses another condition."""
        if condition is not None:
            raise ValueError("condition must be left out for a model that is given one; use the model inside")

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction given the condition, with shape (B, *)."""
        row = self.condition
        return self.model.raw(x_t, t, row.expand(len(x_t), *row.shape[1:]))
