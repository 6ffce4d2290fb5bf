"""Which posterior samplers are calibrated: SBC, TARP and coverage over pairs of data and observations.

    python -m benchmarks calibration

Two mixtures of ``benchmarks.posteriors`` under VP, in 2 and 8 dimensions, n/2 random projections of which are
observed with noise of 0.3 of the data's standard deviation.  For every method 400 pairs (x, y) from their
joint law, 19 draws given every y: the coverage of 90% intervals, and the p-values of uniform ranks in every
feature (SBC) and in distance (TARP).  Draws of exact posteriors come first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from benchmarks.posteriors import mixture
from benchmarks.record import digits, write_result
from sde_toolkit import guidance, samplers
from sde_toolkit.metrics import coverage, rank_test, tarp_ranks, truth_ranks
from sde_toolkit.models import ExactModel
from sde_toolkit.sdes import VPSDE

PAIRS, DRAWS, STEPS, NOISE, SEED = 400, 19, 100, 0.3, 5


class Way(NamedTuple):
    """A method with a sampler, or a sampler of its own."""

    sampler: Any
    method: guidance.Method | None = None


def problems() -> dict[str, tuple[ExactModel, guidance.LinearObservation]]:
    """Name -> model and observation."""
    found = {}
    for name, data in (("2-D", mixture(2, 4, 11)), ("8-D", mixture(8, 5, 22))):
        n = data.event_shape[0]
        A = guidance.projection((n,), max(1, n // 2), 5)
        found[name] = ExactModel(data, VPSDE()), guidance.LinearObservation(A, NOISE * data.std)
    return found


def ways() -> dict[str, Way]:
    """Name -> how it is sampled."""
    sde = samplers.ancestral(STEPS, denoise=False)
    methods: dict[str, guidance.Method] = {
        "GaussianInformed": guidance.GaussianInformed(),
        "MMPS": guidance.MMPS(),
        "TMPD (full)": guidance.TMPD(covariance="full"),
        "PiGDM (moments)": guidance.PiGDM(covariance="moments"),
        "DPS": guidance.DPS(1.0, num_steps=STEPS),
        "DiffPIR": guidance.DiffPIR(),
        "DDNM": guidance.DDNM(),
    }
    own = {
        "TwistedSMC, 16 particles": Way(guidance.TwistedSMC(STEPS // 2, particles=16)),
        "SplitGibbs, 20 iterations": Way(guidance.SplitGibbs(20)),
    }
    return {name: Way(sde, method) for name, method in methods.items()} | own


def exact(model: ExactModel, observation: guidance.LinearObservation) -> dict[str, Any]:
    """The row of exact posteriors."""
    x = model.data.sample(PAIRS, SEED)
    y = observation.draw(x, SEED)
    laws = [model.posterior(guidance.Observed(observation, value)).data for value in y]
    draws = torch.stack([law.sample(DRAWS, 1000 + i) for i, law in enumerate(laws)], 1)
    tests = [rank_test(ranks(x, draws), DRAWS).p_value for ranks in (truth_ranks, tarp_ranks)]
    return _row(0.0, coverage(draws, x), *tests)


def _row(nfe: float, covered: Any, sbc: float, tarp: float) -> dict[str, Any]:
    return {
        "nfe": digits(nfe), "coverage": digits(covered.value),
        "coverage error": digits(covered.standard_error), "SBC p": digits(sbc), "TARP p": digits(tarp),
    }  # fmt: skip


def main() -> None:
    """Print the table, and write calibration.json."""
    rows = []
    for problem, (model, observation) in problems().items():
        for name, way in {"exact": None, **ways()}.items():
            if way is None:
                row = exact(model, observation)
            else:
                found = guidance.calibrate(
                    model, observation, method=way.method, sampler=way.sampler, num_pairs=PAIRS,
                    num_draws=DRAWS, seed=SEED,
                )  # fmt: skip
                row = _row(found.nfe, found.coverage, found.sbc.p_value, found.tarp.p_value)
            rows.append({"problem": problem, "method": name} | row)
            print(
                f"   {problem:4s} {name:26s} {row['nfe']:7.0f} evaluations  coverage {row['coverage']:.3f} "
                f"+- {row['coverage error']:.3f}  p {row['SBC p']:.2g} (SBC), {row['TARP p']:.2g} (TARP)",
                flush=True,
            )
    settings = {
        "pairs": PAIRS, "draws": DRAWS, "steps": STEPS, "noise": NOISE, "seed": SEED, "sde": "VPSDE()",
        "level": 0.9,
    }  # fmt: skip
    write_result("calibration", settings, rows)


if __name__ == "__main__":
    main()
