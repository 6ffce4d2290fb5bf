"""Constants and times of the Gaussian-residual sampler: at which noise levels it evaluates the model.

``sde_toolkit.samplers.gaussian.method`` says what they are for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.models import Moments
from sde_toolkit.samplers.gaussian.clock import (
    Clock,
    Density,
    arcsinh_density,
    arctan_density,
    make_clock,
    power_mean,
)
from sde_toolkit.sdes import ForwardSDE


@dataclass(frozen=True)
class Constants:
    """The constants of the Gaussian-residual sampler; lengths are in units of the data's scales.

    Args:
        nodes: of the polynomial that predicts a step, the one at infinity included.
        corrector_nodes: of the polynomial that corrects it, the new node included.
        many: runs of at least so many evaluations have one node more of both kinds.
        some, smooth: runs of at least ``some`` have one more on steps from ratios above ``smooth`` (c_n)
            times the data's scale.
        bend, blend: c_v and k_v, in v.
        inner, outer, decay: c_a, c_b and p of the clock.
        mean, few: k_a = mean + few / N for N evaluations, at most 1.
        first, last: lengths in the clock of the first and the last step, in units of the others.
        fall: b of the envelope.
        logarithmic: whether v counts all e-folds above the largest scale, like those between the scales.
    """

    nodes: int = 4
    corrector_nodes: int = 5
    many: int = 32
    some: int = 12
    smooth: float = 0.2
    bend: float = 0.5
    blend: float = 0.25
    inner: float = 0.5
    mean: float = 0.09
    few: float = 1.0
    outer: float = 0.8
    decay: float = 0.9
    first: float = 0.55
    last: float = 0.6
    fall: float = 0.55
    logarithmic: bool = False

    def counts(self, evaluations: int, smooth: bool) -> tuple[int, int]:
        """``nodes`` and ``corrector_nodes`` of a step, in a run of so many evaluations."""
        more = int(evaluations >= self.many) + int(smooth and evaluations >= self.some)
        return self.nodes + more, self.corrector_nodes + more


CONSTANTS = Constants()
"""One choice for all data: found by random search on the tuning problems of ``benchmarks.families``, mixtures
in 2 to 48 dimensions whose scales span 1 to 300, on the data of ``benchmarks.tuning``, small networks and the
shipped class-conditional digits, then rounded.  No comparison of samplers reports on any of them."""

ROUGH_CONSTANTS = replace(CONSTANTS, some=1 << 62)
"""For networks: on the shipped class-conditional digits the node more multiplies the error by 1.1 to 1.6."""

NETWORK_CONSTANTS = Constants(
    bend=0.47,
    blend=0.05,
    inner=0.49,
    mean=0.23,
    few=0.0,
    outer=0.9,
    decay=0.07,
    first=0.0,
    last=0.9,
    fall=0.2,
    some=1 << 62,
    logarithmic=True,
)
"""For networks that predict the noise.  Their error in it is about as large at every noise level, so that the
residual does not vanish at infinity: they are evaluated from T on, equally in ln n, and v counts like that.
Networks that predict the velocity, the data or the residual do not need it: what they predict is known where
noise dominates."""

NOISY_CONSTANTS = Constants(
    nodes=2,
    corrector_nodes=3,
    many=1 << 62,
    some=1 << 62,
    inner=0.3,
    outer=0.45,
    decay=0.8,
    first=0.9,
    last=0.7,
    fall=0.5,
)
"""With noise: polynomials through more evaluations, which the noise has made rough, only amplify it."""


@dataclass(frozen=True)
class ResidualGrid:
    """The times T, t_1, ..., t_N, t_min of N = num_steps - 1 evaluations, equally spaced in the clock."""

    moments: Moments
    constants: Constants = CONSTANTS

    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,); at least 2 steps.

        Raises:
            ValueError: fewer steps.
        """
        if num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, a start and an end, got {num_steps}")
        ends = torch.tensor([sde.T if t_max is None else t_max, t_min], dtype=torch.float64)
        start, end = sde.nsr(ends).tolist()
        ratios = torch.from_numpy(self.ratios(num_steps - 1, start, end))
        return torch.cat([ends[:1], sde.inverse_nsr(ratios), ends[1:]])

    def ratios(self, count: int, start: float, end: float) -> np.ndarray:
        """The ratios of ``count`` evaluations between ``start`` and ``end``, decreasing."""
        constants = self.constants
        clock = evaluation_clock(self.moments, constants, start, end, count)
        # a process that ends before the clock's first evaluation is evaluated near its end
        before, highest = clock(np.array([end, start * (1 - 0.5 / count)]))
        step = (clock.total - before) / (count - 1 + constants.first + constants.last)
        if clock.total - constants.first * step > highest:
            step = (highest - before) / (count - 1 + constants.last)
        return clock.inverse(before + step * (constants.last + np.arange(count - 1, -1, -1)))


def resolved(moments: Moments, end: float) -> np.ndarray:
    """The variances l with shape (n,), those below the smallest ratio ``end`` raised to it: thinner axes are
    never seen thinner than that."""
    return moments.variances.clamp(min=end**2).numpy()


def evaluation_clock(
    moments: Moments, constants: Constants, start: float, end: float, evaluations: int
) -> Clock:
    """The clock tau in which evaluations are equally spaced, for a run between two ratios."""
    variances, outer = resolved(moments, end), constants.outer * moments.scale
    mean = min(constants.mean + constants.few / evaluations, 1.0)
    inside = power_mean(variances, constants.inner, mean, arcsinh_density)

    def density(log_nsr: np.ndarray) -> np.ndarray:
        far = 1 + (np.exp(log_nsr) / outer) ** 2
        return inside(log_nsr) * far ** (-constants.decay / 2)

    return _over(variances, start, end, density, constants.decay)


def node_clock(moments: Moments, constants: Constants, start: float, end: float) -> Clock:
    """The variable v of the polynomials, for a run between two ratios."""
    variances = resolved(moments, end)
    psi = arcsinh_density if constants.logarithmic else arctan_density
    density = power_mean(variances, constants.bend, constants.blend, psi)
    return _over(variances, start, end, density, 1.0)


def _over(variances: np.ndarray, start: float, end: float, density: Density, fall: float) -> Clock:
    stds = np.sqrt(variances)
    return make_clock(density, min(float(stds.min()), end), max(float(stds.max()), start), fall)
