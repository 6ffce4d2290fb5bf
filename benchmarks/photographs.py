"""Photographs at 3 x 32 x 32: what moments of low rank bring to the default sampler and to likelihoods.

    python -m benchmarks photographs
    python -m benchmarks.photographs [PART ...] [--minutes=20] [--workdir=PATH]

A U-Net is trained for ``--minutes`` on one core on patches of scikit-image's photographs
(``benchmarks.patches``), and kept in ``--workdir``, runs/photographs by default, where a second call finds
it, and the parts that are done.  Its 3072 features are too many for a full covariance: training stores the
widest axes and one variance of the rest, which the network's residual is read by too.

flow        error of the probability flow against the network's own, at equal evaluations: the default
            sampler with the moments of low rank, fewer axes of them, the variances of the features alone, and
            one number; and the best of our other presets and of diffusers' schedulers, under every grid they
            have.  Those are chosen on 6 starts: the 20 best of either at 10 evaluations go on, and the best
            three of them at any number are judged like the others on 16 fresh ones.  The fine solution is
            Dormand and Prince's in float64 at rtol 1e-7; how far that at 1e-6 is from it is given too
time        of a run of 16 samples over that of its network calls alone, and over that of the model's, which
            for a residual read the network's output by the moments; medians of ratios of neighbours in
            alternation, in seconds of the processor.  "per step" is the difference of runs of 30 and 10
            evaluations, without what a run does once
likelihood  log p of 64 test patches with the defaults of ``log_likelihood`` and the moments of low rank
probes      the standard error that one probe has over the run of a patch, with the moments of low rank and
            with the variances alone.  Probes are drawn along the axes of the moments, where signs (Walsh's)
            see only what is off the diagonal of the Jacobian there; Gaussian ones see the diagonal too, less
            what is subtracted as a control variate
diagonal    log p of the first 16 of the patches with the variances alone

Bits per dimension are those of 8-bit levels: -log2 p(w) / D with p the density of w = v + u, u uniform on
[0, 1), in the levels' own scale 0 to 256, which bounds -log2 P(v) / D from above; 8 is the uniform code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.of_networks import (
    FINALISTS,
    FIRST,
    NUM_FIRST,
    RTOL,
    SECOND_ROUND,
    TEST_BATCH,
    Competitor,
    competitors,
    keep,
    kept,
    likelihood,
    summary,
)
from benchmarks.of_networks import flow as flow_errors
from benchmarks.patches import seconds_trained, trained
from benchmarks.peers.flow import EVALUATIONS
from benchmarks.record import digits, write_result
from sde_toolkit.likelihood import Endpoint, FlowSolver, Hutchinson, log_likelihood
from sde_toolkit.models import NetworkModel
from sde_toolkit.runs import Run
from sde_toolkit.samplers import default, gaussian_residual, unipc
from solvers import AB4

NETWORK = {"model.channels": (32, 64, 64), "model.patch_size": 2}
POINTS, SEED, SCREEN_POINTS, SCREEN_SEED = 16, 51, 6, 50
RANKS = (16, 64)
BATCH, FEW, MANY, TURNS = 16, 10, 30, 9
NUM_TEST, NUM_DIAGONAL, NUM_CONTROL, PROBES, STEPS = 64, NUM_FIRST, 8, 16, 24


def flow(
    model: NetworkModel,
    others: Sequence[Competitor],
    points: int = POINTS,
    screen_points: int = SCREEN_POINTS,
    budgets: Sequence[int] = EVALUATIONS,
    rtol: tuple[float, float] = RTOL,
) -> dict[str, Any]:
    """Errors of the module's head: row -> one for every number of evaluations, and who is the best."""
    law = model.moments
    assert law is not None
    table = {"low rank": law, **{f"{r} axes": law.low_rank(r) for r in RANKS if r < law.covariance.rank}}
    table |= {"diagonal": law.diagonal(), "one number": law.scalar()}
    return flow_errors(
        "photographs", model, table, others, points, screen_points, SEED, SCREEN_SEED, budgets, rtol
    )


def timing(model: NetworkModel, batch: int = BATCH, turns: int = TURNS) -> dict[str, Any]:
    """Milliseconds of the processor per evaluation, and ratios over the calls alone."""
    law = model.moments
    assert law is not None
    x, c = torch.zeros(batch, *model.event_shape), torch.full((batch,), 500.0)
    t = torch.tensor(0.5, dtype=torch.float64)

    def calls(ask: Callable[[], Tensor], count: int) -> Callable[[], object]:
        @torch.inference_mode()
        def run() -> None:
            for _ in range(count):
                ask()

        return run

    def samples(make: Callable[[int], Any], count: int) -> Callable[[], object]:
        sampler = make(count)
        return lambda: sampler.sample(model, batch, seed=0, start="prior")

    makers = {
        "low rank": lambda n: default(model, n),
        "diagonal": lambda n: gaussian_residual(model, n, moments=law.diagonal()),
        "UniPC-3": lambda n: unipc(n, order=3, denoise=False),
    }
    found: dict[str, dict[int, list[float]]] = {}
    asks = {"network": lambda: model.network(x, c), "model": lambda: model.raw(x, t)}
    jobs = {(name, n): calls(ask, n) for name, ask in asks.items() for n in (FEW, MANY)}
    jobs |= {(name, n): samples(make, n) for name, make in makers.items() for n in (FEW, MANY)}
    for _ in range(turns):
        for (name, n), job in jobs.items():
            begin = time.process_time()
            job()
            found.setdefault(name, {}).setdefault(n, []).append(time.process_time() - begin)
    return {name: _ratios(seconds, found) for name, seconds in found.items()}


def _ratios(seconds: dict[int, list[float]], found: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Of one row: milliseconds per evaluation, and ratios of the whole run and per step."""
    each = [(b - a) / (MANY - FEW) for a, b in zip(seconds[FEW], seconds[MANY], strict=True)]
    row: dict[str, Any] = {"ms per step": digits(1e3 * statistics.median(each))}
    for over in ("network", "model"):
        for n in (FEW, MANY):
            pairs = zip(seconds[n], found[over][n], strict=True)
            row[f"run of {n} over {over}"] = digits(statistics.median(a / b for a, b in pairs))
        base = [(b - a) / (MANY - FEW) for a, b in zip(found[over][FEW], found[over][MANY], strict=True)]
        row[f"per step over {over}"] = digits(statistics.median(each) / statistics.median(base))
    return row


def control(
    model: NetworkModel, x: Tensor, num_probes: int = PROBES, steps: int = STEPS
) -> dict[str, float | None]:
    """Standard error of one probe, in bits/dim, root-mean-square over the rows of x, by moments, kind of
    probe and the multiple of the Gaussian's Jacobian that is subtracted."""
    law, found, solver = model.moments, {}, FlowSolver(AB4, num_steps=steps)
    assert law is not None
    arms = [("low rank", law, "walsh", 0.5), ("diagonal", law.diagonal(), "walsh", 0.5)]
    arms += [("low rank", law, "gaussian", c) for c in (0.0, 1.0)]
    arms += [("diagonal", law.diagonal(), "gaussian", 1.0)]
    for name, moments, kind, multiple in arms:
        probes = Hutchinson(num_probes, kind, control=multiple)
        value = log_likelihood(
            model, x, divergence=probes, solver=solver, endpoint=Endpoint(moments=moments),
            num_diagnostic_samples=0,
        )  # fmt: skip
        error = value.standard_error_bits_per_dim
        assert error is not None
        of_mean = float(probes.error_of_mean(torch.ones(()), x[0].numel()))
        title = f"{name}, {kind} probes, control {multiple:g}"
        found[title] = digits(float(error.square().mean().sqrt()) / of_mean)
        print(f"   one probe, {title}: {found[title]}", flush=True)
    return found


def likelihoods(run: Run, kind: str, count: int, path: Path) -> dict[str, Any]:
    """Bits per dimension of the first test patches, by moments of this kind; finished batches are kept."""
    model, dataset = run.model, run.dataset()
    assert isinstance(model, NetworkModel)
    assert model.moments is not None
    moments = {"low rank": model.moments, "diagonal": model.moments.diagonal()}[kind]
    parts = kept(path, run.fingerprint)

    def save(batches: list[dict[str, Any]]) -> None:
        parts[kind] = batches
        keep(path, run.fingerprint, parts)
        print(f"   {kind}, {len(batches)} batches: {summary(batches)['bits/dim']} bits/dim", flush=True)

    row = likelihood(
        model, dataset.scaled_test()[:count], dataset.scaling.log_det_per_dim, moments,
        parts.get(kind, ()), save,
    )  # fmt: skip
    print(f"   {kind}: {row['bits/dim']} +- {row['standard error of the mean']} bits/dim, "
          f"{row['evaluations']} evaluations, {row['seconds']} s")  # fmt: skip
    for line in row["budget"]:
        print(f"      {line}", flush=True)
    return row


def show_timing(found: dict[str, Any]) -> None:
    """The table of the part ``time``."""
    columns = list(found["network"])
    print("   " + " " * 12 + "".join(f"{name:>26}" for name in columns))
    for name, row in found.items():
        print(f"   {name:12}" + "".join(f"{row[column]:>26}" for column in columns), flush=True)


def main(arguments: Sequence[str] = ()) -> None:
    """Train, measure the parts that are named, all by default, print and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs")
    parser.add_argument("parts", nargs="*", metavar="PART", help="flow, time, likelihood, probes, diagonal")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/photographs"))
    options = parser.parse_args(arguments)
    path, batches = (options.workdir / f"{name}.json" for name in ("photographs", "likelihoods"))
    parts: dict[str, Callable[[Run], dict[str, Any]]] = {
        "flow": lambda run: flow(run.model, competitors()),  # type: ignore[arg-type]
        "time": lambda run: timing(run.model),  # type: ignore[arg-type]
        "likelihood": lambda run: likelihoods(run, "low rank", NUM_TEST, batches),
        "probes": lambda run: control(run.model, run.dataset().scaled_test()[:NUM_CONTROL]),  # type: ignore[arg-type]
        "diagonal": lambda run: likelihoods(run, "diagonal", NUM_DIAGONAL, batches),
    }
    unknown = sorted(set(options.parts) - set(parts))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(parts)}")
    torch.set_num_threads(1)
    run = trained(options.workdir, options.minutes, NETWORK)
    done = kept(path, run.fingerprint)
    for name in options.parts or [name for name in parts if name not in done]:
        print(f"   {name}", flush=True)
        done[name] = parts[name](run)
        keep(path, run.fingerprint, done)
        if name == "time":
            show_timing(done[name])
    law, dataset = run.model.moments, run.dataset()
    settings = {
        "network": NETWORK, "parameters": sum(p.numel() for p in run.model.network.parameters()),
        "predicts": run.config.model.predicts, "loss": run.config.loss.to_dict(), "updates": run.step,
        "batch": run.config.training.batch_size, "seconds of training": seconds_trained(options.workdir),
        "train": len(dataset.train), "test": len(dataset.test), "moments": repr(law.covariance),
        "variances": [digits(float(v)) for v in law.covariance.variances[[0, 1, 3, 7, 15, 31, 63, -1]]],
        "evaluations": EVALUATIONS, "points": POINTS, "seed": SEED, "screen": SCREEN_POINTS,
        "first round": FIRST, "second round": SECOND_ROUND, "finalists": FINALISTS, "rtol": RTOL,
        "batch of time": BATCH, "turns": TURNS,
        "test patches": NUM_TEST, "with variances alone": NUM_DIAGONAL, "batch of likelihoods": TEST_BATCH,
        "patches of control": NUM_CONTROL, "probes of control": PROBES, "steps of control": STEPS,
    }  # fmt: skip
    write_result("photographs", settings, done)


if __name__ == "__main__":
    main(sys.argv[1:])
