"""The loss on examples that training does not see.

The loss of example i is the mean over ``repeats`` draws of its time and noise, keyed by (seed, draw, batch):
two models, or one model at two steps, are given the same draws, so that in the difference of their losses
the noise of the draws cancels to a large part.  Grey levels lie in their bins as in training.

Standard errors are over the examples; where the times of a batch are spread evenly, they are a little large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sde_toolkit.data import Dataset
from sde_toolkit.models import ModuleModel, ScoreModel, evaluating
from sde_toolkit.training.objective import Loss
from sde_toolkit.utils import Stream, checked, integer, returned, step_generator

MOST_LAM = 15.0
"""The largest half log-SNR, either way, at which a loss is measured."""


@dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """The loss of a model on held-out examples.

    Attributes:
        per_example: float64 with shape (M,).
    """

    per_example: Tensor = field(repr=False)

    @property
    def mean(self) -> float:
        """Over the examples."""
        return float(self.per_example.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean; nan for one example."""
        return float(self.per_example.std()) / len(self.per_example) ** 0.5

    def minus(self, other: HeldOutLoss) -> HeldOutLoss:
        """The difference, example by example."""
        return HeldOutLoss(self.per_example - other.per_example)


@checked
def held_out_loss(
    model: ModuleModel,
    dataset: Dataset,
    loss: Loss,
    seed: int = 0,
    repeats: int = 4,
    batch_size: int = 256,
    num_examples: int = 0,
) -> HeldOutLoss:
    """The loss of a model on the test examples of a data set.

    Args:
        model: in evaluation mode meanwhile.
        dataset: with labels where the model has classes.
        loss: such as ``DenoisingLoss()``, which is what was trained.
        seed: of the times and noises, and of the places in the bins of grey levels.
        repeats: draws of time and noise for each example.
        batch_size: examples computed at once; the draws depend on it.
        num_examples: the first so many; 0 for all.

    Raises:
        ValueError: a count out of range, or no labels for a model with classes.
    """
    for name, value in (("repeats", repeats), ("batch_size", batch_size)):
        integer(name, value, 1)
    count = integer("num_examples", num_examples, 0) or len(dataset.test)
    total = torch.zeros(len(dataset.test[:count]), dtype=torch.float64)
    with evaluating(model), torch.no_grad():
        for begin, x, condition in _batches(model, dataset, seed, batch_size, count):
            rest = () if condition is None else (condition,)
            for repeat in range(repeats):
                generator = step_generator(seed, begin * repeats + repeat, Stream.HELD_OUT)
                losses = returned("loss", loss(model, x, generator, *rest), "reshape")
                total[begin : begin + len(x)] += losses.reshape(-1).double().cpu() / repeats
    return HeldOutLoss(total)


def held_out_examples(dataset: Dataset, seed: int, count: int) -> Tensor:
    """The first test examples in model scale, with shape (M, *); grey levels lie as in training."""
    raw = dataset.test[:count]
    if dataset.levels is None:
        return raw
    if dataset.training == "centres":
        return dataset.scaling.dequantize(raw, torch.full((), 0.5), dataset.dtype)
    u = torch.rand(raw.shape, dtype=torch.float64, generator=step_generator(seed, 1, Stream.EXAMPLES))
    return dataset.scaling.dequantize(raw, u, dataset.dtype)


@dataclass(frozen=True)
class LevelLoss:
    """The error of the noise prediction, |z_hat - z|^2 / D, between two noise levels.

    Attributes:
        low, high: log-SNRs, log(alpha^2 / sigma^2), between which the times are uniform in log-SNR.
        mean, standard_error: over the examples; the mean of no information is 1.
    """

    low: float
    high: float
    mean: float
    standard_error: float


@checked
def loss_by_level(
    model: ScoreModel,
    dataset: Dataset,
    num_bins: int = 8,
    t_min: float = 1e-5,
    seed: int = 0,
    batch_size: int = 256,
    num_examples: int = 0,
) -> list[LevelLoss]:
    """The error of the noise on the test examples, by noise level: one draw for each example and bin.

    Of data with missing entries it is that on the complete test examples.

    Args:
        model: in evaluation mode meanwhile; an exact one gives the minimum.
        dataset: with labels where the model has classes.
        num_bins: equal parts of the log-SNRs from t_min to T.
        t_min: earliest time, in (0, T).
        seed, batch_size, num_examples: as for ``held_out_loss``.

    Raises:
        ValueError: a count or time out of range, or no labels for a model with classes.
    """
    for name, value in (("num_bins", num_bins), ("batch_size", batch_size)):
        integer(name, value, 1)
    if not 0 < t_min < model.sde.T:
        raise ValueError(f"t_min must be in (0, {model.sde.T}), got {t_min}")
    count = integer("num_examples", num_examples, 0) or len(dataset.test)
    ends = model.sde.lam(torch.tensor([model.sde.T, t_min], dtype=torch.float64)).clamp(-MOST_LAM, MOST_LAM)
    edges = torch.linspace(float(ends[0]), float(ends[1]), num_bins + 1, dtype=torch.float64)
    dataset = _complete(dataset)
    errors = torch.zeros(num_bins, len(dataset.test[:count]), dtype=torch.float64)
    with evaluating(model), torch.no_grad():
        for begin, x, condition in _batches(model, dataset, seed, batch_size, count):
            for k in range(num_bins):
                generator = step_generator(seed, begin * num_bins + k, Stream.HELD_OUT_LEVELS)
                u = torch.rand(len(x), dtype=torch.float64, generator=generator)
                lam = torch.lerp(edges[k], edges[k + 1], u)
                t = model.sde.inverse_nsr((-lam).exp()).clamp(t_min, model.sde.T).to(x.device)
                z = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
                error = (model.noise(model.sde.perturb(x, t, z), t, condition) - z).square().flatten(1)
                errors[k, begin : begin + len(x)] = error.mean(1).double().cpu()
    spread = errors.std(1) / errors.shape[1] ** 0.5
    return [
        LevelLoss(2 * float(edges[k]), 2 * float(edges[k + 1]), float(errors[k].mean()), float(spread[k]))
        for k in range(num_bins)
    ]


def _complete(dataset: Dataset) -> Dataset:
    """The data set with those test examples alone that miss no entry."""
    if not dataset.missing:
        return dataset
    whole = ~dataset.test.isnan().any(1)
    if not bool(whole.any()):
        raise ValueError(
            "losses by noise level need complete test examples, and all miss entries; hold out more, or give "
            "evaluate_bins = 0"
        )
    return replace(dataset, test=dataset.test[whole], labels_test=None)


def _batches(
    model: ScoreModel, dataset: Dataset, seed: int, batch_size: int, count: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """The first of the test examples in batches: the number of the first, the examples, their condition."""
    x0, labels = held_out_examples(dataset, seed, count), dataset.labels_test
    if model.num_classes and labels is None:
        raise ValueError("dataset must have labels_test for a model with classes, got none")
    rows = labels if model.num_classes else dataset.conditions_test
    if model.condition_shape is not None and not dataset.missing and rows is None:
        raise ValueError("dataset must have conditions_test for a model with condition_shape, got none")
    conditional = model.num_classes or (model.condition_shape is not None and not dataset.missing)
    for begin in range(0, len(x0), batch_size):
        x = x0[begin : begin + batch_size].to(model.device, model.dtype)
        given = rows[begin : begin + len(x)] if conditional and rows is not None else None
        yield begin, x, model.conditions(given, len(x))
