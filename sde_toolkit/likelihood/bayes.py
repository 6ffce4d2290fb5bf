"""Classification by Bayes' rule with the densities of a class-conditional model, and how far to trust it.

    log p(x, k) = log p(x | k) + log pi_k,             p(k | x) = softmax_k log p(x, k)

with priors pi and log p(x | k) from the score model ``model.given(k)``: by the probability flow, by a bound,
or for grey levels by an importance-weighted bound.  Whatever is random in it (probes, dequantisation, times
and noises of a bound) is keyed by the sample and not by the class.  Every class then uses the same draws, and
most of their noise cancels in the differences, on which alone p(k | x) depends.  For that the draws must also
enter in the same way.  Coordinates or a control variate made from ``model.given(k).moments`` differ between
the classes, and the control variate has a large variance where x is far from the Gaussian of the class: leave
it out, and give the flow the moments of all data.

Bayes' rule also gives the density of what was observed of a vector, where a network knows the law of missing
entries x_M given the observed x_O (``models.missing_log_density``): for every x_M

    log p(x_O) = log p(x_O, x_M) - log p(x_M | x_O)

if both are of one law.  With q(x_M | x_O) for the second, and K draws from it, the log of the mean of
p(x_O, x_M) / q(x_M | x_O) is in the mean a lower bound, tight where q is the conditional law of p.

How good the probabilities are, on N examples of known class y_n, with the confidence c_n = max_k p(k | x_n):

    accuracy                     mean of [argmax_k p(k | x_n) = y_n]
    negative log-likelihood      mean of -log p(y_n | x_n), in nats
    Brier score                  mean of sum_k (p(k | x_n) - [k = y_n])^2
    expected calibration error   sum over bins of c of (n_b / N) |accuracy_b - mean confidence_b|

The last one is positive even for perfect probabilities, because accuracies of few examples scatter; ``floor``
is its mean when every prediction is right with exactly the probability c_n that it claims.  Classifiers made
from densities in many dimensions are usually overconfident.  One number corrects most of that: the
temperature T of p(k | x) = softmax_k (log p(x, k) / T), fitted on examples other than those it is judged on.

References: Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier" (2303.16203) for common draws
in every class; Guo et al., "On Calibration of Modern Neural Networks" (1706.04599) for the calibration error
and the temperature; Broecker and Smith, "Increasing the Reliability of Reliability Diagrams" (Weather and
Forecasting 22, 2007) for resampling a perfectly calibrated forecast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from sde_toolkit.likelihood.dequantize import HasNats
from sde_toolkit.likelihood.flow import values_only
from sde_toolkit.metrics import Estimate
from sde_toolkit.models import ModuleModel, ScoreModel, check_entries, check_states, missing_log_density
from sde_toolkit.utils import Stream, check_fields, checked, host_tensor, integer, returned, step_generator
from solvers import Normals

RESAMPLES = 500
"""Draws behind the standard error and the floor of the calibration error."""

_HALVINGS = 60
_SHARPEST = 1e3


class ConditionalModel(Protocol):
    """A model of several classes: a ``NetworkModel`` with classes, or an ``ExactModel`` of a mixture."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        ...

    def given(self, label: int, /) -> ScoreModel:
        """The score model of the class ``label``, 0 to K - 1."""
        ...


ClassDensity = Callable[[ScoreModel, Tensor], HasNats]
"""(model of one class, x with shape (B, *)) -> a record with ``nats`` of shape (B,)."""


@dataclass(frozen=True, eq=False)
class Classification:
    """The posterior of B samples over the classes.

    Attributes:
        log_joint: log p(x, k) with shape (B, K), float64, in nats.
        temperature: T of the probabilities.
        seconds: wall time.
    """

    log_joint: Tensor = field(repr=False)
    temperature: float = 1.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def log_probabilities(self) -> Tensor:
        """log p(k | x) with shape (B, K)."""
        return (self.log_joint / self.temperature).log_softmax(1)

    @property
    def probabilities(self) -> Tensor:
        """p(k | x) with shape (B, K)."""
        return self.log_probabilities.exp()

    @property
    def prediction(self) -> Tensor:
        """The likeliest class with shape (B,), int64."""
        return self.log_joint.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """The probability of the likeliest class with shape (B,)."""
        return self.probabilities.amax(1)


@dataclass(frozen=True)
class Bin:
    """The examples whose confidence lies between two bounds: count, mean confidence and accuracy."""

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Judgement:
    """Figures of merit of a classification, each with its standard error over the examples.

    Attributes:
        accuracy, negative_log_likelihood, brier: see the head of the module.
        calibration_error: the expected calibration error, with a bootstrap standard error.
        floor: the mean calibration error of perfectly calibrated predictions with these confidences.
        bins: the reliability diagram; empty bins are left out.
    """

    accuracy: Estimate
    negative_log_likelihood: Estimate
    brier: Estimate
    calibration_error: Estimate
    floor: float
    bins: tuple[Bin, ...]


@checked
def classify(
    model: ConditionalModel,
    x: Tensor,
    *,
    priors: Sequence[float] | Tensor | None = None,
    log_likelihood: ClassDensity = values_only,
) -> Classification:
    """Classify x by Bayes' rule.

    Args:
        model: of K classes.
        x: with shape (B, *): whatever ``log_likelihood`` takes, data in model scale or grey levels.
        priors: probabilities of the classes with shape (K,), positive; equal when None.
        log_likelihood: of x under the model of one class, called once per class with the same x and so with
            the same draws; options are bound by ``functools.partial``.

    Raises:
        ValueError: a model without classes, or priors that are not a distribution over them; before any
            evaluation.
    """
    count = model.num_classes
    if count < 1:
        raise ValueError("model must have classes, got one without; build its network with num_classes")
    weights = torch.full((count,), 1 / count) if priors is None else host_tensor("priors", priors)
    weights = weights.to("cpu", torch.float64)
    if weights.shape != (count,) or not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(
            f"priors must be {count} positive probabilities that sum to 1, got {weights.tolist()}; divide "
            "counts by their sum"
        )
    start = time.perf_counter()
    columns = [
        returned("log_likelihood", log_likelihood(model.given(label), x), "nats").nats
        for label in range(count)
    ]
    log_joint = torch.stack([column.to("cpu", torch.float64) for column in columns], 1) + weights.log()
    return Classification(log_joint, seconds=time.perf_counter() - start)


@checked
def fit_temperature(found: Classification, labels: Tensor) -> float:
    """The temperature T with the smallest negative log-likelihood of the labels with shape (B,).

    The log-likelihood is concave in 1/T, and the zero of its slope is found by bisection, for T between
    1/1000 and 1000.  The end 1/1000 is reached when the classes are separated without error.  Raises
    ValueError for labels that do not fit.
    """
    labels = _checked(found, labels)
    score = found.log_joint - found.log_joint.amax(1, keepdim=True)
    own = score.gather(1, labels[:, None])[:, 0].mean()
    low, high = math.log(1 / _SHARPEST), math.log(_SHARPEST)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        expected = ((math.exp(middle) * score).softmax(1) * score).sum(1).mean()
        low, high = (middle, high) if expected < own else (low, middle)
    return math.exp(-0.5 * (low + high))


@checked
def tempered(found: Classification, temperature: float) -> Classification:
    """The same classification at another temperature, positive; the prediction does not change."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    return replace(found, temperature=temperature)


@checked
def judge(found: Classification, labels: Tensor, num_bins: int = 15, seed: int = 0) -> Judgement:
    """Compare a classification with the true labels with shape (B,).

    Args:
        found: of B samples.
        labels: integers 0 to K - 1.
        num_bins: equal bins of the confidence between 0 and 1.
        seed: of the resampling behind the error and the floor of the calibration error.

    Raises:
        ValueError: labels that do not fit, or no bins.
    """
    labels, num_bins = _checked(found, labels), integer("num_bins", num_bins, 1)
    right, confidence = (found.prediction == labels).double(), found.confidence
    probabilities = found.probabilities
    surprise = -found.log_probabilities.gather(1, labels[:, None])[:, 0]
    one_hot = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    where = (confidence * num_bins).long().clamp(max=num_bins - 1)

    error = _calibration_error(where, right - confidence, num_bins)
    generator = step_generator(seed, 0, Stream.RESAMPLING)
    drawn, perfect = [], []
    for _ in range(RESAMPLES):
        chosen = torch.randint(len(labels), (len(labels),), generator=generator)
        drawn.append(_calibration_error(where[chosen], (right - confidence)[chosen], num_bins))
        luck = torch.rand(len(labels), dtype=torch.float64, generator=generator) < confidence
        perfect.append(_calibration_error(where, luck.double() - confidence, num_bins))
    return Judgement(
        _mean(right),
        _mean(surprise),
        _mean((probabilities - one_hot).square().sum(1)),
        Estimate(float(error), float(torch.stack(drawn).std()), "bootstrap"),
        float(torch.stack(perfect).mean()),
        _bins(where, confidence, right, num_bins),
    )


def _calibration_error(where: Tensor, gap: Tensor, num_bins: int) -> Tensor:
    """The error with shape (), for the bins and right - confidence of N examples, each with shape (N,)."""
    return gap.new_zeros(num_bins).index_add_(0, where, gap).abs().sum() / len(gap)


def _mean(values: Tensor) -> Estimate:
    spread = float(values.std()) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), spread / math.sqrt(len(values)), "standard error of the mean")


def _bins(where: Tensor, confidence: Tensor, right: Tensor, num_bins: int) -> tuple[Bin, ...]:
    found = []
    for k in range(num_bins):
        mine = where == k
        if bool(mine.any()):
            bounds = k / num_bins, (k + 1) / num_bins
            found.append(
                Bin(*bounds, int(mine.sum()), float(confidence[mine].mean()), float(right[mine].mean()))
            )
    return tuple(found)


def _checked(found: Classification, labels: Tensor) -> Tensor:
    count, classes = found.log_joint.shape
    if labels.shape != (count,) or labels.dtype.is_floating_point:
        raise ValueError(
            f"labels must be integers with shape ({count},), got {labels.dtype} {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels must be among 0 .. {classes - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    return labels.to("cpu", torch.int64)


@dataclass(frozen=True, eq=False)
class ObservedLogLikelihood:
    """Log-densities of the observed entries of B vectors.

    Attributes:
        nats: log p(x_O) with shape (B,), float64, by the log of the mean over the draws.
        draws: log p(x_O, x_M) - log q(x_M | x_O) of every draw, with shape (K, B); of a complete row they are
            equal.
    """

    nats: Tensor
    draws: Tensor = field(repr=False)

    @property
    def spread(self) -> Tensor:
        """Standard deviation over the draws with shape (B,): 0 where the network's two laws agree."""
        return self.draws.std(0) if len(self.draws) > 1 else torch.full_like(self.nats, math.nan)


@checked
def observed_log_likelihood(
    model: ModuleModel,
    x: Tensor,
    num_draws: int = 1,
    seed: int = 0,
    log_likelihood: Callable[[ScoreModel, Tensor], HasNats] = values_only,
) -> ObservedLogLikelihood:
    """Log-densities of vectors with missing entries: of those observed, by Bayes' rule.

    Args:
        model: trained with ``IncompleteLoss``.
        x: in model scale with shape (B, D), nan where an entry is missing.
        num_draws: K, of the missing entries.
        seed: of the draws, keyed by the row.
        log_likelihood: of complete rows, such as ``log_likelihood`` with options.

    Raises:
        ValueError: a network that does not know missing entries, or a row without any observed entry.
    """
    check_entries(model)
    check_states(model, x, finite=False)
    integer("num_draws", num_draws, 1)
    missing, found = x.isnan(), []
    source = Normals(seed, len(x), tuple(x.shape[1:]), torch.float64, x.device)
    for k in range(num_draws):
        whole, log_q = missing_log_density(model, x, source.draw(k, Stream.MISSING))
        found.append(log_likelihood(model, whole).nats.double() - torch.where(missing.any(1), log_q, 0.0))
    draws = torch.stack(found)
    return ObservedLogLikelihood(draws.logsumexp(0) - math.log(num_draws), draws)
