"""Reading one source by its kind, with the labels and the conditions of its examples.

Conditions that are no classes are rows of real numbers, (N, d), or tokens, (N, L, d).  They are given to
networks as they are, so they should be of order one; a warning names those that are not.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sde_toolkit.data.sources.arrays import read_npy, read_npz
from sde_toolkit.data.sources.folders import ImageOptions, read_folder
from sde_toolkit.data.sources.named import FUNCTION, HUGGING_FACE, read_hugging_face
from sde_toolkit.data.sources.raw import Raw
from sde_toolkit.data.sources.tables import read_csv, read_parquet

KINDS = ".npy, .npz, .csv, .parquet, a folder of images, hf:NAME, or package.module:function"

_LARGEST = 10.0
"""Root mean square of a condition's feature that is said to be too large for a network."""


def is_function(source: str) -> bool:
    """Whether the source names a function, which opening it runs."""
    return FUNCTION.fullmatch(source) is not None


def absolute_source(source: str) -> str:
    """The source as it is found from any directory: paths made absolute, "~" expanded.

    Raises:
        ValueError: no name and no path that could exist.
    """
    if is_function(source):
        return source
    if not source.strip():
        raise ValueError(f"data source must not be empty, got {source!r}; it may be {KINDS}")
    prefix = HUGGING_FACE if source.startswith(HUGGING_FACE) else ""
    try:
        path = Path(source.removeprefix(prefix)).expanduser().resolve()
        known = path.exists()
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"data source {source!r} must be a path or a name: {error}") from None
    return source if prefix and not known else prefix + str(path)


class Reading(NamedTuple):
    """What of a source is read, and how: fields of ``open_data``.

    Attributes:
        key, labels, columns, conditions: of the source.
        images: how images in folders are read.
        missing: whether cells of tables may be empty.
    """

    key: str = ""
    labels: str = ""
    columns: str = ""
    conditions: str = ""
    images: ImageOptions = ImageOptions()
    missing: bool = False


def read_source(name: str, how: Reading) -> Raw:
    """What a file, a folder or a named data set holds, with the conditions that are asked for.

    Raises:
        ValueError: the source, a key, a column or a file of conditions is missing or damaged; conditions that
            are not real numbers with shape (N, d) or (N, L, d).
    """
    path = Path(name)
    inside = path.suffix.lower() in (".npz", *_TABLES) and not how.conditions.endswith(".npy")
    raw = _read(name, path, how if inside else how._replace(conditions=""))
    if how.conditions and not inside:
        raw = replace(raw, conditions=_array_beside(how.conditions))
    if raw.conditions is None:
        return raw
    return replace(raw, conditions=_checked(raw.conditions, how.conditions))


_TABLES = {
    ".csv": read_csv, ".tsv": read_csv, ".txt": read_csv, ".parquet": read_parquet, ".pq": read_parquet
}  # fmt: skip


def _read(name: str, path: Path, how: Reading) -> Raw:
    if name.startswith(HUGGING_FACE):
        return read_hugging_face(name.removeprefix(HUGGING_FACE), how.images, how.key, how.labels)
    if path.is_dir():
        return read_folder(path, how.images, how.labels)
    if not path.is_file():
        raise ValueError(f"data source {name} does not exist; it may be {KINDS}")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return Raw(read_npy(path))
    if suffix == ".npz":
        return read_npz(path, how.key, how.labels, how.conditions)
    if suffix in _TABLES:
        return _TABLES[suffix](path, how.columns, how.labels, how.missing, how.conditions)
    raise ValueError(f"data source {name} has an unknown ending {suffix!r}; it may be {KINDS}")


def _array_beside(place: str) -> np.ndarray:
    """The array of an .npy file, in memory."""
    path = Path(place).expanduser()
    if path.suffix.lower() != ".npy" or not path.is_file():
        raise ValueError(
            "data.conditions must be the path of an .npy file with a row for each example, a key of an .npz "
            f"source or columns of a table, got {place!r}"
            + ("" if path.suffix.lower() != ".npy" else ", which does not exist")
        )
    found = read_npy(path)
    return found if isinstance(found, np.ndarray) else found.rows(np.arange(found.shape[0]))


def _checked(rows: np.ndarray, where: str) -> np.ndarray:
    """The conditions in float32."""
    if rows.ndim not in (2, 3) or rows.dtype.kind not in "iufb" or 0 in rows.shape:
        raise ValueError(
            f"data.conditions must be real numbers with shape (N, d) or (N, L, d), got {rows.dtype} with "
            f"shape {rows.shape} in {where!r}"
        )
    with np.errstate(over="ignore"):
        made = rows.astype(np.float32)
    bad = ~(np.isfinite(made) | np.isnan(made).all(-1, keepdims=True))
    if bad.any():
        at = tuple(int(k) for k in np.argwhere(bad)[0])
        raise ValueError(
            "data.conditions must be finite in float32, or nan throughout a row or token for none, got "
            f"{rows[at]} at index {at} of {where!r}; repair it, or make the whole row nan"
        )
    flat = np.nan_to_num(made.reshape(-1, made.shape[-1]).astype(np.float64), nan=0.0)
    sizes = np.sqrt((flat**2).mean(0))
    if bool((sizes > _LARGEST).any()):
        k = int(sizes.argmax())
        warnings.warn(
            f"data.conditions should be of order one, since networks take them as they are; feature {k} has "
            f"the root mean square {sizes[k]:.3g}: standardise it",
            stacklevel=3,
        )
    return made
