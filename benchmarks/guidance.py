"""What classifier-free guidance samples: not the tilted law that its score suggests.

    python -m benchmarks guidance

At t = 0 the guided score is that of p(x | c)^w p(x)^(1 - w), normalised.  At t > 0 the noised tilted law has
another score than the guided one, so that samples follow another law (2408.09000).  On a mixture of two
Gaussians in one dimension, under VP, the samples' mean and standard deviation and their distance from three
laws are measured:

    conditional   p(x | c), w = 1
    tilted        p(x | c)^w p(x)^(1 - w), normalised on a grid
    W2            Wasserstein distance of order 2, between sorted samples and the quantiles of each law

for the probability flow (Heun, 200 steps) and the reverse SDE (ancestral, 400 steps), 3 seeds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit import samplers
from sde_toolkit.guidance import guided
from sde_toolkit.models import ExactModel, GaussianMixture
from sde_toolkit.samplers import Sampler
from sde_toolkit.sdes import VPSDE

SCALES, SEEDS, SAMPLES = (1.0, 1.5, 2.0, 3.0, 5.0), 3, 4000
INTERVAL = (0.2, 2.0)
LABEL = 1


def law() -> GaussianMixture:
    """Two overlapping Gaussians of unequal widths; guided towards the second."""
    return GaussianMixture([0.6, 0.4], [[-1.0], [1.0]], [[0.5], [0.25]])


def tilted_quantiles(data: GaussianMixture, scale: float, count: int) -> Tensor:
    """Quantiles of p(x | c)^w p(x)^(1 - w) at the middles of ``count`` equal parts, with shape (count,)."""
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)[:, None]
    logs = scale * data.component(LABEL).log_prob(x) + (1 - scale) * data.log_prob(x)
    mass = (logs - logs.max()).exp().cumsum(0)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return x[torch.searchsorted(mass / mass[-1], places).clamp(max=len(x) - 1), 0]


def ways(scale: float) -> dict[str, Sampler]:
    """How it is sampled."""
    flow, sde = samplers.heun(200), samplers.ancestral(400)
    return {
        "flow": guided(flow, scale),
        "reverse SDE": guided(sde, scale),
        "flow, interval": guided(flow, scale, interval=INTERVAL),
    }


def measured(sampler: Sampler, model: ExactModel, scale: float) -> dict[str, Any]:
    """Mean, std and distances of the guided samples, each with its standard error over seeds."""
    data = model.data
    assert isinstance(data, GaussianMixture)
    conditional = tilted_quantiles(data, 1.0, SAMPLES)
    tilted = tilted_quantiles(data, scale, SAMPLES)
    found: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        x = sampler.sample(model, SAMPLES, condition=LABEL, seed=seed).x[:, 0].sort().values
        values = {
            "mean": float(x.mean()), "std": float(x.std()),
            "W2 to conditional": float((x - conditional).square().mean().sqrt()),
            "W2 to tilted": float((x - tilted).square().mean().sqrt()),
        }  # fmt: skip
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    out: dict[str, Any] = {
        "tilted mean": digits(float(tilted.mean())),
        "tilted std": digits(float(tilted.std())),
    }
    for name, each in found.items():
        values_ = torch.tensor(each)
        out[name] = digits(float(values_.mean()))
        out[f"{name} error"] = digits(float(values_.std() / math.sqrt(SEEDS)))
    return out


def main() -> None:
    """Print what guidance samples, and write guidance.json."""
    model, rows = ExactModel(law(), VPSDE()), []
    for scale in SCALES:
        for name, sampler in ways(scale).items():
            rows.append({"scale": scale, "sampler": name} | measured(sampler, model, scale))
            row = rows[-1]
            print(
                f"   w {scale:3.1f}  {name:15s}  mean {row['mean']:.3f} (tilted {row['tilted mean']:.3f})  "
                f"std "
                f"{row['std']:.3f} ({row['tilted std']:.3f})  W2 to tilted {row['W2 to tilted']:.3f} +- "
                f"{row['W2 to tilted error']:.3f}, to p(x | c) {row['W2 to conditional']:.3f}",
                flush=True,
            )
    settings = {"scales": SCALES, "seeds": SEEDS, "samples": SAMPLES, "interval": INTERVAL, "sde": "VPSDE()"}
    write_result("guidance", settings, rows)


if __name__ == "__main__":
    main()
