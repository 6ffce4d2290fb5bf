"""Exact problems for the deterministic flow: where a sampler that makes no error ends.

Data in closed form, under a forward process, from 256 starts x_T drawn from the prior.  The probability flow
carries x_T to T, ..., t_min; its end is known (a closed form for Gaussians, DOP853 at rtol 1e-10 in float64
for mixtures, see ``sde_toolkit.models.exact``).  The error of a sampler is

    ( mean |x - x_end|^2 / mean |x_end|^2 )^(1/2)

over the points.  Two ends are given: at t_min, and at noise zero for samplers whose last step goes there.

    ring        2-D, eight round Gaussians of std .15 on the unit circle
    scales      3-D, four Gaussians, the standard deviations of the axes 1, .3 and .1, turned
    mixture8    8-D, five Gaussians with full covariances
    mixture32   32-D, five Gaussians with full covariances
    mixture64   64-D, five Gaussians with full covariances
    low_rank    16-D Gaussian whose covariance has rank 4

    vp          linear rate .1 to 20, noise-to-signal ratio 152 at T = 1, .002 at t_min
    ve          noise-to-signal ratio 80 at T = 1, .002 at t_min = 0
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_toolkit.lab.problems import mixture, scales
from sde_toolkit.models import ExactData, ExactModel, Gaussian, GaussianMixture
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE, LinearBeta
from solvers.brownian import Normals

NUM_POINTS = 256
NSR_MIN = 0.002
START_SEED = 20


@dataclass(frozen=True)
class FlowProblem:
    """Starts and exact ends of the probability flow of one model.

    Attributes:
        name: of the data and the process, as in "ring-vp".
        model: the exact score, in float64.
        t_min: where the run ends; the noise-to-signal ratio is ``NSR_MIN`` there.
        x_T: starts with shape (256, D), standard normals times the prior's standard deviation.
        end: the exact states at t_min with shape (256, D).
        zero_end: the same at noise zero, alpha = 1.
        gaussian: whether the data are one Gaussian, where a method can be exact by construction.
    """

    name: str
    model: ExactModel
    t_min: float
    x_T: Tensor = field(repr=False)
    end: Tensor = field(repr=False)
    zero_end: Tensor = field(repr=False)
    gaussian: bool = False

    def error(self, x: Tensor, at_zero: bool = False) -> float:
        """RMS error of ends x with shape (256, D), relative to the RMS of the exact ends; inf if not
        finite."""
        exact = self.zero_end if at_zero else self.end
        error = float((x.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        return error if math.isfinite(error) else math.inf


def make_problem(
    name: str, data: ExactData, sde: ForwardSDE, seed: int = START_SEED, nsr_min: float = NSR_MIN
) -> FlowProblem:
    """The problem of these data under this process, down to the ratio ``nsr_min``; seconds for a mixture in
    more than one dimension."""
    t_min = float(sde.inverse_nsr(torch.tensor(nsr_min, dtype=torch.float64)))
    model = ExactModel(data, sde)
    x_T = sde.prior_sample(Normals(seed, NUM_POINTS, data.event_shape).draw(0))
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (sde.T, t_min))
    y = x_T / sde.alpha(start)
    y_end = data.flow(y, sde.nsr(start), sde.nsr(end))
    zero_end = data.flow(y_end, sde.nsr(end), torch.zeros_like(end))
    gaussian = isinstance(data, Gaussian)
    return FlowProblem(name, model, t_min, x_T, sde.alpha(end) * y_end, zero_end, gaussian)


def normals(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normals with the given shape, in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ring(num_components: int = 8, std: float = 0.15) -> GaussianMixture:
    """Equal round Gaussians at equal distances on the unit circle."""
    angles = torch.arange(num_components, dtype=torch.float64) * (2 * math.pi / num_components)
    weights = torch.full((num_components,), 1 / num_components, dtype=torch.float64)
    means = torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(weights, means, torch.full((num_components,), std**2, dtype=torch.float64))


def low_rank(num_features: int, rank: int, seed: int) -> Gaussian:
    """A Gaussian on a subspace, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    factor = normals(generator, num_features, rank) / math.sqrt(rank)
    return Gaussian(0.5 * normals(generator, num_features), factor @ factor.mT)


def make_data() -> dict[str, ExactData]:
    """The data of the module's head."""
    return {
        "ring": ring(),
        "scales": scales(seed=3),
        "mixture8": mixture(8, seed=0),
        "mixture32": mixture(32, seed=1),
        "mixture64": mixture(64, seed=2),
        "low_rank": low_rank(16, 4, seed=4),
    }


def make_processes() -> dict[str, ForwardSDE]:
    """The processes of the module's head."""
    return {"vp": VPSDE(LinearBeta(0.1, 20.0)), "ve": VESDE(NSR_MIN, 80.0)}


@functools.cache
def problems() -> tuple[FlowProblem, ...]:
    """Every data set under every process, computed once per run."""
    return tuple(
        make_problem(f"{name}-{process}", data, sde)
        for name, data in make_data().items()
        for process, sde in make_processes().items()
    )
