"""A trained score model in the place of scikit-learn's density estimators.

    score_samples(X)     log p of every row, in nats
    score(X)             their sum
    sample(n)            new rows

Rows of X are examples, flattened: (n, features).  The methods are those of
``sklearn.neighbors.KernelDensity``, so that pipelines and cross-validated scores take it; ``fit`` trains
nothing, the model is trained already.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sde_toolkit.interop.distributions import as_distribution
from sde_toolkit.likelihood import FlowSolver
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.samplers import Sampler
from sde_toolkit.utils import checked


class ScoreEstimator:
    """A density estimator around a model, see ``as_estimator``."""

    def __init__(
        self,
        model: ScoreModel,
        sampler: Sampler | None = None,
        solver: FlowSolver | None = None,
        condition: Condition | None = None,
    ) -> None:
        self.model, self.sampler, self.solver, self.condition = model, sampler, solver, condition

    def __repr__(self) -> str:
        return f"ScoreEstimator({self.model!r})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments by name, as scikit-learn's ``clone`` asks for them."""
        return {name: getattr(self, name) for name in ("model", "sampler", "solver", "condition")}

    def set_params(self, **params: Any) -> ScoreEstimator:
        """Set arguments by name; returns this object.

        Raises:
            ValueError: an unknown name.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"params must be among {', '.join(self.get_params())}, got {name!r}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of an estimator."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="density_estimator",
            target_tags=TargetTags(required=False),
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        """The model is trained already."""
        return True

    @property
    def n_features_in_(self) -> int:
        """Number of features of a row."""
        return math.prod(self.model.event_shape)

    def _rows(self, X: ArrayLike) -> torch.Tensor:
        """X as examples; raises ValueError for another number of columns."""
        rows = np.asarray(X)
        if rows.ndim != 2 or rows.shape[1] != self.n_features_in_ or rows.dtype.kind not in "fiub":
            raise ValueError(
                f"X must hold numbers with shape (n, {self.n_features_in_}), got {rows.dtype} with shape "
                f"{rows.shape}"
            )
        if not np.isfinite(rows).all():
            raise ValueError("X must be finite, got nan or inf; models of rows with gaps have log_likelihood")
        return torch.from_numpy(rows.astype(np.float64)).reshape(len(rows), *self.model.event_shape)

    def fit(self, X: ArrayLike, y: object = None) -> ScoreEstimator:
        """Check the number of columns; the model is trained already, and stays as it is."""
        self._rows(X)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """log p of every row with shape (n,), in nats, in the units of X."""
        law = as_distribution(self.model, self.sampler, solver=self.solver, condition=self.condition)
        return law.log_prob(self._rows(X)).cpu().double().numpy()

    def score(self, X: ArrayLike, y: object = None) -> float:
        """The sum of log p over the rows, in nats."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> NDArray[np.floating]:
        """New rows with shape (n_samples, features); ``random_state`` is the seed."""
        law = as_distribution(self.model, self.sampler, solver=self.solver, condition=self.condition)
        return law.sample((n_samples,), seed=random_state).flatten(1).cpu().numpy()


@checked
def as_estimator(
    model: ScoreModel,
    sampler: Sampler | None = None,
    *,
    solver: FlowSolver | None = None,
    condition: Condition | None = None,
) -> ScoreEstimator:
    """The model as a density estimator of scikit-learn's kind.

    Args:
        model: any score model.
        sampler, solver: as for ``as_distribution``.
        condition: a class for all rows.

    Raises:
        ValueError, TypeError: a condition that the model does not take.
    """
    as_distribution(model, sampler, solver=solver, condition=condition)
    return ScoreEstimator(model, sampler, solver, condition)
