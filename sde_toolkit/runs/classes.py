"""Conditions of models: classes, which the data know by their labels, and others from a user's file.

3                     a class
mine.py:conditions    an array or tensor with shape (K, *c), whose rows are conditions conditions[0], ...;
                      or a dict, name -> tensor with shape (*c,); or a function without arguments that
                      returns either
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data import Dataset
from sde_toolkit.lab import NamedCondition
from sde_toolkit.models import ScoreModel
from sde_toolkit.utils import named_object

MOST_CONDITIONS = 1000


def need_classes(model: ScoreModel) -> None:
    """Refuse a model without classes with a ValueError."""
    if model.num_classes == 0:
        raise ValueError(
            "a class needs a network with classes, got one without; train one with --config=digits_classes, "
            "or set --config.model.num_classes"
        )


def examples_of_class(dataset: Dataset, label: int | None) -> Dataset:
    """The data set with the examples of one class; all of them for None.

    Raises:
        ValueError: data without labels, or without examples of this class.
    """
    if label is None:
        return dataset
    if dataset.labels_train is None or dataset.labels_test is None:
        raise ValueError(f"label must be left out for data without labels, got {label} for {dataset.name!r}")
    train, test = dataset.labels_train == label, dataset.labels_test == label
    if not (train.any() and test.any()):
        known = sorted(set(dataset.labels_train.tolist()) & set(dataset.labels_test.tolist()))
        raise ValueError(f"label must be a class of the data {dataset.name!r}, one of {known}, got {label}")
    return replace(
        dataset,
        train=dataset.train[train],
        test=dataset.test[test],
        labels_train=dataset.labels_train[train],
        labels_test=dataset.labels_test[test],
    )


def condition_suffix(condition: int | NamedCondition | None) -> str:
    """What the name of a file says of the condition; nothing for None."""
    if isinstance(condition, NamedCondition):
        return f"-{re.sub(r'[^A-Za-z0-9.]+', '-', condition.name).strip('-')[:40]}-{condition.digest}"
    return "" if condition is None else f"-class{condition}"


def open_conditions(path: str) -> list[NamedCondition]:
    """The conditions that a path names, as the module's head says.

    Raises:
        ValueError: no such file, module or name; or what it names is neither an array nor a dict of arrays.
    """
    found: Any = named_object(path, "conditions")
    try:
        found = found() if callable(found) else found
    except Exception as error:  # whatever the function raises
        raise ValueError(f"conditions {path!r} failed: {type(error).__name__}: {error}") from error
    named = path.rpartition(":")[2] if ":" in path else path.rpartition(".")[2]
    if isinstance(found, Mapping):
        rows = {str(name): _tensor(path, value) for name, value in found.items()}
    else:
        table = _tensor(path, found)
        rows = {f"{named}[{k}]": row for k, row in enumerate(table if table.ndim else ())}
    if not 1 <= len(rows) <= MOST_CONDITIONS:
        raise ValueError(
            f"conditions {path!r} must be an array with shape (K, *c) or a dict of arrays, with 1 to "
            f"{MOST_CONDITIONS} conditions, got {len(rows)}"
        )
    shapes = {tuple(row.shape) for row in rows.values()}
    if len(shapes) > 1:
        raise ValueError(f"conditions {path!r} must have one shape, got {sorted(shapes)}")
    return [NamedCondition(name, row) for name, row in rows.items()]


def _tensor(path: str, value: object) -> Tensor:
    try:
        return torch.as_tensor(np.asarray(value) if isinstance(value, (list, tuple)) else value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"conditions {path!r} must be an array with shape (K, *c) or a dict of arrays, got "
            f"{type(value).__name__}"
        ) from None
