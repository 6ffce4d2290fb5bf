"""Problems on which the constants of the default sampler may be settled, apart from those that are reported.

    python -m benchmarks tuning

A constant that was chosen on a problem makes figures on the same problem flatter it.  So constants are
chosen here, and ``benchmarks.flows``, ``quality`` and ``peers`` report on other data: other numbers of
features, other means and covariances.  The data are those below under VP and VE, and the set ``tuning`` of
``benchmarks.families``, whose scales span up to 300 to 1.

The table asks how far the constants in force are from a local optimum.  Every constant is moved alone,
lengths and powers by 15 % up and down, counts by one.  For each choice it gives the error of the
deterministic sampler, as the geometric mean over problems and numbers of evaluations of

    error(choice) / error(constants in force)

A ratio below one says that the choice is better on these problems.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterator

from benchmarks import families
from benchmarks.flows import FlowProblem, make_problem, make_processes, mixture, ring, scales
from benchmarks.peers.ours import FromStart
from benchmarks.record import digits, write_result
from sde_toolkit.models import ExactData
from sde_toolkit.samplers import gaussian_residual
from sde_toolkit.samplers.gaussian.grid import CONSTANTS, Constants, ResidualGrid
from sde_toolkit.samplers.gaussian.method import ResidualAdams

EVALUATIONS = (5, 10, 20, 50)
FACTOR = 1.15
SEED = 40


def make_data() -> dict[str, ExactData]:
    """Data for tuning; none of them is in a benchmark that reports."""
    return {
        "ring5": ring(5, 0.2),
        "scales4": scales(11, (0.8, 0.4, 0.2, 0.05)),
        "mixture5": mixture(5, seed=12, num_components=3),
        "mixture12": mixture(12, seed=13, num_components=7),
        "mixture24": mixture(24, seed=14, num_components=4),
    }


@functools.cache
def problems() -> tuple[FlowProblem, ...]:
    """The data above under VP and VE, and the family.  A single Gaussian would say nothing: the sampler is
    exact on it."""
    few = tuple(
        make_problem(f"{name}-{process}", data, sde, SEED)
        for name, data in make_data().items()
        for process, sde in make_processes().items()
    )
    return few + tuple(families.make_problem(case) for case in families.tuning())


def choices() -> Iterator[tuple[str, Constants]]:
    """Names and constants: each constant moved alone, up and down."""
    for field in dataclasses.fields(Constants):
        value = getattr(CONSTANTS, field.name)
        if isinstance(value, bool):  # a switch, for other models
            continue
        moved = (value - 1, value + 1) if isinstance(value, int) else (value / FACTOR, value * FACTOR)
        for new in moved:
            yield f"{field.name} {new:.3g}", dataclasses.replace(CONSTANTS, **{field.name: new})


def error(problem: FlowProblem, constants: Constants, nfe: int) -> float:
    """Relative RMS error of the default sampler with these constants and ``nfe`` evaluations, pooled over the
    features."""
    usual = gaussian_residual(problem.model, nfe, t_min=problem.t_min)
    moments = problem.model.moments
    assert moments is not None
    sampler = dataclasses.replace(
        usual,
        start="prior",
        method=ResidualAdams(moments, constants, 0.0),
        grid=ResidualGrid(moments, constants),
    )
    noise = FromStart(problem.x_T, problem.model)
    return problem.error(sampler.sample(problem.model, len(problem.x_T), noise=noise).x)


def ratio(constants: Constants, base: dict[tuple[str, int], float]) -> float:
    """Geometric mean of errors over those of the constants in force."""
    logs = [
        math.log(error(problem, constants, nfe) / base[problem.name, nfe])
        for problem in problems()
        for nfe in EVALUATIONS
    ]
    return math.exp(statistics.fmean(logs))


def main() -> None:
    """Print and write the ratio for every choice."""
    base = {(p.name, n): error(p, CONSTANTS, n) for p in problems() for n in EVALUATIONS}
    ratios = {name: ratio(constants, base) for name, constants in choices()}
    print("error with one constant moved, over the error with the constants in force (geometric mean)")
    for name, value in ratios.items():
        print(f"  {name:22s} {value:.3f}")
    settings = {
        "evaluations": EVALUATIONS,
        "factor": FACTOR,
        "seed": SEED,
        "problems": [p.name for p in problems()],
    }
    errors = {f"{name}, {nfe}": digits(value) for (name, nfe), value in base.items()}
    write_result("tuning", settings, {"errors": errors, "ratios": {k: digits(v) for k, v in ratios.items()}})


if __name__ == "__main__":
    main()
