"""Part A of the comparison: error of the deterministic flow at equal evaluations.

Problems: those of ``benchmarks.flows``, and the digits network that ships with the package, held against its
own fine solution (Dormand-Prince at rtol 1e-6 in float64).  Every sampler starts at the same points and may
look at the model 5, 10, 20 or 50 times; one whose looks do not add up to that takes the nearest number below.

On the network a few paths make most of an error, others for every sampler, so that figures from other starts
do not compare and few starts mean little (on 16 of them our default has .6 to 1.6 times its error on 64).
There the samplers run on 64 starts first, peers under every schedule, ours on the grid that is their best on
the exact problems at the budget; the four best of the peers and of ours, and our default, are then judged on
192 fresh starts, and only they have a figure.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.flows import FlowProblem
from benchmarks.peers.models import Look, Peer
from benchmarks.peers.ours import Entry, FromStart
from benchmarks.record import digits
from sde_toolkit.models import NetworkModel
from sde_toolkit.runs import open_shipped
from sde_toolkit.samplers import T_MIN, dopri5
from solvers import Normals, SolverError

EVALUATIONS = (5, 10, 20, 50)
DIGITS_POINTS, DIGITS_SEED = 192, 21
SCREEN_POINTS, SCREEN_SEED = 64, 20
FINALISTS = 4
NETWORK = "digits-network"
OURS, DEFAULT = "sde_toolkit", "default"


@dataclass(frozen=True)
class Row:
    """Errors of one sampler under one schedule: problem -> one for every entry of ``EVALUATIONS``."""

    library: str
    sampler: str
    schedule: str
    errors: dict[str, list[float]]


def digits_problem(num_points: int = DIGITS_POINTS, seed: int = DIGITS_SEED) -> FlowProblem:
    """The shipped network under its own process."""
    return network_problem(NETWORK, open_shipped("digits").model, num_points, seed)


def network_problem(
    name: str, model: NetworkModel, num_points: int, seed: int, rtol: float = 1e-6
) -> FlowProblem:
    """A network under its own process, down to ``T_MIN``; noise zero is its denoised end."""
    sde = model.sde
    exact = model.with_network(copy.deepcopy(model.network).double())
    x_T = sde.prior_sample(Normals(seed, num_points, model.event_shape).draw(0))
    fine = dopri5(rtol=rtol, atol=rtol, t_min=T_MIN, denoise=False)
    end = fine.sample(exact, num_points, noise=FromStart(x_T, exact)).x
    with torch.no_grad():
        zero_end = exact.denoise(end, torch.tensor(T_MIN, dtype=torch.float64))
    return FlowProblem(name, model, T_MIN, x_T, end, zero_end)


def peer_error(peer: Peer, problem: FlowProblem, nfe: int) -> float:
    """Error of a peer within the budget; inf where it has no number of steps for it."""
    look, num_steps = Look(problem.model, problem.t_min), peer.steps_within(nfe)
    if not num_steps:
        return math.inf
    with torch.no_grad():
        y = peer.run(look, look.start(problem.x_T), num_steps, 0)
    if look.count > nfe:
        raise AssertionError(f"{peer.title} looked {look.count} times with {num_steps} steps")
    return problem.error(y if peer.at_zero else look.end(y), peer.at_zero)


def our_error(entry: Entry, problem: FlowProblem, nfe: int) -> float:
    """Error of one of our samplers within the budget; inf where it does not reach the end."""
    sampler = entry.within(nfe, problem.t_min, problem.model)
    if sampler is None:
        return math.inf
    noise = FromStart(problem.x_T, problem.model)
    try:
        result = sampler.sample(problem.model, len(problem.x_T), noise=noise)
    except SolverError:
        return math.inf
    if result.nfe > nfe:
        raise AssertionError(f"{entry.title} spent {result.nfe} evaluations")
    return problem.error(result.x)


Measured = tuple[Row, Callable[[FlowProblem, int], float]]


def measure(
    peers: Iterable[Peer],
    entries: Iterable[Entry],
    on: Sequence[FlowProblem],
    budgets: Sequence[int] = EVALUATIONS,
    screen: FlowProblem | None = None,
) -> list[Row]:
    """Errors of all samplers on all problems.

    On the network, where ``screen`` has the starts that choose who is judged, inf stands for the others.
    """
    found = _pairs(peers, entries)
    for p in sorted(on, key=lambda p: p.name == NETWORK):
        start = time.perf_counter()
        if p.name == NETWORK:
            assert screen is not None
            on_network(found, p, screen, budgets)
        else:
            for row, error in found:
                row.errors[p.name] = [error(p, nfe) for nfe in budgets]
        print(f"   {p.name}: {len(found)} samplers in {time.perf_counter() - start:.0f} s", flush=True)
    return [row for row, _ in found]


def _pairs(peers: Iterable[Peer], entries: Iterable[Entry]) -> list[Measured]:
    """Every sampler with a row that has no errors yet."""
    found: list[Measured] = []
    for peer in peers:
        schedule = f"{peer.schedule}{', to zero' if peer.at_zero else ''}"
        found.append((Row(peer.library, peer.name, schedule, {}), functools.partial(peer_error, peer)))
    for entry in entries:
        found.append((Row(OURS, entry.name, entry.grid, {}), functools.partial(our_error, entry)))
    return found


def renewed(
    peers: Iterable[Peer],
    entries: Iterable[Entry],
    before: Iterable[Row],
    on: Sequence[FlowProblem],
    screen: FlowProblem,
) -> list[Row]:
    """The rows of all samplers, measured on the network alone, and those of our default everywhere; the
    others' errors on the exact problems are those of ``before``."""
    errors = {(row.library, row.sampler, row.schedule): row.errors for row in before}
    found = _pairs(peers, entries)
    for row, error in found:
        if (row.library, row.sampler) == (OURS, DEFAULT):
            known = {p.name: [error(p, nfe) for nfe in EVALUATIONS] for p in on}
        else:
            known = errors[row.library, row.sampler, row.schedule]
        row.errors.update({p.name: known[p.name] for p in on if p.name != NETWORK})
    on_network(found, next(p for p in on if p.name == NETWORK), screen, EVALUATIONS)
    return [row for row, _ in found]


def on_network(
    found: Sequence[Measured], judge: FlowProblem, screen: FlowProblem, budgets: Sequence[int]
) -> None:
    """Errors of the finalists on the network; the rows have those on the exact problems."""
    groups: dict[str, list[Measured]] = {}
    for row, error in found:
        if row.library == OURS:
            groups.setdefault(row.sampler, []).append((row, error))
    screened = [pair for pair in found if pair[0].library != OURS]
    first = {id(row): [error(screen, nfe) for nfe in budgets] for row, error in screened}
    for i, nfe in enumerate(budgets):
        ours = [min(group, key=lambda pair: _mean_log(pair[0], i)) for group in groups.values()]
        theirs = sorted(screened, key=lambda pair: first[id(pair[0])][i])[:FINALISTS]
        default = [pair for pair in ours if pair[0].sampler == DEFAULT]
        others = [pair for pair in ours if pair[0].sampler != DEFAULT]
        others = sorted(others, key=lambda pair: pair[1](screen, nfe))[:FINALISTS]
        for row, error in [*theirs, *default, *others]:
            row.errors.setdefault(judge.name, [math.inf] * len(budgets))[i] = error(judge, nfe)
    for row, _ in found:
        row.errors.setdefault(judge.name, [math.inf] * len(budgets))


def _mean_log(row: Row, i: int) -> float:
    return sum(math.log(errors[i]) for name, errors in row.errors.items() if name != NETWORK)


def best(rows: Iterable[Row], problem: str, i: int) -> tuple[float, str]:
    """The smallest error at budget i of a problem, and whose it is."""
    found = min(((r.errors[problem][i], r) for r in rows), key=lambda pair: pair[0], default=None)
    if found is None:
        return math.nan, ""
    return found[0], f"{found[1].library} {found[1].sampler}, {found[1].schedule}"


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


@dataclass(frozen=True)
class Summary:
    """One of our samplers against the best peer of every column, at one budget.

    Attributes:
        nfe: the budget.
        peer: problem -> (error, title) of the best peer.
        ours: problem -> (error, title) of the best of our rows that are compared.
        ratio: problem -> ours over the peer's.
        mean: geometric mean of the ratio over the exact problems that are not Gaussian.
        mean_with_network: the same with the network as one more problem; nan without it.
    """

    nfe: int
    peer: dict[str, tuple[float, str]]
    ours: dict[str, tuple[float, str]]
    ratio: dict[str, float]
    mean: float
    mean_with_network: float


def compare(
    rows: Sequence[Row], chosen: Sequence[Row], on: Sequence[FlowProblem], i: int, nfe: int
) -> Summary:
    """The rows ``chosen`` among ours against the best peers of the columns."""
    others = [row for row in rows if row.library != OURS]
    peer = {p.name: best(others, p.name, i) for p in on}
    ours = {p.name: best(chosen, p.name, i) for p in on}
    ratio = {name: ours[name][0] / peer[name][0] for name in peer}
    counted = [p.name for p in on if not p.gaussian and p.name != NETWORK]
    mean = geometric_mean(ratio[name] for name in counted)
    both = geometric_mean(ratio[name] for name in [*counted, NETWORK]) if NETWORK in ratio else math.nan
    return Summary(nfe, peer, ours, ratio, mean, both)


def table(rows: Sequence[Row], on: Sequence[FlowProblem], i: int, nfe: int) -> str:
    """Errors at one budget, every sampler at its best schedule per problem, then the comparison."""
    names = [p.name for p in on]
    width = max(len(name) for name in names) + 2
    lines = [f"{f'NFE {nfe}':<44}" + "".join(f"{name:>{width}}" for name in names)]

    def line(title: str, values: Iterable[float]) -> str:
        return f"{title:<44}" + "".join(f"{v:>{width}.3g}" for v in values)

    samplers_of: dict[str, list[Row]] = {}
    for row in rows:
        samplers_of.setdefault(f"{row.library} {row.sampler}", []).append(row)
    for title, group in samplers_of.items():
        lines.append(line(title, (best(group, name, i)[0] for name in names)))
    for label, chosen in (
        ("our default", [row for row in rows if row.library == OURS and row.sampler == DEFAULT]),
        ("our best preset", [r for r in rows if r.library == OURS and r.sampler != DEFAULT]),
    ):
        if not chosen or all(row.library == OURS for row in rows):
            continue
        summary = compare(rows, chosen, on, i, nfe)
        lines.append(line("best peer", (summary.peer[name][0] for name in names)))
        lines.append(line(label, (summary.ours[name][0] for name in names)))
        lines.append(line("ratio", summary.ratio.values()) + f"   geometric mean {summary.mean:.3f}")
        if NETWORK in summary.ratio:
            lines[-1] += f", with the network {summary.mean_with_network:.3f}"
    return "\n".join(lines)


def recorded(found: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows that ``records`` made."""
    return [
        Row(
            r["library"],
            r["sampler"],
            r["schedule"],
            {name: [math.inf if v is None else v for v in values] for name, values in r["errors"].items()},
        )
        for r in found
    ]


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, four digits of every error, null where a sampler does not reach the end."""
    return [
        {
            "library": r.library,
            "sampler": r.sampler,
            "schedule": r.schedule,
            "errors": {name: [digits(v) for v in values] for name, values in r.errors.items()},
        }
        for r in rows
    ]
