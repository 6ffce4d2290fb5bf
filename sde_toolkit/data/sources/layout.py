"""From arrays as they lie in files to examples (N, D) or (N, C, H, W), and to numbers or grey levels.

    ND      vectors            NCHW, NHWC     images with channels first or last            NHW    grey images

A layout is guessed only where one alone is possible: two dimensions are vectors; four are images if one of
the two places for channels holds 1 to 4 and the other does not; three are grey images if they hold integers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sde_toolkit.data.rows import Rows, Stored
from sde_toolkit.data.scaling import warn_if_levels
from sde_toolkit.data.sources.raw import chunks_of

LAYOUTS = ("auto", "ND", "NHW", "NCHW", "NHWC")
"""Orders of the dimensions of an array; "auto" where one alone is possible."""

_DIMENSIONS = {"ND": 2, "NHW": 3, "NCHW": 4, "NHWC": 4}
MAX_CHANNELS = 4
"""Most channels that a layout is guessed by."""

MAX_LEVELS = 1 << 16
"""Most grey levels."""


def arranged(x: np.ndarray, layout: str = "auto", shape: Sequence[int] = ()) -> np.ndarray:
    """The examples with shape (N, D) or (N, C, H, W).

    Args:
        x: with shape (N, *).
        layout: one of ``LAYOUTS``.
        shape: of one example, where x has it flattened or otherwise shaped; () for that of x.

    Raises:
        ValueError: a layout that does not fit, or that would have to be guessed.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"data.layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if x.ndim < 1 or x.size == 0:
        raise ValueError(f"data must have shape (N, *) with N >= 1, got {x.shape}")
    if shape:
        if min(shape) < 1 or math.prod(shape) != math.prod(x.shape[1:]):
            raise ValueError(
                f"data.shape {tuple(shape)} must have {math.prod(x.shape[1:])} elements, those of one example"
            )
        x = x.reshape(len(x), *shape)
    layout = guessed(x.shape, x.dtype) if layout == "auto" else layout
    if x.ndim != _DIMENSIONS[layout]:
        raise ValueError(f"data.layout {layout} needs {_DIMENSIONS[layout]} dimensions, got shape {x.shape}")
    if layout == "NHW":
        return x[:, None]
    return np.moveaxis(x, 3, 1) if layout == "NHWC" else x


def guessed(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """The layout of an array of this shape and type, where it is certain.

    Raises:
        ValueError: several are possible.
    """
    if len(shape) == 2:
        return "ND"
    if len(shape) == 3 and dtype.kind in "iub":
        return "NHW"
    if len(shape) == 4:
        first, last = (shape[k] <= MAX_CHANNELS for k in (1, 3))
        if first != last:
            return "NCHW" if first else "NHWC"
    advice = "data.shape gives one example its shape, as in 1,28,28"
    if len(shape) == 1:
        raise ValueError(f"data must have shape (N, *), got {shape}; save scalars with shape (N, 1)")
    raise ValueError(
        f"data with shape {shape} may be several things: give data.layout, one of "
        f"{', '.join(LAYOUTS[1:])}; {advice}"
    )


def stored_rows(x: Stored, layout: str, shape: Sequence[int], levels: int) -> tuple[Rows, int | None]:
    """The examples of a store, checked part by part and left there; arguments and errors as in ``arranged``
    and ``numbers``."""
    whole = (x.shape[0], *shape) if shape else x.shape
    layout = guessed(whole, x.dtype) if layout == "auto" else layout
    event, found, known = (), np.empty(0), None
    with warnings.catch_warnings():
        for first, part in chunks_of(x):
            found, known = numbers(arranged(part, layout, shape), levels, first)
            event = found.shape[1:]
            warnings.simplefilter("ignore")  # the first part has warned
    dtype = torch.from_numpy(found[:0].copy()).dtype
    arrange = Arrangement(layout, tuple(shape), found.dtype)
    return Rows(x, arrange, event, dtype, np.arange(x.shape[0])), known


@dataclass(frozen=True)
class Arrangement:
    """From rows as they lie in a store to examples of one layout and type."""

    layout: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The examples with shape (B, D) or (B, C, H, W)."""
        if len(x) == 0:  # has a shape all the same
            return self(np.zeros((1, *x.shape[1:]), x.dtype))[:0]
        return arranged(x, self.layout, self.shape).astype(self.dtype, copy=False)


def numbers(
    x: np.ndarray, levels: int = 0, first: int = 0, missing: bool = False
) -> tuple[np.ndarray, int | None]:
    """The examples as float32 or float64 numbers, or as integer grey levels, and how many levels there are.

    Args:
        x: any numbers.
        levels: L, for integers 0, ..., L - 1; 0 takes 256 for uint8, 2 for truth values, and none for floats.
        first: the number of the first example in x, for errors.
        missing: whether nan stands for missing entries.

    Raises:
        ValueError: objects, text or complex numbers; values that are not finite or no levels; integers
            without a number of levels.
    """
    kind = x.dtype.kind
    if kind not in "iufb":
        raise ValueError(f"data must be numbers, got type {x.dtype}")
    if levels < 0 or levels == 1 or levels > MAX_LEVELS:
        raise ValueError(f"data.levels must be 0 or lie in 2 to {MAX_LEVELS}, got {levels}")
    if kind == "f":
        return _floats(x, first, missing) if levels == 0 else (_as_levels(x, levels), levels)
    if levels == 0 and kind != "b" and x.dtype != np.uint8:
        low, high = int(x.min()), int(x.max())
        raise ValueError(
            f"integers of type {x.dtype} need data.levels, the number of grey levels; values run from "
            f"{low} to {high}" + (f" (data.levels={high + 1})" if 0 <= low <= high < MAX_LEVELS else "")
            + "; save them as floats if they are no levels"
        )  # fmt: skip
    levels = levels or (2 if kind == "b" else 256)
    return _as_levels(x, levels), levels


def _floats(x: np.ndarray, offset: int, missing: bool) -> tuple[np.ndarray, None]:
    wrong = np.isinf(x) if missing else ~np.isfinite(x)
    if wrong.any():
        row, *rest = (int(k) for k in np.argwhere(wrong)[0])
        first = (offset + row, *rest)
        raise ValueError(
            f"data must be finite, got {int(wrong.sum())} nan or inf, the first at index {first}"
            + ("" if missing else "; data.missing=mask takes nan in vectors for missing entries")
        )
    warn_if_levels(x, "data.levels=256")
    return (x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)), None


def _as_levels(x: np.ndarray, levels: int) -> np.ndarray:
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high < levels) or (x.dtype.kind == "f" and not (x == np.rint(x)).all()):
        raise ValueError(
            f"grey levels must be whole numbers 0, ..., {levels - 1}, got values from {low:g} to {high:g}"
            + (", fractions among them" if low >= 0 and high < levels else "")
        )
    return x.astype(np.uint8 if levels <= 256 else np.int32, copy=False)
