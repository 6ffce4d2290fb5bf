"""Speed of ``solvers`` beside torchdiffeq and torchsde, in one process, on the same problems.

    pip install 'sde-toolkit[peers]'
    python -m benchmarks.speed

Adaptive.  Van der Pol's equation x'' = mu (1 - x^2) x' - x in a batch of 256: "mixed" with stiffness mu from
0.1 to 100, where torchdiffeq takes for all the steps that the most difficult need; "uniform" with mu = 1 and
starts close together; "field" a perceptron of width 256 with like samples, where the field costs most.
torchdiffeq's error norm is a mean over the batch, ours is one per sample, so that at one tolerance the errors
differ; for the ratio at the same error, the tolerance of the less accurate side is cut in steps of 10^(1/4)
until its error is no larger than that of the other.  Errors are root-mean-square over the batch, relative to
a solution at tolerance 1e-11.

Stochastic.  1000 steps of dy = -y dt + (1 + t / 2) dW for 64 samples with 8 elements; torchsde with its
BrownianInterval, its srk in the faster of the noise types "diagonal" and "additive".  The seconds include the
making of the noise.

Overhead.  Microseconds per step on a fixed grid of 1000 steps, for a state of 16 samples with 2 elements,
beyond the field, which is y -> -y and is timed apart; coefficients that are computed once per grid are
included, and stated apart.

Every figure is the median of 5; the two sides take turns.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchsde
from torch import Tensor

from benchmarks.record import write_result
from solvers import (
    DOPRI5,
    EULER,
    EULER_MARUYAMA,
    ODE,
    SDE,
    SRA1,
    Adams,
    Adaptive,
    FixedGrid,
    Method,
    Normals,
    Semilinear,
    Term,
    solve,
)
from solvers.terms import expand_like

THREADS, REPEATS = 2, 5
BATCH, TOLERANCE, TRUTH = 256, 1e-6, 1e-11
STEPS = 1000
INSTALL = "pip install 'sde-toolkit[peers]'"


@dataclass(frozen=True)
class Comparison:
    """Medians in seconds of ours and of the peer's, their ratio, and errors where there are any."""

    case: str
    peer: str
    ours: float
    theirs: float
    ours_error: float | None = None
    theirs_error: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.theirs / self.ours


def medians(*functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function, which take turns; each is run once before."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(REPEATS + 1):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """x'' = mu (1 - x^2) x' - x as a system, states with shape (B, 2), mu with shape (B,)."""
    x, v = y.unbind(1)
    return torch.stack([v, mu * (1 - x * x) * v - x], 1)


def perceptron(t: Tensor, y: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A fixed network of width 256, states with shape (B, 16)."""
    return torch.tanh(y @ first) @ second - y + expand_like((5 * t).sin(), y)


def problems() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor, float]]:
    """Name -> field, arguments of the samples, start with shape (B, *), end time; time starts at 0."""
    generator = torch.Generator().manual_seed(0)
    near = 0.01 * torch.randn(BATCH, 16, generator=generator, dtype=torch.float64)
    weights = [torch.randn(16, 256, generator=generator, dtype=torch.float64) / 4 for _ in range(2)]
    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(BATCH, 2)
    mixed = torch.logspace(-1, 2, BATCH, dtype=torch.float64)
    network = partial(perceptron, first=weights[0], second=weights[1].T / 16)
    return {
        "mixed stiffness": (van_der_pol, (mixed,), start.clone(), 10.0),
        "uniform": (van_der_pol, (torch.ones_like(mixed),), start + near[:, :2], 10.0),
        "uniform, costly field": (network, (), 1 + near, 10.0),
    }


def at_error(run: Callable[[float], Tensor], truth: Tensor, target: float) -> tuple[float, float]:
    """The first tolerance, from ``TOLERANCE`` down in steps of 10^(1/4), with an error of at most ``target``,
    and the error."""
    tolerance, error = TOLERANCE * 10**0.25, math.inf
    while (error > target or math.isinf(error)) and tolerance > 1e-12:
        tolerance /= 10**0.25
        error = float(((run(tolerance) - truth).square().mean() / truth.square().mean()).sqrt())
    return tolerance, error


def adaptive() -> list[Comparison]:
    """Dopri5 beside torchdiffeq's, at the same tolerance and at the same error."""
    import torchdiffeq

    found = []
    for case, (field, args, y0, end) in problems().items():
        term, span = ODE(field, args), torch.tensor([0.0, end], dtype=torch.float64)

        def ours(tolerance: float, term: ODE = term, y0: Tensor = y0, end: float = end) -> Tensor:
            control = Adaptive(0.0, end, rtol=tolerance, atol=tolerance, max_steps=10**6)
            return solve(term, y0, DOPRI5, control).y

        def theirs(
            tolerance: float, y0: Tensor = y0, span: Tensor = span, field: Any = field, args: Any = args
        ) -> Tensor:
            options = {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}
            result: Tensor = torchdiffeq.odeint(lambda t, y: field(t, y, *args), y0, span, **options)[-1]
            return result

        truth = ours(TRUTH)

        errors = [at_error(run, truth, math.inf)[1] for run in (ours, theirs)]
        matched = [at_error(run, truth, min(errors)) for run in (ours, theirs)]
        runs = ((ours, TOLERANCE), (theirs, TOLERANCE), (ours, matched[0][0]), (theirs, matched[1][0]))
        times = medians(*(partial(run, tolerance) for run, tolerance in runs))
        peer = "torchdiffeq dopri5"
        found += [
            Comparison(f"{case}, same tolerance", peer, *times[:2], *errors),
            Comparison(f"{case}, same error", peer, *times[2:], matched[0][1], matched[1][1]),
        ]
    return found


class _Reverting(torch.nn.Module):
    """dy = -y dt + (1 + t / 2) dW in torchsde's form."""

    sde_type = "ito"

    def __init__(self, noise_type: str, y0: Tensor) -> None:
        super().__init__()
        self.noise_type = noise_type
        size = y0.shape[1]
        self._unit = torch.ones_like(y0)
        if noise_type == "additive":
            self._unit = torch.eye(size, dtype=y0.dtype).expand(len(y0), size, size)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift with shape (B, D)."""
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion with shape (B, D), or (B, D, D) for additive noise."""
        return (1 + t / 2) * self._unit


def stochastic() -> list[Comparison]:
    """Euler-Maruyama and SRA1 beside torchsde's euler and srk."""
    y0 = torch.ones(64, 8, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    grid = FixedGrid(torch.linspace(0, 1, STEPS + 1, dtype=torch.float64))
    term = SDE(lambda t, y: -y, lambda t: 1 + t / 2)

    def ours(method: Method) -> Tensor:
        return solve(term, y0, method, grid, noise=Normals(0, 64, (8,))).y

    def theirs(name: str, noise_type: str) -> Tensor:
        levy = "space-time" if name == "srk" else "none"
        motion = torchsde.BrownianInterval(
            0.0, 1.0, size=y0.shape, dtype=y0.dtype, entropy=0, levy_area_approximation=levy
        )
        problem = _Reverting(noise_type, y0)
        result: Tensor = torchsde.sdeint(problem, y0, ends, bm=motion, method=name, dt=1 / STEPS)[-1]
        return result

    found = []
    for method, name in ((EULER_MARUYAMA, "euler"), (SRA1, "srk")):
        runs = [partial(theirs, name, noise_type) for noise_type in ("diagonal", "additive")]
        mine, *others = medians(partial(ours, method), *runs)
        found.append(Comparison(f"{method.name}, {STEPS} steps", f"torchsde {name}", mine, min(others)))
    return found


def overhead() -> dict[str, dict[str, float]]:
    """Microseconds per step beyond the field, and the part of it that is spent once per grid."""
    y0 = torch.ones(16, 2, dtype=torch.float64)
    grid = FixedGrid(torch.linspace(1.0, 0.1, STEPS + 1, dtype=torch.float64))
    t = torch.tensor(0.5, dtype=torch.float64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y

    linear = Semilinear(field, integral=torch.log, source=torch.reciprocal)
    runs: dict[str, tuple[Term, Method]] = {
        "euler": (ODE(field), EULER),
        "exponential Adams, 3 nodes": (linear, Adams(3, variable=torch.log)),
        "exponential Adams, 3 nodes, PEC": (linear, Adams(3, "PEC", variable=torch.log)),
    }

    def bare(count: int) -> None:
        for _ in range(count):
            field(t, y0)

    found = {}
    for name, (term, method) in runs.items():
        total, alone, once = medians(
            partial(solve, term, y0, method, grid),
            partial(bare, STEPS * method.nfe_per_step),
            partial(method.start, term, grid.ts[0], y0, grid),
        )
        found[name] = {"per_step_us": (total - alone) / STEPS * 1e6, "once_per_grid_us": once / STEPS * 1e6}
    return found


def table(comparisons: list[Comparison]) -> str:
    """A line for every comparison."""
    lines = [f"{'case':<40}{'peer':<22}{'ours s':>9}{'theirs s':>10}{'ratio':>7}{'errors':>20}"]
    for c in comparisons:
        errors = "" if c.ours_error is None else f"{c.ours_error:.1e} / {c.theirs_error:.1e}"
        lines.append(f"{c.case:<40}{c.peer:<22}{c.ours:>9.3f}{c.theirs:>10.3f}{c.ratio:>7.2f}{errors:>20}")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    """Measure, print the tables, write benchmarks/results/speed.json if the comparison is whole."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    comparisons, complete = [], importlib.util.find_spec("torchdiffeq") is not None
    if complete:
        comparisons += adaptive()
    else:
        print(f"without torchdiffeq, which is not installed, nothing is recorded: {INSTALL}")
    comparisons += stochastic()
    costs = overhead()
    torch.set_num_threads(before)
    print(table(comparisons))
    for name, cost in costs.items():
        once = f"{cost['once_per_grid_us']:.1f} of it once per grid"
        print(f"{name:<40}{cost['per_step_us']:>7.1f} us per step, {once}")
    if not complete:
        return
    rows = [vars(c) | {"ratio": c.ratio} for c in comparisons]
    settings = {
        "batch": BATCH,
        "tolerance": TOLERANCE,
        "steps": STEPS,
        "repeats": REPEATS,
        "threads": THREADS,
    }
    write_result("speed", settings, {"comparisons": rows, "overhead": costs})


if __name__ == "__main__":
    main()
