"""Observations of data: the law of y given x0, and what a method needs of one that was made.

    linear       y = A x0 + s z,       z ~ N(0, I)
    nonlinear    y = h(x0) + s z,      or any log p(y | x0)

s is one number, or one for each number observed.  Where it differs, both sides are divided by it, so that
methods see A / s, y / s and noise of variance 1: inside, the noise is always s^2 I with one s >= 0.

For data N(m, C) the law of the observation and the posterior are Gaussian (``ExactModel.posterior``):

    y ~ N(A m, A C A^T + s^2 I),      x0 | y ~ N(m + K (y - A m), C - K A C),   K = C A^T (A C A^T + s^2 I)^-1
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.maps import EntriesMap, LinearMap, MaskMap, MatrixMap, function_map
from sde_toolkit.utils import Stream, as_tensor, checked, host_tensor, integer, shown
from solvers import Normals


class Observation(ABC):
    """The law of an observation y, with shape (B, *Y), given data x0 with shape (B, *D).

    Attributes:
        event_shape: D.
        shape: Y.
    """

    event_shape: tuple[int, ...]
    shape: tuple[int, ...]

    @abstractmethod
    def log_likelihood(self, y: Tensor, x0: Tensor) -> Tensor:
        """log p(y | x0), in nats, with shape (B,)."""

    @abstractmethod
    def draw(self, x0: Tensor, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Observations with shape (B, *Y) of x0 with shape (B, *D); row i has the noise of sample
        first_sample + i of the seed."""

    @checked
    def rows(self, y: Any, count: int | None = None, like: Tensor | None = None) -> Tensor:
        """One observation, or one for each of ``count`` samples, with shape (1, *Y) or (count, *Y).

        Raises:
            ValueError: another shape, or values that are not finite where the observation needs them.
        """
        y = as_tensor("y", y, dtype=None if like is None else like.dtype)
        y = y if y.is_floating_point() else y.to(torch.get_default_dtype())
        y = y if like is None else y.to(like)
        if tuple(y.shape) == self.shape:
            y = y[None]
        elif tuple(y.shape[1:]) != self.shape or not y.ndim or (count is not None and len(y) != count):
            many = "n" if count is None else str(count)
            raise ValueError(
                f"y must have shape {self.shape}, or ({many}, {', '.join(map(str, self.shape))}) with one "
                f"row "
                f"per sample, got {tuple(y.shape)}"
            )
        self._check_values(y)
        return y

    def _check_values(self, y: Tensor) -> None:
        if not bool(y.isfinite().all()):
            raise ValueError("y must be finite, got nan or inf; mark what is missing with entries(...)")


class LinearObservation(Observation):
    """y = A x0 + std z.

    Args:
        A: a map of ``sde_toolkit.guidance`` (``blur``, ``downsampling``, ``entries``, ...); a matrix with
            shape (m, n), n the number of features; a bool mask with shape D, True where a feature is
            observed; or a linear function from (B, *D) to (B, *Y).
        std: of the noise, >= 0; one number, or one for each number observed, with shape Y.
        event_shape: D; (n,) when None for a matrix, needed for a function.

    Raises:
        ValueError: a map, a std or a shape that does not fit; a function that is not linear.
        TypeError: A is none of these.
    """

    @checked
    @torch.inference_mode(False)
    def __init__(self, A: Any, std: Any, event_shape: tuple[int, ...] | None = None) -> None:
        self.A = _as_map(A, event_shape)
        self.event_shape, self.shape = self.A.event_shape, self.A.shape
        if event_shape is not None and tuple(event_shape) != self.event_shape:
            raise ValueError(
                f"event_shape must be that of A, which takes {self.event_shape}, got {tuple(event_shape)}"
            )
        self.std = host_tensor("std", std)
        whole = self.std.ndim == 0
        if not (whole or tuple(self.std.shape) == self.shape):
            raise ValueError(
                f"std must be one number or have shape {self.shape}, one for each number observed, got "
                f"{tuple(self.std.shape)}"
            )
        low = float(self.std.amin()) if self.std.numel() else 0.0
        if not bool(self.std.isfinite().all()) or low < 0 or (low == 0 and not whole):
            raise ValueError(
                f"std must be a finite number >= 0, or positive numbers with shape {self.shape}, got "
                f"{float(self.std) if whole else f'numbers from {low}'}"
            )
        if not whole and isinstance(self.A, EntriesMap):
            raise ValueError("std must be one number for entries that are missing by row, got one for each")

    def __repr__(self) -> str:
        std = f"{float(self.std):.4g}" if self.std.ndim == 0 else f"{tuple(self.std.shape)} numbers"
        return f"LinearObservation({self.A!r}, std={std})"

    def log_likelihood(self, y: Tensor, x0: Tensor) -> Tensor:
        """log p(y | x0), in nats, with shape (B,), for y with shape Y or (B, *Y); std must be positive."""
        found = self.measured(self.rows(y, len(x0), x0), x0)
        if found.std == 0:
            raise ValueError("std must be positive for a log-likelihood, got 0: the law of y has no density")
        r = (found.values - found.forward(x0)) / found.std
        held = found.map.held if isinstance(found.map, EntriesMap) else None
        many = torch.full_like(r[:, 0], r.shape[1]) if held is None else held.to(r).sum(1)
        scales = math.log(found.std) + (float(self._each(None).log().mean()) if self.std.ndim else 0.0)
        return -0.5 * r.square().sum(1) - many * (0.5 * math.log(2 * math.pi) + scales)

    @checked
    def draw(self, x0: Tensor, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Observations with shape (B, *Y): of a mask with nan outside of it, of entries with all features."""
        x0, first_sample = _examples(x0, self.event_shape), integer("first_sample", first_sample, 0)
        part = range(first_sample, first_sample + len(x0))
        z = Normals(seed, part, (self.A.count,), x0.dtype, x0.device).draw(0, Stream.OBSERVATION)
        return self.A.place(self.A.forward(x0) + self._each(x0) * z)

    def measured(self, y: Tensor, like: Tensor) -> Measured:
        """What methods need of observations y with shape (B, *Y) or (1, *Y), for states like this."""
        y = y.to(like)
        if isinstance(self.A, EntriesMap):
            return Measured(self.A.of(y), self.A.pick(y), float(self.std))
        values = self.A.pick(y)
        scaled, std = self.scaled
        return Measured(scaled, values if scaled is self.A else values / self._each(like), std)

    @functools.cached_property
    @torch.inference_mode(False)
    def scaled(self) -> tuple[LinearMap, float]:
        """A and s; where s differs from number to number, A with each number divided by its own, and 1."""
        if self.std.ndim == 0:
            return self.A, float(self.std)
        return _Divided(self.A, self._each(None)), 1.0

    def _each(self, like: Tensor | None) -> Tensor:
        """std with shape () or (m,)."""
        std = self.std if self.std.ndim == 0 else self.A.pick(self.std[None])[0]
        return std if like is None else std.to(like)

    def _check_values(self, y: Tensor) -> None:
        kept = self.A.pick(y)
        if not bool(kept.isfinite().all()):
            raise ValueError(
                "y must be finite where it is observed, got nan or inf; mark what is missing with a mask, or "
                "by row with entries(...)"
            )


class NonlinearObservation(Observation):
    """y = function(x0) + std z, or any likelihood of y.

    Args:
        function: from x0 with shape (B, *D) to (B, *Y), differentiable.
        std: of the noise, positive.
        event_shape: D.
        log_likelihood: (y, function(x0)) -> log p(y | x0) with shape (B,), in nats; Gaussian with ``std``
            when None.

    Raises:
        ValueError: a std that is not positive.
    """

    @checked
    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        std: float,
        event_shape: tuple[int, ...],
        log_likelihood: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if not 0 < std < math.inf:
            raise ValueError(f"std must be positive, got {std}")
        self.function, self.std, self.event_shape = function, float(std), tuple(event_shape)
        self._log_likelihood = log_likelihood
        with torch.no_grad():
            seen = function(torch.zeros(1, *event_shape))
        if not isinstance(seen, Tensor) or seen.ndim < 1 or len(seen) != 1:
            raise ValueError(f"function must take (B, *D) to (B, *Y), got {shown(seen)} for B = 1")
        self.shape = tuple(seen.shape[1:])

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return f"NonlinearObservation({name}, std={self.std:.4g}, {self.event_shape} -> {self.shape})"

    def log_likelihood(self, y: Tensor, x0: Tensor) -> Tensor:
        """log p(y | x0), in nats, with shape (B,), for y with shape Y or (B, *Y)."""
        y, seen = self.rows(y, len(x0), x0), self.function(x0)
        if self._log_likelihood is not None:
            return self._log_likelihood(y.expand_as(seen), seen)
        r = ((y - seen) / self.std).flatten(1)
        return -0.5 * r.square().sum(1) - r.shape[1] * math.log(math.sqrt(2 * math.pi) * self.std)

    def misfit(self, y: Tensor, x0: Tensor) -> Tensor:
        """|y - function(x0)|, or -log p(y | x0) for a likelihood of its own, with shape (B,)."""
        if self._log_likelihood is not None:
            return -self.log_likelihood(y, x0)
        r = (y - self.function(x0)).flatten(1)
        return (r.square().sum(1) + torch.finfo(r.dtype).tiny).sqrt()

    @checked
    def draw(self, x0: Tensor, seed: int = 0, first_sample: int = 0) -> Tensor:
        """function(x0) + std z with shape (B, *Y).

        Raises:
            ValueError: an observation with a likelihood of its own, which cannot be drawn from here.
        """
        if self._log_likelihood is not None:
            raise ValueError(
                "an observation with a log_likelihood of its own cannot be drawn; draw it yourself"
            )
        x0, first_sample = _examples(x0, self.event_shape), integer("first_sample", first_sample, 0)
        part = range(first_sample, first_sample + len(x0))
        z = Normals(seed, part, self.shape, x0.dtype, x0.device).draw(0, Stream.OBSERVATION)
        return self.function(x0) + self.std * z


class Measured:
    """Observations as methods see them: values = A x0 + std z, on flattened numbers.

    Args:
        A: the map, with the numbers of the noise divided out where they differ.
        values: the numbers observed, with shape (B, m) or (1, m).
        std: s, one number.
    """

    def __init__(self, A: LinearMap, values: Tensor, std: float) -> None:
        self.map, self.values, self.std = A, values, std
        self.forward, self.backward = A.forward, A.backward

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x0 with shape (B, m)."""
        return self.values - self.forward(x0)

    def of_gram(self, gain: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
        """gain(A A^T) r with shape (B, m), for r with shape (B, m).

        Args:
            gain: from the eigenvalues of A A^T, with shape (m,) or (B, m), to factors of such a shape.
        """
        return self.map.turn_back(gain(self.map.spectrum.to(r)) * self.map.turn(r))

    def pseudo_inverse(self, r: Tensor) -> Tensor:
        """A^+ r with shape (B, *D), for r with shape (B, m)."""
        return self.backward(self.of_gram(lambda e: reciprocal(e), r))


class _Divided(LinearMap):
    """A map whose numbers are divided by the std of their noise, with shape (m,)."""

    def __init__(self, A: LinearMap, std: Tensor) -> None:
        self._map, self._std, self._masks = A, std, isinstance(A, MaskMap)
        self.event_shape, self.shape, self.count = A.event_shape, A.shape, A.count

    def forward(self, x: Tensor) -> Tensor:
        """A x / s with shape (B, m)."""
        return self._map.forward(x) / self._std.to(x)

    def backward(self, r: Tensor) -> Tensor:
        """A^T (r / s) with shape (B, *D)."""
        return self._map.backward(r / self._std.to(r))

    def matrix(self) -> Tensor:
        """A / s with shape (m, n)."""
        return self._map.matrix() / self._std[:, None]

    @property
    def spectrum(self) -> Tensor:
        """The eigenvalues of A A^T / s^2 with shape (m,), those of a mask without a matrix."""
        return self._std.square().reciprocal() if self._masks else super().spectrum

    def turn(self, r: Tensor) -> Tensor:
        """U^T r with shape (B, m)."""
        return r if self._masks else super().turn(r)

    def turn_back(self, r: Tensor) -> Tensor:
        """U r with shape (B, m)."""
        return r if self._masks else super().turn_back(r)


def _examples(x0: Any, event_shape: tuple[int, ...]) -> Tensor:
    """x0 as real numbers with shape (B, *D), B >= 1."""
    x0 = as_tensor("x0", x0)
    fits = x0.ndim > 0 and len(x0) > 0 and tuple(x0.shape[1:]) == event_shape
    if not (fits and x0.is_floating_point()) or x0.is_meta:
        raise ValueError(
            f"x0 must hold real numbers with shape (B, {', '.join(map(str, event_shape))}), got {x0.dtype} "
            f"with shape {tuple(x0.shape)}"
        )
    return x0


def reciprocal(x: Tensor) -> Tensor:
    """1 / x, and 0 for 0."""
    return torch.where(x == 0, 0.0, 1 / torch.where(x == 0, 1.0, x))


def _as_map(A: Any, event_shape: tuple[int, ...] | None) -> LinearMap:
    """The map that A stands for."""
    if isinstance(A, LinearMap):
        return A
    if callable(A) and not isinstance(A, Tensor):
        if event_shape is None:
            raise ValueError(
                "event_shape must be given for a function A, got None; it is the shape D of a sample"
            )
        return _seen_through(A, tuple(event_shape))
    try:
        table = torch.as_tensor(A)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"A must be a map of sde_toolkit.guidance, a matrix, a bool mask or a linear function, got "
            f"{shown(A)}"
        ) from None
    if table.dtype == torch.bool:
        if not table.ndim or not bool(table.any()):
            raise ValueError(
                f"A must be a mask with the shape of a sample and a True somewhere, got {tuple(table.shape)}"
            )
        return MaskMap(table.cpu())
    matrix = host_tensor("A", table)
    n = None if event_shape is None else math.prod(event_shape)
    if n is not None and (n < 1 or not event_shape or (matrix.ndim == 2 and matrix.shape[1] != n)):
        raise ValueError(
            f"event_shape must have the features of A, whose shape is {tuple(matrix.shape)}, got "
            f"{tuple(event_shape or ())}"
        )
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(
            "A must be a matrix with shape (m, n), n the number of features, or a bool mask with the shape "
            f"of a sample, got shape {tuple(matrix.shape)}"
        )
    if not bool(matrix.isfinite().all()):
        raise ValueError("A must be finite, got nan or inf")
    return MatrixMap(matrix, (matrix.shape[1],) if event_shape is None else tuple(event_shape))


def _seen_through(A: Callable[[Tensor], Tensor], event_shape: tuple[int, ...]) -> MatrixMap:
    """A function as a map; what it raises is told with its name."""
    try:
        return function_map(A, event_shape)
    except Exception as error:
        if str(error).startswith("A must"):
            raise
        raise ValueError(
            f"A must take samples with shape (B, {', '.join(map(str, event_shape))}), in float64, got "
            f"{type(error).__name__}: {error}"
        ) from error
