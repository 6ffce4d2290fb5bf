"""The exact law of what a sampler puts out on Gaussian data, and its distance to the data's law.

With Gaussian data the score is affine in the state, and so is every step of a sampler on a fixed grid: its
output is an affine function of all the normals that it draws,

    x = b + sum_k A_k z_k,        hence x ~ N(b, C),    C = sum_k A_k A_k^T

b is the output of a run whose draws are 0, and column j of A_k that of a run whose only draw is the unit
vector j in place of z_k, less b: the impulse response.  Against the data's N(m, S)

    W2^2 = |b - m|^2 + tr( C + S - 2 (C^1/2 S C^1/2)^1/2 )
    KL   = 1/2 ( tr(S^-1 C) - D + (m - b)^T S^-1 (m - b) + log det S - log det C )

without sampling: no error bar, and rounding alone limits how small they get.  The noise that is left at t_min
counts as an error.  The same holds given an observation y, by methods whose prediction is affine in the
state: what comes out is then to be compared with the Gaussian posterior.

Samplers that are not affine in their noise (steps chosen by tolerances, corrector steps scaled by norms,
thresholds) are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.guidance import Observed
from sde_toolkit.lab.experiment import Metric
from sde_toolkit.metrics import Estimate, gaussian_w2
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.samplers import PreparedSampler, Sampler, Samples
from sde_toolkit.utils import check_fields, checked

_ROWS = 4096
"""Impulses that are run at once."""

_AFFINE = 1e-6
"""By how much a doubled impulse may miss the doubled response, in parts of it."""


class GaussianLaw(NamedTuple):
    """N(mean, covariance), with shapes (D,) and (D, D), in float64."""

    mean: Tensor
    covariance: Tensor


@dataclass
class _Silence:
    """Draws that are 0; remembers which were asked for, in their order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    asked: list[tuple[int, int]] = field(default_factory=list)

    def draw(self, index: int, stream: int = 0) -> Tensor:
        """Zeros with shape (B, *)."""
        if (index, stream) not in self.asked:
            self.asked.append((index, stream))
        return torch.zeros(self.shape, dtype=self.dtype)


@dataclass(frozen=True)
class _Impulses:
    """Draws that are 0 but for one feature of one draw in every row.

    Args:
        draws: number of the draw of every row, -1 for none.
        features: of the impulse of every row.
        asked: the draws, by number.
        shape: of the events.
        dtype: of the draws.
        size: of the impulses.
    """

    draws: Tensor
    features: Tensor
    asked: list[tuple[int, int]]
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: float = 1.0

    def draw(self, index: int, stream: int = 0) -> Tensor:
        """Impulses with shape (B, *)."""
        z = torch.zeros(len(self.draws), math.prod(self.shape), dtype=self.dtype)
        rows = (self.draws == self.asked.index((index, stream))).nonzero()[:, 0]
        z[rows, self.features[rows]] = self.size
        return z.reshape(-1, *self.shape)


@checked
def gaussian_output(sampler: Sampler, model: ExactModel, observation: Observed | None = None) -> GaussianLaw:
    """The exact law of a sampler's output on Gaussian data, by its impulse response.

    Args:
        sampler: on a fixed grid.
        model: of a ``Gaussian``.
        observation: one y for all samples, that the sampler is given, such as ``Observed(LinearObservation(A,
            std), y, method)``; None for samples of the data.

    Raises:
        ValueError: data that are not Gaussian, or a sampler that is not affine in its noise: given an
            observation, one whose method is not affine in the state.
    """
    if not isinstance(model.data, Gaussian):
        raise ValueError(f"model must be an ExactModel of a Gaussian, got {model!r}")
    if sampler.num_steps is None:
        raise ValueError(f"sampler must have a fixed grid, got {sampler!r}, which chooses its own steps")
    if observation is not None and not observation.shared:
        raise ValueError(
            f"observation must be one y with shape {observation.observation.shape} for all samples, got one "
            "for each sample"
        )
    silence = _Silence((1, *model.event_shape), model.dtype)
    prepared = sampler.prepare(model, observation)
    mean = prepared.sample(1, noise=silence).x.flatten().double()
    D, asked = len(mean), silence.asked
    pairs = torch.cartesian_prod(torch.arange(len(asked)), torch.arange(D)).reshape(-1, 2)
    covariance = torch.zeros(D, D, dtype=torch.float64)
    for part in pairs.split(_ROWS):
        source = _Impulses(part[:, 0], part[:, 1], asked, model.event_shape, model.dtype)
        columns = prepared.sample(len(part), noise=source).x.flatten(1).double() - mean
        covariance += columns.mT @ columns
    few = pairs[:: max(1, len(pairs) // 16)]
    _need_affine(prepared, _Impulses(few[:, 0], few[:, 1], asked, model.event_shape, model.dtype), mean)
    return GaussianLaw(mean, (covariance + covariance.mT) / 2)


def _need_affine(prepared: PreparedSampler, source: _Impulses, mean: Tensor) -> None:
    """Refuse, with a ValueError, a sampler whose response to a larger impulse is not as much larger."""
    responses = []
    for size in (1.0, 2.0):
        larger = _Impulses(source.draws, source.features, source.asked, source.shape, source.dtype, size)
        x = prepared.sample(len(source.draws), noise=larger).x.flatten(1).double()
        responses.append((x - mean) / size)
    one, other = responses
    if float((one - other).abs().max()) > _AFFINE * max(float(one.abs().max()), 1e-3):
        raise ValueError(
            f"sampler must be affine in its noise for its exact law, got {prepared.sampler.name!r}, whose "
            "response to a doubled draw is not doubled (steps scaled by norms, a threshold, or a method of "
            "guidance that is not affine)"
        )


@checked
def gaussian_kl(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> float:
    """KL( N(mean0, cov0) | N(mean1, cov1) ) in nats, for means of shape (D,) and covariances (D, D).

    Raises:
        ValueError: a covariance that is not positive definite.
    """
    gaussian_w2(mean0, cov0, mean1, cov1)  # refuses shapes that do not fit
    mean0, cov0, mean1, cov1 = (
        torch.as_tensor(a).detach().cpu().double() for a in (mean0, cov0, mean1, cov1)
    )
    factors = []
    for name, covariance in (("cov0", cov0), ("cov1", cov1)):
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed) or not torch.isfinite(factor).all():
            raise ValueError(f"{name} must be positive definite for a KL divergence")
        factors.append(factor)
    one, other = factors
    whitened = torch.linalg.solve_triangular(other, one, upper=False)
    off = torch.linalg.solve_triangular(other, (mean0 - mean1)[:, None], upper=False)
    log_det = 2 * (other.diagonal().log().sum() - one.diagonal().log().sum())
    return float(whitened.square().sum() - len(mean0) + off.square().sum() + log_det) / 2


@dataclass(frozen=True, eq=False)
class GaussianMetric(Metric):
    """The exact distance of a sampler's law to the Gaussian data's; the samples are not looked at.

    Args:
        model: of a ``Gaussian``.
        measure: "w2" or "kl".
    """

    model: ExactModel | None = None
    measure_of: Literal["w2", "kl"] = "w2"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model is None or not isinstance(self.model.data, Gaussian):
            raise ValueError(
                f"metric {self.name!r} needs Gaussian data, got model={self.model!r}; use it on the problems "
                "gaussian, gaussian_ill and gaussian_low_rank"
            )

    def of(self, samples: Samples, sampler: Sampler) -> Estimate:
        """The distance, without error."""
        assert self.model is not None
        law, data = gaussian_output(sampler, self.model), self.model.data
        distance = gaussian_w2 if self.measure_of == "w2" else gaussian_kl
        value = distance(law.mean, law.covariance, data.mean.flatten().double(), data.covariance.double())
        return Estimate(value, 0.0, "exact, by impulse response")
