"""Classifier guidance and energy guidance: the score plus a gradient.

With p(c | x_t, t) of a classifier that knows noised states,

    score(x_t, t, c) = score(x_t, t) + w grad log p(c | x_t, t)

which by Bayes' rule is the score of p_t(x_t | c) for w = 1 and the exact classifier, at every t: samples have
the law p(x | c).  Other w give a score at each t of p_t(x) p_t(c | x)^w up to normalisation, which are no
marginals of one process.  The classifier here is

    ``ExactClassifier``      of a mixture, p(k | x_t, t) = w_k p_t(x_t | k) / p_t(x_t) in closed form
    ``NetworkClassifier``    a module called as network(c_in x_t, 1000 t / T), which returns K logits; trained
                             by ``fit_classifier`` with cross-entropy at times uniform in [0, T]

Energy guidance takes the gradient of any function instead, by x_t,

    score(x_t, t) - w grad energy(x_t, t),          or          score(x_t, t) - w grad energy(x0_hat(x_t))

the second through the model.  With the energy -log p(y | x_t) it is exact; of the clean prediction it is not,
unless the energy is linear (``sde_toolkit.guidance.DPS`` has what is known of -log p(y | x0_hat)).

Evaluations of the classifier or of the energy are not counted among the network's.

References: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2105.05233), section 4.1;
Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2011.13456),
appendix I.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sde_toolkit.data import Dataset
from sde_toolkit.guidance.shifts import gradient, guided_by, shifted
from sde_toolkit.models import (
    Condition,
    ExactModel,
    Moments,
    ScoreModel,
    Wrapper,
    class_labels,
    conversion,
)
from sde_toolkit.samplers import Sampler
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import Stream, check_fields, checked, integer, step_generator
from solvers import expand_like

_TIME_SCALE = 1000.0

Of = Literal["state", "data"]
"""What an energy is a function of: (x_t, t), or the clean prediction."""


class Classifier(ABC):
    """p(c | x_t, t) of K classes.

    Attributes:
        num_classes: K.
        event_shape: the shape D of one state.
    """

    num_classes: int
    event_shape: tuple[int, ...]

    @abstractmethod
    def log_probs(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(k | x_t, t) with shape (B, K), for x_t with shape (B, *D) and t with shape () or (B,)."""


class ExactClassifier(Classifier):
    """The posterior of a mixture's components, whose weights are the classes' priors, in closed form.

    Args:
        model: of a mixture.

    Raises:
        ValueError: data that are no mixture.
    """

    @checked
    def __init__(self, model: ExactModel) -> None:
        if not model.num_classes:
            raise ValueError(f"model must be that of a mixture, whose components are classes, got {model!r}")
        self.model, self.num_classes, self.event_shape = model, model.num_classes, model.event_shape

    def log_probs(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log w_k + log p_t(x_t | k) - log p_t(x_t) with shape (B, K)."""
        weights = self.model.data.components.weights.to(x_t)
        labels = [torch.full((len(x_t),), k, device=x_t.device) for k in range(self.num_classes)]
        each = torch.stack([self.model.log_prob(x_t, t, label) for label in labels], dim=1)
        return (each + weights.log()).log_softmax(1)


class NetworkClassifier(nn.Module, Classifier):
    """A network as a classifier of noised states.

    Args:
        network: called as network(x, c), x with shape (B, *D) of about unit variance, c the time feature with
            shape (B,), from 0 at t = 0 to 1000 at T; returns logits with shape (B, K).
        sde: the forward process.
        event_shape: D.
        num_classes: K.
        data_std: root-mean-square standard deviation of the data, for the scale of x.

    Raises:
        ValueError: fewer than two classes.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        sde: ForwardSDE,
        event_shape: tuple[int, ...],
        num_classes: int,
        data_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.network, self.sde, self.event_shape = network, sde, tuple(event_shape)
        self.num_classes, self.data_std = integer("num_classes", num_classes, 2), float(data_std)

    def log_probs(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The log-softmax of the logits with shape (B, K).

        Raises:
            ValueError: the network returns another shape.
        """
        parameter = next(self.network.parameters(), x_t)
        alpha_t, sigma_t = self.sde.alpha(t), self.sde.sigma(t)
        c_in = (alpha_t.square() * self.data_std**2 + sigma_t.square()).rsqrt()
        x = (expand_like(c_in, x_t) * x_t).to(parameter.dtype)
        logits = self.network(x, (_TIME_SCALE / self.sde.T * t).to(x).expand(len(x)))
        if logits.shape != (len(x), self.num_classes):
            raise ValueError(
                f"network must return logits with shape {(len(x), self.num_classes)}, got "
                f"{tuple(logits.shape)}"
            )
        return logits.to(x_t.dtype).log_softmax(1)


@checked
def fit_classifier(
    network: nn.Module,
    sde: ForwardSDE,
    dataset: Dataset,
    num_steps: int,
    batch_size: int,
    *,
    seed: int = 0,
    learning_rate: float = 1e-3,
) -> NetworkClassifier:
    """Train a network to tell the classes of noised examples apart, by cross-entropy.

    Update n has the batch of (seed, n), times uniform in [0, T] and noise keyed by (seed, n).

    Args:
        network: as for ``NetworkClassifier``, trained in place, on its own device.
        sde: the forward process.
        dataset: with labels 0 .. K - 1 of its training examples.
        num_steps: updates by Adam, whose rate falls to 0 along a cosine.
        batch_size: examples of an update.
        seed: of the batches, the times and the noise.
        learning_rate: of the first update.

    Raises:
        ValueError: no labels, a count below 1, or a rate that is not positive.
    """
    num_steps, batch_size = integer("num_steps", num_steps, 1), integer("batch_size", batch_size, 1)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a finite positive number, got {learning_rate}")
    if dataset.labels_train is None or int(dataset.labels_train.min()) < 0:
        raise ValueError("dataset must have labels_train from 0 on for a classifier of its examples")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("network must have parameters to train, got none")
    classes = int(dataset.labels_train.max()) + 1
    first = dataset.batch(0, batch_size, seed)
    classifier = NetworkClassifier(network, sde, tuple(first.shape[1:]), classes, dataset.data_std)
    parameter = next(network.parameters())
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    network.train()
    with torch.inference_mode(False), torch.enable_grad():
        for step in range(num_steps):
            x0, labels = (draw(step, batch_size, seed) for draw in (dataset.batch, dataset.batch_labels))
            draws = step_generator(seed, step, Stream.CLASSIFIER)
            t = sde.T * torch.rand(batch_size, generator=draws, dtype=torch.float64)
            z = torch.randn(x0.shape, generator=draws, dtype=x0.dtype)
            x_t, t, labels = (part.to(parameter.device) for part in (sde.perturb(x0, t, z), t, labels))
            loss = nn.functional.nll_loss(classifier.log_probs(x_t, t), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return classifier


class ClassifierGuided(Wrapper):
    """A model guided to a class by the gradient of a classifier.

    Args:
        model: what is guided; a class is its condition then.
        classifier: of states with its event shape.
        scale: w.
        conditional: whether the model, one of the same classes, is given the class too.

    Raises:
        ValueError: a classifier of another event shape, a scale that is not finite, or a model without these
            classes that is to be given them.
    """

    condition_shape = None

    @checked
    def __init__(
        self, model: ScoreModel, classifier: Classifier, scale: float = 1.0, conditional: bool = False
    ) -> None:
        super().__init__(model)
        if tuple(classifier.event_shape) != model.event_shape:
            raise ValueError(
                f"classifier must be of states with shape {model.event_shape}, got {classifier.event_shape}"
            )
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}; 0 is no guidance")
        if conditional and model.num_classes != classifier.num_classes:
            raise ValueError(
                f"conditional=True needs a model of the classifier's {classifier.num_classes} classes, got "
                f"{model.num_classes} classes"
            )
        self.classifier, self.scale, self.conditional = classifier, float(scale), conditional

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """That of the classifier."""
        return self.classifier.num_classes

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether it is an exact score: that of the model inside, of known data and a known classifier."""
        known = isinstance(self.classifier, ExactClassifier) and not self.conditional
        return self.model.exact and (self.scale == 0 or (known and self.scale == 1))

    @property
    def class_moments(self) -> Sequence[Moments] | None:  # type: ignore[override]
        """Those of the model inside, where its classes are known to be the classifier's."""
        known = self.conditional or isinstance(self.classifier, ExactClassifier)
        same = self.model.num_classes == self.num_classes
        return self.model.class_moments if known and same else None

    def conditions(self, condition: Condition | None, count: int) -> Tensor | None:
        """Labels with shape (count,), or None."""
        if condition is None:
            return None
        return class_labels(condition, count, self.num_classes, self.device)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction with shape (B, *); the model's own without a class."""
        raw = self.model.raw(x_t, t, condition) if self.conditional else self.model.raw(x_t, t)
        if condition is None or self.scale == 0:
            return raw
        labels = condition[:, None]
        shift = gradient(lambda x: self.classifier.log_probs(x, t).gather(1, labels)[:, 0], x_t)
        return shifted(self.model, raw, t, self.scale * shift)


class EnergyGuided(Wrapper):
    """A model guided to low values of an energy.

    Args:
        model: what is guided.
        energy: with ``of="data"`` called as energy(x0_hat), else as energy(x_t, t); returns shape (B,), each
            of its own row, and is differentiable.
        scale: w.
        of: "data" for the clean prediction, through the model, or "state".

    Raises:
        ValueError: a scale that is not finite, or an unknown ``of``; when called: an energy of another shape.
    """

    @checked
    def __init__(
        self, model: ScoreModel, energy: Callable[..., Tensor], scale: float = 1.0, of: Of = "data"
    ) -> None:
        super().__init__(model)
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}; 0 is no guidance")
        if of not in ("data", "state"):
            raise ValueError(f"of must be 'data' or 'state', got {of!r}")
        self.energy, self.scale, self.of = energy, float(scale), of

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether it is an exact score: only without guidance."""
        return self.model.exact and self.scale == 0

    def _value(self, *arguments: Tensor) -> Tensor:
        value, count = self.energy(*arguments), len(arguments[0])
        if not isinstance(value, Tensor) or value.shape != (count,):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"energy must return a tensor with shape ({count},), one a row, got {got}")
        return value

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction with shape (B, *)."""
        if self.of == "state":
            raw = self.model.raw(x_t, t, condition)
            return shifted(self.model, raw, t, -self.scale * gradient(lambda x: self._value(x, t), x_t))
        found: list[Tensor] = []
        levels = self.sde.alpha(t), self.sde.sigma(t)
        keep, factor = conversion(self.model.predicts, "data", *levels, self.model.data_std)

        def of_data(x: Tensor) -> Tensor:
            found.append(self.model.raw(x, t, condition))
            return self._value(expand_like(keep, x) * x + expand_like(factor, x) * found[0])

        shift = gradient(of_data, x_t)
        raw = found[0] if torch.is_grad_enabled() else found[0].detach()
        return shifted(self.model, raw, t, -self.scale * shift)


@dataclass(frozen=True, repr=False)
class ClassifierGuidance:
    """model -> the model guided by a classifier, as ``ClassifierGuided``."""

    classifier: Classifier
    scale: float = 1.0
    conditional: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        more = ", conditional=True" if self.conditional else ""
        return f"ClassifierGuidance({type(self.classifier).__name__}, scale={self.scale}{more})"

    def __call__(self, model: ScoreModel) -> ClassifierGuided:
        """The guided model."""
        return ClassifierGuided(model, self.classifier, self.scale, self.conditional)


@dataclass(frozen=True, repr=False)
class EnergyGuidance:
    """model -> the model guided by an energy, as ``EnergyGuided``."""

    energy: Callable[..., Tensor]
    scale: float = 1.0
    of: Of = "data"

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        name = getattr(self.energy, "__name__", type(self.energy).__name__)
        return f"EnergyGuidance({name}, scale={self.scale}, of={self.of!r})"

    def __call__(self, model: ScoreModel) -> EnergyGuided:
        """The guided model."""
        return EnergyGuided(model, self.energy, self.scale, self.of)


@checked
def classifier_guided(
    sampler: Sampler, classifier: Classifier, scale: float = 1.0, conditional: bool = False
) -> Sampler:
    """Any sampler guided by a classifier (2105.05233); give ``sample`` the class as the condition.

    Args:
        sampler: what to guide.
        classifier: of noised states.
        scale: w.
        conditional: whether the model is given the class too.

    Raises:
        ValueError: when sampling, as for ``ClassifierGuided``.
    """
    return guided_by(sampler, ClassifierGuidance(classifier, scale, conditional))


@checked
def energy_guided(
    sampler: Sampler, energy: Callable[..., Tensor], scale: float = 1.0, of: Of = "data"
) -> Sampler:
    """Any sampler guided to low values of an energy.

    Args:
        sampler: what to guide.
        energy: energy(x0_hat), or energy(x_t, t) with ``of="state"``; returns shape (B,).
        scale: w.
        of: "data" or "state".

    Raises:
        ValueError: when sampling, as for ``EnergyGuided``.
    """
    return guided_by(sampler, EnergyGuidance(energy, scale, of))
