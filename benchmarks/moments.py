"""What the default sampler loses where it knows less of the data: few axes, few examples.

    python -m benchmarks moments

Errors of the deterministic flow at 5, 10, 20 and 50 evaluations (``benchmarks.flows``), with

    digits      the shipped network: its full covariance, the widest 4 to 32 of 64 axes beside one variance of
                the rest, the variances of the pixels, one number
    examples    a mixture in 16-D: the covariance of 10 to 200 examples as it is, and as ``estimate_moments``
                gives it (Ledoit and Wolf's below 160); the data's own, and four times and a quarter of their
                covariance; none (mean 0 and one variance), and those of 64 samples of the model itself
                (``sampled_moments``); and the best of all presets that know no moments, under every grid
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence

import torch

from benchmarks.flows import FlowProblem, make_problem, make_processes, mixture
from benchmarks.peers import ours
from benchmarks.peers.flow import EVALUATIONS, digits_problem, our_error
from benchmarks.peers.ours import FromStart
from benchmarks.record import digits, write_result
from sde_toolkit.data import estimate_moments
from sde_toolkit.models import Moments, isotropic
from sde_toolkit.samplers import gaussian_residual, sampled_moments

RANKS = (4, 8, 16, 32)
COUNTS = (10, 20, 50, 100, 200)
DRAWS = 5
NUM_FEATURES, DATA_SEED, START_SEED = 16, 61, 62

Table = dict[str, list[float]]


def errors(problem: FlowProblem, moments: Moments, evaluations: Sequence[int] = EVALUATIONS) -> list[float]:
    """Errors of the Gaussian-residual sampler with these moments, for every number of evaluations."""
    model, found = problem.model, []
    for nfe in evaluations:
        sampler = gaussian_residual(model, nfe, t_min=problem.t_min, moments=moments)
        noise = FromStart(problem.x_T, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the moments are not those of the samples
            x = sampler.sample(model, len(problem.x_T), noise=noise, start="prior").x
        found.append(problem.error(x))
    return found


def by_rank(problem: FlowProblem) -> Table:
    """Errors with less and less of the model's own moments."""
    full = problem.model.moments
    assert full is not None
    table = {"full": errors(problem, full)}
    for rank in RANKS:
        table[f"{rank} axes"] = errors(problem, full.low_rank(rank))
    return table | {
        "diagonal": errors(problem, full.diagonal()),
        "one number": errors(problem, full.scalar()),
    }


def sample_moments(x: torch.Tensor) -> Moments:
    """Mean and covariance of examples as they are."""
    return Moments(x.mean(0), torch.cov(x.mT, correction=0))


def by_examples(problem: FlowProblem) -> Table:
    """Errors with the moments of few examples, geometric means over draws."""
    table = {"the data's": errors(problem, problem.model.moments)}
    for count in COUNTS:
        draws = [problem.model.data.sample(count, seed=seed) for seed in range(DRAWS)]
        for name, make in (("as they are", sample_moments), ("estimate_moments", estimate_moments)):
            each = [errors(problem, make(x)) for x in draws]
            table[f"{count} examples, {name}"] = [
                math.exp(statistics.fmean(map(math.log, column))) for column in zip(*each, strict=True)
            ]
    model = problem.model
    for factor in (4, 0.25):
        other = Moments(model.moments.mean, factor * model.data.covariance)
        table[f"{factor:g} times the covariance"] = errors(problem, other)
    table["none"] = errors(problem, isotropic(model.event_shape, model.data_std))
    table["of 64 samples of the model"] = errors(problem, sampled_moments(model, 64, seed=START_SEED))
    entries = list(ours.deterministic())
    table["best preset without moments"] = [
        min(our_error(entry, problem, nfe) for entry in entries) for nfe in EVALUATIONS
    ]
    return table


def show(title: str, table: Mapping[str, list[float]]) -> None:
    """Print a table."""
    print(title)
    for name, row in table.items():
        print(f"   {name:32}" + "".join(f"{value:11.5f}" for value in row), flush=True)


def main() -> None:
    """Print both tables and write them."""
    torch.set_num_threads(1)
    tables = {"digits": by_rank(digits_problem())}
    show("digits", tables["digits"])
    for process, sde in make_processes().items():
        name = f"examples-{process}"
        tables[name] = by_examples(make_problem(name, mixture(NUM_FEATURES, DATA_SEED), sde, START_SEED))
        show(name, tables[name])
    settings = {
        "evaluations": EVALUATIONS,
        "ranks": RANKS,
        "counts": COUNTS,
        "draws": DRAWS,
        "num_features": NUM_FEATURES,
        "data_seed": DATA_SEED,
        "start_seed": START_SEED,
    }
    results = {
        name: {key: [digits(value) for value in row] for key, row in table.items()}
        for name, table in tables.items()
    }
    write_result("moments", settings, results)


if __name__ == "__main__":
    main()
