"""Data sets: examples, and the affine map to model scale with its log-determinant.

Raw data w and model-scale data x are tied by x = scale w + shift.  Continuous sets keep x.  Grey-level sets
keep the integers v in {0, ..., L - 1}; dequantisation adds u ~ U[0, 1) afresh at every use and maps the L
bins onto [-1, 1]:

    w = v + u,      x = 2 (v + u) / L - 1,      log |dx/dw| = log(2 / L) per dimension

A density p of x is then, by Jensen's inequality, a bound on the probability of the levels, in bits/dim:

    -1/D log2 P(v)  <=  -E_u[ log p(x) ] / (D log 2) - log2(2 / L)

Moments are those of the law that training sees, the uniform law on the training examples: for grey levels the
mean of x is scale (mean(v) + 1/2) + shift and its covariance scale^2 (cov(v) + I/12), without sampling error
from u.  A set may also be trained on the centres of the bins, u = 1/2 without the I/12: the noise of the
process at its earliest time then takes the place of u (``sde_toolkit.dequantize``).

The 2-D sets are drawn in model scale: their laws, not their samples, have mean 0 and rms standard deviation
1, so that closed forms apply to them unchanged.

Reference: Theis et al., "A note on the evaluation of generative models" (1511.01844) for dequantisation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.batches import Stream, batch_indices, integer, permutation, seed_sequence, step_generator
from sde_toolkit.moments import MAX_FULL, Moments

MAX_COVARIANCE_DIM = 4096
"""The largest D for which the full (D, D) covariance is formed (128 MB in float64)."""

Training = Literal["uniform", "centres"]
"""Where in their bins the grey levels of training lie."""

BIN_VARIANCE: dict[str, float] = {"uniform": 1 / 12, "centres": 0.0}
"""What that adds to the variance of the levels."""

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, eq=False)
class Scaling:
    """The map x = scale w + shift from raw data to model scale; ``levels`` is None for continuous data.

    ``scale`` (positive) and ``shift`` are float64 tensors that broadcast against an event.
    """

    scale: Tensor
    shift: Tensor
    levels: int | None = None

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"scale must be positive and finite, got {self.scale}; are the data constant?")

    @staticmethod
    def grey(levels: int) -> Scaling:
        """Return the scaling of integers 0, ..., levels - 1: x = 2 (v + u) / levels - 1, in [-1, 1)."""
        levels = integer("levels", levels, 2)
        return Scaling(_float64(2.0 / levels), _float64(-1.0), levels)

    @staticmethod
    def identity() -> Scaling:
        """Return the scaling of continuous data that are in model scale already."""
        return Scaling(_float64(1.0), _float64(0.0))

    @staticmethod
    def standard(w: Tensor, per_coordinate: bool = False) -> Scaling:
        """Return the scaling that gives ``w`` with shape (N, *) mean 0 and rms standard deviation 1.

        One common scale keeps the shape of the cloud; ``per_coordinate`` gives every coordinate its own, for
        coordinates of different units.  Raises ValueError if a variance is 0.
        """
        w = w.to(torch.float64)
        mean, variance = w.mean(0), w.var(0, correction=0)
        scale = (variance if per_coordinate else variance.mean()).rsqrt()
        return Scaling(scale, -mean * scale)

    @property
    def log_det_per_dim(self) -> float:
        """log |dx/dw| averaged over the dimensions, in nats: log p(w) = log p(x) + D log_det_per_dim."""
        return float(self.scale.log().mean())

    def to_model(self, w: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return x = scale w + shift with the shape of ``w``, computed in float64."""
        return (w.to(torch.float64) * self.scale.to(w.device) + self.shift.to(w.device)).to(dtype)

    def from_model(self, x: Tensor) -> Tensor:
        """Return w = (x - shift) / scale with the shape and dtype of ``x``, computed in float64."""
        return ((x.to(torch.float64) - self.shift.to(x.device)) / self.scale.to(x.device)).to(x.dtype)

    def dequantize(self, v: Tensor, u: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return x for the levels ``v`` and the noise ``u`` in [0, 1), both with shape (B, *)."""
        self._need_levels()
        return self.to_model(v.to(torch.float64) + u, dtype)

    def to_levels(self, x: Tensor) -> Tensor:
        """Return the bins that ``x`` with shape (B, *) falls in, clipped to 0, ..., levels - 1, int64."""
        levels = self._need_levels()
        return self.from_model(x.to(torch.float64)).floor().clamp(0, levels - 1).to(torch.int64)

    def _need_levels(self) -> int:
        if self.levels is None:
            raise ValueError(
                "scaling must have grey levels for this, got continuous data; use Scaling.grey(levels)"
            )
        return self.levels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples and their scaling.

    ``train`` with shape (N, *) and ``test`` with shape (M, *) are in model scale (floating point) for
    continuous data, and raw integers in {0, ..., levels - 1} if ``scaling.levels`` is given.  Labels have
    shape (N,) and (M,).  ``training`` says where in their bins the grey levels of a batch lie: at uniform
    points or at the centres; ``scaled_train`` and ``scaled_test`` are at uniform points whatever it says.
    Raises ValueError for empty, non-finite, mis-shaped or out-of-range examples.
    """

    name: str
    train: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    scaling: Scaling = field(default_factory=Scaling.identity, repr=False)
    labels_train: Tensor | None = field(default=None, repr=False)
    labels_test: Tensor | None = field(default=None, repr=False)
    training: Training = field(default="uniform", repr=False)

    def __post_init__(self) -> None:
        if self.training not in BIN_VARIANCE:
            raise ValueError(f"training must be one of {', '.join(BIN_VARIANCE)}, got {self.training!r}")
        _check_examples("train", self.train, self.scaling.levels)
        _check_examples("test", self.test, self.scaling.levels)
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

    def batch(self, step: int, batch_size: int, seed: int) -> Tensor:
        """Return x0 in model scale, with shape (batch_size, *): a function of the arguments alone."""
        examples = self.train[batch_indices(len(self.train), batch_size, step, seed)]
        if self.levels is not None and self.training == "centres":
            return self.scaling.dequantize(examples, torch.full((), 0.5), self.dtype)
        return self._model_scale(examples, step_generator(seed, step, Stream.DEQUANTIZATION))

    def batch_labels(self, step: int, batch_size: int, seed: int) -> Tensor:
        """Return the labels of ``batch`` with the same arguments, int64 with shape (batch_size,).

        Raises ValueError for a data set without labels.
        """
        if self.labels_train is None:
            raise ValueError(f"dataset must have labels_train for this, got {self.name!r} without")
        return self.labels_train[batch_indices(len(self.train), batch_size, step, seed)].to(torch.int64)

    def scaled_train(self, seed: int = 0) -> Tensor:
        """Return the training examples in model scale, with shape (N, *), dequantised with ``seed``."""
        return self._model_scale(self.train, step_generator(seed, 0, Stream.EXAMPLES))

    def scaled_test(self, seed: int = 0) -> Tensor:
        """Return the test examples in model scale, with shape (M, *), dequantised with ``seed``."""
        return self._model_scale(self.test, step_generator(seed, 1, Stream.EXAMPLES))

    @functools.cached_property
    def mean(self) -> Tensor:
        """The mean of the dequantised training data in model scale, shaped as an event, float64."""
        raw = self._raw_mean
        return raw if self.levels is None else self.scaling.to_model(raw + 0.5, torch.float64)

    @functools.cached_property
    def variance(self) -> Tensor:
        """The variances of the dequantised training data in model scale, shaped as an event, float64."""
        raw = torch.stack([(w - self._raw_mean).square().sum(0) for w in self._chunks()]).sum(0) / len(
            self.train
        )
        if self.levels is None:
            return raw
        return (raw + BIN_VARIANCE[self.training]) * self.scaling.scale.square()

    @functools.cached_property
    def covariance(self) -> Tensor:
        """The covariance of the flattened dequantised training data in model scale, (D, D), float64.

        Raises ValueError if D exceeds ``MAX_COVARIANCE_DIM``.
        """
        dim = math.prod(self.event_shape)
        if dim > MAX_COVARIANCE_DIM:
            raise ValueError(
                f"covariance needs at most {MAX_COVARIANCE_DIM} dimensions, got {dim}; use variance"
            )
        raw = torch.zeros(dim, dim, dtype=torch.float64)
        for w in self._chunks():
            centred = (w - self._raw_mean).flatten(1)
            raw += centred.T @ centred / len(self.train)
        if self.levels is None:
            return raw
        scale = self.scaling.scale.expand(self.event_shape).reshape(-1, 1)
        return (raw + torch.eye(dim, dtype=torch.float64) * BIN_VARIANCE[self.training]) * scale * scale.T

    @functools.cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the dequantised training data in model scale: full up to ``MAX_FULL``
        features, diagonal beyond."""
        full = math.prod(self.event_shape) <= MAX_FULL
        return Moments(self.mean, self.covariance if full else self.variance)

    @functools.cached_property
    def data_std(self) -> float:
        """The root mean square, over coordinates, of the standard deviation in model scale."""
        return float(self.variance.mean().sqrt())

    @functools.cached_property
    def _raw_mean(self) -> Tensor:
        return torch.stack([w.sum(0) for w in self._chunks()]).sum(0) / len(self.train)

    def _chunks(self) -> list[Tensor] | map[Tensor]:
        return map(lambda part: part.to(torch.float64), self.train.split(4096))

    def _model_scale(self, examples: Tensor, generator: torch.Generator) -> Tensor:
        if self.levels is None:
            return examples
        u = torch.rand(examples.shape, dtype=torch.float64, generator=generator)
        return self.scaling.dequantize(examples, u, self.dtype)


def from_array(
    x: Tensor | np.ndarray,
    scaling: Scaling | None = None,
    *,
    name: str = "array",
    labels: Tensor | np.ndarray | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Return a data set from raw ``x`` with shape (N, *), a random ``test_fraction`` of it held out.

    Integers need ``scaling=Scaling.grey(levels)``.  Continuous data are mapped to model scale by
    ``scaling``, by default ``Scaling.standard`` of the training part, and to ``dtype``.  For a split of your
    own, build ``Dataset`` itself.  ``labels`` are integers with shape (N,).
    Raises ValueError for empty, non-finite, mis-shaped or out-of-range data.
    """
    x = torch.as_tensor(x)
    _check_examples("x", x, None if scaling is None else scaling.levels)
    if not 0 < test_fraction < 1 or len(x) < 2:
        raise ValueError(
            f"test_fraction must be in (0, 1) and x hold at least 2 examples, got {test_fraction}, {len(x)}"
        )
    num_test = min(max(round(test_fraction * len(x)), 1), len(x) - 1)
    order = permutation(len(x), seed, 0, Stream.SPLIT)
    train, test = order[num_test:], order[:num_test]
    if scaling is None:
        scaling = Scaling.standard(x[train])
    if scaling.levels is None:
        x = scaling.to_model(x, dtype)
    if labels is None:
        return Dataset(name, x[train], x[test], scaling)
    labels = torch.as_tensor(labels).to(torch.int64)
    if labels.shape != (len(x),):
        raise ValueError(f"labels must have shape ({len(x)},), one per example, got {tuple(labels.shape)}")
    return Dataset(name, x[train], x[test], scaling, labels[train], labels[test])


def digits(training: Training = "uniform") -> Dataset:
    """Return scikit-learn's digits, labelled: 1500 to train, 297 to test, shape (1, 8, 8), 17 grey levels.

    The split is fixed: it never depends on the seed of a run.  ``training`` is that of ``Dataset``.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    v = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    made = from_array(v, Scaling.grey(17), name="digits", labels=bunch.target, test_fraction=297 / 1797)
    return replace(made, training=training)


def gaussian_mixture(
    means: Tensor | np.ndarray,
    std: float,
    *,
    weights: Tensor | np.ndarray | None = None,
    num_train: int = 8192,
    num_test: int = 2048,
    seed: int = 0,
    name: str = "mixture",
) -> Dataset:
    """Return draws of a mixture of N(mean_k, std^2 I), ``means`` with shape (K, D), labelled by component.

    The examples are in model scale as they are drawn, so the mixture's closed forms apply to them unchanged.
    """
    means = np.asarray(means, dtype=np.float64)
    if means.ndim != 2 or not np.isfinite(means).all():
        raise ValueError(f"means must be finite with shape (K, D), got shape {means.shape}")
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive and finite, got {std}")
    p = np.ones(len(means)) if weights is None else np.asarray(weights, dtype=np.float64)
    if p.shape != (len(means),) or not (np.isfinite(p).all() and (p >= 0).all() and p.sum() > 0):
        raise ValueError(
            f"weights must be {len(means)} finite numbers >= 0 with a positive sum, got {weights}"
        )

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        component = rng.choice(len(means), size=n, p=p / p.sum())
        return means[component] + std * rng.standard_normal((n, means.shape[1])), component

    return _drawn(name, draw, num_train, num_test, seed)


def ring_components() -> tuple[Tensor, float]:
    """Return the means, float64 with shape (8, 2), and the standard deviation of ``ring``'s Gaussians."""
    std = 0.1
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return math.sqrt(2 - 2 * std**2) * torch.stack([angle.cos(), angle.sin()], 1), std


def ring(num_train: int = 8192, num_test: int = 2048, seed: int = 0) -> Dataset:
    """Return eight Gaussians of equal weight on a circle, labelled; event shape (2,)."""
    means, std = ring_components()
    return gaussian_mixture(means, std, num_train=num_train, num_test=num_test, seed=seed, name="ring")


def moons(num_train: int = 8192, num_test: int = 2048, seed: int = 0, noise: float = 0.05) -> Dataset:
    """Return two interleaved half circles plus noise, labelled; ``noise`` in units of their radius."""
    # E|w|^2 per coordinate is 1 and 5/8 - 1/pi; the mean is (1/2, 1/4).
    std = math.sqrt((1 + 5 / 8 - 1 / math.pi - 1 / 4 - 1 / 16) / 2 + noise**2)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        moon = rng.integers(2, size=n)
        angle = np.pi * rng.random(n)
        outer, inner = (np.cos(angle), np.sin(angle)), (1 - np.cos(angle), 0.5 - np.sin(angle))
        w = np.where(moon == 0, outer, inner).T + noise * rng.standard_normal((n, 2))
        return (w - [0.5, 0.25]) / std, moon

    return _drawn("moons", draw, num_train, num_test, seed)


def checkerboard(num_train: int = 8192, num_test: int = 2048, seed: int = 0) -> Dataset:
    """Return draws that are uniform on the 8 dark squares of a 4 x 4 board; event shape (2,)."""
    side = math.sqrt(3) / 2  # a uniform coordinate on [-2 side, 2 side] has variance (4 side)^2 / 12 = 1

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        row, half = rng.integers(4, size=n), rng.integers(2, size=n)
        square = np.stack([2 * half + row % 2, row], 1)
        return side * (square + rng.random((n, 2)) - 2), None

    return _drawn("checkerboard", draw, num_train, num_test, seed)


def swissroll(num_train: int = 8192, num_test: int = 2048, seed: int = 0, noise: float = 0.5) -> Dataset:
    """Return the planar spiral a (cos a, sin a), a ~ U[3 pi/2, 9 pi/2], plus noise; event shape (2,)."""
    low, high = 1.5 * math.pi, 4.5 * math.pi
    # Integrals of a cos a, a sin a and a^2 over [low, high]; cos vanishes at both ends, sin is -1 and 1.
    mean = np.array([(high + low) / (high - low), 2 / (high - low)])
    second_moment = (high**2 + high * low + low**2) / 3
    std = math.sqrt((second_moment - float(mean @ mean)) / 2 + noise**2)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        a = low + (high - low) * rng.random(n)
        w = a[:, None] * np.stack([np.cos(a), np.sin(a)], 1) + noise * rng.standard_normal((n, 2))
        return (w - mean) / std, None

    return _drawn("swissroll", draw, num_train, num_test, seed)


def _drawn(name: str, draw: Draw, num_train: int, num_test: int, seed: int) -> Dataset:
    examples, labels = [], []
    for part, count in enumerate((integer("num_train", num_train, 1), integer("num_test", num_test, 1))):
        rng = np.random.Generator(np.random.Philox(seed_sequence(seed, Stream.EXAMPLES, part)))
        x, label = draw(rng, count)
        examples.append(torch.from_numpy(x).to(torch.float32))
        labels.append(None if label is None else torch.from_numpy(label))
    return Dataset(name, examples[0], examples[1], Scaling.identity(), labels[0], labels[1])


def _check_examples(name: str, x: Tensor, levels: int | None) -> None:
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{name} must have shape (N, *), N >= 1 and at least one event dimension, got {tuple(x.shape)}; "
            "give scalars the shape (N, 1)"
        )
    if levels is None:
        if not x.dtype.is_floating_point:
            raise ValueError(
                f"{name} must be floating point, got {x.dtype}; integers need scaling=Scaling.grey(levels)"
            )
        if not torch.isfinite(x).all():
            raise ValueError(
                f"{name} must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values"
            )
        return
    if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
        raise ValueError(
            f"{name} must hold integer grey levels, got {x.dtype}; convert it, or drop the levels"
        )
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise ValueError(
            f"{name} must hold grey levels 0, ..., {levels - 1}, got values from {low} to {high}"
        )


def _float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
