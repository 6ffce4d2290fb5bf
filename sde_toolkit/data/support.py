"""Data that end somewhere: elementwise maps from their support onto the whole line, with log-determinants.

    support           y(w)                              log dy/dw, by y
    (low, high)       log(w - low) - log(high - w)      -log(high - low) - log s(y) - log s(-y)
    (low, inf)        log(w - low)                      -y
    (-inf, high)      -log(high - w)                    y
    the line          w                                 0

with s the logistic function.  A density of y is one of w by  log p(w) = log p(y) + log dy/dw:  a score model
of y then puts nothing outside the support, and its likelihood is in the units of w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sde_toolkit.utils import checked, host_tensor, same_values


@dataclass(frozen=True, eq=False)
class Support:
    """Between which values the coordinates of raw data lie, ends excluded.

    Args:
        low, high: numbers, or values for every coordinate that broadcast against an event; -inf and inf for
            no end.

    Raises:
        ValueError: nan, or ``low`` not below ``high``.
    """

    low: Tensor | float = -torch.inf
    high: Tensor | float = torch.inf

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = host_tensor(name, getattr(self, name))
            object.__setattr__(self, name, value)
        low, high = self.ends
        if not bool((low < high).all()) or bool((low == torch.inf).any() | (high == -torch.inf).any()):
            raise ValueError(
                f"low must be below high in every coordinate, got {low.tolist()} and {high.tolist()}"
            )

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The two ends in float64, with one shape."""
        assert isinstance(self.low, Tensor)
        assert isinstance(self.high, Tensor)
        low, high = torch.broadcast_tensors(self.low, self.high)
        return low, high

    def __repr__(self) -> str:
        low, high = self.ends
        return f"Support({low.tolist()}, {high.tolist()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Support) and same_values(vars(self), vars(other))

    def __hash__(self) -> int:
        return hash(tuple(self.ends[0].shape))

    @classmethod
    @checked
    def of_text(cls, text: str, columns: Sequence[str] = ()) -> Support:
        """The support that a text tells.

        "0:1" is that of all coordinates, "0:,:,0:1" those of three in turn, "age=0:,share=0:1" those of named
        columns; what is left out has no end.

        Args:
            text: as above.
            columns: the names of the coordinates, where they have names.

        Raises:
            ValueError: another form, or an unknown or a second name.
        """
        parts, named = [part.strip() for part in text.split(",")], {}
        if not any("=" in part for part in parts):
            ends = [_ends(part, text) for part in parts]
            return (
                cls(*ends[0]) if len(ends) == 1 else cls(*(torch.tensor(e) for e in zip(*ends, strict=True)))
            )
        for part in parts:
            name, _, ends_of = (piece.strip() for piece in part.partition("="))
            if name not in columns or name in named:
                known = ", ".join(columns) or "none: the data have no named columns"
                raise ValueError(
                    f"the text must name columns, each once, got {name!r} in {text!r}; columns: {known}"
                )
            named[name] = _ends(ends_of, text)
        pairs = [named.get(name, (-math.inf, math.inf)) for name in columns]
        return cls(*(torch.tensor(e) for e in zip(*pairs, strict=True)))

    @checked
    def to_line(self, w: Tensor) -> Tensor:
        """y(w) in float64, for raw data w with shape (B, *).

        Raises:
            ValueError: values that are not between the ends.
        """
        w = w.to(torch.float64)
        low, high = (end.to(w.device) for end in self.ends)
        outside = (w <= low) | (w >= high)
        if bool(outside.any()):
            raise ValueError(self._told(w, outside))
        y = w.clone()
        above, below = (w - low).log(), (high - w).log()
        y = torch.where(low.isfinite(), above, y)
        y = torch.where(high.isfinite(), -below, y)
        return torch.where(low.isfinite() & high.isfinite(), above - below, y)

    @checked
    def from_line(self, y: Tensor) -> Tensor:
        """w in float64, for y with shape (B, *)."""
        y = y.to(torch.float64)
        low, high = (end.to(y.device) for end in self.ends)
        w = torch.where(low.isfinite(), low + y.exp(), y)
        w = torch.where(high.isfinite(), high - (-y).exp(), w)
        inside = torch.where(y < 0, low + (high - low) * y.sigmoid(), high - (high - low) * (-y).sigmoid())
        return torch.where(low.isfinite() & high.isfinite(), inside, w)

    @checked
    def inside(self, w: Tensor) -> Tensor:
        """w itself, but the next number of its type where rounding has put it on an end.

        Raises:
            TypeError: w of a type that is not floating point, which has no numbers between two ends.
        """
        if not w.is_floating_point():
            raise TypeError(f"w must be floating point, got {w.dtype}; use w.double()")
        low, high = (end.to(w.device, w.dtype) for end in self.ends)
        after = torch.nextafter(low, torch.full_like(low, torch.inf))
        before = torch.nextafter(high, torch.full_like(high, -torch.inf))
        w = torch.where((w <= low) & low.isfinite(), after, w)
        return torch.where((w >= high) & high.isfinite(), before, w)

    @checked
    def log_slope(self, y: Tensor) -> Tensor:
        """log dy/dw with the shape of y, in float64."""
        y = y.to(torch.float64)
        low, high = (end.to(y.device) for end in self.ends)
        found = torch.where(low.isfinite(), -y, torch.zeros_like(y))
        found = torch.where(high.isfinite(), y, found)
        both = -(high - low).log() - logsigmoid(y) - logsigmoid(-y)
        return torch.where(low.isfinite() & high.isfinite(), both, found)

    def _told(self, w: Tensor, outside: Tensor) -> str:
        """The sentence about values outside."""
        count = int(outside.sum())
        where = outside.flatten(1).any(0).nonzero().flatten().tolist() if w.ndim > 1 else []
        low, high = (end.expand(w.shape)[outside][0].item() for end in self.ends)
        columns = f" in coordinate {', '.join(map(str, where[:5]))}" if where else ""
        return (
            f"data must lie between the ends of their support, ends excluded, got {count} values{columns} "
            f"that do not, the first {float(w[outside][0]):.6g} for ({low:g}, {high:g}); widen the support, "
            "or move values at an end inwards"
        )


def _ends(part: str, text: str) -> tuple[float, float]:
    """The numbers around a colon; -inf and inf where there is none."""
    low, colon, high = part.partition(":")
    try:
        if not colon:
            raise ValueError
        return float(low or -math.inf), float(high or math.inf)
    except ValueError:
        raise ValueError(
            "the text of bounds must be two ends with a colon between, as in 0:1, or 0: for positive ones, "
            f"got {part!r} in {text!r}"
        ) from None
