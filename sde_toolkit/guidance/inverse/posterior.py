"""Score models of p(x0 | y): a model, an observation and a method that guides every prediction.

The posterior's own clean prediction follows from the likelihood of the noised state (Tweedie given y),

    E[x0 | x_t, y] = x0_hat + (sigma^2 / alpha) grad log p(y | x_t),      p(y | x_t) = E[p(y | x0) | x_t]

and p(y | x_t) is what methods differ in: p(x0 | x_t) has the mean x0_hat and the covariance V = (sigma^2 /
alpha) J, with J the Jacobian of x0_hat with respect to x_t, but is no Gaussian.  A method changes x0_hat, so
that every sampler, grid and number of evaluations works with it.

The observation y travels as the condition of the guided model, one row per sample; a condition of the model
inside follows it in the same row.  Where one y stands for all samples it is held by the guided model, whose
moments then are those of the Gaussian posterior.

An evaluation of the guided model is one evaluation of the network, and for methods with J some products with
its transpose, one backward pass each.

Reference: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems" (2209.14687), eq.
6-7.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.maps import EntriesMap
from sde_toolkit.guidance.inverse.observations import LinearObservation, Measured, Observation
from sde_toolkit.models import Condition, Moments, ScoreModel, Wrapper
from sde_toolkit.samplers import AfterStep
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import checked
from solvers.terms import expand_like


class Query:
    """One evaluation of a guided model, as its method sees it.

    Attributes:
        sde: the process.
        x_t, t: states with shape (B, *D) and times with shape () or (B,).
        alpha, sigma, nsr: levels with shape () or (B,).
        observation, y: the law of the observations, and their rows with shape (B, *Y).
        moments: of the data, None where they are not known.
    """

    def __init__(
        self,
        model: ScoreModel,
        observation: Observation,
        x_t: Tensor,
        t: Tensor,
        y: Tensor,
        condition: Tensor | None,
        plan: Any = None,
    ) -> None:
        self.sde: ForwardSDE = model.sde
        self.model, self.observation, self.condition, self.plan = model, observation, condition, plan
        self.moments = model.moments
        self.x_t, self.t, self.y = x_t, t, y.to(x_t)
        self.alpha, self.sigma = (level(t).to(x_t) for level in (model.sde.alpha, model.sde.sigma))
        self.nsr = model.sde.nsr(t).to(x_t)
        self._graph: tuple[Tensor, Tensor] | None = None
        self._create = torch.is_grad_enabled()

    @property
    def measured(self) -> Measured:
        """A, y and s.

        Raises:
            TypeError: an observation that is not linear.
        """
        observation = self.observation
        assert isinstance(observation, LinearObservation), "checked when the model was guided"
        return observation.measured(self.y, self.x_t)

    def x0_hat(self) -> Tensor:
        """The model's own clean prediction, with shape (B, *D)."""
        return self.model.denoise(self.x_t, self.t, self.condition)

    def tracked(self) -> Tensor:
        """The same, evaluated once, with what ``pulled`` needs."""
        if self._graph is None:
            with torch.enable_grad():
                x_t = self.x_t if self.x_t.requires_grad else self.x_t.detach().requires_grad_()
                self._graph = x_t, self.model.denoise(x_t, self.t, self.condition)
        x0_hat = self._graph[1]
        return x0_hat if self._create else x0_hat.detach()

    def pulled(self, v: Tensor) -> Tensor:
        """J^T v with shape (B, *D), J the Jacobian of x0_hat with respect to x_t, for v with shape (B,
        *D)."""
        self.tracked()
        assert self._graph is not None
        x_t, x0_hat = self._graph
        with torch.enable_grad():
            (found,) = torch.autograd.grad(x0_hat, x_t, v, retain_graph=True, create_graph=self._create)
        return found

    def spread(self, v: Tensor) -> Tensor:
        """V v = (sigma^2 / alpha) J^T v with shape (B, *D): the covariance of x0 given x_t times v."""
        return expand_like(self.sigma.square() / self.alpha, v) * self.pulled(v)

    def slope(self, log_likelihood: Tensor) -> Tensor:
        """The gradient with respect to x_t, with shape (B, *D), of a function (B,) of ``graph``."""
        assert self._graph is not None
        (found,) = torch.autograd.grad(
            log_likelihood.sum(), self._graph[0], retain_graph=True, create_graph=self._create
        )
        return found

    def graph(self) -> Tensor:
        """x0_hat with shape (B, *D) as autograd sees it; take it inside ``torch.enable_grad()``."""
        self.tracked()
        assert self._graph is not None
        return self._graph[1]


class Method(ABC):
    """How an observation changes the clean prediction; a value without state.

    Attributes:
        linear: whether it needs a linear observation.
        needs_moments: whether it needs the data's moments.
    """

    linear: bool = True
    needs_moments: bool = False

    @abstractmethod
    def denoise(self, query: Query) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""

    def plan(self, model: ScoreModel, observation: Observation) -> Any:
        """What all evaluations on one model share; None for nothing."""
        return None

    def after_step(self) -> AfterStep | None:
        """What is done to the state after every step of a sampler, on the guided model; None for nothing."""
        return None

    def check(self, model: ScoreModel, observation: Observation) -> None:
        """Refuse, with ValueError, a model or an observation that the method cannot do."""
        if self.linear and not isinstance(observation, LinearObservation):
            raise ValueError(
                f"{type(self).__name__} needs a LinearObservation, got {observation!r}; for others take "
                f"DPS, or "
                "TwistedSMC"
            )
        if self.needs_moments and model.moments is None:
            raise ValueError(
                f"{type(self).__name__} needs the mean and the covariance of the data, but the model has "
                f"none; set "
                "model.moments = estimate_moments(x) of examples x in model scale"
            )
        if tuple(observation.event_shape) != tuple(model.event_shape):
            raise ValueError(
                f"observation must be of samples with shape {tuple(model.event_shape)}, the model's, got "
                f"{tuple(observation.event_shape)}; give event_shape={tuple(model.event_shape)}"
            )


class PosteriorModel(Wrapper):
    """The score model of p(x0 | y) in the approximation of a method.

    Args:
        model: of the data.
        observation: the law of y given x0.
        method: how it guides.
        y: what was observed, with shape Y, for all samples; when None, y is the condition of every call, one
            row per sample.

    Raises:
        ValueError: a model, an observation and a method that do not fit.
    """

    @checked
    def __init__(
        self, model: ScoreModel, observation: Observation, method: Method, y: Tensor | None = None
    ) -> None:
        super().__init__(model)
        method.check(model, observation)
        self.observation, self.method = observation, method
        self.y = None if y is None else _one(observation, y, model)
        self._plan = method.plan(model, observation)
        self._moments = self._posterior_moments()

    def __repr__(self) -> str:
        return f"PosteriorModel({self.model!r}, {self.observation!r}, {self.method!r})"

    @property
    def predicts(self) -> str:  # type: ignore[override]
        """The clean prediction."""
        return "data"

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """False: p(y | x_t) is approximated."""
        return False

    @property
    def learned_variance(self) -> bool:  # type: ignore[override]
        """False."""
        return False

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Those of the Gaussian posterior where one y is held and they can be had; else those of the data."""
        return self.model.moments if self._moments is None else self._moments

    @property
    def class_moments(self) -> Sequence[Moments] | None:  # type: ignore[override]
        """None."""
        return None

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Those of the model inside where one y is held, else 0: the condition is y."""
        return self.model.num_classes if self.y is not None else 0

    @property
    def condition_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """Y, unless one y is held."""
        return self.observation.shape if self.y is None else self.model.condition_shape

    def conditions(self, condition: Condition | None, count: int) -> Tensor | None:
        """Rows of y, or, where one y is held, the condition of the model inside."""
        if self.y is not None:
            return self.model.conditions(condition, count)
        if condition is None or isinstance(condition, int):
            raise ValueError(
                f"condition must be the observation y with shape {self.observation.shape}, or ({count}, "
                f"...) with "
                f"one row per sample, got {condition}"
            )
        given = torch.as_tensor(condition)
        if tuple(given.shape) == (count, math.prod(self.observation.shape) + self._inner) and self._inner:
            return given.to(self.model.device)  # joined before
        y = self.observation.rows(given, count).to(self.model.device)
        y = y if y.dtype == torch.float64 else y.to(self.model.dtype)
        return y.expand(count, *y.shape[1:])

    @property
    def _inner(self) -> int:
        """How many numbers the condition of the model inside has."""
        shape = self.model.condition_shape
        return math.prod(shape) if shape is not None else int(self.model.num_classes > 0)

    def joined(self, y: Tensor, inner: Tensor | None) -> Tensor:
        """One row per sample of y and of the condition of the model inside, flattened: what a model that is
        itself given a condition takes."""
        if inner is None:
            return y
        return torch.cat([y.flatten(1), inner.reshape(len(y), -1).to(y)], 1)

    def split(self, x_t: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """y with shape (B, *Y), and the condition of the model inside."""
        if self.y is not None:
            return self.y, condition
        if condition is None:
            raise ValueError("condition must be the observation y, one row per sample, got None")
        numbers = math.prod(self.observation.shape)
        if condition.ndim != 2 or condition.shape[1] <= numbers:
            return condition.reshape(len(x_t), *self.observation.shape), None
        inner = condition[:, numbers:]
        y = condition[:, :numbers].unflatten(-1, self.observation.shape)
        if self.model.num_classes:
            return y, inner[:, 0].round().long()
        return y, inner.unflatten(-1, self.model.condition_shape or (-1,))

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided clean prediction with shape (B, *D)."""
        y, inner = self.split(x_t, condition)
        return self.method.denoise(Query(self.model, self.observation, x_t, t, y, inner, self._plan))

    def _posterior_moments(self) -> Moments | None:
        """Of N(m, S) given y, where moments are known, y is held, and the matrices are small."""
        prior, observation = self.model.moments, self.observation
        if prior is None or self.y is None or not isinstance(observation, LinearObservation):
            return None
        n = prior.mean.numel()
        if n > MOST_FEATURES:
            return None
        A, values, variance = linear_system(observation, self.y)
        mean, covariance = gaussian_posterior(prior, A, values, variance)
        if not float(covariance.diagonal().amax()) > 0:
            return None
        return Moments(mean.reshape(prior.event_shape), covariance)


MOST_FEATURES = 1024
"""Most features of which the covariance of a Gaussian posterior is formed."""


def linear_system(observation: LinearObservation, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A with shape (m, n), y with shape (m,) and the variances of the noise with shape (m,), float64 on the
    host, of one observation with shape (1, *Y); what is missing is left out."""
    y = y.detach().cpu().double()
    if isinstance(observation.A, EntriesMap):
        held = ~y.isnan().flatten()
        A = torch.eye(observation.A.count, dtype=torch.float64)[held]
        return A, y.flatten()[held], observation.std.square().expand(len(A))
    values = observation.A.pick(y)[0]
    std = observation.std if observation.std.ndim == 0 else observation.A.pick(observation.std[None])[0]
    return observation.A.matrix(), values, std.square().expand(len(values))


def gaussian_posterior(prior: Moments, A: Tensor, y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean with shape (n,) and covariance with shape (n, n) of N(m, S) given y = A x + noise.

    The covariance is (I - K A) S (I - K A)^T + K R K^T, which rounding leaves positive.
    """
    n = prior.mean.numel()
    roots = prior.variances.sqrt()
    B = prior.embed(roots.diag()).flatten(1).mT if n else A  # S = B B^T
    seen = A @ B
    law = seen @ seen.mT + variance.diag()
    K = torch.linalg.lstsq(law, seen @ B.mT, driver="gelsd").solution.mT
    mean = prior.mean.flatten() + K @ (y - A @ prior.mean.flatten())
    left = B - K @ seen
    covariance = left @ left.mT + (K * variance) @ K.mT
    return mean, 0.5 * (covariance + covariance.mT)


def _one(observation: Observation, y: Any, model: ScoreModel) -> Tensor:
    rows = observation.rows(y, 1)
    return rows.to(model.device) if rows.dtype == torch.float64 else rows.to(model.device, model.dtype)
