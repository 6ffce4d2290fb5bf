"""Weak orders of the stochastic samplers on a mixture, where nothing is linear.

    python -m benchmarks.preset_weak

A sampler is run with N and with 2 N steps on the same Brownian path, from starts with the exact law at T.
For smooth functions f of the end

    E f(X_N) - E f(X_2N)  =  C (1 - 2^{-p}) N^{-p} + ...

shows the weak order p with a spread that the common path keeps small; every path is also taken with its
sign reversed.  The draws of the coarse run are those combinations of the fine ones that belong to the same
path: of W in time and of its areas for Runge-Kutta methods,

    W = W_1 + W_2,      H = (H_1 + H_2) / 2 + (W_1 - W_2) / 4,

of M with d<M> = d(n^2), n = sigma / alpha, for all others.  Several functions are looked at, and the one
whose slope has the smallest standard error is judged: within ``TOLERANCE`` of the declared order, and
``ERRORS`` standard errors.  That the limit is the right one is shown elsewhere (Gaussian data, energy
distances).

The data are a scalar mixture of two Gaussians; the process is VP from T = 1/2, ratio 2.2, down to ``END``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.orders import TOLERANCE
from benchmarks.preset_orders import END, STOCHASTIC, Make
from benchmarks.record import write_result
from sde_toolkit.models import ExactModel, GaussianMixture
from sde_toolkit.sdes import VPSDE, CustomSDE
from sde_toolkit.utils import Stream
from solvers import AdditiveRungeKutta, NoiseSource, Normals
from solvers.brownian import AREA, STEPS

VP = VPSDE()
SDE = CustomSDE(VP.alpha, VP.sigma, T=0.5)
DATA = GaussianMixture(weights=[0.6, 0.4], means=[[-0.8], [1.0]], covariances=[0.15, 0.3])
MODEL = ExactModel(DATA, SDE)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cos(1.5 x - .5)": lambda x: torch.cos(1.5 * x - 0.5),
    "sin(2 x)": lambda x: torch.sin(2 * x),
    "x^2": torch.square,
    "exp(-(x - .3)^2)": lambda x: torch.exp(-((x - 0.3) ** 2)),
}
NUM_STEPS = (8, 16)
SAMPLES = 1 << 15
ERRORS = 3.0
_START_STREAM = 0x77656B


class FinePath:
    """The given start, and one set of normals with either sign; every draw is made once."""

    def __init__(self, start: Tensor, normals: NoiseSource) -> None:
        self._start, self._normals, self.sign = start / SDE.prior_std, normals, 1.0
        self._made: dict[tuple[int, int], Tensor] = {}

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Normals with shape (B, 1)."""
        if stream == Stream.PRIOR:
            return self._start
        key = index, stream
        if key not in self._made:
            self._made[key] = self._normals.draw(index, stream)
        return self.sign * self._made[key]


class CoarsePath:
    """The same path for steps that are twice as long; ``variances`` are those of the fine increments."""

    def __init__(self, fine: FinePath, variances: Sequence[float]) -> None:
        self._fine, self._variances = fine, variances

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Normals with shape (B, 1)."""
        if stream == Stream.PRIOR:
            return self._fine.draw(0, Stream.PRIOR)
        first, second = (self._fine.draw(2 * index + k) for k in (0, 1))
        if stream == AREA:
            areas = self._fine.draw(2 * index, AREA) + self._fine.draw(2 * index + 1, AREA)
            return areas / math.sqrt(8) + (first - second) * (math.sqrt(6) / 4)
        u, v = self._variances[2 * index : 2 * index + 2]
        return (math.sqrt(u) * first + math.sqrt(v) * second) / math.sqrt(u + v)


@dataclass(frozen=True)
class WeakOrder:
    """Differences between N and 2 N steps with their standard errors, for the function judged."""

    name: str
    function: str
    declared: float
    num_steps: tuple[int, ...]
    differences: tuple[float, ...]
    standard_errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Observed order, from the first and the last difference."""
        ratio = abs(self.differences[0] / self.differences[-1])
        return math.log2(ratio) / math.log2(self.num_steps[-1] / self.num_steps[0])

    @property
    def slope_error(self) -> float:
        """Its standard error."""
        pairs = zip(self.standard_errors, self.differences, strict=True)
        first, *_, last = [abs(e / d) for e, d in pairs]
        return math.hypot(first, last) / math.log(self.num_steps[-1] / self.num_steps[0])

    def complaints(self) -> list[str]:
        """What contradicts the declaration."""
        if abs(self.slope - self.declared) <= TOLERANCE + ERRORS * self.slope_error:
            return []
        found = f"{self.slope:.3f} +- {self.slope_error:.3f} measured"
        return [f"{self.name}, mixture: weak order {self.declared:g} declared, {found}"]


@torch.no_grad()
def differences(make: Make, num_steps: int, samples: int) -> tuple[Tensor, Tensor]:
    """E f(X_N) - E f(X_2N) for all functions, and standard errors, each with shape (F,)."""
    coarse, fine = (make(n, t_min=END, denoise=False) for n in (num_steps, 2 * num_steps))
    ts, normals = fine.grid(SDE, 2 * num_steps, END), Normals(0, samples, (1,))
    in_time = isinstance(fine.method, AdditiveRungeKutta)
    clock = ts if in_time else SDE.nsr(ts).square()
    T = torch.tensor(SDE.T, dtype=torch.float64)
    start = SDE.alpha(T) * DATA.sample(samples, 1) + SDE.sigma(T) * normals.draw(0, _START_STREAM)
    path, total = FinePath(start, normals), torch.zeros(samples, len(FUNCTIONS), dtype=torch.float64)
    for path.sign in (1.0, -1.0):
        ends = [
            sampler.sample(MODEL, samples, noise=noise).x.flatten()
            for sampler, noise in ((coarse, CoarsePath(path, (-clock.diff()).tolist())), (fine, path))
        ]
        values = [torch.stack([f(x) for f in FUNCTIONS.values()], 1) for x in ends]
        total += (values[0] - values[1]) / 2
    return total.mean(0), total.std(0) / math.sqrt(samples)


def measure(name: str, num_steps: tuple[int, ...] = NUM_STEPS, samples: int = SAMPLES) -> WeakOrder:
    """The weak order of a preset on the mixture."""
    make = STOCHASTIC[name]
    declared = make(1).weak_order
    assert declared is not None
    found = [differences(make, n, samples) for n in num_steps]
    every = [
        WeakOrder(
            name,
            function,
            declared,
            num_steps,
            tuple(float(mean[j]) for mean, _ in found),
            tuple(float(error[j]) for _, error in found),
        )
        for j, function in enumerate(FUNCTIONS)
    ]
    return min(every, key=lambda order: order.slope_error)


def main() -> None:
    """Measure, print the table, write JSON; fail if an order is not as declared."""
    torch.set_num_threads(1)
    rows, complaints = [], []
    print(f"{'sampler':<30}{'declared':>9}{'observed':>10}{'+-':>7}   function")
    for name in STOCHASTIC:
        order = measure(name)
        complaints += order.complaints()
        numbers = f"{order.declared:>9g}{order.slope:>10.2f}{order.slope_error:>7.2f}"
        print(f"{name:<30}{numbers}   {order.function}", flush=True)
        rows.append({**order.__dict__, "observed": order.slope, "observed_error": order.slope_error})
    settings = {"samples": SAMPLES, "tolerance": TOLERANCE, "errors": ERRORS, "t_min": END}
    write_result("preset_weak", settings, rows)
    if complaints:
        raise SystemExit("\n".join(complaints))


if __name__ == "__main__":
    main()
