"""What benchmarks ask of a network that they have trained: the error of its flow, its likelihoods.

The error of a sampler is that against the network's own fine solution, Dormand and Prince's in float64.  The
other presets and diffusers' schedulers, under every grid, are chosen on starts of their own: the 20 best of
either at 10 evaluations go on, and the best three of them at any number are judged like the others on fresh
starts.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.moments import errors
from benchmarks.peers import ours
from benchmarks.peers.flow import EVALUATIONS, network_problem, our_error, peer_error
from benchmarks.record import digits
from sde_toolkit.likelihood import Endpoint, log_likelihood
from sde_toolkit.models import Moments, NetworkModel
from sde_toolkit.utils import atomic_write

FIRST, SECOND_ROUND, FINALISTS = 10, 20, 3
RTOL = (1e-7, 1e-6)
NUM_FIRST, TEST_BATCH, DIAGNOSED = 16, 16, 8

Competitor = tuple[str, str, Callable[..., float], Any]


def competitors() -> list[Competitor]:
    """Whose, title, how its error is measured and the entry, of our other presets and of diffusers."""
    from benchmarks.peers import diffusers

    found = [("ours", e.title.removeprefix("sde_toolkit "), our_error, e) for e in ours.deterministic()]
    return found + [("diffusers", p.title, peer_error, p) for p in diffusers.deterministic()]


def flow(
    name: str,
    model: NetworkModel,
    table: dict[str, Moments],
    others: Sequence[Competitor],
    points: int,
    screen_points: int,
    seed: int,
    screen_seed: int,
    budgets: Sequence[int] = EVALUATIONS,
    rtol: tuple[float, float] = RTOL,
) -> dict[str, Any]:
    """Errors of the default sampler by moments: row -> one for every number of evaluations; and of the best.

    Args:
        name: of the problem.
        model: the network.
        table: the moments, by the name of their row.
        others: what it is compared with; chosen on the screen's starts, which are not those of the judgement.
        points, seed, screen_points, screen_seed: the starts.
        budgets: numbers of evaluations.
        rtol: of the fine solution, and of a coarser one that says how fine it is.
    """
    judge, coarse = (network_problem(name, model, points, seed, tol) for tol in rtol)
    fine = judge.error(coarse.end)
    print(f"   the fine solution at rtol {rtol[1]:g} is {fine:.2g} from that at {rtol[0]:g}", flush=True)
    rows = {title: errors(judge, moments, budgets) for title, moments in table.items()}
    for title, row in rows.items():
        print(f"   {title:24}" + "".join(f"{value:11.5f}" for value in row), flush=True)
    screen, best = network_problem("screen", model, screen_points, screen_seed), {}
    for whose in dict.fromkeys(entry[0] for entry in others):
        mine = [entry for entry in others if entry[0] == whose]
        mine = sorted(mine, key=lambda entry: entry[2](entry[3], screen, FIRST))[:SECOND_ROUND]
        best[whose] = []
        for nfe in budgets:
            first = sorted(mine, key=lambda entry: entry[2](entry[3], screen, nfe))[:FINALISTS]
            value, title = min((entry[2](entry[3], judge, nfe), entry[1]) for entry in first)
            best[whose].append({"error": digits(value), "sampler": title})
            print(f"   best of {whose} at {nfe}: {value:.5f} {title}", flush=True)
    return {"errors": {k: [digits(v) for v in row] for k, row in rows.items()}, "best": best, "fine": fine}


def likelihood(
    model: NetworkModel,
    x: Tensor,
    log_det: float,
    moments: Moments,
    done: Sequence[dict[str, Any]] = (),
    save: Callable[[list[dict[str, Any]]], object] = lambda batches: None,
    condition: Tensor | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Bits per dimension of x with their error and their cost.

    Args:
        model, x, log_det, moments: what is evaluated, and the scale of the levels.
        done: batches of an earlier call that was stopped.
        save: told the batches after each.
        condition: one row for every row of x.
        options: instead of the defaults.
    """
    batches = list(done)
    for first in range(TEST_BATCH * len(batches), len(x), TEST_BATCH):
        cpu = time.process_time()
        if condition is not None:
            options["condition"] = condition[first : first + TEST_BATCH]
        found = log_likelihood(
            model, x[first : first + TEST_BATCH], endpoint=Endpoint(moments=moments), first_sample=first,
            log_det_per_dim=log_det, num_diagnostic_samples=0 if first else DIAGNOSED, **options,
        )  # fmt: skip
        error = found.standard_error_bits_per_dim
        batch: dict[str, Any] = {
            "bits": found.bits_per_dim.tolist(),
            "errors": [0.0] * len(found.nats) if error is None else error.tolist(),
            "probes": found.num_probes.tolist(),
            "evaluations": found.nfe.tolist(),
            "seconds": found.seconds,
            "of the processor": time.process_time() - cpu,
        }
        if found.budget is not None:
            unit, entries = x[0].numel() * math.log(2), [*found.budget.items(), ("total", found.budget.total)]
            batch["budget"] = {n: [digits(-e.mean / unit), digits(e.rms / unit)] for n, e in entries}
            batch["lines"] = found.budget.lines(x[0].numel())
        batches.append(batch)
        save(batches)
    return summary(batches)


def summary(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def all_of(name: str) -> list[float]:
        return [value for batch in batches for value in batch[name]]

    bits, few = all_of("bits"), min(NUM_FIRST, len(all_of("bits")))
    row = {
        "patches": len(bits),
        "bits/dim": statistics.fmean(bits),
        "standard error of the mean": statistics.stdev(bits) / math.sqrt(len(bits)),
        "standard error of a value, probes": math.sqrt(statistics.fmean(e**2 for e in all_of("errors"))),
        "probes": sorted(set(all_of("probes"))),
        "evaluations": statistics.fmean(all_of("evaluations")),
        f"bits/dim of the first {few}": statistics.fmean(bits[:few]),
        f"evaluations of the first {few}": statistics.fmean(all_of("evaluations")[:few]),
        "seconds": sum(batch["seconds"] for batch in batches),
        "seconds of the processor": sum(batch["of the processor"] for batch in batches),
        "bits/dim of the budget: correction, size": batches[0]["budget"],
        "budget": batches[0]["lines"],
    }
    return {name: digits(v) if isinstance(v, float) else v for name, v in row.items()}


def kept(path: Path, fingerprint: str) -> dict[str, Any]:
    """Parts that were measured on these weights."""
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    return kept["parts"] if kept["weights"] == fingerprint else {}


def keep(path: Path, fingerprint: str, parts: dict[str, Any]) -> None:
    atomic_write(path, json.dumps({"weights": fingerprint, "parts": parts}, indent=1).encode())
