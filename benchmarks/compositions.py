"""What compositions of conditions sample: how far from the composed law, with and without Langevin steps.

    python -m benchmarks compositions

The composed score is that of the composed law q at t = 0 and of no noised q at t > 0 (2302.11552).  Five
problems under VP have q in closed form, the last one on a grid:

    line          a Gaussian with two mixtures as terms, in one dimension: p1 p2 / p
    plane         the same with two pairs of clusters in the plane: one near a corner is likely, three are not
    negation      a mixture of four clusters without the first: p^2 / p_1
    observations  a mixture with two posteriors as terms, given one number each: p(x | y1, y2)
    guidance      overlapping clusters, the first with weight 3: p_1^3 / p^2, classifier-free guidance's aim

and are sampled by the flow (Heun, 100 steps), the reverse SDE (ancestral, 200 steps), and the latter with 4
or 16 Langevin steps at every level.  The distance is the sliced Wasserstein distance of order 2 between 4000
samples and as many draws of q, over 3 seeds; "exact" is that between two sets of draws of q.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from benchmarks.record import digits, write_result
from sde_toolkit import samplers
from sde_toolkit.guidance import Composed, GridLaw, LinearObservation, Observed, composed
from sde_toolkit.metrics import SlicedWasserstein
from sde_toolkit.models import ExactData, ExactModel, Gaussian, GaussianMixture
from sde_toolkit.samplers import Sampler
from sde_toolkit.sdes import VPSDE

SEEDS, SAMPLES, SNR = 3, 4000, 0.2
DISTANCE = SlicedWasserstein(order=2)


class Problem(NamedTuple):
    """A model, its terms with their weights, and the law that they compose."""

    model: ExactModel
    terms: list[Any]
    weights: list[float]
    law: ExactData | GridLaw


def problems() -> dict[str, Problem]:
    """The five, by name."""
    sde = VPSDE()

    def pairs(first: list[float], second: list[float], variance: list[float]) -> ExactModel:
        return ExactModel(GaussianMixture([0.5, 0.5], [first, second], [variance, variance]), sde)

    line = ExactModel(Gaussian([0.0], [4.0]), sde)
    in_line = [pairs([-3.0], [1.0], [0.5]), pairs([-1.0], [3.0], [0.5])]
    plane = ExactModel(Gaussian([0.0, 0.0], [4.0, 4.0]), sde)
    in_plane = [pairs([-2.0, 0.0], [1.0, 1.0], [0.3, 2.0]), pairs([0.0, 2.0], [1.0, -2.0], [2.0, 0.3])]
    corners = [[-1.5, -1.5], [1.5, -1.5], [-1.5, 1.5], [1.5, 1.5]]
    four = ExactModel(GaussianMixture([0.25] * 4, corners, [0.4] * 4), sde)
    found = {
        "line": (line, in_line, [1.0, 1.0]),
        "plane": (plane, in_plane, [1.0, 1.0]),
        "negation": (four, [0], [-1.0]),
    }
    made = {name: Problem(m, t, w, Composed(m, t, w).law()) for name, (m, t, w) in found.items()}  # type: ignore[arg-type]
    rows = torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    y = torch.tensor([0.3, 1.0], dtype=torch.float64)

    def posterior(chosen: slice) -> ExactModel:
        return four.posterior(Observed(LinearObservation(rows[chosen], 0.7), y[chosen]))

    terms = [posterior(slice(0, 1)), posterior(slice(1, 2))]
    near = ExactModel(GaussianMixture([0.25] * 4, [[c / 2 for c in at] for at in corners], [0.4] * 4), sde)
    return made | {
        "observations": Problem(four, terms, [1.0, 1.0], posterior(slice(0, 2)).data),
        "guidance": Problem(near, [0], [3.0], Composed(near, [0], 3.0).grid_law()),
    }


def ways() -> dict[str, Sampler]:
    """How they are sampled."""
    sde = samplers.ancestral(200)
    corrected = {
        f"SDE, {k} Langevin steps": samplers.predictor_corrector(sde, samplers.AnnealedLangevin(SNR, k))
        for k in (4, 16)
    }
    return {"flow": samplers.heun(100), "reverse SDE": sde} | corrected


def measured(problem: Problem, sampler: Sampler | None) -> dict[str, Any]:
    """The distance with its standard error over seeds, and evaluations; of exact draws without a sampler."""
    distances, nfe = [], 0.0
    for seed in range(SEEDS):
        if sampler is None:
            x = problem.law.sample(SAMPLES, seed)
        else:
            way = composed(sampler, problem.terms, problem.weights)
            samples = way.sample(problem.model, SAMPLES, seed=seed)
            x, nfe = samples.x, float(samples.nfe)
        distances.append(float(DISTANCE(x, problem.law.sample(SAMPLES, 1000 + seed))))
    each = torch.tensor(distances)
    error = float(each.std()) / math.sqrt(SEEDS)
    return {"nfe": nfe, "W2": digits(float(each.mean())), "W2 error": digits(error)}


def main() -> None:
    """Print the distances, and write compositions.json."""
    rows = []
    for name, problem in problems().items():
        for way, sampler in {"exact": None, **ways()}.items():
            row = measured(problem, sampler)
            rows.append({"problem": name, "sampler": way} | row)
            print(
                f"   {name:13s} {way:23s} {row['nfe']:7.0f} evaluations  "
                f"W2 {row['W2']:.3f} +- {row['W2 error']:.3f}",
                flush=True,
            )
    settings = {"seeds": SEEDS, "samples": SAMPLES, "snr": SNR, "sde": "VPSDE()", "metric": repr(DISTANCE)}
    write_result("compositions", settings, rows)


if __name__ == "__main__":
    main()
