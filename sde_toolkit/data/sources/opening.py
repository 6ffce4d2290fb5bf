"""One door for every source: read, check, arrange, split, scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.circle import Circles
from sde_toolkit.data.dataset import Dataset, Flip, Training, moments_of
from sde_toolkit.data.missing import Missing, check_incomplete, check_missing, observed_moments
from sde_toolkit.data.rows import Rows
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.data.sources.folders import SUFFIXES, ImageOptions, read_picture
from sde_toolkit.data.sources.layout import arranged, numbers, stored_rows
from sde_toolkit.data.sources.named import (
    HUGGING_FACE,
    call_function,
    raw_from,
)
from sde_toolkit.data.sources.raw import Raw, chunks_of
from sde_toolkit.data.sources.reading import Reading, absolute_source, is_function, read_source
from sde_toolkit.data.sources.splitting import (
    Parts,
    beside,
    divided,
    is_share,
    joint_digest,
    read_held_out,
    share_of,
)
from sde_toolkit.data.support import Support
from sde_toolkit.utils import checked, integer

SCALINGS = ("auto", "common", "per_coordinate", "whiten", "none")
"""How continuous data can be scaled."""

MAX_HELD_OUT = 1 << 32
"""Most bytes of held-out examples."""


def absolute_places(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration with the places of data, "data.source", "data.held_out" and a file of
    "data.conditions", as they are found from any directory; a share of held-out examples stays one."""
    found = dict(fields)
    if str(found.get("data.conditions", "")).lower().endswith(".npy"):
        found["data.conditions"] = absolute_source(str(found["data.conditions"]))
    for name in ("data.source", "data.held_out"):
        place = found.get(name)
        if isinstance(place, (str, Path)) and str(place).strip() and not is_share(str(place)):
            found[name] = absolute_source(str(place))
    return found


@checked
def open_data(
    source: str | Path,
    *,
    layout: str = "auto",
    shape: Sequence[int] = (),
    levels: int = 0,
    key: str = "",
    labels: str = "",
    columns: str = "",
    images: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
    scaling: str = "auto",
    held_out: float | str | Path = 0.1,
    split_seed: int = 0,
    flip: Flip = "none",
    training: Training = "uniform",
    workers: int = 0,
    digest: str = "",
    bounds: str = "",
    missing: Missing = "raise",
    angles: str = "",
    conditions: str = "",
) -> Dataset:
    """A data set from a file, a folder, a named data set or a function.

    Args:
        source: a path (.npy, .npz, .csv, .parquet, or a folder of images), "hf:NAME", "hf:DIRECTORY", or
            "package.module:function", which is run.
        layout: how arrays are arranged, "ND", "NHW", "NCHW", "NHWC", or "auto", which refuses to guess.
        shape: of one example, where arrays hold it flattened.
        levels: number of grey levels; 0 for 256 with uint8 and for continuous numbers with floats.
        key: of the examples in an .npz file; their column in a Hugging Face data set.
        labels: key or column of the labels; "" for the usual names and the sub-folders of a folder, "none"
            for no labels.
        columns: of a table, with commas between; "" for all.
        images: how images in folders are read.
        scaling: of continuous data: one "common" scale, one "per_coordinate", "whiten" for
            vectors with covariance I, "none" for data in model scale;
            "auto" is per_coordinate for tables and common elsewhere.
        held_out: the share of the examples that is held out for tests, in (0, 1), or a source of its own.
        split_seed: which examples those are.
        flip: "horizontal" mirrors images at random in training.
        training: where in their bins the grey levels of training lie, see ``Dataset``.
        workers: processes that read batches ahead of their use, 0 for none.  It changes no batch.
        digest: what ``Dataset.digest`` is expected to be; "" for no check.
        bounds: between which values continuous data lie, as ``Support.of_text`` reads them: "0:1" for all
            coordinates, "0:,:,0:1" for three in turn, "age=0:,share=0:1" for columns of a table; "" for none.
        missing: "mask" takes nan in vectors, and empty cells of tables, for entries that are missing at
            random; "raise" refuses them.
        angles: columns of vectors that are angles, with their intervals, as ``Circles.of_text`` reads them:
            "direction=0:360"; "" for none.  In model scale each is a point of a plane.
        conditions: of the examples, that are no classes: columns of a table with commas between, the key of
            an array in an .npz file, or the path of an .npy file, (N, d) or (N, L, d); "" for none.

    Raises:
        ValueError: the source is missing or damaged, or does not fit the options; every sentence says what
            was found and what helps.
    """
    integer("split_seed", split_seed, 0)
    check_missing(missing)
    some = missing == "mask"
    name = absolute_source(str(source))
    if digest:
        _check_there(name)
    made = call_function(name) if is_function(name) else None
    if isinstance(made, Dataset):
        return _of_function(made, source, digest, workers)
    how = Reading(key, labels, columns, conditions, images, some)
    raw = raw_from(made, name) if made is not None else read_source(name, how)
    _check_conditions(conditions, raw, name, some)
    x, known = _examples(raw, layout, shape, levels, name, some)
    circles = _circles(angles, raw.columns, x, known, some)
    x, share = _on_planes(x, circles, 0), share_of(held_out)
    if share is None:
        other = read_held_out(str(held_out), how)
        held, _ = _examples(other, layout, shape, known or 0, str(held_out), some)
        parts = beside(x, raw, _on_planes(held, circles, 1), other)
        found = joint_digest(raw, other, held_out, name)
    else:
        parts, found = divided(x, raw, share, split_seed, name), raw.digest()
    _check_digest(source, digest, found)
    kind = ("per_coordinate" if raw.table else "common") if scaling == "auto" else scaling
    try:
        maps = _support(bounds, raw.columns, circles), circles
        made_set = _dataset(name, parts, known, kind, training, maps, some)
        return replace(
            made_set, digest=found, classes=raw.classes, columns=raw.columns, flip=flip, workers=workers,
            conditions_train=parts.conditions[0], conditions_test=parts.conditions[1],
        )  # fmt: skip
    except ValueError as error:  # of the data set itself, which does not know where it comes from
        raise ValueError(str(error) if name in str(error) else f"{name}: {error}") from None


def _of_function(made: Dataset, source: str | Path, digest: str, workers: int) -> Dataset:
    """A data set that a function has made, with the digest of what it holds."""
    arrays = (None if part is None else part.numpy() for part in (made.labels_train, made.conditions_train))
    labels, conditions = arrays
    found = Raw(made.train[:].numpy(), labels, conditions=conditions).digest()
    _check_digest(source, digest, found)
    return replace(made, digest=found, workers=workers or made.workers)


def _check_conditions(asked: str, raw: Raw, name: str, missing: bool) -> None:
    """Refuse conditions where there are none."""
    if asked and (missing or raw.conditions is None):
        got = "data.missing=mask" if missing else f"a function, {name}; let it return a Dataset with them"
        raise ValueError(f"data.conditions must be left out here, got {asked!r} for {got}")


def _check_there(name: str) -> None:
    """Refuse data of a run that are gone."""
    if not is_function(name) and not name.startswith(HUGGING_FACE) and not Path(name).exists():
        raise ValueError(
            f"the data of the run are missing: {name} does not exist; put them back there, or say where they "
            "are now with --data=PATH"
        )


def _check_digest(source: str | Path, expected: str, found: str) -> None:
    if expected not in ("", found):
        raise ValueError(
            f"the data in {source} must be those of the run (digest {expected[:12]}...), got others "
            f"({found[:12]}...); restore them, or start another run"
        )


def _examples(
    raw: Raw, layout: str, shape: Sequence[int], levels: int, name: str, missing: bool
) -> tuple[np.ndarray | Rows, int | None]:
    x: np.ndarray | Rows
    try:
        if isinstance(raw.examples, np.ndarray):
            x, known = numbers(arranged(raw.examples, layout, shape), levels, missing=missing)
        else:
            x, known = stored_rows(raw.examples, layout, shape, levels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if raw.labels is not None and len(raw.labels) != len(x):
        raise ValueError(f"{name} must have one label per example, got {len(raw.labels)} for {len(x)}")
    if raw.conditions is not None and len(raw.conditions) != len(x):
        raise ValueError(
            f"{name} must have one row of data.conditions per example, got {len(raw.conditions)} for {len(x)}"
        )
    return x, known


def _dataset(
    name: str,
    parts: Parts,
    levels: int | None,
    scaling: str,
    training: Training,
    maps: tuple[Support | None, Circles | None],
    missing: bool,
) -> Dataset:
    support, circles = maps
    if scaling not in SCALINGS:
        raise ValueError(f"data.scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}")
    if support is not None and (levels is not None or scaling == "none"):
        got = "grey levels" if levels is not None else "data.scaling=none"
        raise ValueError(
            f"data.bounds are those of continuous data that are scaled, got {got}; leave them out"
        )
    train, test = parts.train, _in_memory(parts.test, name)
    if missing and isinstance(train, Tensor):
        check_incomplete("training data", train, levels, all_columns=True)
    if levels is not None:
        law = Scaling.grey(levels)
    else:
        common = Scaling.identity() if scaling == "none" else _standard(train, scaling, name, support)
        test = common.to_model(test)
        train = common.to_model(train) if isinstance(train, Tensor) else train.scaled(common)
        law = common if circles is None else replace(common, circles=circles)
    at = training if levels else "uniform"
    return Dataset(name, train, test, law, *parts.labels, at, missing=missing)


def _in_memory(held: Tensor | Rows, name: str) -> Tensor:
    """The held-out examples, which are always read whole."""
    size = held.numel() * held.dtype.itemsize
    if size > MAX_HELD_OUT:
        raise ValueError(
            f"{name}: the held-out examples must fit into {MAX_HELD_OUT >> 30} GiB of memory, got "
            f"{size / 2**30:.1f} GiB; give a smaller share, as data.held_out={MAX_HELD_OUT / size / 20:.2g}"
        )
    return held[:]


def _standard(train: Tensor | Rows, scaling: str, name: str, support: Support | None) -> Scaling:
    if scaling == "whiten":
        return _white(train, name, support)
    if isinstance(train, Tensor) and bool(train.isnan().any()):
        if support is not None:
            _check_columns(support, tuple(train.shape[1:]))
        mean, variance = observed_moments(train if support is None else support.to_line(train))
    elif support is None:
        mean, variance = moments_of(train)
    else:
        _check_columns(support, tuple(train.shape[1:]))
        line = replace(Scaling.identity(), support=support)
        on_line = line.to_model(train, torch.float64) if isinstance(train, Tensor) else train.scaled(line)
        mean, variance = moments_of(on_line)
    if scaling == "common" and train.ndim == 4:  # one shift for all pixels, so that a mirror image is one
        mean, variance = mean.mean(), variance.mean() + mean.var(correction=0)
    try:
        return Scaling.standardizing(mean, variance, scaling == "per_coordinate", support)
    except ValueError:
        where = [str(k) for k in (variance.flatten() <= 0).nonzero().flatten()[:5].tolist()]
        raise ValueError(
            f"{name} must vary in every feature, got constant values in feature {', '.join(where)}; leave "
            "constant columns out, or take data.scaling=common"
        ) from None


def _white(train: Tensor | Rows, name: str, support: Support | None) -> Scaling:
    """The scaling that whitens vectors."""
    if train.ndim != 2 or not isinstance(train, Tensor) or bool(train.isnan().any()):
        raise ValueError(
            f"{name} must hold complete vectors in memory for data.scaling=whiten, got examples with shape "
            f"{tuple(train.shape[1:])}" + (" and missing entries" if train.ndim == 2 else "")
            + "; take data.scaling=per_coordinate"
        )  # fmt: skip
    if support is not None:
        _check_columns(support, tuple(train.shape[1:]))
    return Scaling.whitening(train, support)


def _check_columns(support: Support, event_shape: tuple[int, ...]) -> None:
    """Refuse ends that are not those of one event."""
    shape = tuple(support.ends[0].shape)
    if shape not in ((), event_shape):
        raise ValueError(f"data.bounds must be one pair of ends, or {event_shape} of them, got {shape}")


def _support(bounds: str, columns: Sequence[str], circles: Circles | None) -> Support | None:
    """The support that the option tells, without ends at the points of angles; None for none."""
    try:
        found = Support.of_text(bounds, columns) if bounds else None
    except ValueError as error:
        raise ValueError(f"data.bounds: {error}") from None
    if found is None or circles is None:
        return found
    low, high = found.ends
    if low.ndim == 0 or bool((low.isfinite() | high.isfinite())[list(circles.columns)].any()):
        raise ValueError(
            f"data.bounds must be those of columns that are no angles, each by itself, got {bounds!r}"
        )
    free = torch.full((len(circles.columns),), math.inf, dtype=torch.float64)
    return Support(torch.cat([low, -free]), torch.cat([high, free]))


def _circles(
    angles: str, columns: Sequence[str], x: np.ndarray | Rows, levels: int | None, missing: bool
) -> Circles | None:
    """The angles that the option tells; None for none."""
    if not angles:
        return None
    if x.ndim != 2 or levels is not None or missing or not isinstance(x, np.ndarray):
        got = f"examples with shape {tuple(x.shape[1:])}"
        got += " of grey levels" if levels is not None else " and missing entries" if missing else ""
        raise ValueError(f"data.angles must be columns of complete vectors in memory, got {got}")
    try:
        return Circles.of_text(angles, columns, x.shape[1])
    except ValueError as error:
        raise ValueError(f"data.angles: {error}") from None


def _on_planes(x: np.ndarray | Rows, circles: Circles | None, seed: int) -> np.ndarray | Rows:
    """The examples with their angles as points of planes."""
    return x if circles is None else circles.embed(torch.from_numpy(np.asarray(x)), seed).numpy()


@checked
def open_rows(source: str | Path, columns: str = "", missing: bool = False) -> tuple[Tensor, tuple[str, ...]]:
    """Examples as they lie in a source, without a scaling: what a trained model is asked about.

    Args:
        source: a path (.npy, .npz, .csv, .parquet, one picture or a folder of them), or "hf:NAME".
        columns: of a table, with commas between; "" for all.
        missing: whether nan, empty cells and nulls are missing entries.

    Returns:
        Examples with shape (N, D) or (N, C, H, W), and the names of their columns, () without.

    Raises:
        ValueError: the source is missing or damaged.
    """
    name = absolute_source(str(source))
    if Path(name).suffix.lower() in SUFFIXES and Path(name).is_file():
        return torch.from_numpy(read_picture(Path(name))), ()
    raw = read_source(name, Reading(labels="none", columns=columns, missing=missing))
    x = np.concatenate([part for _, part in chunks_of(raw.examples)])
    if x.dtype.kind not in "iufb":
        raise ValueError(f"{name} must hold numbers, got {x.dtype}")
    return torch.from_numpy(np.array(x[:, None] if x.ndim == 3 else x)), raw.columns
