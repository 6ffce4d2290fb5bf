"""Does the likelihood weighting lower the bits per dimension of held-out digits, at equal steps?

    python -m benchmarks.likelihood_training                    both arms, one after the other
    python -m benchmarks.likelihood_training --workdir DIR      where their checkpoints are kept, and found

Two runs of the configuration ``digits_likelihood`` that differ in the loss alone: the mean squared error of
the noise at times even in t ("noise", DDPM's loss), and the likelihood weighting with what keeps its
gradients from drowning in noise (importance-sampled times, antithetic pairs, the mean noise given the grey
levels; see ``training.objective``).  Network, process, initial weights, batches, number of updates,
learning rate and moving average are equal; gradients are clipped at a norm that the first loss never reaches.

Both are judged on the same held-out digits, dequantised with the same uniform noise: bits per dimension by
the probability flow, the trained quantity's own yardstick (the continuous bound), and the difference of the
arms example by example, each with its standard error over the examples.  One run each: the spread between
seeds of training is not in these errors.
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
from sde_toolkit.config import build_dataset, held_out, likelihood_options
from sde_toolkit.likelihood import BoundDraws, continuous_bound, log_likelihood
from sde_toolkit.runs import Run, train_run
from sde_toolkit.training import UpdateInfo

CONFIG = "digits_likelihood"
ARMS: dict[str, dict[str, Any]] = {
    "noise": {
        "loss.weighting": "noise",
        "loss.time_sampling": "stratified",
        "loss.antithetic_nsr": 0.0,
        "loss.levels": 0,
    },
    "likelihood": {},
}
JUDGED_BY: dict[str, Any] = {
    "likelihood.method": "dopri5",
    "likelihood.num_steps": 0,
    "likelihood.num_probes": 8,
}
"""Steps by tolerance: the likelihood arm's network is not smooth enough near the data for few steps of order
4 (.017 bits/dim); and probes enough that their noise is below that of the examples."""

DRAWS = 64
WANTED = 0.1
"""Bits per dimension by which the likelihood weighting has to be better."""


def train(name: str, directory: Path, overrides: dict[str, Any]) -> Run:
    """One arm, trained in ``directory`` or found there."""

    def report(info: UpdateInfo) -> None:
        if info.step % 100 == 0:
            print(
                f"  {name}: step {info.step}, loss {info.loss:.4f}, gradient {info.grad_norm:.3f}", flush=True
            )

    return train_run(directory / name, CONFIG, overrides | JUDGED_BY, on_step=report)


def judge(run: Run) -> dict[str, Tensor]:
    """Bits per dimension of every held-out example, by the flow and by the bound, each with shape (M,)."""
    dataset = build_dataset(run.config)
    x = held_out(run.config, dataset)
    options = likelihood_options(run.config) | {"num_diagnostic_samples": 0}
    options["log_det_per_dim"] = dataset.scaling.log_det_per_dim
    flow = log_likelihood(run.model, x, **options)
    same = {name: options[name] for name in ("log_det_per_dim", "t_min", "batch_size")}
    bound = continuous_bound(run.model, x, draws=BoundDraws(num_draws=DRAWS), **same)
    return {"flow": flow.bits_per_dim.double(), "bound": bound.bits_per_dim}


def estimate(values: Tensor) -> dict[str, float | None]:
    """The mean with its standard error."""
    error = float(values.std()) / math.sqrt(len(values))
    return {"mean": digits(float(values.mean())), "standard_error": digits(error)}


def main(arguments: Sequence[str] = ()) -> None:
    """Train and judge both arms, print the table and write JSON; fail if the gain is less than ``WANTED``."""
    parser = argparse.ArgumentParser(description="likelihood weighting against noise weighting on the digits")
    parser.add_argument("--workdir", type=Path, default=Path("runs/likelihood_training"))
    directory = parser.parse_args(arguments).workdir
    torch.set_num_threads(1)
    found, runs = {}, {}
    for name, overrides in ARMS.items():
        runs[name] = train(name, directory, overrides)
        found[name] = judge(runs[name])
        print(f"  {name}: {float(found[name]['flow'].mean()):.4f} bits/dim by the flow", flush=True)
    rows: dict[str, Any] = {
        name: {kind: estimate(values) for kind, values in bits.items()} for name, bits in found.items()
    }
    rows["gain"] = {
        kind: estimate(found["noise"][kind] - found["likelihood"][kind]) for kind in ("flow", "bound")
    }
    print(f"{'bits/dim, held out':<22}{'probability flow':>20}{'continuous bound':>20}")
    for name, row in rows.items():
        cells = (
            f"{row[kind]['mean']:.4f} +- {row[kind]['standard_error']:.4f}" for kind in ("flow", "bound")
        )
        print(f"{name:<22}" + "".join(f"{cell:>20}" for cell in cells))
    settings = {
        "config": CONFIG,
        "arms": ARMS,
        "runs": {name: run.config.to_dict() for name, run in runs.items()},
        "examples": len(found["noise"]["flow"]),
        "judged_by": JUDGED_BY,
        "draws": DRAWS,
    }
    write_result("likelihood_training", settings, rows)
    if rows["gain"]["flow"]["mean"] < WANTED:
        sys.exit(f"the likelihood weighting gains less than {WANTED} bits/dim")


if __name__ == "__main__":
    main(sys.argv[1:])
