"""Data for training as a program holds them: arrays, torch data sets and loaders, in model scale already.

Floats stay as they are; integers become grey levels (256 of uint8, 2 of truth values).  No example is held
out.  Of a ``DataLoader`` the data set, the batch size and the number of workers are used; batch k is a
function of (seed, k), as everywhere, so that a resumed run is the run that was never stopped.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, default_collate

from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.examples import as_numbers
from sde_toolkit.data.rows import Rows
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.data.sources.layout import numbers, stored_rows
from sde_toolkit.data.sources.named import raw_from
from sde_toolkit.data.sources.raw import Raw
from sde_toolkit.utils import has_method, shown

TrainingData = Dataset | DataLoader | torch.utils.data.Dataset | Tensor | np.ndarray | tuple[object, object]
"""What training takes: also (examples, labels) and (examples, conditions)."""

_LAYOUTS = {2: "ND", 4: "NCHW"}


def training_data(given: TrainingData) -> Dataset:
    """The data set of what is given, all of it for training; a ``Dataset`` as it is.

    Args:
        given: a ``Dataset``; examples with shape (N, *) in model scale, (examples, labels), or (examples,
            conditions) with conditions of shape (N, d) or (N, L, d); a map-style torch data set whose items
            are examples or (example, label); or a ``DataLoader`` of one.

    Raises:
        TypeError: something else.
        ValueError: a loader with batches of its own making (a sampler, a collate function), a data set that
            can only be iterated over, or examples that are no finite numbers or levels.
    """
    if isinstance(given, Dataset):
        return given
    if isinstance(given, (Tensor, np.ndarray)) and (given.ndim < 2 or 0 in given.shape):
        raise ValueError(
            f"dataset must have shape (N, *), N >= 1 and one event dimension or more, got "
            f"{tuple(given.shape)}"
        )
    workers = 0
    if isinstance(given, DataLoader):
        if not isinstance(given.dataset, IterableDataset):
            _check_loader(given)
        workers, given = given.num_workers, given.dataset
    if isinstance(given, IterableDataset) or not has_method(given, "__len__"):
        raise ValueError(
            "dataset must be one whose examples have numbers, so that batch k is the same after any resume, "
            f"got {shown(given)}; give one with __getitem__ and __len__, or a file (open_data)"
        )
    if isinstance(given, tuple) and len(given) != 2:
        raise ValueError(f"dataset must be (examples, labels) where it is a tuple, got {len(given)} parts")
    name = f"dataset ({type(given).__name__})"
    conditions = None
    if isinstance(given, tuple) and getattr(given[1], "ndim", 1) > 1:
        conditions = as_numbers("conditions", cast(Tensor, given[1]))
        given = cast(Tensor, given[0])
    raw = raw_from(given, name)
    if len(raw.examples.shape) < 2:
        raise ValueError(
            f"{name} must hold examples of one dimension or more, got shape {raw.examples.shape}"
        )
    examples, levels = _examples(raw, name)
    labels = None if raw.labels is None else torch.from_numpy(raw.labels)
    scaling = Scaling.identity() if levels is None else Scaling.grey(levels)
    held = None if labels is None else labels[:1]
    kind = type(given).__name__
    return Dataset(
        kind, examples, examples[:1], scaling, labels, held, classes=raw.classes, workers=workers,
        conditions_train=conditions, conditions_test=None if conditions is None else conditions[:1],
    )  # fmt: skip


def batch_size_of(given: object, default: int) -> int:
    """The batch size of a loader, else the default."""
    if isinstance(given, DataLoader) and given.batch_size is not None:
        return given.batch_size
    return default


def _examples(raw: Raw, name: str) -> tuple[Tensor | Rows, int | None]:
    try:
        if isinstance(raw.examples, np.ndarray):
            found, levels = numbers(raw.examples)
            return torch.from_numpy(np.array(found)), levels
        return stored_rows(raw.examples, _LAYOUTS.get(len(raw.examples.shape), "auto"), (), 0)
    except ValueError as error:
        sentence = str(error).replace("data.levels", "Scaling.grey(levels) in from_array")
        raise ValueError(f"{name}: {sentence}") from None


def _check_loader(loader: DataLoader) -> None:
    """Refuse a loader whose batches are not those of its data set in random order."""
    usual = type(loader.sampler) in (RandomSampler, SequentialSampler)
    if not usual or getattr(loader.sampler, "replacement", False):
        raise ValueError(
            f"dataset must be a DataLoader without a sampler of its own, got {shown(loader.sampler)}; batch "
            "k is drawn from (seed, k), every example once per epoch: give the data set, repeated as needed"
        )
    if loader.batch_size is not None and loader.collate_fn is not default_collate:
        raise ValueError(
            "dataset must be a DataLoader without a collate function of its own; put what it does into the "
            "items of the data set"
        )
