"""What a metric of samples is: a number that can also be had for many subsets at once, and facts about it.

    Statistic    of one set x:      the density, the mixture or whatever else it needs are its fields
    Distance     of two sets x, y:  y are real data, or, row by row, what the samples should have been

Error bars come from subsets (``sde_toolkit.metrics.bootstrap``), so a metric is one function ``on_subsets``
that takes masks and computes what the subsets have in common once.  Values are computed in float64 on the
host.  The ``facts`` of a metric say how its values are to be read.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """How the values of a metric are to be read, and what they cost.

    Attributes:
        title: heading of a column.
        ideal: value of a perfect sampler; None where it depends on the data.
        better: whether "lower" or "higher" values are better, or those "closer" to the ideal.
        unbiased: whether the expected value is the same at every number of samples; an unbiased distance may
            be below zero.  Others can be compared only at equal numbers.
        needs: "data" (real examples), "pairs" (the exact result for every sample), "density", "mixture" or
            "samples" alone.
        cost: "linear", "sorting", "pairs" (time grows as n m), "assignment" (as n^3), "spectrum" (as n^3) or
            "training".
        most_samples: more are refused, of either set; None for no limit.
        resampling: how error bars are found, by "groups", "halves", "local", "kinks" or "quarters"; see
            ``sde_toolkit.metrics.errors.schemes``.
        counted: whose zeros and ones the value is the mean of: "x", "y", "both" (half of either), "pairs"
            (one of x, one of y), or "" for none.
        steps: whether the value changes by whole samples alone.
    """

    title: str
    ideal: float | None = 0.0
    better: Literal["lower", "higher", "closer"] = "lower"
    unbiased: bool = False
    needs: Literal["data", "pairs", "density", "mixture", "samples"] = "data"
    cost: Literal["linear", "sorting", "pairs", "assignment", "spectrum", "training"] = "pairs"
    most_samples: int | None = None
    resampling: Literal["groups", "halves", "local", "kinks", "quarters"] = "groups"
    counted: Literal["", "x", "y", "both", "pairs"] = ""
    steps: bool = False

    def step(self, n: int, m: int) -> float:
        """The least by which the value of n samples and m real examples changes; 0 for smooth values."""
        return 1 / {"y": m, "both": n + m, "pairs": n * m}.get(self.counted, n) if self.steps else 0.0


class Distance(abc.ABC):
    """A metric of two sample sets; calling it gives its value, ``bootstrap`` an error bar as well."""

    facts: ClassVar[Facts] = Facts("distance")

    @abc.abstractmethod
    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """Return the values, with shape (R,), for the subsets that the rows of the masks pick.

        ``x`` with shape (n, *) and ``y`` with shape (m, *) are float64; ``keep_x`` with shape (R, n) and
        ``keep_y`` with shape (R, m) are boolean.  The first row keeps all.  What the subsets have in common
        is computed once.  Where the metric needs pairs, both masks are the same.
        """

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """Return the value for ``x`` with shape (n, *) and ``y`` with shape (m, *).

        Raises ValueError for fewer than 2 samples, values that are not finite, or event shapes that differ.
        """
        x, y = checked_sets(x, y)
        check_size(self.facts, x=x, y=y)
        return float(self.on_subsets(x, y, *(torch.ones(1, len(s), dtype=torch.bool) for s in (x, y))))


class Statistic(abc.ABC):
    """A metric of one sample set; calling it gives its value, ``bootstrap`` an error bar as well."""

    facts: ClassVar[Facts] = Facts("statistic", needs="samples")

    @abc.abstractmethod
    def on_subsets(self, x: Tensor, keep: Tensor) -> Tensor:
        """Return the values, with shape (R,), for the subsets of ``x`` that the rows of ``keep`` pick.

        ``x`` with shape (n, *) is float64, ``keep`` with shape (R, n) boolean; the first row keeps all.
        """

    def __call__(self, x: Tensor) -> float:
        """Return the value for ``x`` with shape (n, *).

        Raises ValueError for fewer than 2 samples and values that are not finite.
        """
        x = checked_set(x)
        check_size(self.facts, x=x)
        return float(self.on_subsets(x, torch.ones(1, len(x), dtype=torch.bool)))


def checked_set(x: Tensor, name: str = "x") -> Tensor:
    """Return a set as float64 on the host, with at least two dimensions, or raise ValueError."""
    x = torch.as_tensor(x).detach().to("cpu", torch.float64)
    if x.ndim < 1 or len(x) < 2 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (B, *) with at least 2 samples, got shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        count = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} must be finite, got {count} NaN or infinite values")
    return x[:, None] if x.ndim == 1 else x


def checked_sets(x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Return both sets as float64 on the host, or raise ValueError."""
    shapes = [tuple(torch.as_tensor(s).shape[1:]) for s in (x, y)]
    x, y = (checked_set(s, name) for s, name in zip((x, y), names, strict=True))
    if shapes[0] != shapes[1]:
        raise ValueError(f"{names[1]} must have the event shape of {names[0]}, {shapes[0]}, got {shapes[1]}")
    return x, y


def check_size(facts: Facts, **sets: Tensor) -> None:
    """Raise ValueError for more samples than a metric takes, or pairs that are not."""
    most = facts.most_samples
    for name, s in sets.items():
        if most is not None and len(s) > most:
            raise ValueError(
                f"{name} must hold at most {most} samples for the {facts.title}, whose time or memory grows "
                f"too fast ({facts.cost}), got {len(s)}; give a random part of them"
            )
    counts = [len(s) for s in sets.values()]
    if facts.needs == "pairs" and len(set(counts)) > 1:
        raise ValueError(
            f"y must hold one row for every sample of x for the {facts.title}, {counts[0]}, got {counts[1]}"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError for a word that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
