"""Bits per dimension of held-out digits on one checkpoint: the flow's density beside the variational bounds.

    python -m benchmarks.likelihood_table                    the package's checkpoint
    python -m benchmarks.likelihood_table --workdir DIR      the newest checkpoint of a run

One row per value, one column per dequantisation.  A dequantisation gives x in model scale and log q(x | v),
its own log-density there; by Jensen's inequality log P(v) >= E[ log p(x) - log q(x | v) ], so every cell is

    -E[ log p(x) - log q(x | v) ] / (D log 2),     with log p(x) exact (flow) or bounded from below,

an upper bound on the bits per dimension of the grey levels, in the mean over the examples.  Two errors: the
first, +-, over the examples; the second, in brackets, from the draws (or probes) alone.

The flow and the bounds belong to two models, the deterministic and the stochastic one (see
``sde_toolkit.likelihood.bounds``): with an inexact score neither has to be the lower.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit.config import DEQUANTIZERS, build_dataset, likelihood_options
from sde_toolkit.likelihood import (
    Bound,
    BoundDraws,
    Hutchinson,
    continuous_bound,
    discrete_bound,
    log_likelihood,
)
from sde_toolkit.runs import Run, open_run, open_shipped
from solvers import Normals

DRAWS = 64
CHAINS = ((100, "large"), (1000, "large"), (1000, "small"))
PROBES = 2
SEED = 0

Nats = tuple[Tensor, Tensor]
"""Log-densities of x and their standard errors from the draws, each with shape (M,)."""


def flow(run: Run, x_t: Tensor, t_min: float) -> Nats:
    """By the probability flow, with random probes."""
    options = likelihood_options(run.config) | {"t_min": t_min, "num_diagnostic_samples": 0}
    options |= {"divergence": Hutchinson(PROBES), "target_se": None}
    found = log_likelihood(run.model, x_t, **options)
    assert found.standard_error is not None
    return found.nats.double(), found.standard_error.double()


def bounds(run: Run, x: Tensor) -> dict[str, Nats]:
    """By the continuous bound, and by chains of several lengths."""
    t_min, batch_size = run.config.likelihood.t_min, run.config.likelihood.batch_size
    found: dict[str, Bound] = {
        f"continuous bound, {DRAWS} draws": continuous_bound(
            run.model, x, t_min=t_min, batch_size=batch_size, draws=BoundDraws(num_draws=DRAWS)
        )
    }
    for num_steps, variance in CHAINS:
        chain = run.model.sde.discretize(num_steps)
        draws = BoundDraws(num_draws=None if num_steps <= 100 else 2 * DRAWS)
        found[f"chain, N = {num_steps}, {variance} variance"] = discrete_bound(
            run.model, x, chain, variance=variance, batch_size=batch_size, draws=draws
        )
    return {name: (bound.nats, bound.standard_error) for name, bound in found.items()}


def cell(nats: Nats, log_q: Tensor, num_features: int) -> dict[str, float | None]:
    """Bits per dimension, and its standard errors over the examples and from the draws."""
    bits = -(nats[0] - log_q) / (num_features * math.log(2))
    draws = float(nats[1].square().sum().sqrt()) / (len(bits) * num_features * math.log(2))
    spread = float(bits.std()) / math.sqrt(len(bits))
    return {
        "bits_per_dim": digits(float(bits.mean())),
        "standard_error": digits(spread),
        "draws": digits(draws),
    }


def measure(run: Run, examples: int | None = None) -> dict[str, dict[str, Any]]:
    """Dequantisation -> value -> cell."""
    dataset, rows = build_dataset(run.config), {}
    values = dataset.test[:examples]
    for name in ("uniform", "truncated_normal"):
        dequantizer = DEQUANTIZERS[name](run.model, dataset, run.config.likelihood.t_min)
        x_t, log_q = dequantizer.draw(values, Normals(SEED, len(values), dataset.event_shape))
        dims, x_t = values[0].numel(), x_t.to(run.model.dtype)
        found = {"probability flow": cell(flow(run, x_t, dequantizer.t_min), log_q, dims)}
        # the bounds are on the density of clean data
        log_q = log_q + dims * math.log(dequantizer.alpha)
        for kind, nats in bounds(run, x_t / dequantizer.alpha).items():
            found[kind] = cell(nats, log_q, dims)
        rows[name] = found
    return rows


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description="bits/dim by the flow and by variational bounds")
    parser.add_argument(
        "--workdir", type=Path, help="of a training run; the package's checkpoint if not given"
    )
    parser.add_argument("--examples", type=int, help="how many; all held-out ones if not given")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = open_shipped("digits") if options.workdir is None else open_run(options.workdir)
    table = measure(run, options.examples)
    print(f"{'bits/dim, held out':<32}" + "".join(f"{name:>34}" for name in table))
    for kind in next(iter(table.values())):
        cells = (
            f"{row[kind]['bits_per_dim']:.4f} +- {row[kind]['standard_error']:.4f} ({row[kind]['draws']:.4f})"
            for row in table.values()
        )
        print(f"{kind:<32}" + "".join(f"{text:>34}" for text in cells))
    settings = {"config": run.config.to_dict(), "step": run.step, "draws": DRAWS, "probes": PROBES}
    name = "likelihood_table" if options.workdir is None else f"likelihood_table_{options.workdir.name}"
    write_result(name, settings, table)


if __name__ == "__main__":
    main(sys.argv[1:])
