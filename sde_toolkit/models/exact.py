"""Data whose density, score and flow are known in closed form: Gaussians and mixtures of Gaussians.

Data p(x0) = sum_k w_k N(m_k, C_k) stay in the family under x_t = alpha x0 + sigma z.  In the scale-free state
y = x_t / alpha, with the noise-to-signal ratio n = sigma / alpha as the clock,

    p_n(y)            = sum_k w_k N(y; m_k, C_k + n^2 I)
    grad log p_n(y)   = - sum_k gamma_k(y) (C_k + n^2 I)^{-1} (y - m_k),       gamma_k = p(k | y)
    score(x_t, t)     = grad log p_n(y) / alpha,      log p_t(x_t) = log p_n(y) - D log alpha

With C_k = U_k diag(l_k) U_k^T computed once, a noise level costs diagonal work only: r_k = U_k^T (y - m_k) is
divided by l_k + n^2.  The model puts out the score, because all else follows from it without loss: z_hat =
-sigma score and x0_hat = (x_t + sigma^2 score) / alpha hold to rounding at every t, sigma = 0 included.

The probability flow dy/dn = z_hat(y, n) carries p_n at one ratio to p_n at another:

    Gaussian          y_s = m + U diag(sqrt((l + n_s^2) / (l + n_t^2))) U^T (y_t - m)
    mixture, D = 1    F_s(y_s) = F_t(y_t) with F the distribution function, because the flow is monotone
    mixture, D > 1    no closed form: integrated by a method of order 8, see ``GaussianMixture.flow``

Covariances may be singular, down to point masses (the exact denoiser of a finite data set); then the density
at n = 0 does not exist, and what divides by it is not finite.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), eq. 13, for the flow; Efron, "Tweedie's Formula and Selection Bias" (2011), for the score as a
denoiser.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_toolkit.models.components import (
    Components,
    check_events,
    components_of,
    conditioned,
    integrated_flow,
    monotone_flow,
    table_of,
)
from sde_toolkit.models.moments import Moments
from sde_toolkit.models.score import Condition, ScoreModel, class_labels, of_states
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream, as_device, as_tensor, checked, has_method, same_values, shown
from solvers.brownian import Normals
from solvers.terms import expand_like

MOST_COVARIANCE = 8192
"""Most features of which the full covariance is formed: 512 MiB."""


class ExactData(ABC):
    """A distribution of data that stays in closed form under every forward process.

    Attributes:
        components: the Gaussians it is made of, in float64.
        event_shape: the shape D of one sample, so that data have shape (B, *D).
    """

    components: Components
    event_shape: tuple[int, ...]

    def __repr__(self) -> str:
        many = len(self.components.weights)
        return (
            f"{type(self).__name__}({f'{many} components of ' if many > 1 else ''}shape {self.event_shape})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExactData):
            return NotImplemented
        mine, its = self.components, other.components
        parts = ((c.weights, c.means, c.variances, c.axes) for c in (mine, its))
        return (type(self), self.event_shape) == (type(other), other.event_shape) and same_values(*parts)

    def __hash__(self) -> int:
        return hash((type(self), self.event_shape, len(self.components.weights)))

    @abstractmethod
    def flow(self, y: Tensor, nsr_t: Tensor, nsr_s: Tensor) -> Tensor:
        """Carry y by the probability flow dy/dn = z_hat(y, n) from the ratio nsr_t to nsr_s.

        Args:
            y: scale-free states x_t / alpha_t with shape (B, *).
            nsr_t, nsr_s: noise-to-signal ratios at the start and at the end, with shape () or (B,).
        """

    @property
    def mean(self) -> Tensor:
        """Mean of the data with shape D."""
        return (self.components.weights @ self.components.means).reshape(self.event_shape)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the flattened data with shape (n, n).

        Raises ValueError for more than ``MOST_COVARIANCE`` features.
        """
        c = self.components
        n = c.means.shape[1]
        if n > MOST_COVARIANCE:
            raise ValueError(
                f"covariance must have at most {MOST_COVARIANCE} features, got {n}, which would take "
                f"{n * n * 8 / 1e9:.0f} GB; use the model's moments, which keep the variances alone there"
            )
        away = c.means - self.mean.flatten()
        between = torch.einsum("k,ki,kj->ij", c.weights, away, away)
        if c.axes is None:
            return between + (c.weights @ c.variances).diag()
        return between + torch.einsum("k,kij,kj,klj->il", c.weights, c.axes, c.variances, c.axes)

    @property
    def variance(self) -> Tensor:
        """Variances of the features with shape D."""
        c = self.components
        each = c.variances if c.axes is None else torch.einsum("kij,kj->ki", c.axes.square(), c.variances)
        between = (c.means - self.mean.flatten()).square()
        return (c.weights @ (each + between)).reshape(self.event_shape)

    @property
    def std(self) -> float:
        """Root-mean-square standard deviation: root of the covariance's trace over the number of features."""
        c = self.components
        away = c.means - self.mean.flatten()
        return math.sqrt(c.weights @ (c.variances + away.square()).mean(1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the data, in nats, at x with shape (B, *); returns shape (B,)."""
        x = as_tensor("x", x)
        check_events(self.event_shape, x=x)
        return self.components.to(x.dtype, x.device).log_prob(x.flatten(1), x.new_zeros(()))

    @checked
    def sample(self, num_samples: int, seed: int) -> Tensor:
        """Draw data with shape (num_samples, *D), float64; sample i of a seed is one for every num_samples.

        Raises:
            ValueError: ``num_samples`` below 1, or a seed outside 0 .. 2^64 - 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        c = self.components
        z = Normals(seed, num_samples, c.means.shape[1:]).draw(0, Stream.DATA)
        u = torch.special.ndtr(Normals(seed, num_samples, (1,)).draw(0, Stream.COMPONENTS)).flatten()
        k = torch.searchsorted(c.weights.cumsum(0)[:-1].contiguous(), u)
        x = c.variances[k].sqrt() * z
        if c.axes is not None:
            x = (c.axes[k] * x.unsqueeze(1)).sum(-1)
        return (c.means[k] + x).unflatten(-1, self.event_shape)


class Gaussian(ExactData):
    """Data N(mean, covariance).

    Args:
        mean: with shape D, at least one dimension.
        covariance: with shape (n, n), n the number of features; or shape D for a diagonal one; or a number.

    Raises:
        ValueError: shapes that do not fit, or a covariance that is not symmetric positive semi-definite.
    """

    @checked
    @torch.inference_mode(False)
    def __init__(self, mean: Any, covariance: Any) -> None:
        mean, covariance = table_of("mean", mean), table_of("covariance", covariance)
        self.event_shape = tuple(mean.shape)
        self.components = components_of(
            mean.new_ones(1), mean.unsqueeze(0), covariance.unsqueeze(0), name="covariance"
        )

    @checked
    def flow(self, y: Tensor, nsr_t: Tensor, nsr_s: Tensor) -> Tensor:
        """The closed form, with the shape of y; differentiable."""
        check_events(self.event_shape, y=y, nsr_t=nsr_t, nsr_s=nsr_s)
        c = self.components.to(y.dtype, y.device)
        r = c.project(y.flatten(1))
        v_t, v_s = (c.variances + expand_like(nsr.square(), r) for nsr in (nsr_t, nsr_s))
        return (c.means + c.embed((v_s / v_t).sqrt() * r)).reshape(y.shape)


class GaussianMixture(ExactData):
    """Data sum_k weights_k N(means_k, covariances_k).

    Args:
        weights: with shape (K,), positive, summing to 1.
        means: with shape (K, *D).
        covariances: with shape (K, n, n), n the number of features; or (K, *D) for diagonal ones; or (K,) for
            multiples of the identity.

    Raises:
        ValueError: shapes that do not fit, weights that are not a distribution, or a covariance that is not
            symmetric positive semi-definite.
    """

    @checked
    @torch.inference_mode(False)
    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        weights, means = table_of("weights", weights), table_of("means", means)
        total = float(weights.sum())
        if weights.ndim != 1 or not bool((weights > 0).all()) or abs(total - 1) > 1e-6:
            raise ValueError(
                f"weights must have shape (K,), be positive and sum to 1, got shape {tuple(weights.shape)} "
                f"and sum {total:.6g}; divide them by their sum"
            )
        self.event_shape = tuple(means.shape[1:])
        covariances = table_of("covariances", covariances)
        self.components = components_of(weights / total, means, covariances, name="covariances")

    @checked
    def component(self, label: int) -> Gaussian:
        """The Gaussian number ``label``, 0 to K - 1; raises ValueError for another."""
        c, k = self.components, label
        if not 0 <= k < len(c.weights):
            raise ValueError(f"label must be a component, 0 .. {len(c.weights) - 1}, got {label}")
        covariance = c.variances[k].reshape(self.event_shape)
        if c.axes is not None:
            covariance = (c.axes[k] * c.variances[k]) @ c.axes[k].mT
        return Gaussian(c.means[k].reshape(self.event_shape), covariance)

    @checked
    def flow(self, y: Tensor, nsr_t: Tensor, nsr_s: Tensor) -> Tensor:
        """The reference solution, with the shape of y: computed in float64, slow, not differentiable.

        In one dimension the monotone map between the distribution functions, by bisection down to rounding.
        Otherwise scipy's DOP853 at rtol = atol = 1e-10, all samples as one system, in the clock tau =
        asinh(n / c), c the data's std, for the state u = (y - mean) / sqrt(c^2 + n^2), which is of order one
        and almost at rest where noise dominates: du/dtau = z_hat(y, n) - n (y - mean) / (c^2 + n^2).
        """
        check_events(self.event_shape, y=y, nsr_t=nsr_t, nsr_s=nsr_s)
        flat = y.detach().flatten(1).double()
        c = self.components.to(torch.float64, y.device)
        n_t, n_s = (nsr.to(flat).expand(len(flat)) for nsr in (nsr_t, nsr_s))
        if flat.shape[1] == 1:
            moved = monotone_flow(c, flat, n_t, n_s)
        else:
            moved = integrated_flow(c, flat, n_t, n_s, self.mean.flatten().to(flat), self.std)
        return moved.to(y.dtype).reshape(y.shape)


class ExactModel(ScoreModel):
    """The score model of data known in closed form: whatever runs on a network runs on it.

    Args:
        data: a Gaussian or a mixture.
        sde: the forward process.
        dtype, device: of the states that the model takes.
    """

    predicts = "score"
    exact = True

    @checked
    @torch.inference_mode(False)
    def __init__(
        self,
        data: ExactData,
        sde: ForwardSDE,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.sde = data, sde
        self.event_shape, self.data_std = data.event_shape, data.std
        self.dtype, self.device = dtype, as_device("device", device)
        self._components = data.components.to(self.dtype, self.device)

    def __repr__(self) -> str:
        return f"ExactModel({self.data!r}, {self.sde!r})"

    @functools.cached_property
    @torch.inference_mode(False)
    def moments(self) -> Moments:  # type: ignore[override]
        """Mean and covariance of the data; diagonal for one Gaussian with a diagonal covariance, and for more
        than ``MOST_COVARIANCE`` features."""
        c = self.data.components
        diagonal = c.axes is None and (len(c.weights) == 1 or c.means.shape[1] > MOST_COVARIANCE)
        return Moments(self.data.mean, self.data.variance if diagonal else self.data.covariance)

    @functools.cached_property
    def class_moments(self) -> list[Moments] | None:  # type: ignore[override]
        """Mean and covariance of every component of a mixture."""
        return [self.given(k).moments for k in range(self.num_classes)] if self.num_classes else None

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of components of a mixture, which are its classes; 0 for a Gaussian."""
        return len(self.data.components.weights) if isinstance(self.data, GaussianMixture) else 0

    def conditions(self, condition: Condition | None, count: int) -> Tensor | None:
        """Labels with shape (count,) of the mixture's components, whose weights are the classes' priors."""
        if condition is None or self.num_classes == 0:
            return super().conditions(condition, count)
        return class_labels(condition, count, self.num_classes, self.device)

    @checked
    def given(self, label: int) -> ExactModel:
        """The model of one component of a mixture, 0 to K - 1.

        Raises:
            ValueError: a label out of range, or data that are no mixture.
        """
        if not (isinstance(self.data, GaussianMixture) and 0 <= label < self.num_classes):
            raise ValueError(
                f"label must be a component of a mixture, 0 .. {self.num_classes - 1}, got {label}"
            )
        return ExactModel(self.data.component(label), self.sde, self.dtype, self.device)

    @torch.inference_mode(False)
    def posterior(self, observed: LinearGaussian) -> ExactPosterior:
        """The model of p(x0 | y), in closed form: density, score at every t, samples, flow, and the evidence.

        Args:
            observed: y and its law, ``Observed(LinearObservation(A, std), y)``.

        Raises:
            ValueError: an observation that is not linear or of another event shape, or a y that the data
                cannot have.
        """
        if not has_method(observed, "linear"):
            raise TypeError(f"observed must be Observed(LinearObservation(A, std), y), got {shown(observed)}")
        A, y, variance = observed.linear()
        if tuple(observed.event_shape) != tuple(self.event_shape):
            raise ValueError(
                f"observed must be of samples with shape {self.event_shape}, got "
                f"{tuple(observed.event_shape)}"
            )
        weights, means, covariances, log_evidence = conditioned(self.data.components, A, y, variance)
        if not math.isfinite(log_evidence):
            raise ValueError(
                "y must be possible under the data, got one with probability 0; give a std above 0"
            )
        means = means.unflatten(-1, self.event_shape)
        if len(weights) == 1:
            data: ExactData = Gaussian(means[0], covariances[0])
        else:
            data = GaussianMixture(weights.clamp(min=1e-300), means, covariances)
        return ExactPosterior(data, self.sde, self.dtype, self.device, log_evidence)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """grad log p_t(x_t), with labels (B,) grad log p_t(x_t | k), with shape (B, *)."""
        y, alpha_t = self._scale_free(x_t, t)
        return (self._components.score(y, self.sde.nsr(t), condition) / alpha_t).reshape(x_t.shape)

    @of_states
    def log_prob(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p_t(x_t), with labels (B,) log p_t(x_t | k), in nats, with shape (B,)."""
        y, _ = self._scale_free(x_t, t)
        log_prob = self._components.log_prob(y, self.sde.nsr(t), condition)
        return log_prob - y.shape[1] * expand_like(self.sde.log_alpha(t), log_prob)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Carry x_t with shape (B, *) by the probability flow from t to s, each with shape () or (B,)."""
        x_t, t, s = as_tensor("x_t", x_t), as_tensor("t", t), as_tensor("s", s)
        check_events(self.event_shape, x_t=x_t, t=t, s=s)
        y = x_t / expand_like(self.sde.alpha(t), x_t)
        return expand_like(self.sde.alpha(s), x_t) * self.data.flow(y, self.sde.nsr(t), self.sde.nsr(s))

    def _scale_free(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        flat = x_t.flatten(1)
        alpha_t = expand_like(self.sde.alpha(t), flat)
        return flat / alpha_t, alpha_t


class LinearGaussian(Protocol):
    """An observation y = A x0 + noise that was made, see ``sde_toolkit.guidance.Observed``."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """D."""
        ...

    def linear(self) -> tuple[Tensor, Tensor, Tensor]:
        """A with shape (m, n), y with shape (m,), the variances of the noise with shape (m,); float64."""
        ...


class ExactPosterior(ExactModel):
    """The score model of data given an observation, from ``ExactModel.posterior``.

    Args:
        data: p(x0 | y).
        sde: the forward process.
        dtype, device: of the states that the model takes.
        log_evidence: log p(y) in nats.
    """

    def __init__(
        self,
        data: ExactData,
        sde: ForwardSDE,
        dtype: torch.dtype,
        device: torch.device | str,
        log_evidence: float,
    ) -> None:
        super().__init__(data, sde, dtype, device)
        self.log_evidence = log_evidence
