"""Covariances of low rank: beside a multiple of the identity, with rotations to their axes in O(n r), and
beside a variance of each feature's own.

    S = V diag(l) V^T + s^2 (I - V V^T),        V with shape (n, r), V^T V = I

is the covariance of n features whose r widest axes are known one by one and whose others share one variance.
Any rotation U whose first columns are V (up to signs) diagonalises it.  r Householder reflections make such a
rotation, since the QR decomposition of V is one.  Multiplied out they are, with the reflections' vectors in
the columns of W and their factors tau (2 / w^T w),

    U = H_1 ... H_r = I - W T W^T,              T^{-1} = triu(W^T W, 1) + diag(1 / tau)

so a state goes to the axes and back with 2 n r multiplications each, all n coordinates included.  U is
orthogonal to rounding, whatever the rounding of V.

A function of S needs no rotation: with V now the first r columns of U, orthonormal to rounding,

    f(S) x = f(s^2) x + V (f(l) - f(s^2)) V^T x

takes n r multiplications there and n r back, half of those of U f U^T.

With a variance of each feature's own (factor analysis)

    S = F F^T + diag(d),        F with shape (n, r), d >= 0 with shape (n,)

takes as little room in a file, and keeps what features do that never vary, or vary alone.  Nothing rotates it
in O(n r): it is multiplied out when it is used.  The values are rounded to float32, so that a file that holds
them so gives the same matrix.

References: Tipping and Bishop, "Probabilistic Principal Component Analysis" (1999) for the first covariance;
Rubin and Thayer, "EM Algorithms for ML Factor Analysis" (1982) for the second one;
Schreiber and Van Loan, "A Storage-Efficient WY Representation for Products of Householder Transformations"
(1989).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models.products import ROW_BLOCK
from sde_toolkit.utils import checked, host_tensor, same_values

MAX_RANK = 256
"""Most axes that are told apart beyond the sizes where a covariance is kept in full."""

EXPLAINED = 0.99
"""Share of the variance that the axes which are told apart need not exceed."""

_ORTHONORMAL = 1e-4
"""Largest error of V^T V that is taken for rounding."""


class LowRank:
    """V diag(l) V^T + s^2 (I - V V^T), in float64 on the host.

    Args:
        axes: V with orthonormal columns, with shape (n, r), 1 <= r <= n.
        variances: l >= 0 with shape (r,).
        rest: s^2 >= 0, the variance along every other axis.

    Raises:
        ValueError: shapes that do not fit, values that are not finite or negative, or axes that are not
            orthonormal.
    """

    NAMES = ("axes", "variances", "rest")

    @checked
    @torch.inference_mode(False)
    def __init__(self, axes: Any, variances: Any, rest: Any) -> None:
        values = (host_tensor(name, x) for name, x in zip(self.NAMES, (axes, variances, rest), strict=True))
        self.axes, self.variances, self.rest = (x.clone() if x.is_inference() else x for x in values)
        if self.axes.ndim != 2 or not 1 <= self.axes.shape[1] <= self.axes.shape[0]:
            raise ValueError(
                f"axes must have shape (n, r) with 1 <= r <= n, got shape {tuple(self.axes.shape)}"
            )
        if self.variances.shape != self.axes.shape[1:] or self.rest.ndim:
            raise ValueError(
                f"variances must have shape ({self.rank},), one for every column of axes, and rest be a "
                f"number, got shapes {tuple(self.variances.shape)} and {tuple(self.rest.shape)}"
            )
        if not all(bool(x.isfinite().all()) for x in (self.axes, self.variances, self.rest)):
            raise ValueError("axes, variances and rest must be finite, got nan or inf; clean the data")
        if float(self.variances.amin()) < 0 or float(self.rest) < 0:
            raise ValueError(
                f"variances and rest must be at least 0, got {float(self.variances.amin()):.6g} and "
                f"{float(self.rest):.6g}"
            )
        error = float((self.axes.mT @ self.axes - torch.eye(self.rank, dtype=torch.float64)).abs().amax())
        if error > _ORTHONORMAL:
            raise ValueError(
                f"axes must be orthonormal columns, got columns whose products are wrong by {error:.2g}; "
                "use torch.linalg.qr(axes).Q"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowRank) and same_values(self.tensors(), other.tensors())

    def __hash__(self) -> int:
        return hash(self.axes.shape)

    def __repr__(self) -> str:
        return f"LowRank({self.rank} of {self.axes.shape[0]}, rest={float(self.rest):.4g})"

    @property
    def rank(self) -> int:
        """r."""
        return self.axes.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.axes.shape[0], self.axes.shape[0]

    @property
    def spectrum(self) -> Tensor:
        """The variances along all axes, those of V first, with shape (n,)."""
        return torch.cat([self.variances, self.rest.expand(self.shape[0] - self.rank)])

    def diagonal(self) -> Tensor:
        """The features' variances with shape (n,)."""
        return self.rest + self.axes.square() @ (self.variances - self.rest)

    @cached_property
    @torch.inference_mode(False)
    def reflector(self) -> tuple[Tensor, Tensor, Tensor]:
        """W T, W T^T and -W^T: rows y go to the axes as y - y W T W^T, and back with T^T.

        Columns of zeros fill them up to a multiple of ``ROW_BLOCK``, where bits do not depend on other rows.
        """
        packed, tau = torch.geqrf(self.axes)
        w = packed.tril(-1)
        w.diagonal().fill_(1)
        # where nothing is left to reflect LAPACK gives 0; a reflection of the one coordinate does as well
        inverse = (w.mT @ w).triu(1) + torch.where(tau == 0, 2.0, tau).reciprocal().diag()
        t = torch.linalg.solve_triangular(inverse, torch.eye(self.rank, dtype=torch.float64), upper=True)
        missing = -self.rank % ROW_BLOCK
        into, out, w = (torch.nn.functional.pad(x, (0, missing)) for x in (w @ t, w @ t.mT, w))
        return into.contiguous(), out.contiguous(), -w.mT.contiguous()

    @cached_property
    @torch.inference_mode(False)
    def basis(self) -> Tensor:
        """The first r columns of U, those of V up to rounding and signs, with shape (n, r'): columns of zeros
        fill them up to a multiple of ``ROW_BLOCK``."""
        into, _, up = self.reflector
        columns = into @ up[:, : self.rank]
        columns.diagonal().add_(1)
        return torch.nn.functional.pad(columns, (0, into.shape[1] - self.rank)).contiguous()

    @property
    def distinct(self) -> Tensor:
        """The variances along ``basis``, the rest's for columns of zeros, and last that of the rest, with
        shape (r' + 1,)."""
        return torch.cat([self.variances, self.rest.expand(self.basis.shape[1] - self.rank + 1)])

    def tensors(self, rank: int | None = None) -> dict[str, Tensor]:
        """For a checkpoint: "axes", "variances" and "rest"; up to ``rank`` filled with columns of zeros."""
        more = 0 if rank is None else rank - self.rank
        axes, variances = (torch.nn.functional.pad(x, (0, more)) for x in (self.axes, self.variances))
        return {"axes": axes, "variances": variances, "rest": self.rest}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LowRank:
        """The covariance that ``tensors`` gave.

        Raises:
            ValueError: a tensor is missing, or of a shape or values that it has not.
        """
        axes, variances, rest = _named(cls.NAMES, tensors, "moments of low rank")
        if axes.ndim == 2 and variances.shape == axes.shape[1:]:
            used = axes.ne(0).any(0)
            axes, variances = axes[:, used].contiguous(), variances[used]
        return cls(axes, variances, rest)


class Factors:
    """F F^T + diag(d), of values that float32 holds; in float64 on the host.

    Args:
        loadings: F with shape (n, r), 1 <= r <= n.
        specific: d >= 0 with shape (n,), the variance of each feature that it shares with no other.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite or negative.
    """

    NAMES = ("loadings", "specific")

    @checked
    @torch.inference_mode(False)
    def __init__(self, loadings: Any, specific: Any) -> None:
        values = (host_tensor(name, x) for name, x in zip(self.NAMES, (loadings, specific), strict=True))
        self.loadings, self.specific = (x.float().double() for x in values)
        if self.loadings.ndim != 2 or not 1 <= self.loadings.shape[1] <= self.loadings.shape[0]:
            raise ValueError(
                f"loadings must have shape (n, r) with 1 <= r <= n, got shape {tuple(self.loadings.shape)}"
            )
        if self.specific.shape != self.loadings.shape[:1]:
            raise ValueError(
                f"specific must have shape ({len(self.loadings)},), one variance for every row of loadings, "
                f"got {tuple(self.specific.shape)}"
            )
        if not all(bool(x.isfinite().all()) for x in (self.loadings, self.specific)):
            raise ValueError("loadings and specific must be finite, got nan or inf; clean the data")
        if float(self.specific.amin()) < 0:
            raise ValueError(f"specific must be at least 0, got {float(self.specific.amin()):.6g}")

    def __repr__(self) -> str:
        return f"Factors({self.rank} of {len(self.loadings)} features)"

    @property
    def rank(self) -> int:
        """r."""
        return self.loadings.shape[1]

    @torch.inference_mode(False)
    def matrix(self) -> Tensor:
        """S with shape (n, n)."""
        product = self.loadings @ self.loadings.mT
        return 0.5 * (product + product.mT) + self.specific.diag()

    def tensors(self, rank: int | None = None) -> dict[str, Tensor]:
        """For a checkpoint: "loadings" and "specific" in float32; up to ``rank`` filled with columns of
        zeros."""
        more = 0 if rank is None else rank - self.rank
        loadings = torch.nn.functional.pad(self.loadings, (0, more))
        return {"loadings": loadings.float(), "specific": self.specific.float()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Factors:
        """The covariance that ``tensors`` gave.

        Raises:
            ValueError: a tensor is missing, or of a shape or values that it has not.
        """
        loadings, specific = _named(cls.NAMES, tensors, "moments with factors")
        if loadings.ndim == 2 and bool(loadings.any()):
            loadings = loadings[:, loadings.ne(0).any(0)]
        return cls(loadings, specific)


def _named(names: Sequence[str], tensors: Mapping[str, Tensor], what: str) -> list[Tensor]:
    """The tensors of these names, all of which ``what`` must have."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"{what} must have {', '.join(names)}, got no {missing[0]}")
    return [tensors[name] for name in names]


def leading(variances: Tensor, total: float, most: int) -> int:
    """How many of the largest variances, in decreasing order, hold ``EXPLAINED`` of their ``total``; at least
    1, at most ``MAX_RANK``, ``most`` - 1 and all of them."""
    enough = int((variances.cumsum(0) < EXPLAINED * total).sum()) + 1
    return max(1, min(enough, MAX_RANK, most - 1, len(variances)))
