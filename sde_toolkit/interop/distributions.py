"""A score model as a distribution: log_prob by the probability flow, sample by a sampler.

    as_distribution(model)     torch.distributions.Distribution: log_prob, sample, expand
    as_posterior(model)        as sbi's posteriors: sample(shape, x=...), log_prob(theta, x=...)
    as_estimator(model)        as scikit-learn's KernelDensity: score_samples, score, sample

Values are in the data's own units where the model knows its scaling: w = scaling.from_model(x), and
log p(w) = log p(x) + log |dx/dw|.  Otherwise they are in model scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from sde_toolkit.interop.denoisers import num_rows
from sde_toolkit.likelihood import FlowSolver, log_likelihood
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.samplers import Sampler, gaussian_residual
from sde_toolkit.utils import as_tensor, checked

STEPS = 32
"""Network evaluations of a sample by default."""

BATCH = 1024
"""Rows that are sampled, or whose densities are computed, at a time."""


def default_sampler(model: ScoreModel) -> Sampler:
    """``default`` with ``STEPS`` evaluations."""
    return gaussian_residual(model, STEPS)


class ScoreDistribution(Distribution):
    """The law of a score model's samples, see ``as_distribution``.

    Args:
        model: the score model.
        sampler: draws the samples.
        solver: of the flow's equation, for densities.
        condition: of all samples; or rows with shape (n, *), for a batch of n distributions.
        batch_shape: number of distributions per dimension; without rows of a condition they are all alike.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        model: ScoreModel,
        sampler: Sampler,
        solver: FlowSolver,
        condition: Tensor | None = None,
        batch_shape: torch.Size | Sequence[int] = (),
    ) -> None:
        self.model, self.sampler, self.solver = model, sampler, solver
        self.condition = condition  # rows with shape (*batch_shape, *condition)
        super().__init__(torch.Size(batch_shape), torch.Size(model.event_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All tensors with the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def __repr__(self) -> str:
        return f"ScoreDistribution({self.model!r}, batch_shape={tuple(self.batch_shape)})"

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> ScoreDistribution:
        """The same law for every entry of a larger batch.

        Raises:
            ValueError: a shape that the batch cannot be expanded to.
        """
        shape = torch.Size(batch_shape)
        condition = self.condition
        try:
            torch.empty(self.batch_shape).expand(shape)
        except RuntimeError:
            raise ValueError(
                f"batch_shape must be a shape that {tuple(self.batch_shape)} expands to, got {tuple(shape)}"
            ) from None
        if condition is not None:
            tail = condition.shape[len(self.batch_shape) :]
            condition = condition.expand((*shape, *tail))
        return ScoreDistribution(self.model, self.sampler, self.solver, condition, shape)

    def _rows(self, leading: torch.Size) -> Tensor | None:
        """The condition of every sample, flat, for samples with the leading shape (*sample, *batch)."""
        if self.condition is None:
            return None
        tail = self.condition.shape[len(self.batch_shape) :]
        return self.condition.expand((*leading, *tail)).reshape(-1, *tail)

    def sample(self, sample_shape: torch.Size | Sequence[int] | int = (), seed: int | None = None) -> Tensor:
        """Draws with shape (*sample_shape, *batch_shape, *event_shape).

        Args:
            sample_shape: number of draws per dimension.
            seed: of the noise; drawn from torch's generator when None, so that ``torch.manual_seed`` rules
                it.
        """
        sample_shape = (sample_shape,) if isinstance(sample_shape, int) else sample_shape
        leading = torch.Size(sample_shape) + self.batch_shape
        count = math.prod(leading)
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        if not count:
            return torch.empty(*leading, *self.event_shape, dtype=self.model.dtype)
        found = self.sampler.sample(
            self.model, count, seed=seed, condition=self._rows(leading), batch_size=min(BATCH, count)
        )
        return _to_data(self.model, found.x).reshape(*leading, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p with shape (*sample_shape, *batch_shape), in nats per example, in the units of ``value``.

        Args:
            value: with shape (*sample_shape, *batch_shape, *event_shape).

        Raises:
            ValueError: a value of another event shape, or one that the batch does not broadcast to.
        """
        return self.log_density("value", value)

    def log_density(self, name: str, value: Tensor) -> Tensor:
        """``log_prob`` of an argument by its name, for sentences."""
        value = as_tensor(name, value)
        split = value.ndim - len(self.event_shape)
        if split < 0 or value.shape[split:] != self.event_shape:
            raise ValueError(
                f"{name} must have a shape that ends in {tuple(self.event_shape)}, got {tuple(value.shape)}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} must be finite, got nan or inf")
        leading = torch.broadcast_shapes(value.shape[:split], self.batch_shape)
        flat = value.expand(*leading, *self.event_shape).reshape(-1, *self.event_shape)
        if not len(flat):
            return torch.empty(leading, dtype=torch.float64)
        x, log_det = _to_model(self.model, flat)
        rows, parts = self._rows(leading), []
        for first in range(0, len(x), BATCH):
            given = None if rows is None else rows[first : first + BATCH]
            found = log_likelihood(
                self.model, x[first : first + BATCH], condition=given, solver=self.solver,
                num_diagnostic_samples=0,
            )  # fmt: skip
            parts.append(found.nats)
        return (torch.cat(parts) + log_det).reshape(leading)


def _to_data(model: ScoreModel, x: Tensor) -> Tensor:
    """Samples in the data's own units, or as they are where these are not known."""
    back = getattr(model.scaling, "from_model", None)
    return x if back is None else back(x)


def _to_model(model: ScoreModel, w: Tensor) -> tuple[Tensor, Tensor]:
    """Values in model scale and type, and log |dx/dw| with shape (B,)."""
    scaling: Any = model.scaling
    if scaling is None or not (hasattr(scaling, "to_model") and hasattr(scaling, "log_det")):
        return w.to(model.device, model.dtype), torch.zeros(len(w), dtype=torch.float64, device=model.device)
    x = scaling.to_model(w, model.dtype).to(model.device)
    return x, scaling.log_det(x)


@checked
def as_distribution(
    model: ScoreModel,
    sampler: Sampler | None = None,
    *,
    solver: FlowSolver | None = None,
    condition: Condition | None = None,
) -> ScoreDistribution:
    """The model as a ``torch.distributions.Distribution``.

    ``log_prob`` integrates the probability flow; ``sample`` runs the sampler, whose law is that of
    ``log_prob`` up to the sampler's error; ``expand`` makes batches.

    Args:
        model: any score model.
        sampler: ``gaussian_residual`` with 32 evaluations when None.
        solver: of the flow's equation; adaptive, with tolerances of 1e-5, when None.
        condition: a class, for one distribution; or n rows, for a batch of n.

    Raises:
        ValueError, TypeError: a condition that the model does not take.
    """
    rows: Tensor | None = None
    shape: tuple[int, ...] = ()
    if condition is not None:
        count = num_rows(condition)
        rows = model.conditions(condition, count or 1)
        assert rows is not None
        rows, shape = (rows, (count,)) if count else (rows[0], ())
    return ScoreDistribution(
        model, default_sampler(model) if sampler is None else sampler,
        FlowSolver() if solver is None else solver, rows, shape,
    )  # fmt: skip


class ScorePosterior:
    """A conditional model as a posterior p(theta | x), see ``as_posterior``."""

    def __init__(self, model: ScoreModel, sampler: Sampler, solver: FlowSolver) -> None:
        self.model, self.sampler, self.solver = model, sampler, solver
        self.default_x: Tensor | None = None

    def __repr__(self) -> str:
        return f"ScorePosterior({self.model!r})"

    @checked
    def set_default_x(self, x: Condition) -> ScorePosterior:
        """Keep an observation for the calls that name none; returns this object."""
        self._law(x)
        self.default_x = as_tensor("x", x, dtype=None)
        return self

    def _law(self, x: Condition | None, batched: bool = False) -> ScoreDistribution:
        """p(theta | x) for one observation, or for a batch of them."""
        x = self.default_x if x is None else x
        if x is None:
            raise ValueError("x must be the observation, got none; give x, or call set_default_x")
        rows = as_tensor("x", x, dtype=None)
        if not batched and rows.ndim == len(self.model.condition_shape or ()):
            rows = rows[None]
        count = len(rows) if rows.ndim else 0
        if not count or (count > 1 and not batched):
            raise ValueError(
                f"x must be {'n observations' if batched else 'one observation'}, got {count}; several are "
                "for sample_batched and log_prob_batched"
            )
        try:
            found = self.model.conditions(rows, count)
        except (ValueError, TypeError) as error:
            raise type(error)(f"x must be what the model takes as a condition: {error}") from None
        assert found is not None
        given, shape = (found, (count,)) if batched else (found[0], ())
        return ScoreDistribution(self.model, self.sampler, self.solver, given, shape)

    @checked
    def sample(
        self, sample_shape: torch.Size | tuple[int, ...] = (), x: Condition | None = None,
        *, seed: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Draws of theta given one observation, with shape (*sample_shape, *event_shape).

        Args:
            sample_shape: number of draws per dimension.
            x: the observation, with ``condition_shape`` or (1, *condition_shape), or a class; the one of
                ``set_default_x`` when None.
            seed: as for ``ScoreDistribution.sample``.

        Raises:
            ValueError: no observation, several, or one of another shape.
        """
        return self._law(x).sample(sample_shape, seed)

    @checked
    def log_prob(self, theta: Tensor, x: Condition | None = None) -> Tensor:
        """log p(theta | x) with shape (N,), in nats, for theta with shape (N, *event_shape)."""
        return self._law(x).log_density("theta", theta)

    @checked
    def sample_batched(
        self, sample_shape: torch.Size | tuple[int, ...], x: Condition, *, seed: int | None = None
    ) -> Tensor:
        """Draws given each of n observations, with shape (*sample_shape, n, *event_shape)."""
        return self._law(x, batched=True).sample(sample_shape, seed)

    @checked
    def log_prob_batched(self, theta: Tensor, x: Condition) -> Tensor:
        """log p(theta | x) with shape (*, n), for theta with shape (*, n, *event_shape)."""
        return self._law(x, batched=True).log_density("theta", theta)


@checked
def as_posterior(
    model: ScoreModel, sampler: Sampler | None = None, *, solver: FlowSolver | None = None
) -> ScorePosterior:
    """A conditional model as a posterior p(theta | x), with the methods of sbi's posteriors.

    Args:
        model: one with ``condition_shape`` or ``num_classes``: theta is its state, x its condition.
        sampler, solver: as for ``as_distribution``.

    Raises:
        ValueError: a model without conditions.
    """
    if model.condition_shape is None and not model.num_classes:
        raise ValueError(
            f"model must take a condition, which is the observation, got {model!r}; build its network with "
            "condition_shape, or use as_distribution"
        )
    return ScorePosterior(
        model, default_sampler(model) if sampler is None else sampler,
        FlowSolver() if solver is None else solver,
    )  # fmt: skip
