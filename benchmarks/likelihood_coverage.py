"""How often the intervals of likelihoods hold the exact value, on four networks of different roughness.

    python -m benchmarks.likelihood_coverage

The networks are the exact score of a 64-D mixture of five Gaussians under VP, plus Fourier features along r
random directions of the scaled state u = x_t / (alpha^2 s^2 + sigma^2)^(1/2), s the standard deviation,

    z_hat(x_t, t) = exact + sigma / 4 W cos(f W^T u + b),    W with r unit columns, b uniform on the circle

No Gaussian's control variate knows the Jacobian of what is added, f / 4 along every direction.  Along many
directions the terms of the probes, quadratic forms in them, are nearly normal.  Along a few they have the
skewness of a chi-squared law, and the mean of few terms leans on its own standard error.  The true value of
log p is the one with the exact divergence on the same grid of steps: the probes are all that is wrong.

Every row holds 2000 values (500 draws of the mixture, four seeds of the probes) and the share of those whose
95% interval holds the true value: "student" of Student's alone, "interval" of ``LogLikelihood.interval``,
which corrects for skewness from 8 probes on, with its mean "width" in units of Student's.  The share has a
standard error of .005.  "skewness" is the mean of that measured on every value's own terms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from benchmarks.flows import mixture
from benchmarks.record import digits, write_result
from sde_toolkit.likelihood import FlowSolver, Hutchinson, LogLikelihood, values_only
from sde_toolkit.models import ExactModel, ScoreModel, Wrapper, known_moments
from sde_toolkit.sdes import VPSDE
from solvers import AB4, expand_like

FEATURES, COUNT, SEEDS, LEVEL = 64, 500, 4, 0.95
NETWORKS = {
    "exact": (0, 0.0),
    "many directions": (256, 4.0),
    "8 directions": (8, 12.0),
    "1 direction": (1, 12.0),
}
"""Name -> number of directions r and frequency f."""

DIVERGENCES = {
    f"{kind} {count}": Hutchinson(count, kind) for kind in ("rademacher", "walsh") for count in (4, 8, 16)
}
SOLVER = FlowSolver(AB4, num_steps=32)


class Rough(Wrapper):
    """The noise prediction of a model plus the Fourier features of the module's head."""

    predicts = "noise"

    def __init__(self, model: ScoreModel, directions: int, frequency: float) -> None:
        super().__init__(model)
        generator = torch.Generator().manual_seed(17)
        w = torch.randn(FEATURES, directions, generator=generator, dtype=torch.float64)
        self.directions, self.frequency = w / w.norm(dim=0), frequency
        self.phase = 2 * math.pi * torch.rand(directions, generator=generator, dtype=torch.float64)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The noise."""
        alpha, sigma = self.sde.alpha(t).to(x_t), self.sde.sigma(t).to(x_t)
        total = ((alpha * known_moments(self.model).std).square() + sigma.square()).sqrt()
        angle = self.frequency * (x_t / expand_like(total, x_t)) @ self.directions + self.phase
        added = 0.25 * angle.cos() @ self.directions.mT
        return self.model.noise(x_t, t, condition) + expand_like(sigma, x_t) * added


def network(name: str) -> tuple[Rough, Tensor]:
    """One of ``NETWORKS``, and draws of the mixture with shape (COUNT, FEATURES)."""
    data = mixture(FEATURES, seed=4)
    return Rough(ExactModel(data, VPSDE()), *NETWORKS[name]), data.sample(COUNT, seed=2)


def student(found: LogLikelihood) -> tuple[Tensor, Tensor]:
    """The interval without the correction for skewness."""
    assert found.standard_error is not None
    reach = found.standard_error * float(stats.t.ppf((1 + LEVEL) / 2, found.settings["columns"] - 1))
    return found.nats - reach, found.nats + reach


def measure(name: str) -> dict[str, Any]:
    """Coverage of every divergence, on one network."""
    (model, x), table = network(name), {}
    exact = values_only(model, x, divergence=None, solver=SOLVER, batch_size=100).nats
    for label, divergence in DIVERGENCES.items():
        columns: dict[str, list[Tensor]] = {}
        for seed in range(SEEDS):
            found = values_only(model, x, divergence=divergence, solver=SOLVER, seed=seed, batch_size=250)
            (low, high), (start, end) = found.interval(LEVEL), student(found)
            one = {
                "student": ((start <= exact) & (exact <= end)).double(),
                "interval": ((low <= exact) & (exact <= high)).double(),
                "width": (high - low) / (end - start),
                "squares": (found.nats - exact).square(),
                "skewness": found.skewness,
            }
            for key, column in one.items():
                columns.setdefault(key, []).append(column)
        mean = {key: float(torch.cat(parts).mean()) for key, parts in columns.items()}
        mean["rms_nats"] = math.sqrt(mean.pop("squares"))
        table[label] = {key: digits(value) for key, value in mean.items()}
    return table


def main() -> None:
    """Print the table and write JSON."""
    torch.set_num_threads(1)
    results = {}
    for name in NETWORKS:
        results[name] = measure(name)
        for label, row in results[name].items():
            print(f"{name:<16}{label:<14}" + "".join(f"{key} {v:<9}" for key, v in row.items()), flush=True)
    settings = {"features": FEATURES, "samples": COUNT, "seeds": SEEDS, "level": LEVEL, "networks": NETWORKS}
    print(f"wrote {write_result('likelihood_coverage', settings, results)}")


if __name__ == "__main__":
    main()
