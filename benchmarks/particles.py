"""How errors of particles given an observation fall as their number grows.

    python -m benchmarks particles

Groups of P particles of ``TwistedSMC`` in 50 steps on posteriors that are known, those of the mixtures of
``benchmarks.posteriors`` in 2 and 8 dimensions given half of the features.  A group has two errors,

    mean        of the samples' mean from E[x0 | y], root mean square over features, in posterior stds
    evidence    of the estimate of log p(y), in nats

and of each the root mean square over independent groups is taken, with its standard error.  Sequential Monte
Carlo has the slope -1/2 of log error against log P, down to the error of the model in 50 steps; the slope is
fitted with the standard errors as weights.  The estimate of p(y) itself has no bias for any P: its mean over
groups is given in units of p(y).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.posteriors import Case, cases
from benchmarks.record import digits, write_result
from sde_toolkit import guidance

NUM_STEPS, NOISE, AT_ONCE = 50, 0.3, 8192
GROUPS = {
    "2-D": {16: 256, 64: 256, 256: 128, 1024: 64, 4096: 32},
    "8-D": {16: 128, 64: 128, 256: 64, 1024: 32, 4096: 16},
}
"""Independent groups of every number of particles."""


def errors(case: Case, particles: int, groups: int) -> dict[str, Tensor]:
    """Squared errors of every group with shape (G,), and its estimate of p(y) in units of p(y)."""
    smc = guidance.TwistedSMC(NUM_STEPS, particles=particles)
    observed = guidance.Observed(case.observation, case.y)
    found = smc.sample(case.model, groups * particles, observation=observed, seed=1, batch_size=AT_ONCE)
    exact, scale = case.truth.data.mean, case.truth.data.std
    away = (found.x.unflatten(0, (groups, particles)).mean(1) - exact) / scale
    log_ratio = found.log_evidence - case.truth.log_evidence
    return {"mean": away.square().mean(1), "evidence": log_ratio.square(), "p(y)": log_ratio.exp()}


def root(squares: Tensor) -> tuple[float, float]:
    """The root of the mean of squares with shape (G,), and its standard error to first order."""
    value = float(squares.mean().sqrt())
    return value, float(squares.std()) / math.sqrt(len(squares)) / (2 * value)


def slope(particles: list[int], values: list[tuple[float, float]]) -> tuple[float, float]:
    """The slope of log error against log P, weighted by the standard errors, and its standard error."""
    x = torch.tensor(particles, dtype=torch.float64).log()
    value, error = torch.tensor(values, dtype=torch.float64).unbind(1)
    w = (value / error).square()
    away = x - (w * x).sum() / w.sum()
    spread = (w * away.square()).sum()
    return float((w * away * value.log()).sum() / spread), float(spread.rsqrt())


def measure(case: Case, groups: dict[int, int]) -> dict[str, Any]:
    """One row per number of particles, and the slopes."""
    found = {P: errors(case, P, G) for P, G in groups.items()}
    rows, slopes = [], {}
    for P, each in found.items():
        ratio = each["p(y)"]
        row = {"particles": P, "groups": groups[P], "p(y)": float(ratio.mean())}
        row["p(y) error"] = float(ratio.std()) / math.sqrt(len(ratio))
        for name in ("mean", "evidence"):
            row[name], row[f"{name} error"] = root(each[name])
        rows.append({key: value if isinstance(value, int) else digits(value) for key, value in row.items()})
    for name in ("mean", "evidence"):
        fitted = slope(list(found), [root(each[name]) for each in found.values()])
        slopes[name] = [digits(value) for value in fitted]
    return {"problem": case.problem, "rows": rows, "slopes": slopes}


def main() -> None:
    """Print errors and slopes, and write particles.json."""
    results = []
    for name, groups in GROUPS.items():
        found = measure(next(cases(0, (NOISE,), (name,))), groups)
        for row in found["rows"]:
            print("   " + name + "  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        print(f"   {name}  slopes {found['slopes']}", flush=True)
        results.append(found)
    settings = {"num_steps": NUM_STEPS, "noise": NOISE, "groups": GROUPS, "seed": 1, "observation": "mask"}
    write_result("particles", settings, results)


if __name__ == "__main__":
    main()
