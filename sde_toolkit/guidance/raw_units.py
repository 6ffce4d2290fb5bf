"""Observations in raw units as observations in model scale.

An instrument sees raw data w, the model knows x.  Where the map between them is affine,

    x = s W w + b,      w = w_0 + G x,      G = W^-1 s^-1,      w_0 = - G b

an observation y = A w + std z of raw data is one of x with the matrix A G, the values y - A w_0 and the same
noise.  Where s is one number and there is no W, all is multiplied by it,

    s y - s A w_0 = A x + s std z

so that A stays what it was: methods with a step length of their own see the map that their authors meant.

Grey levels v are taken at the centres of their bins, w = v + 1/2.

Where the map is not affine (a support, angles) a linear observation of w is not one of x.  Features that are
observed themselves are mapped one by one instead, without noise; an angle is observed as a point of its
plane, whose radius is drawn apart from it (``sde_toolkit.data.Circles``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.data import Scaling
from sde_toolkit.guidance.inverse.instruments import entries
from sde_toolkit.guidance.inverse.maps import EntriesMap, LinearMap, MaskMap, MatrixMap
from sde_toolkit.guidance.inverse.observations import LinearObservation
from sde_toolkit.models import DataScale
from sde_toolkit.utils import checked, shown


@checked
def in_model_scale(
    observation: LinearObservation, y: Any, scaling: DataScale | None
) -> tuple[LinearObservation, Tensor]:
    """An observation of raw data as one of data in model scale.

    Args:
        observation: of raw data.
        y: what was observed, with shape (n, *Y) or Y, in raw units.
        scaling: of the model; None where raw data are in model scale already.

    Returns:
        The observation, and its values with shape (n, *Y') in float64; one y is one row.

    Raises:
        ValueError: a scaling that is not affine and an observation that is no mask of features, or has noise;
            rows with masks of their own under a scaling that mixes features, or noise under one with several
            scales.
        TypeError: a scaling of another kind.
    """
    rows = observation.rows(y).double().cpu()
    if not len(rows):
        raise ValueError("y must have a row or more, got none")
    if scaling is None:
        return observation, rows
    if not isinstance(scaling, Scaling):
        raise TypeError(
            f"scaling must be a Scaling, whose map is known, got {shown(scaling)}; give the observation in "
            "model scale, and scaling=None"
        )
    if isinstance(observation.A, (MaskMap, EntriesMap)):
        return _of_features(observation, rows, scaling)
    if scaling.support is not None or scaling.circles is not None:
        kind = "angles" if scaling.circles is not None else "a support"
        raise ValueError(
            f"A must be a mask of features, or entries, where the data have {kind} and their scaling is not "
            f"affine, got {observation.A!r}"
        )
    return _of_sums(observation, rows, scaling)


def mixes_rows(observation: LinearObservation, scaling: DataScale | None) -> bool:
    """Whether rows with masks of their own must be taken mask by mask under this scaling."""
    if not isinstance(observation.A, EntriesMap) or not isinstance(scaling, Scaling):
        return False
    return scaling.matrix is not None or (float(observation.std) > 0 and scaling.scale.numel() > 1)


def _of_sums(
    observation: LinearObservation, rows: Tensor, scaling: Scaling
) -> tuple[LinearObservation, Tensor]:
    """An observation of sums of features."""
    A, shape = observation.A, observation.event_shape
    origin = _raw(torch.zeros(1, *shape, dtype=torch.float64), scaling)
    values = rows - A.place(A.forward(origin))
    if scaling.matrix is None and scaling.scale.numel() == 1:
        scale = float(scaling.scale)
        return LinearObservation(A, observation.std * scale), values * scale
    return LinearObservation(_turned(A, scaling), observation.std), values


def _turned(A: LinearMap, scaling: Scaling) -> MatrixMap:
    """A G, from model scale."""
    matrix = A.matrix()
    if scaling.matrix is not None:
        matrix = torch.linalg.solve(scaling.matrix, matrix, left=False)
    scale = scaling.scale.expand(A.event_shape).flatten()
    return MatrixMap(matrix / scale, A.event_shape, A.shape)


def _of_features(
    observation: LinearObservation, rows: Tensor, scaling: Scaling
) -> tuple[LinearObservation, Tensor]:
    """An observation of features themselves."""
    A, std = observation.A, observation.std
    curved = scaling.support is not None or scaling.circles is not None
    if curved and float(std.amax()) > 0:
        raise ValueError(
            "std must be 0 where the data have a support or angles, because Gaussian noise is not Gaussian "
            f"in model scale, got {float(std.amax()):.4g}"
        )
    if isinstance(A, MaskMap):
        held = A.backward(torch.ones(1, A.count)).bool()
        rows = torch.where(held, rows, math.nan)
    lined, held = _line(rows, scaling)
    if scaling.matrix is None:
        scale, shift = (part.expand(lined.shape[1:]) for part in (scaling.scale, scaling.shift))
        if isinstance(A, MaskMap):
            one = scaling.scale.numel() == 1 or (std.ndim == 0 and float(std) == 0)
            noise = std * (scaling.scale.flatten()[0] if one else scale)
            return LinearObservation(held[0], noise), lined * scale + shift
        if mixes_rows(observation, scaling):
            raise ValueError(_MASKS)
        entry = entries(tuple(lined.shape[1:]))
        return LinearObservation(entry, std * float(scaling.scale.flatten()[0])), lined * scale + shift
    if not isinstance(A, MaskMap):
        raise ValueError(_MASKS)
    mask = MaskMap(held[0])
    origin = _lined_origin(lined.shape[1:], scaling)
    picked = mask.pick(lined - origin)
    each = std if std.ndim == 0 else A.pick(std[None])[0]
    turned = _turned(MatrixMap(mask.matrix(), tuple(lined.shape[1:])), scaling)
    return LinearObservation(turned, each), picked


_MASKS = (
    "y must have one mask for all rows where the scaling mixes features, or has several scales and the "
    "observation noise, got rows with missing entries of their own; take them mask by mask, as impute does"
)


def _raw(x: Tensor, scaling: Scaling) -> Tensor:
    """Raw data of x, grey levels at the centres of their bins."""
    return scaling.from_model(x) - (0.5 if scaling.levels is not None else 0.0)


def _line(rows: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Raw features before the affine part of the scaling, nan where they are missing, and which are not."""
    held = ~rows.isnan()
    w = rows + (0.5 if scaling.levels is not None else 0.0)
    if scaling.circles is not None:
        at = list(scaling.circles.columns)
        w = scaling.circles.embed(w.nan_to_num(0.0))
        held = torch.cat([held, held[:, at]], 1)
        w = torch.where(held, w, math.nan)
    return w if scaling.support is None else scaling.support.to_line(w), held


def _lined_origin(shape: tuple[int, ...], scaling: Scaling) -> Tensor:
    """What the affine part of the scaling takes to 0, with shape (1, *D)."""
    assert scaling.matrix is not None
    back = (-scaling.shift / scaling.scale).expand(shape)
    return torch.linalg.solve(scaling.matrix, back)[None]
