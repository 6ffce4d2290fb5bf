"""Part D of the comparison: what a sampler costs beside the evaluations of its model.

    whole      time of a run over the time of as many bare calls of the model
    further    the same for the evaluations that a run of twice the length has more: without what is done once
               per run, weights and tables (mixture only)
    inside     time of a run over the time that it spends in the model: one run measures both, so that the
               scatter of the machine, some per cent, is not in it; nor is what the model loses to a colder
               cache, which matters for the mixture only

Medians over rounds in processor time; every round times runs, several on the mixture, one after the other as
for a set of batches, between two halves of the bare calls, in one process on one thread.  The bare call of
our samplers is the model's own score or network output; that of peers is the call they make, conversion of
predictions and noise levels included: the adapter does not count against them.

The exact score of the 8-D mixture, 256 points, float64; the digits network, batch 64, float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.flows import NSR_MIN, mixture
from benchmarks.peers import azula as peer_azula
from benchmarks.peers import diffusers as peer_diffusers
from benchmarks.peers import ours as peer_ours
from benchmarks.peers.models import Look, Peer
from benchmarks.peers.ours import Entry, FromStart
from sde_toolkit.models import ExactModel, ScoreModel
from sde_toolkit.runs import open_shipped
from sde_toolkit.sdes import VPSDE
from solvers import Normals

ROUNDS = {"mixture8": 15, "digits": 5}
REPEATS = {"mixture8": 5, "digits": 1}
EVALUATIONS = {"mixture8": 50, "digits": 20}
SETTINGS = {
    "rounds": ROUNDS,
    "repeats": REPEATS,
    "evaluations": EVALUATIONS,
    "points": 256,
    "batch": 64,
}
OURS = ("ddim", "heun", "dpm_solver_pp 2M", "unipc-3", "deis tAB-3", "lms-4", "default")
PEERS = {
    "diffusers": ("DDIM", "DPM-Solver++(2M)", "UniPC-3, bh2", "DEIS-3", "LMS", "Heun"),
    "azula": ("DDIM", "Heun", "zAB-3", "vAB-3", "xEAB-3"),
}


def chosen() -> Iterator[Peer | Entry]:
    """Our samplers and the peers that are timed, under one schedule each."""
    seen: set[str] = set()
    everything = (
        *peer_ours.deterministic(),
        peer_ours.default(),
        *peer_diffusers.deterministic(),
        *peer_azula.deterministic(),
    )
    for entry in everything:
        wanted = OURS if isinstance(entry, Entry) else PEERS[entry.library]
        if entry.name in wanted and entry.sampler not in seen:
            seen.add(entry.sampler)
            yield entry


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def _runs(
    entry: Peer | Entry, model: ScoreModel, x_T: torch.Tensor, t_min: float, nfe: int
) -> tuple[Callable[[], Any], Callable[[], Any], int, tuple[Any, str]]:
    """A run within the budget, one bare call, the evaluations of the run, and whose method it calls."""
    t = torch.tensor(0.5, dtype=torch.float64)
    if isinstance(entry, Entry):
        sampler = entry.within(nfe, t_min, model)
        assert sampler is not None
        noise = FromStart(x_T, model)
        prepared = sampler.prepare(model)
        counted = prepared.sample(len(x_T), noise=noise).nfe
        run = lambda: prepared.sample(len(x_T), noise=noise)  # noqa: E731
        return run, lambda: model.raw(x_T, t), int(counted), (model, "raw")
    look, num_steps = Look(model, t_min), entry.steps_within(nfe)
    y = look.start(x_T)
    entry.run(look, y, num_steps, 0)
    count, n = look.count, float(model.sde.nsr(t))
    return lambda: entry.run(look, y, num_steps, 0), lambda: look.noise(y, n), count, (look, "noise")


def _inside(run: Callable[[], Any], owner: Any, name: str) -> float:
    """Time of a run over that of its calls of the owner's method."""
    method, spent = getattr(owner, name), 0.0

    def timed(*args: Any) -> Any:
        nonlocal spent
        start = time.process_time()
        result = method(*args)
        spent += time.process_time() - start
        return result

    setattr(owner, name, timed)
    try:
        total = _seconds(run, 1)
    finally:
        delattr(owner, name)
    return total / spent


def cost(
    entry: Peer | Entry,
    model: ScoreModel,
    x_T: torch.Tensor,
    t_min: float,
    problem: str,
) -> dict[str, float]:
    """Medians of the ratios, and of the microseconds per evaluation of the whole run."""
    nfe, repeats, longer = EVALUATIONS[problem], REPEATS[problem], problem == "mixture8"
    short, bare, few, called = _runs(entry, model, x_T, t_min, nfe)
    half = max(1, repeats * few // 2)
    whole, further, inside, micro = [], [], [], []
    if longer:
        long, _, many, _ = _runs(entry, model, x_T, t_min, 2 * nfe)
    for _ in range(ROUNDS[problem]):
        before, run = _seconds(bare, half), _seconds(short, repeats)
        b = (before + _seconds(bare, half)) / 2
        whole.append(run / few / b)
        micro.append(run / few * 1e6)
        inside.append(_inside(short, *called))
        if longer:
            further.append((_seconds(long, repeats) - run) / (many - few) / b)
    found = {"whole": whole, "further": further, "inside": inside, "us": micro}
    return {name: statistics.median(values) for name, values in found.items() if values}


@torch.no_grad()
def measure() -> list[dict[str, Any]]:
    """One row per sampler."""
    sde = VPSDE()
    exact = ExactModel(mixture(8, seed=0), sde)
    t_min = float(sde.inverse_nsr(torch.tensor(NSR_MIN, dtype=torch.float64)))
    x_T = sde.prior_sample(Normals(0, 256, (8,)).draw(0))
    network = open_shipped("digits").model
    images = network.sde.prior_sample(Normals(0, 64, network.event_shape, torch.float32).draw(0))
    rows = []
    for entry in chosen():
        library = entry.library if isinstance(entry, Peer) else "sde_toolkit"
        mixture8 = cost(entry, exact, x_T, t_min, "mixture8")
        digits = cost(entry, network, images, 1e-3, "digits")
        rows.append({"library": library, "sampler": entry.name, "mixture8": mixture8, "digits": digits})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    columns = [
        *(("mixture8", key) for key in ("whole", "further", "inside", "us")),
        *(("digits", key) for key in ("whole", "inside", "us")),
    ]
    lines = [f"{'time per evaluation / bare call':<36}" + "".join(f"{f'{p} {k}':>18}" for p, k in columns)]
    for row in rows:
        cells = "".join(f"{row[p][k]:>18.4g}" for p, k in columns)
        lines.append(f"{row['library'] + ' ' + row['sampler']:<36}{cells}")
    return "\n".join(lines)
