"""Scaling: the map between raw data and model scale, and its log-determinant.

    x = scale w + shift,      log p(w) = log p(x) + D log_det_per_dim,    log_det_per_dim = mean of log scale

for raw data w and model-scale data x with D dimensions.  Data that end somewhere are mapped onto the line
first (``support``), y(w) in the place of w, and then

    log p(w) = log p(x) + log_det(x),      log_det(x) = sum of log scale + log dy/dw over the dimensions

Vectors may be whitened: x = W (y(w) - m) with mean m and covariance S = U diag(l) U^T of y and

    W = U diag(max(l, f l_max))^{-1/2} U^T,      log |dx/dy| = -1/2 sum log max(l, f l_max),   f = WHITE_FLOOR

so that x has mean 0 and covariance I, but along axes whose variance is below the floor: those are stretched
as if they had the floor's, and stay thin.  W is symmetric: x_i is the white coordinate closest to y_i.

Grey levels are integers v in {0, ..., L - 1}.  Dequantisation adds a u in [0, 1) and maps the L bins onto
[-1, 1]:

    w = v + u,      x = 2 (v + u) / L - 1,      log |dx/dw| = log(2 / L) per dimension

By Jensen's inequality a density p of x then bounds the probability of the levels, in bits/dim:

    -1/D log2 P(v)  <=  -E_u[ log p(x) ] / (D log 2) - log2(2 / L)

Angles among the columns of vectors become points of planes first, with radii that are drawn (``circle``): raw
data have D features then and model scale D + K, and the densities of w are those of the D raw features.

Reference: Theis, van den Oord and Bethge, "A Note on the Evaluation of Generative Models" (1511.01844).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.circle import Circles
from sde_toolkit.data.support import Support
from sde_toolkit.models import MAX_FULL
from sde_toolkit.utils import check_fields, checked, integer, same_values

WHITE_FLOOR = 1e-6
"""The smallest variance that whitening divides by, in units of the largest."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """The map x = scale y(w) + shift from raw data to model scale; ``levels`` is None for continuous data.

    ``scale`` (positive) and ``shift`` are float64 tensors that broadcast against an event; y(w) is the map of
    the ``support`` onto the line, w itself without one.  With ``circles``, w is what they make of raw data.
    """

    scale: Tensor
    shift: Tensor
    levels: int | None = None
    support: Support | None = None
    matrix: Tensor | None = None
    circles: Circles | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("scale", "shift"):
            if not getattr(self, name).is_floating_point():
                raise ValueError(f"{name} must hold real numbers, got {getattr(self, name).dtype}")
        if not (torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"scale must be positive and finite, got {self.scale}; are the data constant?")
        if self.levels is not None and self.support is not None:
            raise ValueError(
                "support must be None for grey levels, whose bins end at 0 and the number of levels"
            )
        if self.levels is not None and self.circles is not None:
            raise ValueError("circles must be None for grey levels, which are no angles")
        if self.matrix is not None:
            self._check_matrix(self.matrix)

    def _check_matrix(self, matrix: Tensor) -> None:
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        if self.levels is not None or not square or matrix.dtype != torch.float64:
            raise ValueError(
                "matrix must be float64 with shape (D, D), for continuous vectors, got "
                f"{matrix.dtype} with shape {tuple(matrix.shape)}"
                + (" and grey levels" if self.levels else "")
            )
        if not (matrix.isfinite().all() and math.isfinite(float(torch.linalg.slogdet(matrix).logabsdet))):
            raise ValueError("matrix must be finite and invertible, got one that is not")

    def __repr__(self) -> str:
        if self.circles is not None:
            return f"Scaling(angles in columns {', '.join(map(str, self.circles.columns))})"
        if self.matrix is not None:
            return f"Scaling(x = W y + shift, {len(self.matrix)} features)"
        if self.levels is not None:
            return f"Scaling({self.levels} grey levels)"
        if self.support is not None:
            return f"Scaling({self.support!r})"
        if self.scale.numel() == self.shift.numel() == 1:
            return f"Scaling(x = {float(self.scale):.4g} w + {float(self.shift):.4g})"
        low, high = float(self.scale.min()), float(self.scale.max())
        return f"Scaling(x = scale w + shift, scale from {low:.4g} to {high:.4g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scaling) and same_values(vars(self), vars(other))

    def __hash__(self) -> int:
        return hash((tuple(self.scale.shape), self.levels))

    @staticmethod
    @checked
    def grey(levels: int) -> Scaling:
        """Return the scaling of integers 0, ..., levels - 1: x = 2 (v + u) / levels - 1, in [-1, 1)."""
        levels = integer("levels", levels, 2, 1 << 31)
        return Scaling(_float64(2.0 / levels), _float64(-1.0), levels)

    @staticmethod
    def identity() -> Scaling:
        """Return the scaling of continuous data that are in model scale already."""
        return Scaling(_float64(1.0), _float64(0.0))

    @staticmethod
    @checked
    def standard(w: Tensor, per_coordinate: bool = False, support: Support | None = None) -> Scaling:
        """Return the scaling that gives ``w`` with shape (N, *) mean 0 and rms standard deviation 1.

        One common scale keeps the shape of the cloud; ``per_coordinate`` gives every coordinate its own, for
        coordinates of different units.  With a ``support`` that is true of y(w).  Raises ValueError if a
        variance is 0, or values are outside the support.
        """
        w = w.to(torch.float64) if support is None else support.to_line(w)
        if w.ndim < 2 or not bool(torch.isfinite(w).all()):
            raise ValueError(f"w must be finite with shape (N, *), got {w.dtype} with shape {tuple(w.shape)}")
        variance = w.var(0, correction=0)
        if not bool((variance > 0).all() if per_coordinate else (variance > 0).any()):
            raise ValueError("w must vary: scale must be positive and finite, got constant data")
        return Scaling.standardizing(w.mean(0), variance, per_coordinate, support)

    @staticmethod
    def standardizing(
        mean: Tensor, variance: Tensor, per_coordinate: bool = False, support: Support | None = None
    ) -> Scaling:
        """Return ``standard`` from the mean and the variance of the data, or of y(w) where they have a
        ``support``, each shaped as an event."""
        mean, variance = mean.to(torch.float64), variance.to(torch.float64)
        scale = (variance if per_coordinate else variance.mean()).rsqrt()
        return Scaling(scale, -mean * scale, support=support)

    @staticmethod
    @checked
    def whitening(w: Tensor, support: Support | None = None) -> Scaling:
        """Return the scaling that gives ``w`` with shape (N, D), or y(w), mean 0 and covariance I.

        Raises:
            ValueError: values that are not finite or outside the support, more than ``MAX_FULL`` features, or
                data that do not vary.
        """
        w = w.to(torch.float64) if support is None else support.to_line(w)
        if w.ndim != 2 or not len(w) or not bool(torch.isfinite(w).all()):
            raise ValueError(f"w must be finite with shape (N, D), got {w.dtype} with shape {tuple(w.shape)}")
        apart = w - w.mean(0)
        return Scaling.whitened(w.mean(0), apart.mT @ apart / len(w), support)

    @staticmethod
    def whitened(mean: Tensor, covariance: Tensor, support: Support | None = None) -> Scaling:
        """Return ``whitening`` from the mean with shape (D,) and the covariance with shape (D, D)."""
        if len(mean) > MAX_FULL:
            raise ValueError(f"w must have at most {MAX_FULL} features to be whitened, got {len(mean)}")
        variances, axes = torch.linalg.eigh(covariance.to(torch.float64))
        if not float(variances[-1]) > 0:
            raise ValueError("w must vary: scale must be positive and finite, got constant data")
        root = variances.clamp(min=WHITE_FLOOR * float(variances[-1])).rsqrt()
        matrix = (axes * root) @ axes.mT
        return Scaling(_float64(1.0), -(matrix @ mean.to(torch.float64)), None, support, matrix)

    @property
    def log_det_per_dim(self) -> float:
        """log |dx/dw| averaged over the dimensions, in nats: log p(w) = log p(x) + D log_det_per_dim.

        Raises:
            ValueError: data with a support or angles, where it depends on the example.
        """
        if self.support is not None or self.circles is not None:
            raise ValueError(
                "log_det_per_dim depends on the example where data have a support or angles; use log_det(x)"
            )
        of_matrix = 0.0 if self.matrix is None else float(self._log_det_of_matrix) / len(self.matrix)
        return float(self.scale.log().mean()) + of_matrix

    @property
    def _log_det_of_matrix(self) -> Tensor:
        assert self.matrix is not None
        return torch.linalg.slogdet(self.matrix).logabsdet

    def _mixed(self, y: Tensor, back: bool = False) -> Tensor:
        """W y with shape (B, D), or W^{-1} y; y itself without a matrix."""
        if self.matrix is None:
            return y
        matrix = self.matrix.to(y.device)
        if y.shape[-1:] != matrix.shape[-1:]:
            raise ValueError(f"data must have shape (B, {len(matrix)}), got {tuple(y.shape)}")
        return torch.linalg.solve(matrix, y.mT).mT if back else y @ matrix.mT

    @checked
    def log_det(self, x: Tensor) -> Tensor:
        """log |dx/dw| with shape (B,), in nats and float64: log p(w) = log p(x) + log_det(x).

        Args:
            x: data in model scale with shape (B, *); of rows with missing entries (nan) it is that of the
                others.

        Raises:
            ValueError: x without a dimension of the examples.
        """
        if x.ndim < 2:
            raise ValueError(f"x must have shape (B, *), got {tuple(x.shape)}")
        scale, shift = self.scale.to(x.device), self.shift.to(x.device)
        found = scale.log().expand(x.shape)
        if self.support is not None:
            y = self._mixed((x.to(torch.float64) - shift) / scale, back=True)
            found = found + self.support.log_slope(y)
        if self.matrix is not None:
            found = found + self._log_det_of_matrix.to(x.device) / len(self.matrix)
        total = torch.where(x.isnan(), 0.0, found).flatten(1).sum(1)
        return total if self.circles is None else total + self.circles.log_det(self._to_planes(x.double()))

    @property
    def num_added(self) -> int:
        """Features of model scale that raw data do not have: one for every angle."""
        return 0 if self.circles is None else len(self.circles.columns)

    @checked
    def to_model(self, w: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return x = scale y(w) + shift with the shape of ``w``, computed in float64; of angles, with shape
        (N, D + K) and radii that are functions of the row.

        Raises:
            ValueError: values outside the support.
        """
        if self.circles is not None:
            w = self.circles.embed(w)
        y = w.to(torch.float64) if self.support is None else self.support.to_line(w)
        return (self._mixed(y) * self.scale.to(w.device) + self.shift.to(w.device)).to(dtype)

    @checked
    def from_model(self, x: Tensor) -> Tensor:
        """Return w with the shape and dtype of ``x``, y(w) = (x - shift) / scale, computed in float64; with
        shape (N, D) where there are angles."""
        planes = self._to_planes(x)
        return planes if self.circles is None else self.circles.angles(planes)

    def _to_planes(self, x: Tensor) -> Tensor:
        """Raw data, or what the circles make of them."""
        y = self._mixed((x.to(torch.float64) - self.shift.to(x.device)) / self.scale.to(x.device), back=True)
        if self.support is None:
            return y.to(x.dtype)
        return self.support.inside(self.support.from_line(y).to(x.dtype))

    @checked
    def dequantize(self, v: Tensor, u: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return x for the levels ``v`` and the noise ``u`` in [0, 1), both with shape (B, *)."""
        self._need_levels()
        try:
            torch.broadcast_shapes(v.shape, u.shape)
        except RuntimeError:
            got = f"{tuple(v.shape)} and {tuple(u.shape)}"
            raise ValueError(f"v and u must have one shape (B, *), got {got}") from None
        return self.to_model(v.to(torch.float64) + u, dtype)

    @checked
    def to_levels(self, x: Tensor) -> Tensor:
        """Return the bins that ``x`` with shape (B, *) falls in, clipped to 0, ..., levels - 1, int64."""
        levels = self._need_levels()
        return self.from_model(x.to(torch.float64)).floor().clamp(0, levels - 1).to(torch.int64)

    @checked
    def to_data(self, x: Tensor) -> Tensor:
        """Return ``x`` with shape (B, *) on the raw scale: int64 grey levels, or numbers in the type of x."""
        return self.from_model(x) if self.levels is None else self.to_levels(x)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: "scaling_scale", "scaling_shift", "scaling_levels" for grey levels, and
        "scaling_low" and "scaling_high" for a support, "scaling_matrix" for a matrix, "scaling_circle_..."
        for angles."""
        found = {"scaling_scale": self.scale, "scaling_shift": self.shift}
        if self.levels is not None:
            found["scaling_levels"] = torch.tensor(self.levels)
        if self.support is not None:
            low, high = self.support.ends
            found |= {"scaling_low": low.contiguous(), "scaling_high": high.contiguous()}
        if self.matrix is not None:
            found["scaling_matrix"] = self.matrix
        if self.circles is not None:
            found |= {f"scaling_circle_{name}": table for name, table in self.circles.tensors().items()}
        return found

    def _need_levels(self) -> int:
        if self.levels is None:
            raise ValueError(
                "scaling must have grey levels for this, got continuous data; use Scaling.grey(levels)"
            )
        return self.levels


def warn_if_levels(x: np.ndarray, mend: str) -> None:
    """Warn of images, x with shape (N, H, W) or (N, *), whose floats are whole numbers from 0 to 255.

    Args:
        x: floats.
        mend: what takes them as grey levels.
    """
    if x.ndim > 2 and x.max() > 2 and x.min() >= 0 and x.max() <= 255 and bool((x == np.rint(x)).all()):
        warnings.warn(
            f"data are whole numbers from {x.min():g} to {x.max():g} of type {x.dtype} and are taken as "
            f"continuous; {mend} takes them as grey levels",
            stacklevel=4,
        )


def scaling_from_tensors(tensors: Mapping[str, Tensor]) -> Scaling | None:
    """The scaling that ``Scaling.tensors`` gave; None where there is none.

    Raises:
        ValueError: a part is missing, of another type, or out of range.
    """
    scale, shift = tensors.get("scaling_scale"), tensors.get("scaling_shift")
    levels = tensors.get("scaling_levels")
    if scale is None and shift is None and levels is None:
        return None
    if scale is None or shift is None or {scale.dtype, shift.dtype} != {torch.float64}:
        raise ValueError("the scaling must have a float64 scale and shift, got another or none")
    if not bool(torch.isfinite(shift).all()):
        raise ValueError("the shift of the scaling must be finite, got nan or inf")
    low, high = tensors.get("scaling_low"), tensors.get("scaling_high")
    if (low is None) != (high is None):
        raise ValueError("the support of the scaling must have a low and a high end, got one")
    support = None if low is None or high is None else Support(low, high)
    if levels is None:
        prefix = "scaling_circle_"
        of_circles = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        circles = Circles.from_tensors(of_circles) if of_circles else None
        return Scaling(scale, shift, None, support, tensors.get("scaling_matrix"), circles)
    if levels.dtype != torch.int64 or levels.ndim != 0:
        raise ValueError("the levels of the scaling must be one int64 number, got another")
    return Scaling(scale, shift, integer("levels", int(levels), 2))


def _float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
