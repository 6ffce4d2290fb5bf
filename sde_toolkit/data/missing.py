"""Vectors with missing entries: nan stands for what was not observed, and is the mask.

Examples (N, D) keep their nan through scaling and batches, so that the mask is part of every batch.  Scales
are those of the observed entries of every column; moments are those of the likeliest Gaussian (EM,
``sde_toolkit.models.gaussian_moments``), which serves for entries that are missing at random: whether one is
missing may depend on what was observed in its row.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Missing = Literal["raise", "mask"]
"""What is done with nan among the data: refuse them, or take them as entries that are missing."""

MISSING: tuple[str, ...] = get_args(Missing)
"""The values of ``Missing``."""

MOST_COLUMNS = 256
"""Most columns of data with missing entries."""

_NAMED = 5


def check_missing(missing: str) -> None:
    """Refuse, with a ValueError, another word than those of ``Missing``."""
    if missing not in MISSING:
        raise ValueError(f"missing must be one of {', '.join(MISSING)}, got {missing!r}")


def check_incomplete(name: str, x: Tensor, levels: int | None, all_columns: bool) -> None:
    """Refuse, with a ValueError, examples that nothing can be learnt from in part.

    Args:
        name: of the examples.
        x: with shape (N, D), nan where an entry is missing.
        levels: number of grey levels, None for continuous data.
        all_columns: whether every column must have been observed somewhere.
    """
    if levels is not None or x.ndim != 2 or not x.is_floating_point():
        got = "grey levels" if levels is not None else f"{x.dtype} with shape {tuple(x.shape)}"
        raise ValueError(
            f"{name} may have missing entries where it holds continuous vectors (N, D), got {got}"
        )
    if x.shape[1] > MOST_COLUMNS:
        raise ValueError(
            f"{name} may have missing entries in at most {MOST_COLUMNS} columns, got {x.shape[1]}; leave "
            "columns out"
        )
    if bool(x.isinf().any()):
        raise ValueError(
            f"{name} must be finite or nan (missing), got {int(x.isinf().sum())} infinite values"
        )
    missing = x.isnan()
    rows, columns = (missing.all(k).nonzero().flatten().tolist() for k in (1, 0))
    if rows:
        raise ValueError(
            f"{name} must have an observed entry in every row, got {len(rows)} rows without, the first "
            f"{', '.join(map(str, rows[:_NAMED]))}; leave them out"
        )
    if columns and all_columns:
        raise ValueError(
            f"{name} must have an observed entry in every column, got none in column "
            f"{', '.join(map(str, columns[:_NAMED]))}; leave the column out"
        )


def observed_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the observed entries of every column, for x with shape (N, D), in float64."""
    x = x.double()
    mean = x.nanmean(0)
    return mean, (x - mean).square().nanmean(0)


def varying(name: str, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The moments as they are; raises ValueError for columns that do not vary."""
    constant = (variance <= 0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"{name} must vary in every column among the observed entries to train on, got constant values "
            f"in column {', '.join(map(str, constant[:_NAMED]))}; leave it out, or give a scaling"
        )
    return mean, variance
