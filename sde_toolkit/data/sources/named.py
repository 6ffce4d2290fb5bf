"""Data by name: Hugging Face data sets ("hf:NAME", "hf:DIRECTORY") and functions ("package.module:function").

A function is called without arguments and returns examples, (examples, labels), a ``Dataset``, or a torch
data set whose items are examples or (example, label).  Naming one runs its module.  A torch data set that is
too large for memory is read item by item when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_toolkit.data.rows import generators_at
from sde_toolkit.data.sources.folders import ImageOptions, array_of_images
from sde_toolkit.data.sources.raw import MAX_IN_MEMORY, Raw, label_numbers
from sde_toolkit.utils import named_object

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
HUGGING_FACE = "hf:"

_IMAGE_COLUMNS = ("image", "img", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


def call_function(source: str) -> object:
    """What the function named "package.module:function" returns.

    Raises:
        ValueError: no such module or function, or it failed; the sentence holds its error.
    """
    function = named_object(source, "data source")
    if not callable(function):
        raise ValueError(f"data source {source!r} must be a function, got {type(function).__name__}")
    try:
        return function()
    except Exception as error:
        raise ValueError(f"data source {source!r} failed: {type(error).__name__}: {error}") from error


def raw_from(made: object, source: str) -> Raw:
    """Examples, or (examples, labels), as arrays; a torch data set is read item by item.

    Raises:
        ValueError: something else.
    """
    if isinstance(made, tuple) and len(made) == 2:
        numbers, classes = label_numbers(_array(made[1], source), f"labels of {source}")
        return Raw(_array(made[0], source), numbers, classes)
    if isinstance(made, torch.utils.data.Dataset) and hasattr(made, "__len__"):
        return _raw_from_items(made, source)
    return Raw(_array(made, source))


@dataclass(frozen=True, eq=False)
class Items:
    """The examples of a torch data set, read item by item when they are used.

    Args:
        dataset: map-style; its items are examples or (example, label).
        source: names it in errors.
        shape: (N, *).
        dtype: of the values.
    """

    dataset: torch.utils.data.Dataset
    source: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fixed = False

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The items of these indices, with shape (B, *)."""
        return np.stack([self.item(int(k))[0] for k in indices])

    def item(self, index: int) -> tuple[np.ndarray, object | None]:
        """One example of the right shape and type, and its label, None without labels."""
        example, label = _example(self.dataset[index], self.source)
        if example.shape != self.shape[1:] or example.dtype != self.dtype:
            raise ValueError(
                f"data source {self.source} must have items of one shape and type, got {self.shape[1:]} "
                f"{self.dtype} first and {example.shape} {example.dtype} at {index}"
            )
        return example, label


def _raw_from_items(dataset: Any, source: str) -> Raw:
    """A small data set in memory, a large one where it is."""
    if len(dataset) == 0:
        raise ValueError(f"data source {source} must return examples, got an empty data set")
    try:
        with generators_at(0, 0):
            first, _ = _example(dataset[0], source)
            items = Items(dataset, source, (len(dataset), *first.shape), first.dtype)
            small = first.nbytes * len(dataset) <= MAX_IN_MEMORY
            parts, labels = [], []
            for index in range(len(dataset)):
                example, label = items.item(index)
                parts += [example] if small else []
                labels.append(label)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"data source {source!r} failed: {type(error).__name__}: {error}") from error
    examples = np.stack(parts) if small else items
    if labels[0] is None:
        return Raw(examples)
    numbers, classes = label_numbers(np.array(labels), f"labels of {source}")
    return Raw(examples, numbers, classes)


def _example(item: Any, source: str) -> tuple[np.ndarray, object | None]:
    pair = isinstance(item, tuple | list) and len(item) == 2
    example, label = item if pair else (item, None)
    if isinstance(item, tuple | list) and len(item) == 1:  # of a TensorDataset without labels
        example = item[0]
    if isinstance(label, torch.Tensor):
        label = label.item() if label.numel() == 1 else label.numpy()
    return _array(example, source), label


def _array(made: object, source: str) -> np.ndarray:
    if isinstance(made, torch.Tensor):
        return made.detach().cpu().numpy()
    if isinstance(made, np.ndarray | np.generic | list) or hasattr(made, "__array_interface__"):
        return np.asarray(made)
    raise ValueError(
        f"data source {source} must return an array, (array, labels) or a data set, got {type(made).__name__}"
    )


def read_hugging_face(name: str, options: ImageOptions, key: str = "", labels: str = "") -> Raw:
    """A data set of the library ``datasets``: from a directory of ``save_to_disk``, else by its name.

    Args:
        name: a directory, or the name of a data set, with "NAME:SPLIT" for another split than "train".
        options: for images.
        key: column of the examples; the image column, else all columns of numbers, when "".
        labels: column of the labels; "" takes one of the usual names if there is one, "none" no labels.

    Raises:
        ValueError: ``datasets`` is missing, there is no such data set or column.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"data source hf:{name} needs the library datasets, which is missing; "
            "pip install 'sde-toolkit[hf]'"
        ) from None
    directory, _, split = name.partition(":")
    try:
        if Path(name).is_dir():
            table = datasets.load_from_disk(name)
        else:
            table = datasets.load_dataset(directory, split=split or "train")
    except Exception as error:
        raise ValueError(
            f"data source hf:{name} cannot be opened: {type(error).__name__}: {error}"
        ) from error
    if isinstance(table, datasets.DatasetDict):
        table = table["train" if "train" in table else next(iter(table))]
    return _from_columns(table, name, options, key, labels)


def _from_columns(table: Any, name: str, options: ImageOptions, key: str, labels: str) -> Raw:
    columns: Sequence[str] = table.column_names
    for field, column in (("data.key", key), ("data.labels", labels if labels != "none" else "")):
        if column and column not in columns:
            raise ValueError(f"{field} {column!r} is no column of hf:{name}; columns: {', '.join(columns)}")
    label = labels or next((c for c in _LABEL_COLUMNS if c in columns), "none")
    key = key or next((c for c in _IMAGE_COLUMNS if c in columns), "")
    names: tuple[str, ...] = ()
    if key:
        values, units = table[key], False
        examples = (
            array_of_images(values, options, f"hf:{name}") if _is_image(values[0]) else np.array(values)
        )
    else:
        names, units = tuple(str(c) for c in columns if c != label), True
        examples = np.stack([np.array(table[c]) for c in names], 1)
        if examples.dtype.kind not in "iufb":
            raise ValueError(f"hf:{name} must have columns of numbers, got {', '.join(names)}; give data.key")
        examples = examples.astype(np.float64)
    if label == "none":
        return Raw(examples, columns=names, table=units)
    numbers, classes = label_numbers(np.array(table[label]), f"column {label!r} of hf:{name}")
    return Raw(examples, numbers, classes, names, units)


def _is_image(value: object) -> bool:
    return hasattr(value, "convert") and hasattr(value, "size")
