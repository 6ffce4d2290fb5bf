"""The loss on examples that training does not see.

The loss of example i is the mean over ``repeats`` draws of its time and noise, keyed by (seed, draw, batch):
two models, or one model at two steps, are given the same draws, so that in the difference of their losses
the noise of the draws cancels to a large part.  Grey levels lie in their bins as in training.

Standard errors are over the examples; where the times of a batch are spread evenly, they are a little large.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_toolkit.data import Dataset
from sde_toolkit.models import ModuleModel, evaluating
from sde_toolkit.training.objective import Loss
from sde_toolkit.utils import Stream, checked, integer, returned, step_generator


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
    x0, labels = test_examples(dataset, seed)[:count], dataset.labels_test
    if model.num_classes and labels is None:
        raise ValueError("dataset must have labels_test for a model with classes, got none")
    starts = range(0, len(x0), batch_size)
    total = torch.zeros(len(x0), dtype=torch.float64)
    with evaluating(model), torch.no_grad():
        for number in range(repeats * len(starts)):
            begin = starts[number % len(starts)]
            x = x0[begin : begin + batch_size].to(model.device, model.dtype)
            given = labels[begin : begin + len(x)] if model.num_classes and labels is not None else None
            condition = model.conditions(given, len(x))
            rest = () if condition is None else (condition,)
            generator = step_generator(seed, number, Stream.HELD_OUT)
            losses = returned("loss", loss(model, x, generator, *rest), "reshape")
            total[begin : begin + len(x)] += losses.reshape(-1).double().cpu() / repeats
    return HeldOutLoss(total)


def test_examples(dataset: Dataset, seed: int) -> Tensor:
    """The test examples in model scale, with shape (M, *), with grey levels in their bins as in training."""
    if dataset.levels is not None and dataset.training == "centres":
        return dataset.scaling.dequantize(dataset.test, torch.full((), 0.5), dataset.dtype)
    return dataset.scaled_test(seed)
