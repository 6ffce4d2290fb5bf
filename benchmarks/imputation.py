"""Imputation of a table whose law is known: draws of missing entries beside exact conditional ones.

    python -m benchmarks imputation

Rows of a mixture of 4 Gaussians in 6 columns (``law``), each entry missing with probability 30%, one or more
left in a row.  Where the model is exact, all that is off is the method of guidance and 50 steps of DDIM; a
network (the configuration ``vectors``, 3000 updates on 20 000 complete rows, kept in runs/imputation) is off
too. Particles have 50 evaluations too, the split Gibbs sampler 25 iterations of 20; the draws of a row by
particles are from one group of 128.  Every method draws 99 values of every missing entry; "exact" draws them
from the row's own conditional law.

mean error   root mean square, over missing entries, of the draws' mean less the exact conditional mean; exact
             draws leave the error of a mean of 99
error        the same of the draws' mean less the truth
coverage     share of missing entries inside their interval, order statistics 5 and 95 of 99, which hold the
             truth of an exact posterior with probability 90%
width        mean width of these intervals, over that of exact draws

Means over 3 seeds (rows, masks and draws), with standard errors.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit.guidance import (
    DDNM,
    DPS,
    MMPS,
    TMPD,
    DiffPIR,
    GaussianInformed,
    LinearObservation,
    Method,
    Observed,
    PiGDM,
    ScoreALD,
    SplitGibbs,
    TwistedSMC,
    impute,
)
from sde_toolkit.metrics import interval, over_seeds
from sde_toolkit.models import ExactModel, GaussianMixture, ScoreModel
from sde_toolkit.runs import open_run, saved_step, train_run
from sde_toolkit.samplers import ddim
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import atomic_write

COLUMNS, COMPONENTS, LAW_SEED, MISSING = 6, 4, 11, 0.3
ROWS, DRAWS, STEPS, LEVEL, SEEDS = 100, 99, 50, 0.9, (0, 1, 2)
PARTICLES, ITERATIONS = 128, 25
TRAINING_ROWS, TRAINING_SEED, UPDATES, WORKDIR = 20_000, 123, 3000, Path("runs/imputation")
METHODS: dict[str, Method | TwistedSMC | SplitGibbs] = {
    "GaussianInformed": GaussianInformed(), "MMPS": MMPS(), "TMPD, full": TMPD("full"), "TMPD": TMPD(),
    "PiGDM": PiGDM(), "DPS": DPS(), "DDNM": DDNM(), "DiffPIR": DiffPIR(), "ScoreALD": ScoreALD(),
    "TwistedSMC": TwistedSMC(STEPS, particles=PARTICLES),
    "TwistedSMC, moments": TwistedSMC(STEPS, particles=PARTICLES, kernel="moments"),
    "SplitGibbs": SplitGibbs(ITERATIONS),
}  # fmt: skip
FIGURES = ("mean error", "error", "coverage", "width")


def law() -> GaussianMixture:
    """Four Gaussians with correlated columns, a distance of a few standard deviations apart."""
    generator = torch.Generator().manual_seed(LAW_SEED)
    means = 1.2 * torch.randn(COMPONENTS, COLUMNS, dtype=torch.float64, generator=generator)
    roots = torch.randn(COMPONENTS, COLUMNS, 2, dtype=torch.float64, generator=generator)
    noise = 0.05 * torch.eye(COLUMNS, dtype=torch.float64)
    return GaussianMixture([0.1, 0.2, 0.3, 0.4], means, 0.3 * roots @ roots.mT + noise)


def incomplete(data: GaussianMixture, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows with shape (count, 6), and the same with nan where an entry is missing."""
    truth = data.sample(count, seed)
    generator = torch.Generator().manual_seed(seed)
    missing = torch.rand(truth.shape, generator=generator) < MISSING
    kept = torch.randint(COLUMNS, (count, 1), generator=generator)
    missing.scatter_(1, kept, value=False)
    return truth, torch.where(missing, math.nan, truth)


def exact_draws(model: ExactModel, rows: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws of the conditional laws with shape (count, n, 6), and their means with shape (n, 6)."""
    draws, means = torch.empty(count, *rows.shape, dtype=torch.float64), torch.empty_like(rows)
    for i, row in enumerate(rows):
        observation = LinearObservation(~row.isnan(), 0.0)
        data = model.posterior(Observed(observation, row)).data
        draws[:, i], means[i] = data.sample(count, (seed << 20) + i), data.mean
    return draws, means


def judged(draws: Tensor, truth: Tensor, means: Tensor, width: float, missing: Tensor) -> dict[str, float]:
    """The figures of one seed."""
    mean, found = draws.mean(0), interval(draws, LEVEL)
    inside = (found.low <= truth) & (truth <= found.high)
    return {
        "mean error": float((mean - means)[missing].square().mean().sqrt()),
        "error": float((mean - truth)[missing].square().mean().sqrt()),
        "coverage": float(inside[missing].double().mean()),
        "width": float((found.high - found.low)[missing].mean()) / width,
    }


def measure(
    methods: dict[str, Method | TwistedSMC | SplitGibbs] = METHODS,
    seeds: Sequence[int] = SEEDS,
    rows: int = ROWS,
    draws: int = DRAWS,
    model: ScoreModel | None = None,
) -> dict[str, Any]:
    """The table: method -> figure -> (mean over seeds, standard error), for the exact model or another."""
    exact, found, seconds = ExactModel(law(), VPSDE()), dict[str, list[dict[str, float]]](), {}
    model = exact if model is None else model
    for seed in seeds:
        truth, gaps = incomplete(exact.data, rows, seed)  # type: ignore[arg-type]
        missing = gaps.isnan()
        own, means = exact_draws(exact, gaps, draws, seed)
        ends = interval(own, LEVEL)
        width = float((ends.high - ends.low)[missing].mean())
        found.setdefault("exact", []).append(judged(own, truth, means, width, missing))
        for name, method in methods.items():
            start = time.perf_counter()
            how: dict[str, Any] = (
                {"method": method, "sampler": ddim(STEPS)}
                if isinstance(method, Method)
                else {"sampler": method}
            )
            made = impute(model, gaps, num_draws=draws, seed=seed, batch_size=2500, **how)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            found.setdefault(name, []).append(judged(made.draws.double(), truth, means, width, missing))
    return {
        name: {
            figure: [
                digits(value)
                for e in [over_seeds([row[figure] for row in column])]
                for value in (e.value, e.standard_error)
            ]
            for figure in FIGURES
        }
        | {"seconds": digits(seconds.get(name, 0.0))}
        for name, column in found.items()
    }


def network(workdir: Path = WORKDIR) -> ScoreModel:
    """The network of such rows, trained where it is not there."""
    if saved_step(workdir) < UPDATES:
        workdir.mkdir(parents=True, exist_ok=True)
        path, stream = workdir.absolute() / "rows.npy", io.BytesIO()
        np.save(stream, law().sample(TRAINING_ROWS, TRAINING_SEED).numpy())
        atomic_write(path, stream.getvalue())
        train_run(workdir, "vectors", {"data.source": str(path), "training.num_steps": UPDATES})
    return open_run(workdir).model


def main() -> None:
    """Measure, print the tables and write JSON."""
    torch.set_num_threads(1)
    tables = {}
    for name, model in (("exact model", None), ("network", network())):
        tables[name] = measure(model=model)
        print(f"   {name:<20}" + "".join(f"{figure:>22}" for figure in FIGURES))
        for method, row in tables[name].items():
            cells = (f"{row[figure][0]:.3f} +- {row[figure][1]:.3f}" for figure in FIGURES)
            print(f"   {method:<20}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
    settings = {
        "columns": COLUMNS, "components": COMPONENTS, "missing": MISSING, "rows": ROWS, "draws": DRAWS,
        "steps": STEPS, "particles": PARTICLES, "iterations": ITERATIONS, "level": LEVEL, "seeds": SEEDS,
        "seed of the law": LAW_SEED, "training rows": TRAINING_ROWS, "updates": UPDATES,
    }  # fmt: skip
    write_result("imputation", settings, tables)


if __name__ == "__main__":
    main()
