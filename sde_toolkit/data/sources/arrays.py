"""Arrays in files: .npy, which is mapped into memory if it is large, and .npz with a key for each array.

Headers are read before the data: a file that claims more than it holds, or more than ``MAX_BYTES`` for an
array that must be unpacked, is refused before memory is taken.  Nothing is unpickled.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from sde_toolkit.data.rows import MappedArray
from sde_toolkit.data.sources.raw import MAX_IN_MEMORY, Raw, label_numbers

MAX_BYTES = 1 << 34
"""Most bytes of one array inside an .npz file; larger ones belong into .npy files."""

_LABEL_KEYS = ("labels", "label", "y", "targets", "target")


def read_npy(path: Path) -> np.ndarray | MappedArray:
    """The array of an .npy file; a large one is mapped into memory and read when it is used.

    Raises:
        ValueError: the file is damaged, or holds objects.
    """
    try:
        with open(path, "rb") as file:
            shape, _, dtype = _header(file)
            room = path.stat().st_size - file.tell()
        _check_type(dtype)
        if math.prod(shape) * dtype.itemsize > room:
            raise ValueError(f"its header promises shape {shape} of {dtype}, and {room} bytes follow")
        if 0 in shape:
            return np.zeros(shape, dtype)
        if shape and math.prod(shape) * dtype.itemsize > MAX_IN_MEMORY:
            return MappedArray(path)
        return np.load(path, allow_pickle=False)
    except Exception as error:  # numpy and zipfile raise whatever their parsers do
        raise ValueError(f"{path} must be an .npy file of numbers: {error}") from None


def read_npz(path: Path, key: str = "", labels: str = "", conditions: str = "") -> Raw:
    """The examples, labels and conditions of an .npz file.

    Args:
        path: of the file.
        key: of the examples; it may be left out where one array alone can be meant.
        labels: key of the labels; "" takes one of the usual names if there is one, "none" no labels.
        conditions: key of the conditions; "" for none.

    Raises:
        ValueError: the file is damaged, a key is missing or not given where several could be meant.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shapes: dict[str, Header] = {}
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as file:
                        shape, _, dtype = _header(file)
                    held = archive.getinfo(name).file_size
                    if math.prod(shape) * dtype.itemsize > held:
                        raise ValueError(f"{name} promises shape {shape} of {dtype} and holds {held} bytes")
                    shapes[name.removesuffix(".npy")] = shape, dtype
    except Exception as error:  # numpy and zipfile raise whatever their parsers do
        raise ValueError(f"{path} must be an .npz file of arrays: {error}") from None
    label_key = _label_key(path, labels, list(shapes))
    key = key or _only_candidate(path, shapes, (label_key, conditions))
    for field, name in (("key", key), ("conditions", conditions)):
        if name not in shapes and (name or field == "key"):
            raise ValueError(f"{path} has no array {name!r}; data.{field} may be one of {', '.join(shapes)}")
    examples = _load(path, key, shapes[key])
    rows = _load(path, conditions, shapes[conditions]) if conditions else None
    if label_key is None:
        return Raw(examples, conditions=rows)
    numbers, classes = label_numbers(_load(path, label_key, shapes[label_key]), f"{label_key!r} in {path}")
    return Raw(examples, numbers, classes, conditions=rows)


Header = tuple[tuple[int, ...], np.dtype]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the format is not known")


def _check_type(dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled; save plain numbers")


def _load(path: Path, key: str, header: Header) -> np.ndarray:
    shape, dtype = header
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise ValueError(
            f"{key!r} in {path} must have at most {MAX_BYTES >> 30} GiB, got {size / 2**30:.1f} GiB; save it "
            "as an .npy file, which is mapped into memory"
        )
    try:
        _check_type(dtype)
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[key])
    except Exception as error:
        raise ValueError(f"{key!r} in {path} cannot be read: {error}") from None


def _label_key(path: Path, labels: str, keys: list[str]) -> str | None:
    if labels == "none":
        return None
    if labels:
        if labels not in keys:
            raise ValueError(f"{path} has no array {labels!r}; data.labels may be one of {', '.join(keys)}")
        return labels
    return next((name for name in _LABEL_KEYS if name in keys and len(keys) > 1), None)


def _only_candidate(path: Path, shapes: dict[str, Header], others: tuple[str | None, ...]) -> str:
    rest = [name for name, (shape, _) in shapes.items() if name not in others and len(shape) >= 2]
    if len(rest) != 1:
        known = ", ".join(f"{name} {shape}" for name, (shape, _) in shapes.items()) or "none"
        raise ValueError(f"{path} must say which array holds the examples: give data.key; arrays: {known}")
    return rest[0]
