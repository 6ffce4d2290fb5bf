"""Data sets: training and test examples with their scaling, and the moments of what training sees.

    continuous     x, kept in model scale
    grey levels    integers v in {0, ..., L - 1};  x = scale (v + u) + shift,  a new u ~ U[0, 1) at every use

The moments are those of the distribution that training sees, the training examples with equal weights.  For
grey levels the noise u is part of that distribution and enters in closed form:

    mean = scale (mean(v) + 1/2) + shift,      covariance = scale^2 (cov(v) + I/12)

Images may be mirrored at random in training, each with probability 1/2 at every use; the moments are then
those of the examples and their mirror images.

Vectors may have missing entries, nan, which are the mask of every batch; their moments are those of the
likeliest Gaussian, found by EM (``missing``).

A set may instead be trained on the centres of the bins, u = 1/2, without the I/12.  The noise of the process
at its earliest time then takes the place of u (``sde_toolkit.likelihood``, dequantisation).

Reference: Theis, van den Oord and Bethge, "A Note on the Evaluation of Generative Models" (1511.01844) for
dequantisation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.batches import batch_indices
from sde_toolkit.data.estimation import FEW, factors, low_rank, shrunk
from sde_toolkit.data.examples import as_numbers, check_conditions, check_examples, signed, split_conditions
from sde_toolkit.data.missing import Missing, check_incomplete, check_missing, observed_moments, varying
from sde_toolkit.data.rows import ReadAhead, Rows, read_batch
from sde_toolkit.data.scaling import Scaling, warn_if_levels
from sde_toolkit.data.support import Support
from sde_toolkit.models import MAX_FULL, MAX_RANK, Moments, gaussian_moments
from sde_toolkit.utils import (
    Stream,
    check_fields,
    checked,
    integer,
    permutation,
    step_generator,
)

MAX_COVARIANCE_DIM = 4096
"""The largest D for which the full (D, D) covariance is formed (128 MB in float64)."""

Training = Literal["uniform", "centres"]
"""Where in their bins the grey levels of training lie."""

Flip = Literal["none", "horizontal"]
"""Whether training mirrors images, left to right, at random."""

FLIPS: tuple[str, ...] = ("none", "horizontal")
"""The values of ``Flip``."""

BIN_VARIANCE: dict[str, float] = {"uniform": 1 / 12, "centres": 0.0}
"""What that adds to the variance of the levels."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples and their scaling.

    ``train`` with shape (N, *) and ``test`` with shape (M, *) are in model scale (floating point) for
    continuous data, and raw integers in {0, ..., levels - 1} if ``scaling.levels`` is given.  Labels have
    shape (N,) and (M,).  ``training`` says where in their bins the grey levels of a batch lie: at uniform
    points or at the centres; ``scaled_train`` and ``scaled_test`` are at uniform points whatever it says.
    ``flip`` says whether batches are mirrored at random.  ``classes`` and ``columns`` are names of the labels
    and of the features, () where there are none; ``digest`` identifies the values read from a source.
    ``train`` may be ``Rows``, which are read when they are used.  ``workers`` processes read batches ahead;
    their number changes no batch.  ``missing`` says that entries of vectors may be nan, missing.
    ``factors`` is the number of factors that tell the covariance beside the features' own variances
    (``models.Factors``), at most one for 16 examples; 0 takes the form that the size asks for.
    ``conditions_train`` and ``conditions_test`` are conditions that are no classes, a row of real numbers for
    every example, (N, d) for vectors or (N, L, d) for tokens; a row, or a token, of nan is "none".
    Raises ValueError for empty, non-finite, mis-shaped or out-of-range examples.
    """

    name: str
    train: Tensor | Rows = field(repr=False)
    test: Tensor = field(repr=False)
    scaling: Scaling = field(default_factory=Scaling.identity, repr=False)
    labels_train: Tensor | None = field(default=None, repr=False)
    labels_test: Tensor | None = field(default=None, repr=False)
    training: Training = field(default="uniform", repr=False)
    flip: Flip = field(default="none", repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    columns: tuple[str, ...] = field(default=(), repr=False)
    digest: str = field(default="", repr=False)
    workers: int = field(default=0, repr=False)
    missing: bool = field(default=False, repr=False)
    factors: int = field(default=0, repr=False)
    conditions_train: Tensor | None = field(default=None, repr=False)
    conditions_test: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.training not in BIN_VARIANCE:
            raise ValueError(f"training must be one of {', '.join(BIN_VARIANCE)}, got {self.training!r}")
        if self.flip not in FLIPS:
            raise ValueError(f"flip must be one of {', '.join(FLIPS)}, got {self.flip!r}")
        if self.flip != "none" and self.train.ndim != 4:
            raise ValueError(
                f"flip mirrors images (N, C, H, W), got examples with shape {self.train.shape[1:]}"
            )
        integer("workers", self.workers, 0)
        integer("factors", self.factors, 0)
        if isinstance(self.train, Tensor):
            check_examples("train", self.train, self.scaling.levels, self.missing, all_columns=True)
        elif self.missing:
            raise ValueError(
                "train must be in memory where entries may be missing, got rows that are read when used; "
                "give fewer examples"
            )
        if self.flip != "none" and any(
            t.ndim and t.shape[-1] > 1 for t in (self.scaling.scale, self.scaling.shift)
        ):
            raise ValueError(
                "flip needs a scaling that is the same on the left and on the right, got one for every "
                "pixel; take data.scaling=common"
            )
        check_examples("test", self.test, self.scaling.levels, self.missing)
        if self.train.shape[1:] != self.test.shape[1:] or self.train.dtype != self.test.dtype:
            raise ValueError(
                f"test must have the event shape and dtype of train, {self.event_shape} {self.train.dtype}, "
                f"got {tuple(self.test.shape[1:])} {self.test.dtype}"
            )
        for name, labels, examples in (
            ("labels_train", self.labels_train, self.train),
            ("labels_test", self.labels_test, self.test),
        ):
            if labels is not None and labels.shape != examples.shape[:1]:
                raise ValueError(f"{name} must have shape ({len(examples)},), got {tuple(labels.shape)}")
        check_conditions(self.conditions_train, self.conditions_test, len(self.train), len(self.test))

    def __repr__(self) -> str:
        labels = "" if self.labels_train is None else ", with labels"
        return (
            f"Dataset({self.name!r}, {len(self.train):,} training and {len(self.test):,} test examples of "
            f"shape {self.event_shape}, {self.scaling!r}{labels})"
        )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.shape[1:])

    @property
    def levels(self) -> int | None:
        """The number of grey levels, None for continuous data."""
        return self.scaling.levels

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of examples in model scale: that of continuous examples, float32 for grey levels."""
        return self.train.dtype if self.train.dtype.is_floating_point else torch.float32

    @checked
    def batch(self, step: int, batch_size: int, seed: int, own: slice | None = None) -> Tensor:
        """Return x0 in model scale, with shape (batch_size, *): a function of the arguments alone.

        ``own`` are the rows that are wanted, for a process that shares the batch with others: the rest need
        not be read, and may be anything.
        """
        if self.workers:
            examples = self._ahead.batch(step, batch_size, seed, own)
        else:
            examples = read_batch(self.train, step, batch_size, seed, own)
        if self.flip == "horizontal":
            mirrored = torch.rand(len(examples), generator=step_generator(seed, step, Stream.FLIPS)) < 0.5
            examples = torch.where(mirrored[:, None, None, None], examples.flip(-1), examples)
        if self.levels is not None and self.training == "centres":
            return self.scaling.dequantize(examples, torch.full((), 0.5), self.dtype)
        return self._model_scale(examples, step_generator(seed, step, Stream.DEQUANTIZATION))

    @checked
    def batch_labels(self, step: int, batch_size: int, seed: int) -> Tensor:
        """Return the labels of ``batch`` with the same arguments, int64 with shape (batch_size,).

        Raises ValueError for a data set without labels.
        """
        if self.labels_train is None:
            raise ValueError(f"dataset must have labels_train for this, got {self.name!r} without")
        return self.labels_train[batch_indices(len(self.train), batch_size, step, seed)].to(torch.int64)

    @checked
    def batch_conditions(self, step: int, batch_size: int, seed: int) -> Tensor:
        """Return the conditions of ``batch`` with the same arguments, with shape (batch_size, *).

        Raises ValueError for a data set without conditions.
        """
        if self.conditions_train is None:
            raise ValueError(f"dataset must have conditions_train for this, got {self.name!r} without")
        return self.conditions_train[batch_indices(len(self.train), batch_size, step, seed)]

    @checked
    def scaled_train(self, seed: int = 0) -> Tensor:
        """Return the training examples in model scale, with shape (N, *), dequantised with ``seed``."""
        return self._model_scale(self.train[:], step_generator(seed, 0, Stream.EXAMPLES))

    @checked
    def scaled_test(self, seed: int = 0) -> Tensor:
        """Return the test examples in model scale, with shape (M, *), dequantised with ``seed``."""
        return self._model_scale(self.test, step_generator(seed, 1, Stream.EXAMPLES))

    @functools.cached_property
    def mean(self) -> Tensor:
        """The mean of the dequantised training data in model scale, shaped as an event, float64."""
        if self.missing:
            return self.moments.mean
        raw = self._raw_mean
        return raw if self.levels is None else self.scaling.to_model(raw + 0.5, torch.float64)

    @functools.cached_property
    def variance(self) -> Tensor:
        """The variances of the dequantised training data in model scale, shaped as an event, float64."""
        if self.missing:
            return self.moments.covariance.diagonal()
        raw = _total((w - self._raw_mean).square() for w in self._chunks()) / self._seen
        if self.levels is None:
            return raw
        return (raw + BIN_VARIANCE[self.training]) * self.scaling.scale.square()

    @functools.cached_property
    def covariance(self) -> Tensor:
        """The covariance of the flattened dequantised training data in model scale, (D, D), float64.

        Raises ValueError if D exceeds ``MAX_COVARIANCE_DIM``.
        """
        if self.missing:
            return self.moments.covariance
        dim = math.prod(self.event_shape)
        if dim > MAX_COVARIANCE_DIM:
            raise ValueError(
                f"covariance needs at most {MAX_COVARIANCE_DIM} dimensions, got {dim}; use variance"
            )
        raw = torch.zeros(dim, dim, dtype=torch.float64)
        for w in self._chunks():
            centred = (w - self._raw_mean).flatten(1)
            raw += centred.T @ centred / self._seen
        if self.levels is None:
            return raw
        scale = self.scaling.scale.expand(self.event_shape).reshape(-1, 1)
        return (raw + torch.eye(dim, dtype=torch.float64) * BIN_VARIANCE[self.training]) * scale * scale.T

    @functools.cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the dequantised training data in model scale: full up to ``MAX_FULL``
        features, of low rank beside a multiple of the identity beyond; shrunk where examples are few.  Those
        of the likeliest Gaussian where entries are missing."""
        if self.missing and isinstance(self.train, Tensor):
            return gaussian_moments(self.train)
        return self.moments_within(MAX_FULL**2)

    def moments_within(self, room: int) -> Moments:
        """The same: the covariance is full up to ``room`` numbers, of low rank up to 8 ``room``."""
        n, count = math.prod(self.event_shape), len(self.train)
        if self.factors:
            least = 0.0 if self.levels is None else float(self.scaling.scale.square().min())
            floor = least * BIN_VARIANCE[self.training]
            return Moments(self.mean, factors(self.covariance, self.factors, count, floor))
        full = n**2 <= room
        if full and count >= FEW * n:
            return Moments(self.mean, self.covariance)
        scale = torch.ones(()) if self.levels is None else self.scaling.scale
        scale = scale.double().expand(self.event_shape).flatten()
        noise = scale.square() * (0.0 if self.levels is None else BIN_VARIANCE[self.training])

        def centred() -> Iterator[Tensor]:
            return ((w - self._raw_mean).flatten(1) * scale for w in self._chunks())

        if full:
            of_examples = shrunk(self.covariance - noise.diag(), centred, count)
            return Moments(self.mean, of_examples + noise.diag())
        variance, most = self.variance.flatten() - noise, min(MAX_RANK, 8 * room // n)
        found = low_rank(centred, variance, count, float(noise.mean()), most)
        return Moments(self.mean, self.variance if found is None else found)

    @functools.cached_property
    def data_std(self) -> float:
        """The root mean square, over coordinates, of the standard deviation in model scale."""
        return float(self.variance.mean().sqrt())

    @functools.cached_property
    def _ahead(self) -> ReadAhead:
        return ReadAhead(self.train, self.workers)

    @property
    def _seen(self) -> int:
        """Number of examples that training sees, mirror images counted."""
        return len(self.train) * (1 if self.flip == "none" else 2)

    @functools.cached_property
    def _raw_mean(self) -> Tensor:
        return _total(self._chunks()) / self._seen

    def _chunks(self) -> Iterator[Tensor]:
        for part in self.train.split(4096):
            w = part.to(torch.float64)
            yield w
            if self.flip == "horizontal":
                yield w.flip(-1)

    def _model_scale(self, examples: Tensor, generator: torch.Generator) -> Tensor:
        if self.levels is None:
            return examples
        u = torch.rand(examples.shape, dtype=torch.float64, generator=generator)
        return self.scaling.dequantize(examples, u, self.dtype)


def moments_of(x: Tensor | Rows) -> tuple[Tensor, Tensor]:
    """Mean and variance over the examples of x with shape (N, *), in float64, part by part."""
    mean = _total(part.double() for part in x.split(4096)) / len(x)
    return mean, _total((part.double() - mean).square() for part in x.split(4096)) / len(x)


def _total(parts: Iterable[Tensor]) -> Tensor:
    """The sum over the examples of all parts, kept in one tensor: a list of sums would hold memory apart."""
    rest = iter(parts)
    total = next(rest).sum(0)
    for part in rest:
        total += part.sum(0)
    return total


@checked
def from_array(
    x: Tensor | np.ndarray,
    scaling: Scaling | None = None,
    *,
    name: str = "array",
    labels: Tensor | np.ndarray | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    support: Support | None = None,
    missing: Missing = "raise",
    conditions: Tensor | np.ndarray | None = None,
) -> Dataset:
    """Return a data set from raw ``x`` with shape (N, *), a random ``test_fraction`` of it held out.

    Integers need ``scaling=Scaling.grey(levels)``.  Continuous data are mapped to model scale by
    ``scaling``, by default ``Scaling.standard`` of the training part, and to ``dtype``.  For a split of your
    own, build ``Dataset`` itself.  ``labels`` are integers with shape (N,).  ``support`` says between which
    values continuous data lie, such as ``Support(0.0)`` for positive ones, which are mapped onto the line.
    ``missing="mask"`` takes nan in vectors for entries that are missing; every column is then scaled by the
    entries observed in it.  ``conditions`` are rows for every example, (N, d) or (N, L, d), see ``Dataset``.
    Raises ValueError for empty, non-finite, mis-shaped or out-of-range data.
    """
    x = signed(as_numbers("x", x))
    check_missing(missing)
    some = missing == "mask"
    check_examples("x", x, None if scaling is None else scaling.levels, some)
    if not 0 < test_fraction < 1 or len(x) < 2:
        raise ValueError(
            f"test_fraction must be in (0, 1) and x hold at least 2 examples, got {test_fraction}, {len(x)}"
        )
    num_test = min(max(round(test_fraction * len(x)), 1), len(x) - 1)
    order = permutation(len(x), seed, 0, Stream.SPLIT)
    train, test = order[num_test:], order[:num_test]
    if scaling is None or scaling.levels is None:
        warn_if_levels(x.numpy(), "scaling=Scaling.grey(256)")
    if scaling is None and some:
        check_incomplete("x", x[train], None, all_columns=True)
        line = x[train] if support is None else support.to_line(x[train])
        scaling = Scaling.standardizing(*varying("x", *observed_moments(line)), True, support)
    elif scaling is None:
        if not bool((x[train].double() != x[train[0]].double()).any()):
            raise ValueError(
                "x must vary, got equal examples; give scaling=Scaling.identity() for constant data"
            )
        scaling = Scaling.standard(x[train], support=support)
    elif support is not None:
        raise ValueError(
            "support must be left out where a scaling is given; use Scaling(..., support=support)"
        )
    if scaling.levels is None:
        x = scaling.to_model(x, dtype)
    rows_train, rows_test = split_conditions(conditions, train, test)
    if labels is None:
        return Dataset(
            name, x[train], x[test], scaling, missing=some,
            conditions_train=rows_train, conditions_test=rows_test,
        )  # fmt: skip
    labels = as_numbers("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}; convert them with .long()")
    labels = labels.to(torch.int64)
    if labels.shape != (len(x),):
        raise ValueError(f"labels must have shape ({len(x)},), one per example, got {tuple(labels.shape)}")
    return Dataset(
        name, x[train], x[test], scaling, labels[train], labels[test], missing=some,
        conditions_train=rows_train, conditions_test=rows_test,
    )  # fmt: skip


@checked
def estimate_moments(x: Tensor | np.ndarray) -> Moments:
    """The moments of examples x with shape (N, *), as training stores them: for ``model.moments`` of models
    that were trained elsewhere.

    The covariance is full up to ``MAX_FULL`` features, shrunk where examples are few (Ledoit and Wolf), and
    of low rank beside a multiple of the identity beyond.  Integers are taken as they are.
    Raises ValueError for empty, non-finite or mis-shaped examples, or examples that are all equal.
    """
    x = as_numbers("x", x)
    if x.is_complex():
        raise TypeError(f"x must hold real numbers, got {x.dtype}; give real and imaginary parts")
    x = x if x.is_floating_point() else x.double()
    check_examples("x", x, None)
    if not bool((x != x[0]).any()):
        raise ValueError(f"x must vary, got {len(x)} equal examples; give at least two that differ")
    return Dataset("examples", x, x[:1]).moments
