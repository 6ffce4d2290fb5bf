"""How often the 95% intervals of every metric hold the expected value, and those of paired differences.

    python -m benchmarks metric_coverage

Two exact laws, a ring of eight Gaussians in 2-D and a mixture of five in 8-D, and three samplers that use the
same component draws u and normals z (common random numbers):

    perfect    x = mean_k + L_k z, k from u by the mixture's weights
    slight     1.05 x
    bad        1.3 (mean_k + L_k z) + .3, k from u by tilted weights

Each repetition draws samples and as many real examples anew, ``bootstrap`` gives the interval of each value,
``difference`` that of slight - perfect and bad - slight.  What an interval is to hold is the expected value
at these numbers of samples: 0 for an unbiased distance of the perfect sampler, else the mean over all
repetitions.  For plug-in estimates (Frechet, Wasserstein, sliced or not, precision to coverage, Vendi, total
variation, KL, classifiers) that is not the limit of infinitely many samples: their bias is no part of the
error bar.

The share of intervals that hold it has a standard error of .015, or .022 for 100 repetitions.  "ratio" is the
root mean square of the standard errors over the spread of the values.  "const" stands for a value that was
the same in all repetitions, "mostly" for one that was the same in over nine tenths of them: no interval of
such a value can hold the mean in 92% to 98% of cases, only in all but a few, and these cells are counted
apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.flows import mixture, ring
from benchmarks.record import digits, write_result
from sde_toolkit.metrics import (
    CATALOGUE,
    Distance,
    Estimate,
    SlicedWasserstein,
    bootstrap,
    difference,
    metric,
)
from sde_toolkit.models import GaussianMixture

REPETITIONS, SAMPLES, LEVEL = 200, 200, 0.95
RANGE = (0.92, 0.98)
"""The goal for every cell."""

MOSTLY = 0.9
"""A value that is the same in more repetitions than this share is all but constant."""

LAWS: dict[str, Callable[[], GaussianMixture]] = {"ring": ring, "mixture8": lambda: mixture(8, seed=4)}
SAMPLERS = ("perfect", "slight", "bad")
PAIRS = (("slight", "perfect"), ("bad", "slight"))
FEW = {"vendi": 100}
"""Numbers of samples of metrics that cost more."""

FEWER = {"vendi": 100, "c2st": 100, "c2st_auc": 100, "c2st neighbours": 100}
"""Their numbers of repetitions."""

Metrics = dict[str, Callable[[GaussianMixture], Any]]
METRICS: Metrics = {
    **{
        name: lambda law, name=name: metric(name)
        for name, entry in CATALOGUE.items()
        if entry.needs in ("data", "samples") and entry.default_features is None and "sliced" not in name
    },
    "frechet": lambda law: metric("frechet", features=None),
    "kid": lambda law: metric("kid", features=None),
    "c2st neighbours": lambda law: metric("c2st", classifier="neighbours"),
    "wasserstein 2": lambda law: metric("wasserstein", order=2),
    "sliced": lambda law: SlicedWasserstein(64),
    "sliced 2": lambda law: SlicedWasserstein(64, order=2),
    "nll": lambda law: metric("nll", log_density=law.log_prob),
    "modes tv": lambda law: metric("mode_coverage", mixture=law, measure="tv"),
    "modes kl": lambda law: metric("mode_coverage", mixture=law, measure="kl"),
    "modes share": lambda law: metric("mode_coverage", mixture=law, measure="share"),
    "flow error": lambda law: metric("flow_error"),
    "relative flow error": lambda law: metric("flow_error", relative=True),
}


def samples(law: GaussianMixture, count: int, seed: int) -> dict[str, Tensor]:
    """What every sampler gives, and "real" examples of the same number, with shape (count, D)."""
    weights = law.components.weights.double()
    tilted = weights * torch.linspace(0.5, 1.5, len(weights), dtype=torch.float64)
    modes = [law.component(k) for k in range(len(weights))]
    means = torch.stack([mode.mean.double() for mode in modes])
    roots = torch.stack([torch.linalg.cholesky(mode.covariance.double()) for mode in modes])

    def draw(stream: int, masses: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(2 * seed + stream)
        u = torch.rand(count, dtype=torch.float64, generator=generator)
        z = torch.randn(count, means.shape[1], dtype=torch.float64, generator=generator)
        k = torch.searchsorted((masses / masses.sum()).cumsum(0), u).clamp_max(len(masses) - 1)
        return means[k] + (roots[k] @ z[..., None])[..., 0]

    x = draw(0, weights)
    return {
        "perfect": x, "slight": 1.05 * x, "bad": 1.3 * draw(0, tilted) + 0.3, "real": draw(1, weights)
    }  # fmt: skip


def estimates(
    law: GaussianMixture, made: Any, count: int, repetitions: int, first_seed: int = 0
) -> dict[str, list[Estimate]]:
    """Sampler -> the estimates of all repetitions."""
    needs_pairs = made.facts.needs == "pairs"
    found: dict[str, list[Estimate]] = {name: [] for name in SAMPLERS[needs_pairs:]}
    for repetition in range(repetitions):
        sets = samples(law, count, first_seed + repetition)
        second = sets["perfect" if needs_pairs else "real"] if isinstance(made, Distance) else None
        for name, column in found.items():
            column.append(bootstrap(made, sets[name], second))
    return found


def cell(found: list[Estimate], target: float | None) -> dict[str, Any]:
    """Coverage of the target (None: the mean), and the ratio of errors."""
    values = np.array([estimate.value for estimate in found])
    target = float(values.mean()) if target is None else target
    low, high = np.array([estimate.interval(LEVEL) for estimate in found]).T
    error = math.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
    spread, slack = float(values.std(ddof=1)), 1e-12 * max(abs(target), 1e-300)
    covered = float(np.mean((low - slack <= target) & (target <= high + slack)))
    constant = spread <= 1e-12 * max(abs(target), 1e-12)
    same = float(np.mean(np.abs(values - np.median(values)) <= 1e-12 * max(abs(target), 1e-12)))
    return {
        "covered": covered, "ratio": None if constant else digits(error / spread), "constant": constant,
        "same": same,
    }  # fmt: skip


def measure(law: GaussianMixture, name: str, repetitions: int | None = None) -> dict[str, dict[str, Any]]:
    """Every cell of a metric."""
    made, repetitions = METRICS[name](law), repetitions or FEWER.get(name, REPETITIONS)
    found = estimates(law, made, FEW.get(name, SAMPLES), repetitions)
    exact = made.facts.unbiased and made.facts.needs == "data"
    row = {
        sampler: cell(column, 0.0 if exact and sampler == "perfect" else None)
        for sampler, column in found.items()
    }
    for a, b in PAIRS:
        if a in found and b in found:
            pairs = [difference(s, t) for s, t in zip(found[a], found[b], strict=True)]
            row[f"{a} - {b}"] = cell(pairs, None)
    return row


def shown(one: dict[str, Any]) -> str:
    """A cell in the table."""
    if one["constant"]:
        return "const"
    return f"{'mostly ' if one['same'] > MOSTLY else ''}{one['covered']:.3f} ({one['ratio']})"


def main() -> None:
    """Print the table and write JSON."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for law_name, make in LAWS.items():
        law = make()
        for name in METRICS:
            row = results.setdefault(law_name, {})[name] = measure(law, name)
            words = [f"{key} {shown(one)}" for key, one in row.items()]
            print(f"{law_name:<9}{name:<20}" + "  ".join(words), flush=True)
    write(results)


def write(results: dict[str, Any]) -> None:
    """How many cells are within the range, and JSON."""
    every = [one for rows in results.values() for row in rows.values() for one in row.values()
             if not one["constant"]]  # fmt: skip
    cells = [one["covered"] for one in every if one["same"] <= MOSTLY]
    inside = sum(RANGE[0] <= value <= RANGE[1] for value in cells)
    print(f"{inside} of {len(cells)} cells within {RANGE}, lowest {min(cells)}, highest {max(cells)}")
    rare = [one["covered"] for one in every if one["same"] > MOSTLY]
    held = sum(value >= RANGE[0] for value in rare)
    print(f"{held} of {len(rare)} mostly constant cells at {RANGE[0]} or above")
    settings = {
        "repetitions": REPETITIONS, "fewer_repetitions": FEWER, "samples": SAMPLES, "fewer_samples": FEW,
        "level": LEVEL, "range": RANGE,
        "target": "0 for unbiased distances of the perfect sampler, else the mean over repetitions",
    }  # fmt: skip
    print(f"wrote {write_result('metric_coverage', settings, results)}")


if __name__ == "__main__":
    main()
