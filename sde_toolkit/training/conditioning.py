"""Conditions of a batch in training, of which a share is dropped, and the moments of classes.

    class k            label_dropout -> the null class K
    vector, tokens     label_dropout -> a row of nan, throughout

so that one network learns the law given a condition, and the law of all data, which classifier-free guidance
combines.  A row of nan is "no condition" to every network of the library (``networks.conditions``), to which
a call without a condition is one of such rows.  A network of yours says that it knows such rows by the
attribute ``condition_shape``; one that does not is trained with ``label_dropout`` 0.

Which rows are dropped is a function of (seed, step), and of the row's place in the batch.

Reference: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2207.12598), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sde_toolkit.data import Dataset
from sde_toolkit.models import MAX_FULL, ModuleModel, Moments, inner_network
from sde_toolkit.training.state import TrainState
from sde_toolkit.utils import Stream, step_generator


def class_moments(dataset: Dataset, num_classes: int) -> list[Moments]:
    """The moments of the training examples of every class, full where all of them together take no more room
    than those of ``MAX_FULL`` features, of low rank beyond.

    Raises:
        ValueError: no labels, labels outside 0 .. num_classes - 1, or a class without examples or spread.
    """
    labels = dataset.labels_train
    if labels is None or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        got = "none" if labels is None else f"{int(labels.min())} .. {int(labels.max())}"
        raise ValueError(f"labels_train must be among the classes 0 .. {num_classes - 1}, got {got}")
    found = []
    for label in range(num_classes):
        mine = dataset.train[labels == label]
        if len(mine) == 0:
            raise ValueError(f"every class needs training examples, got none of class {label}")
        of_class = replace(dataset, train=mine, labels_train=None)
        found.append(of_class.moments_within(MAX_FULL**2 // num_classes))
    return found


def batch_condition(
    state: TrainState, dataset: Dataset, batch_size: int, label_dropout: float
) -> Tensor | None:
    """The condition of the next update, with B rows, each "none" with probability label_dropout; None for a
    network without conditions."""
    model, at = state.model, (state.step, batch_size, state.seed)
    if dataset.missing or not (model.num_classes or model.condition_shape is not None):
        return None
    u = torch.rand(batch_size, generator=step_generator(state.seed, state.step, Stream.LABELS))
    dropped = u < label_dropout
    if model.num_classes:
        return torch.where(dropped, model.num_classes, dataset.batch_labels(*at))
    rows = dataset.batch_conditions(*at)
    return torch.where(dropped.reshape(-1, *(1,) * (rows.ndim - 1)), math.nan, rows)


def check_conditions(model: ModuleModel, dataset: Dataset, label_dropout: float) -> None:
    """Refuse, with a ValueError, data whose conditions are not those of the network, and "no condition" for a
    network that does not know it."""
    wanted = model.condition_shape
    if wanted is None or dataset.missing:
        return
    rows = dataset.conditions_train
    if rows is None or tuple(rows.shape[1:]) != wanted:
        got = "none" if rows is None else f"rows of shape {tuple(rows.shape[1:])}"
        raise ValueError(
            f"dataset must have conditions_train with rows of the model's condition_shape {wanted}, got "
            f"{got}; give fit (examples, conditions), or Dataset(..., conditions_train=...)"
        )
    if label_dropout and not getattr(inner_network(model.network), "condition_shape", None):
        raise ValueError(
            "label_dropout must be 0 for a network that does not say what a row of nan is, got "
            f"{label_dropout}; a network that takes such a row for no condition says so by an attribute "
            "condition_shape"
        )
