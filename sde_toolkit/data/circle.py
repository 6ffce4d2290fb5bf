"""Angles as points of the plane: a law on a circle, with a radius that is drawn.

An angle w with a period P lies on a circle, and the points (cos, sin) have no density in the plane.  With a
radius r drawn apart from the angle, log r ~ N(0, s^2), the points

    (x, y) = r (cos phi, sin phi),      phi = 2 pi (w - low) / P

have one, and it is a product: with p(x, y) dx dy = p(w) p(r) dw dr,

    log p(w) = log p(x, y) + log_det(x, y),     log_det = 2 log r - log N(log r; 0, s^2) + log(2 pi / P)

for EVERY r, if p(x, y) is the exact law.  A model that is off gives values that differ with r; their spread
over draws of r says by how much, and no value is a bound.  Nothing jumps where the angle goes once around.

With s = .2 hardly a point comes near the origin, where the angle is undefined, and the ring is wide enough
to be learnt from moderate noise levels on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.utils import Stream, check_fields, checked, integer, step_generator

SPREAD = 0.2
"""s, the standard deviation of log r."""

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Circles:
    """Angles among the columns of vectors, as points of planes.

    Args:
        columns: numbers of the columns that are angles, each once.
        periods: of every one of them: 360 for degrees, 2 pi for radians.
        low: where their intervals begin, one number or one for every column: angles come back in
            [low, low + period).

    Raises:
        ValueError: no column or one twice, or periods that are not as many positive numbers.
    """

    columns: tuple[int, ...]
    periods: tuple[float, ...]
    low: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        columns = [integer("columns", column, 0) for column in self.columns]
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(f"columns must be numbers of columns, each once, got {self.columns}")
        if len(self.periods) != len(columns) or not all(0 < p < math.inf for p in self.periods):
            raise ValueError(
                f"periods must be {len(columns)} positive numbers, one for every column, got {self.periods}"
            )
        low = self._low
        if len(low) != len(columns) or not all(map(math.isfinite, low)):
            raise ValueError(f"low must be a finite number, or one for every column, got {self.low}")

    @property
    def _low(self) -> tuple[float, ...]:
        """One number for every column."""
        return self.low if isinstance(self.low, tuple) else (self.low,) * len(self.columns)

    @classmethod
    @checked
    def of_text(cls, text: str, columns: Sequence[str] = (), num_columns: int | None = None) -> Circles:
        """The angles that a text tells: "direction=0:360,3=-3.1416:3.1416", columns by name or by number from
        0, each with the two ends of its interval, which are one point.

        Args:
            text: as above.
            columns: the names of the columns, where they have names.
            num_columns: how many there are; not checked when None.

        Raises:
            ValueError: another form, a column that is not there or twice, or ends out of order.
        """
        if num_columns is not None:
            integer("num_columns", num_columns, 1)
        found: dict[int, tuple[float, float]] = {}
        for part in text.split(","):
            name, equals, ends = (piece.strip() for piece in part.partition("="))
            low, colon, high = ends.partition(":")
            try:
                if not (equals and colon):
                    raise ValueError
                pair = float(low), float(high)
            except ValueError:
                raise ValueError(
                    "text must name columns and their intervals, as in direction=0:360,3=-3.1416:3.1416, got "
                    f"{part!r}"
                ) from None
            number = columns.index(name) if name in columns else int(name) if name.isdecimal() else -1
            if number < 0 or number in found or (num_columns is not None and number >= num_columns):
                known = ", ".join(columns) or (
                    "numbers from 0" if num_columns is None else f"0 to {num_columns - 1}"
                )
                raise ValueError(
                    f"text must name columns, each once, got {name!r} in {text!r}; columns: {known}"
                )
            if not -math.inf < pair[0] < pair[1] < math.inf:
                raise ValueError(f"text must hold intervals of finite length, got {part!r}")
            found[number] = pair
        low_ends = tuple(low for low, _ in found.values())
        return cls(tuple(found), tuple(high - low for low, high in found.values()), low_ends)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: "columns", "periods" and "low", each with shape (K,)."""
        return {
            "columns": torch.tensor(self.columns),
            "periods": torch.tensor(self.periods, dtype=torch.float64),
            "low": torch.tensor(self._low, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Circles:
        """The circles that ``tensors`` gave.

        Raises:
            ValueError: a part is missing, of another type, or out of range.
        """
        kinds = {"columns": torch.int64, "periods": torch.float64, "low": torch.float64}
        if {name: tensor.dtype for name, tensor in tensors.items()} != kinds or any(
            tensor.ndim != 1 for tensor in tensors.values()
        ):
            raise ValueError("the circles must have columns, periods and low with shape (K,), got others")
        columns, periods, low = (tuple(tensors[name].tolist()) for name in kinds)
        return cls(columns, periods, low)

    @checked
    def embed(self, w: Tensor, seed: int = 0) -> Tensor:
        """The vectors w with shape (N, D) as rows with shape (N, D + K), in float64.

        An angle's column holds x, and the K columns at the end hold y.  Radii are functions of (seed, row).

        Raises:
            ValueError: w of another shape, not finite, or without one of the columns.
        """
        if w.ndim != 2 or not len(w) or max(self.columns) >= w.shape[1] or not bool(w.isfinite().all()):
            raise ValueError(
                f"w must be finite with shape (N, D), D above {max(self.columns)}, got {tuple(w.shape)}"
            )
        at, periods = list(self.columns), w.new_tensor(self.periods, dtype=torch.float64)
        generator = step_generator(seed, 0, Stream.RADII)
        z = torch.randn(len(w), len(at), dtype=torch.float64, generator=generator).to(w.device)
        low = w.new_tensor(self._low, dtype=torch.float64)
        radius, phi = (SPREAD * z).exp(), 2 * math.pi * (w[:, at].double() - low) / periods
        found = torch.cat([w.double(), radius * phi.sin()], 1)
        found[:, at] = radius * phi.cos()
        return found

    @checked
    def angles(self, x: Tensor) -> Tensor:
        """The vectors with shape (N, D), for rows x with shape (N, D + K)."""
        first, second = self._planes(x)
        periods = first.new_tensor(self.periods)
        turn = torch.atan2(second, first) / (2 * math.pi) % 1.0
        found = x[:, : x.shape[1] - len(self.columns)].clone()
        found[:, list(self.columns)] = (first.new_tensor(self._low) + turn % 1.0 * periods).to(x.dtype)
        return found

    @checked
    def log_det(self, x: Tensor) -> Tensor:
        """log p(w) - log p(x) with shape (N,), in nats and float64, for rows x with shape (N, D + K)."""
        first, second = self._planes(x)
        log_r = torch.hypot(first, second).log()
        normal = -0.5 * ((log_r / SPREAD).square() + _LOG_2PI) - math.log(SPREAD)
        return (2 * log_r - normal + (2 * math.pi / first.new_tensor(self.periods)).log()).sum(1)

    def _planes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of every angle, with shape (N, K), float64."""
        count = len(self.columns)
        if (
            x.ndim != 2
            or not x.is_floating_point()
            or x.shape[1] <= count
            or max(self.columns) >= x.shape[1] - count
        ):
            raise ValueError(
                f"x must be floating point with shape (N, D + {count}), D above {max(self.columns)}, got "
                f"{x.dtype} with shape {tuple(x.shape)}"
            )
        return x[:, list(self.columns)].double(), x[:, -count:].double()
