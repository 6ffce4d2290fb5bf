"""Families of exact data for the deterministic flow: many scales in one data set, under five processes.

A problem is a kind of data, a number of features D, a condition number (the largest over the smallest
standard deviation of the axes) and a process.

    spread   four Gaussians whose distances and standard deviations fall from axis to axis, from 1 to
             1 / condition in equal ratios, the axes turned
    thin     five Gaussians at distances of order one, each thin in directions of its own: standard deviations
             from .5 to .5 / condition
    rare     spread, with one more Gaussian of weight .02 at a distance of 8

Means lie off zero by ``OFFSET`` in every feature.  The processes are VP with the linear and the cosine
schedule, sub-VP, VE from a ratio of 80, and rectified flow (alpha = 1 - t, sigma = t, from t = .999).  All
runs end at the noise-to-signal ratio ``NSR_MIN``.

Two errors, for ends x against exact ends x_end:

    pooled     ( mean |x - x_end|^2 / mean |x_end - mean|^2 )^(1/2)
    whitened   ( mean over axes i of  mean (U_i^T (x - x_end))^2 / l_i )^(1/2),   U diag(l) U^T the covariance

Errors along thin axes do not show in the pooled one.

Sets are disjoint in their seeds, and no data set is in two of them: ``tuning`` for choosing constants,
``reporting`` for tables, ``untouched`` for one look after everything was settled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import flows
from benchmarks.flows import FlowProblem, normals
from sde_toolkit.models import GaussianMixture
from sde_toolkit.sdes import VESDE, VPSDE, CosineBeta, ForwardSDE, LinearBeta, RectifiedFlow, SubVPSDE

NSR_MIN = 0.001
OFFSET = 0.5
RARE_WEIGHT, RARE_DISTANCE = 0.02, 8.0
KINDS = ("spread", "thin", "rare")


@dataclass(frozen=True)
class Case:
    """One problem of a family.

    Attributes:
        kind: of the data, one of ``KINDS``.
        D: number of features.
        condition: the largest over the smallest standard deviation.
        process: a key of ``make_processes``.
        seed: of data and starts.
    """

    kind: str
    D: int
    condition: float
    process: str
    seed: int

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"{self.kind}-{self.D}-{self.condition:g}-{self.process}"


@dataclass(frozen=True)
class SpectrumProblem(FlowProblem):
    """Starts and exact ends of the probability flow of one model, and the case that it belongs to."""

    case: Case = field(kw_only=True)

    def errors(self, x: Tensor, at_zero: bool = False) -> tuple[float, float]:
        """Pooled and whitened error of ends x with shape (256, D); inf if not finite."""
        alpha = 1.0 if at_zero else float(self.model.sde.alpha(torch.tensor(self.t_min, dtype=torch.float64)))
        moments = self.model.moments
        assert moments is not None
        exact = self.zero_end if at_zero else self.end
        off, away = (x.double() - exact) / alpha, exact / alpha - moments.mean
        pooled = float(off.square().mean().sqrt() / away.square().mean().sqrt())
        along = moments.project(off).square().mean(0) / moments.variances
        whitened = float(along.mean().sqrt())
        return tuple(e if math.isfinite(e) else math.inf for e in (pooled, whitened))  # type: ignore[return-value]

    def error(self, x: Tensor, at_zero: bool = False) -> float:
        """The pooled error."""
        return self.errors(x, at_zero)[0]


def make_processes() -> dict[str, ForwardSDE]:
    """The processes of the module's head."""
    return {
        "vp": VPSDE(LinearBeta(0.1, 20.0)),
        "cosine": VPSDE(CosineBeta()),
        "sub_vp": SubVPSDE(LinearBeta(0.1, 20.0)),
        "ve": VESDE(NSR_MIN, 80.0),
        "rectified": RectifiedFlow(0.999),
    }


def _turned(generator: torch.Generator, stds: Tensor) -> Tensor:
    """Columns: orthogonal axes in the lengths ``stds``."""
    return torch.linalg.qr(normals(generator, len(stds), len(stds))).Q * stds


def make_data(kind: str, D: int, condition: float, seed: int) -> GaussianMixture:
    """Data of a kind; ``D`` at least 2."""
    generator = torch.Generator().manual_seed(1000 * seed + D)
    stds = torch.logspace(0, -math.log10(condition), D, dtype=torch.float64)
    eye = torch.eye(D, dtype=torch.float64)
    if kind == "thin":
        weights, means = (0.5 * normals(generator, 5)).softmax(0), 1.2 * normals(generator, 5, D)
        turns = [_turned(generator, 0.5 * stds) for _ in range(5)]
        covariances = torch.stack([turn @ turn.mT for turn in turns])
        return GaussianMixture(weights, means + OFFSET, (covariances + covariances.mT) / 2)
    turn = _turned(generator, stds)
    weights = (0.5 * normals(generator, 4)).softmax(0)
    means = normals(generator, 4, D) @ turn.mT + OFFSET
    factors = turn @ (0.5 * normals(generator, 4, D, D) / math.sqrt(D))
    covariances = factors @ factors.mT + 0.01 * (turn @ turn.mT)
    if kind == "rare":
        direction = normals(generator, D)
        far = means.mean(0) + RARE_DISTANCE * direction / direction.norm()
        weights = torch.cat([weights * (1 - RARE_WEIGHT), weights.new_tensor([RARE_WEIGHT])])
        means = torch.cat([means, far[None]])
        covariances = torch.cat([covariances, (0.04 * turn @ turn.mT + 1e-6 * eye)[None]])
    return GaussianMixture(weights, means, (covariances + covariances.mT) / 2)


def make_problem(case: Case) -> SpectrumProblem:
    """The problem of a case; a second, for the exact ends."""
    data, sde = make_data(case.kind, case.D, case.condition, case.seed), make_processes()[case.process]
    found = flows.make_problem(case.name, data, sde, case.seed, NSR_MIN)
    return SpectrumProblem(**vars(found), case=case)


def _family(seed: int, sizes: tuple[int, ...]) -> Iterator[Case]:
    for process in make_processes():
        for D in sizes:
            for condition in (1.0, 10.0, 100.0, 300.0):
                yield Case("spread", D, condition, process, seed)
        for condition in (10.0, 100.0):
            yield Case("thin", sizes[1], condition, process, seed)
        yield Case("rare", sizes[0], 1.0, process, seed)
        yield Case("rare", sizes[1], 10.0, process, seed)


@functools.cache
def tuning() -> tuple[Case, ...]:
    """For choosing constants; of the processes VP and VE only, which differ in their largest ratio."""
    sets = (_family(61, (3, 6, 24)), _family(62, (2, 12, 48)))
    return tuple(case for cases in sets for case in cases if case.process in ("vp", "ve"))


def reporting() -> tuple[Case, ...]:
    """For the tables."""
    return tuple(_family(71, (2, 8, 64)))


def untouched() -> tuple[Case, ...]:
    """For one look at the end."""
    return tuple(_family(81, (2, 10, 40)))
