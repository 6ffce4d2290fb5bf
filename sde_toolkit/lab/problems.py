"""Problems of the experiment: a model to be sampled, and what its samples should be.

Built in are models whose score, flow and density are known in closed form:

    gaussian            2-D, N((.5, -.25), .7^2 I)
    gaussian_ill        8-D, standard deviations of the axes from 1 to .01, turned
    gaussian_low_rank   16-D, four axes of standard deviation 1, the others .01, turned
    ring                2-D, eight Gaussians on a circle: ``sde_toolkit.data.ring``
    grid25              2-D, 25 Gaussians of std .05 on a 5 x 5 grid
    scales              3-D, four Gaussians whose axes have standard deviations 1, .3 and .1, turned
    mixture8, 64, 512   five Gaussians with full covariances (512: diagonal)
    checkerboard, moons, swissroll
                        2-D, 500 points of these sets, each a Gaussian of std .05: the points' kernel density

A trained model and its data are a problem too (``Problem``).  Real examples of the built-in ones are draws of
their density, so that distances to them measure the sampler alone.  A model with conditions is sampled under
one for all samples of a cell: a class, or a vector or tensor with a name (``NamedCondition``).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_toolkit import data as datasets
from sde_toolkit.models import (
    Condition,
    DataScale,
    ExactData,
    ExactModel,
    Gaussian,
    GaussianMixture,
    ScoreModel,
)
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import check_fields, checked

NUM_REAL = 2000
"""Real examples of a built-in problem."""

REAL_SEED = 2**31 - 1
"""Of these draws: no seed of a comparison is as large by accident."""

_KERNELS, _KERNEL_STD = 500, 0.05
EXACT_PROBLEMS = (
    "gaussian", "gaussian_ill", "gaussian_low_rank", "ring", "grid25", "scales", "mixture8", "mixture64",
    "mixture512", "checkerboard", "moons", "swissroll",
)  # fmt: skip
"""The names of the built-in problems."""


@dataclass(frozen=True, eq=False)
class NamedCondition:
    """A condition of an experiment that is no class: a vector or tensor that all samples of a cell share.

    Records, files and pages call it by its name and a digest of its values, as in "bright (1a2b3c4d)": other
    values under the same name are another condition.

    Args:
        name: for tables and files.
        value: one row of what the model takes, without the dimension of the samples.

    Raises:
        ValueError: an empty name, or values that are not finite.
    """

    name: str
    value: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"name must be a word for tables, got {self.name!r}")
        if self.value.is_complex() or not bool(self.value.isfinite().all()):
            raise ValueError(f"value of condition {self.name!r} must be finite real numbers, got others")

    def __str__(self) -> str:
        return f"{self.name} ({self.digest})"

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of the values and their shape."""
        values = self.value.detach().cpu().double().contiguous()
        told = repr(tuple(values.shape)).encode() + values.numpy().tobytes()
        return hashlib.sha256(told).hexdigest()[:8]

    def rows(self, count: int) -> Tensor:
        """The value for ``count`` samples, with shape (count, *)."""
        return self.value.expand(count, *self.value.shape)


def condition_rows(condition: Condition | NamedCondition | None, count: int) -> Condition | None:
    """A condition of ``count`` samples as models take it."""
    return condition.rows(count) if isinstance(condition, NamedCondition) else condition


@dataclass(frozen=True, eq=False)
class Problem:
    """A model to be sampled, and what its samples should be.

    Args:
        name: for tables and records.
        model: what is sampled.
        real: real examples in model scale with shape (M, *); None where there are none.
        log_density: x with shape (B, *) -> log p(x) of the data with shape (B,); None where it is not known.
        mixture: the data, if they are a mixture whose modes may be counted.
        fingerprint: identifies the model's weights in records; found from the tensors of an exact model.
        scaling: of the data, for pictures; None for data in model scale.
        folder: of its samples, below that of all samples; "" for the model of the run itself.
        real_of_class: label -> real examples of this class; None where classes are not known.
        real_of_condition: a condition with shape (*c,) -> real examples of it with shape (M, *); None where
            they are not known.
        of_prompt: a text -> the condition with shape (*c,) that it stands for; None for models without texts.
    """

    name: str
    model: ScoreModel
    real: Tensor | None = field(default=None, repr=False)
    log_density: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    mixture: GaussianMixture | None = field(default=None, repr=False)
    fingerprint: str = ""
    scaling: DataScale | None = field(default=None, repr=False)
    folder: str = field(default="", repr=False)
    real_of_class: Callable[[int], Tensor] | None = field(default=None, repr=False)
    real_of_condition: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    of_prompt: Callable[[str], Tensor] | None = field(default=None, repr=False)


@checked
def exact_problem(name: str, sde: ForwardSDE, num_real: int = NUM_REAL) -> Problem:
    """A built-in problem under a forward process.

    Args:
        name: one of ``EXACT_PROBLEMS``.
        sde: the process.
        num_real: real examples, at least 2.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in EXACT_PROBLEMS:
        raise ValueError(f"name must be one of {', '.join(EXACT_PROBLEMS)}, got {name!r}")
    if num_real < 2:
        raise ValueError(f"num_real must be at least 2, got {num_real}")
    law = exact_data(name)
    mixture = law if isinstance(law, GaussianMixture) else None
    return Problem(
        name,
        ExactModel(law, sde),
        law.sample(num_real, seed=REAL_SEED),
        functools.partial(_log_density, law),
        mixture,
        exact_fingerprint(law, sde),
        folder=name,
        real_of_class=None if mixture is None else functools.partial(_of_component, mixture, num_real),
    )


def _of_component(law: GaussianMixture, num_real: int, label: int) -> Tensor:
    return law.component(label).sample(num_real, seed=REAL_SEED)


def _log_density(law: ExactData, x: Tensor) -> Tensor:
    return law.log_prob(x.double())


def exact_fingerprint(law: ExactData, sde: ForwardSDE) -> str:
    """Identifies a law and a process, 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(sde).encode())
    c = law.components
    for tensor in (c.weights, c.means, law.mean, law.covariance if c.means.shape[1] < 100 else law.variance):
        digest.update(tensor.detach().double().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=len(EXACT_PROBLEMS))
def exact_data(name: str) -> ExactData:
    """The law of the data of a built-in problem."""
    makers: dict[str, Callable[[], ExactData]] = {
        "gaussian": lambda: Gaussian(torch.tensor([0.5, -0.25]), torch.full((2,), 0.49)),
        "gaussian_ill": lambda: turned_gaussian(91, torch.logspace(0, -2, 8, dtype=torch.float64)),
        "gaussian_low_rank": lambda: turned_gaussian(
            92, torch.cat([torch.ones(4), torch.full((12,), 0.01)]).double()
        ),
        "ring": ring,
        "grid25": grid25,
        "scales": lambda: scales(93),
        "mixture8": lambda: mixture(8, 94),
        "mixture64": lambda: mixture(64, 95),
        "mixture512": lambda: diagonal_mixture(512, 96),
        "checkerboard": lambda: kernel_density(datasets.checkerboard),
        "moons": lambda: kernel_density(datasets.moons),
        "swissroll": lambda: kernel_density(datasets.swissroll),
    }
    return makers[name]()


def _normals(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ring() -> GaussianMixture:
    """Eight Gaussians on a circle, mean 0 and standard deviation 1 in each feature."""
    means, std = datasets.ring_components()
    return GaussianMixture(torch.full((8,), 1 / 8, dtype=torch.float64), means, torch.full((8,), std**2))


def grid25(side: int = 5, std: float = 0.05) -> GaussianMixture:
    """Equal Gaussians on a square grid, mean 0 and standard deviation 1 in each feature."""
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = line * math.sqrt((1 - std**2) / float(line.square().mean()))
    means = torch.cartesian_prod(line, line)
    weights = torch.full((side**2,), 1 / side**2, dtype=torch.float64)
    return GaussianMixture(weights, means, torch.full((side**2,), std**2, dtype=torch.float64))


def turned_gaussian(seed: int, stds: Tensor) -> Gaussian:
    """A Gaussian with these standard deviations, shape (D,), along random orthogonal axes."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(_normals(generator, len(stds), len(stds))).Q * stds
    covariance = axes @ axes.mT
    return Gaussian(0.5 * _normals(generator, len(stds)), (covariance + covariance.mT) / 2)


def mixture(num_features: int, seed: int, num_components: int = 5) -> GaussianMixture:
    """Unequal weights, means of order one, full covariances with standard deviations of a tenth to a half."""
    generator = torch.Generator().manual_seed(seed)
    weights = (0.5 * _normals(generator, num_components)).softmax(0)
    means = 1.2 * _normals(generator, num_components, num_features)
    factors = 0.35 * _normals(generator, num_components, num_features, num_features)
    covariances = factors @ factors.mT / num_features
    return GaussianMixture(weights, means, covariances + 0.02 * torch.eye(num_features, dtype=torch.float64))


def diagonal_mixture(num_features: int, seed: int, num_components: int = 5) -> GaussianMixture:
    """Unequal weights, means of order one, diagonal covariances with standard deviations of .1 to .6."""
    generator = torch.Generator().manual_seed(seed)
    weights = (0.5 * _normals(generator, num_components)).softmax(0)
    means = 1.2 * _normals(generator, num_components, num_features)
    stds = 0.1 + 0.5 * torch.rand(num_components, num_features, generator=generator, dtype=torch.float64)
    return GaussianMixture(weights, means, stds.square())


def scales(seed: int, stds: tuple[float, ...] = (1.0, 0.3, 0.1), num_components: int = 4) -> GaussianMixture:
    """Components whose spread and distances fall from axis to axis, the axes turned."""
    generator = torch.Generator().manual_seed(seed)
    std, D = torch.tensor(stds, dtype=torch.float64), len(stds)
    turn = torch.linalg.qr(_normals(generator, D, D)).Q * std  # columns: the axes, in their scale
    means = _normals(generator, num_components, D) @ turn.mT
    factors = turn @ (0.5 * _normals(generator, num_components, D, D) / math.sqrt(D))
    covariances = factors @ factors.mT + 0.01 * (turn @ turn.mT)
    weights = (0.5 * _normals(generator, num_components)).softmax(0)
    return GaussianMixture(weights, means, (covariances + covariances.mT) / 2)


def kernel_density(make: Callable[..., datasets.Dataset]) -> GaussianMixture:
    """Points of a set, each a Gaussian of std .05."""
    points = make(num_train=_KERNELS, num_test=2, seed=0).scaled_train().double()
    weights = torch.full((_KERNELS,), 1 / _KERNELS, dtype=torch.float64)
    return GaussianMixture(weights, points, torch.full((_KERNELS,), _KERNEL_STD**2, dtype=torch.float64))
