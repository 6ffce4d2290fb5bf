"""Linear maps A of samples x with shape (B, *D) to m numbers: what an instrument sees of its object.

A map is a matrix on the flattened sample, or a mask, which picks features and needs no matrix, or the mask
that every row of an observation brings with it (what is missing is nan).  Any other linear function is made
a matrix once, column by column, so that its adjoint and its singular values are at hand:

    matrix       A x,   A^T r                  mask         x_i for i in the mask,   r at i and 0 elsewhere
    function     A_ij = (A e_j)_i

The bits of a row do not depend on the other rows of its batch.

Adjoints of functions: the matrix is transposed, which is what autograd finds for a linear function; a test
compares both.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models import row_product
from sde_toolkit.utils import checked, host_tensor, shown

MOST_ENTRIES = 1 << 25
"""Most entries of the matrix of a map: 256 MiB."""

_COLUMNS = 256


class LinearMap(ABC):
    """A linear map of samples with event shape D to observations with shape Y.

    Attributes:
        event_shape: D.
        shape: Y, the shape in which observations are given and drawn.
        count: m, the numbers that are observed of one sample.
    """

    event_shape: tuple[int, ...]
    shape: tuple[int, ...]
    count: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.event_shape} -> {self.shape})"

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x with shape (B, m), for x with shape (B, *D)."""

    @abstractmethod
    def backward(self, r: Tensor) -> Tensor:
        """A^T r with shape (B, *D), for r with shape (B, m)."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """A with shape (m, n), float64 on the host.

        Raises:
            ValueError: more than ``MOST_ENTRIES`` entries.
        """

    def pick(self, y: Tensor) -> Tensor:
        """The m numbers that are observed, with shape (B, m), of an observation with shape (B, *Y)."""
        return y.flatten(1)

    def place(self, r: Tensor) -> Tensor:
        """An observation with shape (B, *Y) of its numbers r with shape (B, m)."""
        return r.unflatten(-1, self.shape)

    @functools.cached_property
    @torch.inference_mode(False)
    def gram(self) -> tuple[Tensor, Tensor | None]:
        """The eigenvalues of A A^T with shape (m,), and its eigenvectors in columns, None for the identity;
        eigenvalues of rounding are 0."""
        values, vectors = torch.linalg.eigh(self.matrix() @ self.matrix().mT)
        least = 1e-13 * self.count * float(values[-1].clamp(min=0))
        return torch.where(values > least, values, 0.0), vectors.contiguous()

    def _check_size(self) -> None:
        n = math.prod(self.event_shape)
        if self.count * n > MOST_ENTRIES:
            raise ValueError(
                f"A must have at most {MOST_ENTRIES:,} entries as a matrix, got {self.count:,} x {n:,}; "
                f"take a "
                "mask, or a method that needs no matrix (DPS, ScoreALD)"
            )


class MatrixMap(LinearMap):
    """A matrix on flattened samples.

    Args:
        matrix: with shape (m, n).
        event_shape: D, with n features.
        shape: Y, with m numbers; (m,) when None.
    """

    @torch.inference_mode(False)
    def __init__(
        self, matrix: Tensor, event_shape: tuple[int, ...], shape: tuple[int, ...] | None = None
    ) -> None:
        self._matrix = matrix.double()
        self.event_shape, self.count = tuple(event_shape), len(matrix)
        self.shape = (self.count,) if shape is None else tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """A x with shape (B, m)."""
        return row_product(x.flatten(1), self._matrix.mT.to(x).contiguous())

    def backward(self, r: Tensor) -> Tensor:
        """A^T r with shape (B, *D)."""
        return row_product(r, self._matrix.to(r)).unflatten(-1, self.event_shape)

    def matrix(self) -> Tensor:
        """A with shape (m, n)."""
        return self._matrix


class MaskMap(LinearMap):
    """The features inside a mask.  An observation has the shape D; what it holds outside the mask is not
    looked at, and what is drawn there is nan.

    Args:
        mask: with shape D, True where a feature is observed.
    """

    @torch.inference_mode(False)
    def __init__(self, mask: Tensor) -> None:
        self.event_shape = self.shape = tuple(mask.shape)
        self._index = mask.flatten().nonzero().flatten()
        self.count = len(self._index)

    def forward(self, x: Tensor) -> Tensor:
        """The features in the mask, with shape (B, m)."""
        return x.flatten(1)[:, self._index.to(x.device)]

    def backward(self, r: Tensor) -> Tensor:
        """r in its places and 0 elsewhere, with shape (B, *D)."""
        zeros = r.new_zeros(len(r), math.prod(self.event_shape))
        return zeros.index_copy(1, self._index.to(r.device), r).unflatten(-1, self.event_shape)

    def matrix(self) -> Tensor:
        """Rows of the identity, with shape (m, n)."""
        self._check_size()
        return torch.eye(math.prod(self.event_shape), dtype=torch.float64)[self._index]

    def pick(self, y: Tensor) -> Tensor:
        """The numbers in the mask, with shape (B, m)."""
        return self.forward(y)

    def place(self, r: Tensor) -> Tensor:
        """r in its places and nan elsewhere, with shape (B, *D)."""
        blank = torch.full((len(r), math.prod(self.event_shape)), math.nan, dtype=r.dtype, device=r.device)
        return blank.index_copy(1, self._index.to(r.device), r).unflatten(-1, self.shape)

    @functools.cached_property
    def gram(self) -> tuple[Tensor, Tensor | None]:
        """Ones, and no rotation."""
        return torch.ones(self.count, dtype=torch.float64), None


class EntriesMap(LinearMap):
    """The features that a row of the observation holds: nan where they are missing, so that every row has a
    mask of its own.  Missing features are rows of zeros of A, whose observed number is 0.

    Args:
        event_shape: D.
        held: with shape (B, n), 1 where a feature is observed and 0 elsewhere; None before an observation is
            given.
    """

    def __init__(self, event_shape: tuple[int, ...], held: Tensor | None = None) -> None:
        self.event_shape = self.shape = tuple(event_shape)
        self.count, self.held = math.prod(event_shape), held

    def of(self, y: Tensor) -> EntriesMap:
        """The map of these observations, with shape (B, *D)."""
        return EntriesMap(self.event_shape, (~y.isnan()).flatten(1).to(y))

    def forward(self, x: Tensor) -> Tensor:
        """The features that are held, 0 elsewhere, with shape (B, n)."""
        flat = x.flatten(1)
        return flat if self.held is None else flat * self.held.to(flat)

    def backward(self, r: Tensor) -> Tensor:
        """The same with shape (B, *D)."""
        return self.forward(r).unflatten(-1, self.event_shape)

    def matrix(self) -> Tensor:
        """Refuses: every row has its own."""
        raise ValueError(
            "A must be one map for all samples here, got one whose missing entries differ from row to row; "
            "give one observation at a time with a mask"
        )

    def pick(self, y: Tensor) -> Tensor:
        """The numbers, 0 for those that are missing, with shape (B, n)."""
        return y.flatten(1).nan_to_num(nan=0.0)

    @functools.cached_property
    def gram(self) -> tuple[Tensor, Tensor | None]:
        """0 and 1 with shape (B, n), and no rotation."""
        held = torch.ones(1, self.count, dtype=torch.float64) if self.held is None else self.held
        return held, None


@torch.inference_mode(False)
def function_map(function: Callable[[Tensor], Tensor], event_shape: tuple[int, ...]) -> MatrixMap:
    """A linear function of samples with shape (B, *D), made a matrix.

    Args:
        function: to shape (B, *Y), float64.
        event_shape: D.

    Raises:
        ValueError: a function that is not linear, or too many entries.
    """
    n = math.prod(event_shape)
    with torch.no_grad():
        zero = function(torch.zeros(1, *event_shape, dtype=torch.float64))
        if not isinstance(zero, Tensor) or zero.ndim < 1 or len(zero) != 1:
            raise ValueError(
                f"A must take samples with shape (B, {', '.join(map(str, event_shape))}) to (B, *Y), got "
                f"{tuple(zero.shape) if isinstance(zero, Tensor) else type(zero).__name__} for B = 1"
            )
        shape = tuple(zero.shape[1:]) or (1,)
        columns = MatrixMap(torch.zeros(math.prod(shape), 0), event_shape, shape)
        columns._check_size()
        parts = []
        for first in range(0, n, _COLUMNS):
            rows = torch.arange(first, min(first + _COLUMNS, n))
            unit = torch.nn.functional.one_hot(rows, n).double().unflatten(-1, event_shape)
            parts.append(function(unit).reshape(len(rows), -1).double())
        matrix = torch.cat(parts).mT.contiguous()
        probe = torch.linspace(-1.3, 0.9, 2 * n, dtype=torch.float64).sin().reshape(2, *event_shape)
        found = function(probe).reshape(2, -1).double()
        wanted = probe.flatten(1) @ matrix.mT
        scale = float(wanted.abs().amax().clamp(min=1e-300)) if len(matrix) else 1.0
        if float(zero.abs().amax()) != 0 or float((found - wanted).abs().amax()) > 1e-5 * scale:
            raise ValueError(
                "A must be a linear function of x, got one that is not: A(x) differs from the sum of what it "
                "does to the features; give it as NonlinearObservation(function, std, event_shape)"
            )
    return MatrixMap(matrix, event_shape, shape)


def _check_shape(event_shape: tuple[int, ...]) -> None:
    """Refuse, with ValueError, what is neither images nor signals."""
    if len(event_shape) not in (1, 3) or any(side < 1 for side in event_shape):
        raise ValueError(f"event_shape must be (C, H, W) or (n,), got {tuple(event_shape)}")


@checked
def blur(event_shape: tuple[int, ...], kernel: Any) -> LinearMap:
    """Every channel convolved with a kernel, with zeros outside the image.

    Args:
        event_shape: (C, H, W), or (n,) for signals.
        kernel: with shape (h, w), or (h,) for signals, of odd sides.

    Raises:
        ValueError: a kernel of other dimensions than the image, or of even sides.
    """
    _check_shape(event_shape)
    k = host_tensor("kernel", kernel)
    dims = 2 if len(event_shape) == 3 else 1
    if k.ndim != dims or any(side % 2 == 0 for side in k.shape):
        raise ValueError(
            f"kernel must have {dims} odd sides for samples with shape {tuple(event_shape)}, got "
            f"{tuple(k.shape)}; images have shape (C, H, W), signals (n,)"
        )
    convolve = torch.nn.functional.conv2d if dims == 2 else torch.nn.functional.conv1d

    def blurred(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *event_shape[-dims:])
        out = convolve(flat, k.flip(tuple(range(dims)))[None, None], padding=[side // 2 for side in k.shape])
        return out.reshape(x.shape)

    return function_map(blurred, tuple(event_shape))


@checked
def gaussian_blur(event_shape: tuple[int, ...], width: float) -> LinearMap:
    """Blur with a Gaussian kernel of standard deviation ``width`` in pixels, cut at three of it and at the
    largest side.

    Raises:
        ValueError: a width that is not positive.
    """
    _check_shape(event_shape)
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive, got {width}")
    reach = min(max(1, math.ceil(3 * min(width, 1e6))), max(event_shape))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width).square())
    line = line / line.sum()
    return blur(event_shape, line[:, None] * line if len(event_shape) == 3 else line)


@checked
def downsampling(event_shape: tuple[int, ...], factor: int) -> LinearMap:
    """Means over blocks of ``factor`` pixels in every direction: what super-resolution goes back from.

    Raises:
        ValueError: sides that the factor does not divide.
    """
    sides = event_shape[-2:] if len(event_shape) == 3 else event_shape
    _check_shape(event_shape)
    if factor < 1 or any(side % factor for side in sides):
        raise ValueError(
            f"factor must divide the sides of samples with event_shape {tuple(event_shape)}, got {factor}"
        )
    pool = torch.nn.functional.avg_pool2d if len(event_shape) == 3 else torch.nn.functional.avg_pool1d

    def pooled(x: Tensor) -> Tensor:
        return pool(x if len(event_shape) == 3 else x[:, None], factor).reshape(len(x), *shape)

    shape = (*event_shape[:-2], *(side // factor for side in sides)) if len(event_shape) == 3 else (
        event_shape[0] // factor,
    )  # fmt: skip
    return function_map(pooled, tuple(event_shape))


@checked
def colour_mixing(event_shape: tuple[int, ...], weights: Any = None) -> LinearMap:
    """One channel, a weighted sum of all: what colourisation goes back from.

    Args:
        event_shape: (C, H, W).
        weights: with shape (C,); equal ones that sum to 1 when None.

    Raises:
        ValueError: another event shape, or weights of another shape.
    """
    if len(event_shape) != 3 or any(side < 1 for side in event_shape):
        raise ValueError(f"event_shape must be (C, H, W), got {tuple(event_shape)}")
    channels = event_shape[0]
    w = torch.full((channels,), 1 / channels).double() if weights is None else host_tensor("weights", weights)
    if tuple(w.shape) != (channels,):
        raise ValueError(f"weights must have shape ({channels},), one per channel, got {tuple(w.shape)}")
    return function_map(lambda x: (x * w[:, None, None]).sum(1, keepdim=True), tuple(event_shape))


@checked
def fourier_mask(event_shape: tuple[int, ...], mask: Any) -> LinearMap:
    """The Fourier coefficients inside a mask, as in magnetic resonance imaging: real parts, then imaginary.

    The transform is orthonormal, over the last two sides of (C, H, W), or the side of (n,).

    Args:
        event_shape: of the samples.
        mask: bool with shape (H, W) or (n,), True where a coefficient is measured; zero frequency first.

    Raises:
        ValueError: a mask of another shape, or without a True.
    """
    _check_shape(event_shape)
    sides = tuple(event_shape[-2:]) if len(event_shape) == 3 else tuple(event_shape)
    try:
        kept = torch.as_tensor(mask).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError, NotImplementedError):
        raise TypeError(f"mask must hold True and False, got {shown(mask)}") from None
    if kept.dtype != torch.bool:
        raise TypeError(f"mask must hold True and False, got {kept.dtype}; compare it, as in mask > 0")
    if tuple(kept.shape) != sides or not bool(kept.any()):
        raise ValueError(
            f"mask must have the sides {sides} of event_shape {tuple(event_shape)} and a True somewhere, got "
            f"{tuple(kept.shape)}"
        )
    axes = tuple(range(-len(sides), 0))

    def measured(x: Tensor) -> Tensor:
        found = torch.fft.fftn(x, dim=axes, norm="ortho")[..., kept].flatten(1)
        return torch.cat([found.real, found.imag], 1)

    return function_map(measured, tuple(event_shape))


@checked
def projection(event_shape: tuple[int, ...], count: int, seed: int = 0) -> LinearMap:
    """``count`` random projections with entries N(0, 1/n), n the number of features: compressed sensing.

    Raises:
        ValueError: a count below 1.
    """
    from sde_toolkit.utils import Stream
    from solvers import Normals

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    n = math.prod(event_shape)
    if not event_shape or n < 1:
        raise ValueError(f"event_shape must hold a feature or more, got {tuple(event_shape)}")
    rows = Normals(seed, count, (n,)).draw(0, Stream.OBSERVATION)
    return MatrixMap(rows / math.sqrt(n), tuple(event_shape))


@checked
def entries(event_shape: tuple[int, ...]) -> LinearMap:
    """The features that are not nan in every row of the observation: imputation of missing values."""
    if not event_shape or math.prod(event_shape) < 1:
        raise ValueError(f"event_shape must hold a feature or more, got {tuple(event_shape)}")
    return EntriesMap(tuple(event_shape))
