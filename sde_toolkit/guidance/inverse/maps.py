"""Linear maps A of samples x with shape (B, *D) to m numbers: what an instrument sees of its object.

A map is a matrix on the flattened sample, or one matrix for each of its dimensions, or a mask, which picks
features and needs no matrix, or the mask that every row of an observation brings with it (what is missing is
nan).  Any other linear function is made a matrix once, column by column, so that its adjoint and its singular
values are at hand:

    matrix       A x,   A^T r                  mask         x_i for i in the mask,   r at i and 0 elsewhere
    separable    (C x H x W) x,                function     A_ij = (A e_j)_i
                 C the matrix of the channels, H and W those of the sides

The bits of a row do not depend on the other rows of its batch.

Adjoints of functions: the matrix is transposed, which is what autograd finds for a linear function; a test
compares both.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_toolkit.models import row_product

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
    def _gram(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix() @ self.matrix().mT)
        return _without_rounding(values, self.count), vectors.contiguous()

    @property
    def spectrum(self) -> Tensor:
        """The eigenvalues of A A^T with shape (m,), or (B, m) where rows differ; those of rounding are 0."""
        return self._gram[0]

    def turn(self, r: Tensor) -> Tensor:
        """U^T r with shape (B, m), for A A^T = U diag(spectrum) U^T."""
        return row_product(r, self._gram[1].to(r))

    def turn_back(self, r: Tensor) -> Tensor:
        """U r with shape (B, m)."""
        return row_product(r, self._gram[1].mT.to(r).contiguous())

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


class SeparableMap(LinearMap):
    """A Kronecker product of one matrix for every dimension of the samples, so that no matrix on flattened
    samples is formed: channels, rows and columns are mapped one after the other.

    Args:
        factors: one for every dimension of D, with shape (y_i, d_i); None for the identity.
        event_shape: D.
    """

    @torch.inference_mode(False)
    def __init__(self, factors: Sequence[Tensor | None], event_shape: tuple[int, ...]) -> None:
        self.event_shape = tuple(event_shape)
        self._factors = [None if F is None else F.double().contiguous() for F in factors]
        sides = zip(self._factors, self.event_shape, strict=True)
        self.shape = tuple(side if F is None else len(F) for F, side in sides)
        self.count = math.prod(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """A x with shape (B, m)."""
        return _along(x, [None if F is None else F.mT for F in self._factors]).flatten(1)

    def backward(self, r: Tensor) -> Tensor:
        """A^T r with shape (B, *D)."""
        return _along(r.unflatten(-1, self.shape), self._factors)

    def matrix(self) -> Tensor:
        """A with shape (m, n)."""
        self._check_size()
        whole = torch.ones(1, 1, dtype=torch.float64)
        for F, side in zip(self._factors, self.event_shape, strict=True):
            whole = torch.kron(whole, torch.eye(side, dtype=torch.float64) if F is None else F)
        return whole

    @functools.cached_property
    @torch.inference_mode(False)
    def _grams(self) -> list[tuple[Tensor, Tensor] | None]:
        """Of every factor."""
        return [None if F is None else torch.linalg.eigh(F @ F.mT) for F in self._factors]

    @functools.cached_property
    @torch.inference_mode(False)
    def spectrum(self) -> Tensor:
        """The products of the factors' eigenvalues, with shape (m,)."""
        values = torch.ones(1, dtype=torch.float64)
        for gram, side in zip(self._grams, self.shape, strict=True):
            values = torch.kron(values, torch.ones(side, dtype=torch.float64) if gram is None else gram[0])
        return _without_rounding(values, self.count)

    def turn(self, r: Tensor) -> Tensor:
        """U^T r with shape (B, m)."""
        turns = [None if gram is None else gram[1] for gram in self._grams]
        return _along(r.unflatten(-1, self.shape), turns).flatten(1)

    def turn_back(self, r: Tensor) -> Tensor:
        """U r with shape (B, m)."""
        turns = [None if gram is None else gram[1].mT for gram in self._grams]
        return _along(r.unflatten(-1, self.shape), turns).flatten(1)


def _along(x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """x with shape (B, *D) times a matrix (d_i, y_i) along every dimension, with shape (B, *Y)."""
    for k, F in enumerate(factors, start=1):
        if F is not None:
            moved = x.movedim(k, -1)
            rows = row_product(moved.reshape(-1, moved.shape[-1]), F.to(x).contiguous())
            x = rows.reshape(*moved.shape[:-1], F.shape[1]).movedim(-1, k)
    return x


def _without_rounding(values: Tensor, count: int) -> Tensor:
    """Eigenvalues in which those of rounding are 0."""
    return torch.where(values > 1e-13 * count * float(values.amax().clamp(min=0)), values, 0.0)


class FourierMap(LinearMap):
    """Fourier coefficients of every channel inside a mask: real parts, then imaginary ones.

    Samples are real, so that the coefficients of frequencies k and -k are conjugate.  Where both are in the
    mask, a and b,

        (Re a + Re b) / 2^1/2,   (Im a - Im b) / 2^1/2     have the eigenvalue 1 of A A^T
        (Re a - Re b) / 2^1/2,   (Im a + Im b) / 2^1/2     have 0

    and where one is, both parts have 1/2; a k that is its own -k has 1 and 0.

    Args:
        event_shape: D, (C, H, W) or (n,).
        kept: the mask, bool with shape (H, W) or (n,), zero frequency first.
    """

    @torch.inference_mode(False)
    def __init__(self, event_shape: tuple[int, ...], kept: Tensor) -> None:
        self.event_shape, self._sides = event_shape, tuple(kept.shape)
        self._axes = tuple(range(-kept.ndim, 0))
        self._index = kept.flatten().nonzero().flatten()
        places = torch.full((kept.numel(),), -1).index_copy(0, self._index, torch.arange(len(self._index)))
        opposite = [(-torch.arange(side)) % side for side in self._sides]
        grid = torch.arange(kept.numel()).reshape(self._sides)[torch.meshgrid(*opposite, indexing="ij")]
        self._other = places[grid.flatten()[self._index]]  # the place of -k among those kept, -1 for none
        own = torch.arange(len(self._other))
        self._order = (self._other - own).sign() * (self._other >= 0)  # 1 first of a pair, -1 second, 0 alone
        alone = torch.where(self._other == own, 1.0, 0.5).double()
        self._real = torch.where(self._order == 0, alone, (self._order > 0).double())
        self._imaginary = torch.where(self._order == 0, torch.where(alone == 1, 0.0, alone), self._real)
        self._channels = math.prod(event_shape) // kept.numel()
        self.count = 2 * self._channels * len(self._index)
        self.shape = (self.count,)

    def forward(self, x: Tensor) -> Tensor:
        """A x with shape (B, m)."""
        whole = x if x.dtype in (torch.float32, torch.float64) else x.float()
        found = torch.fft.fftn(whole.reshape(len(x), -1, *self._sides), dim=self._axes, norm="ortho")
        found = found.flatten(2)[..., self._index.to(x.device)].flatten(1)
        return torch.cat([found.real, found.imag], 1).to(x.dtype)

    def backward(self, r: Tensor) -> Tensor:
        """A^T r with shape (B, *D)."""
        whole = r if r.dtype in (torch.float32, torch.float64) else r.float()
        parts = whole.reshape(len(r), 2, self._channels, -1)
        values = torch.complex(parts[:, 0], parts[:, 1])
        placed = values.new_zeros(len(r), self._channels, math.prod(self._sides))
        placed = placed.index_copy(2, self._index.to(r.device), values).unflatten(2, self._sides)
        found = torch.fft.ifftn(placed, dim=self._axes, norm="ortho").real
        return found.reshape(len(r), *self.event_shape).to(r.dtype)

    def matrix(self) -> Tensor:
        """A with shape (m, n)."""
        self._check_size()
        n = math.prod(self.event_shape)
        return self.forward(torch.eye(n, dtype=torch.float64).unflatten(-1, self.event_shape)).mT.contiguous()

    @property
    def spectrum(self) -> Tensor:
        """0, 1/2 and 1, with shape (m,)."""
        parts = torch.stack([self._real, self._imaginary])[:, None].expand(-1, self._channels, -1)
        return parts.flatten()

    def turn(self, r: Tensor) -> Tensor:
        """U^T r with shape (B, m)."""
        parts = r.reshape(len(r), 2, self._channels, -1)
        order, other = self._order.to(r.device), self._other.clamp(min=0).to(r.device)
        sign = torch.tensor([1.0, -1.0], dtype=r.dtype, device=r.device)[:, None, None]
        pairs = (order * parts + sign * parts[..., other]) / math.sqrt(2)
        return torch.where(order == 0, parts, pairs).flatten(1)

    def turn_back(self, r: Tensor) -> Tensor:
        """U r with shape (B, m): U is its own inverse."""
        return self.turn(r)


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

    @property
    def spectrum(self) -> Tensor:
        """Ones."""
        return torch.ones(self.count, dtype=torch.float64)

    def turn(self, r: Tensor) -> Tensor:
        """r."""
        return r

    def turn_back(self, r: Tensor) -> Tensor:
        """r."""
        return r


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

    @property
    def spectrum(self) -> Tensor:
        """0 and 1 with shape (B, n)."""
        return torch.ones(1, self.count, dtype=torch.float64) if self.held is None else self.held

    def turn(self, r: Tensor) -> Tensor:
        """r."""
        return r

    def turn_back(self, r: Tensor) -> Tensor:
        """r."""
        return r


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
