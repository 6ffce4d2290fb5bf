"""Orderings of samplers that papers report, on data of our own, with error bars of paired differences.

    python -m benchmarks orderings

    corrector   a predictor with one corrector step each beats the predictor alone at as many steps
                (Song et al., 2011.13456, table 1)
    order       third order at 10 evaluations beats DDIM at 20 (Zheng et al., 2310.13268)
    few, many   deterministic samplers win at few evaluations, stochastic ones at many
                (Karras et al., 2206.00364; Xu et al., 2306.14878)

Every ordering is asked of the shipped digits network, by the Frechet distance and the energy distance to all
digits, and of exact models, by the energy distance to draws of the data.  Samples of a seed start from equal
noise, and the error bar is that of the difference (``sde_toolkit.lab.paired_difference``); below two of them
the two samplers cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.record import digits as rounded
from benchmarks.record import write_result
from sde_toolkit import lab, metrics, open_shipped
from sde_toolkit.lab import Candidate, Group, Metric, Problem, Record
from sde_toolkit.runs import run_problem
from sde_toolkit.samplers import (
    Langevin,
    Sampler,
    ancestral,
    ddim,
    deis,
    dpm_solver_pp,
    euler_maruyama,
    predictor_corrector,
    reverse_diffusion,
    unipc,
)
from sde_toolkit.sdes import VPSDE

NUM_SAMPLES, SEEDS = 500, (0, 1, 2)
EXACT = ("mixture8", "scales", "grid25")
STEPS, FEW, MANY = 50, 10, 100
SNR = 0.16


@dataclass(frozen=True)
class Claim:
    """One ordering: ``better`` is said to beat ``worse``."""

    name: str
    better: tuple[str, Sampler]
    worse: tuple[str, Sampler]


def claims() -> Iterator[Claim]:
    """All orderings."""
    predictors = {
        "reverse_diffusion": reverse_diffusion, "ancestral": ancestral, "euler_maruyama": euler_maruyama,
    }  # fmt: skip
    for name, make in predictors.items():
        corrected = predictor_corrector(make(STEPS), Langevin(SNR, 1))
        yield Claim("corrector", (f"{name} {STEPS} + {STEPS}", corrected), (f"{name} {STEPS}", make(STEPS)))
    thirds = {
        "unipc-3": unipc(FEW),
        "dpm_solver_pp-3": dpm_solver_pp(FEW, order=3),
        "deis-3": deis(FEW, degree=2),
    }
    for name, sampler in thirds.items():
        yield Claim("order", (f"{name} {FEW}", sampler), ("ddim 20", ddim(20)))
    for steps, name in ((FEW, "few"), (MANY, "many")):
        pair = (f"ddim {steps}", ddim(steps)), (f"ddim(eta=1) {steps}", ddim(steps, eta=1.0))
        better, worse = pair if name == "few" else pair[::-1]
        yield Claim(name, better, worse)


def problems() -> list[tuple[Problem, list[Metric]]]:
    """The digits network and the exact models, with their metrics."""
    network = run_problem(open_shipped("digits"))
    energy, frechet = metrics.EnergyDistance(), metrics.metric("frechet")
    found = [
        (network, [Metric("Frechet", frechet, network.real), Metric("energy", energy, network.real)]),
    ]
    for name in EXACT:
        problem = lab.exact_problem(name, VPSDE())
        found.append((problem, [Metric("energy", energy, problem.real)]))
    return found


def measure(num_samples: int = NUM_SAMPLES, seeds: tuple[int, ...] = SEEDS) -> list[dict[str, object]]:
    """One row for every ordering, problem and metric."""
    asked = list(claims())
    candidates = {name: sampler for claim in asked for name, sampler in (claim.better, claim.worse)}
    rows: list[dict[str, object]] = []
    for problem, judges in problems():
        group = Group(problem, [Candidate.of(name, sampler) for name, sampler in candidates.items()], judges)
        records = lab.Experiment([group], num_samples, seeds).run().records
        known = {(record.sampler, record.metric): record for record in records}
        for claim in asked:
            for judge in judges:
                better, worse = (known[name, judge.name] for name, _ in (claim.better, claim.worse))
                rows.append(row(claim, better, worse))
                print(sentence(rows[-1]), flush=True)
    return rows


def row(claim: Claim, better: Record, worse: Record) -> dict[str, object]:
    """The difference, and what it says."""
    gap = lab.paired_difference(better, worse)
    clear = abs(gap.value) > 2 * gap.standard_error
    verdict = "holds" if clear and gap.value < 0 else "the other way round" if clear else "cannot be told"
    return {
        "claim": claim.name, "problem": better.problem, "metric": better.metric,
        "better": better.sampler, "worse": worse.sampler, "nfe": [better.nfe, worse.nfe],
        "values": [rounded(better.value), rounded(worse.value)],
        "difference": rounded(gap.value), "error": rounded(gap.standard_error), "verdict": verdict,
    }  # fmt: skip


def sentence(found: dict[str, object]) -> str:
    """A row as a line."""
    nfe = found["nfe"]
    assert isinstance(nfe, list)
    return (
        f"{found['claim']!s:10s} {found['problem']!s:9s} {found['metric']!s:8s} {found['better']!s:28s} "
        f"(NFE {nfe[0]:g}) against {found['worse']!s:20s} (NFE {nfe[1]:g}): {found['difference']:+.3g} +- "
        f"{found['error']:.2g}  {found['verdict']}"
    )


def main() -> None:
    """Print and write all orderings."""
    torch.set_num_threads(1)
    rows = measure()
    settings = {"samples": NUM_SAMPLES, "seeds": SEEDS, "exact": EXACT, "corrector_snr": SNR}
    write_result("orderings", settings, rows)


if __name__ == "__main__":
    main()
