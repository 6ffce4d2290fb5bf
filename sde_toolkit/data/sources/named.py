"""Data by name: Hugging Face data sets ("hf:NAME", "hf:DIRECTORY") and functions ("package.module:function").

A function is called without arguments and returns examples, (examples, labels), a ``Dataset``, or a torch
data set whose items are examples or (example, label).  Naming one runs its module.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_toolkit.data.sources.folders import ImageOptions, array_of_images
from sde_toolkit.data.sources.raw import Raw, label_numbers

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
HUGGING_FACE = "hf:"

_IMAGE_COLUMNS = ("image", "img", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


def call_function(source: str) -> object:
    """What the function named "package.module:function" returns.

    Raises:
        ValueError: no such module or function, or it failed; the sentence holds its error.
    """
    module, _, name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"data source {source!r} cannot be imported: {error}") from error
    except AttributeError:
        raise ValueError(f"data source {source!r}: module {module} has no function {name}") from None
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
        items: list[Any] = [made[i] for i in range(len(made))]
        if items and isinstance(items[0], tuple | list) and len(items[0]) == 2:
            labels, classes = label_numbers(np.array([item[1] for item in items]), f"labels of {source}")
            return Raw(np.stack([_array(item[0], source) for item in items]), labels, classes)
        return Raw(np.stack([_array(item, source) for item in items]))
    return Raw(_array(made, source))


def _array(made: object, source: str) -> np.ndarray:
    if isinstance(made, torch.Tensor):
        return made.detach().cpu().numpy()
    if isinstance(made, np.ndarray | np.generic | list):
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
