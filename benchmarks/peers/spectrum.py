"""Part E of the comparison: our default against the best peer where data have many scales.

Every problem of ``benchmarks.families`` is run by every peer under every schedule of its library, and by
our default, at 5, 10, 20 and 50 evaluations; the table gives the default's error over that of the best peer
of the column, chosen in hindsight, pooled over the features and whitened by the data's axes.

For data with a rare far mode, the weight that the samples give to it is compared with that of the exact ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.families import Case, SpectrumProblem, make_problem
from benchmarks.peers.flow import EVALUATIONS, geometric_mean
from benchmarks.peers.models import Look, Peer
from benchmarks.peers.ours import FromStart, default
from benchmarks.record import digits
from sde_toolkit.models import GaussianMixture
from sde_toolkit.samplers import Sampler
from solvers import SolverError

KINDS_OF_ERROR = ("pooled", "whitened")
Errors = tuple[float, float]
LOST: Errors = (math.inf, math.inf)


@dataclass(frozen=True)
class Column:
    """The errors of one problem at one budget.

    Attributes:
        case: the problem.
        nfe: evaluations.
        ours: pooled and whitened error of our default.
        peer: the smallest pooled and the smallest whitened error of the peers.
        titles: whose they are.
        rare: the weight of the rare mode among our ends and among the exact ones; None for other kinds.
    """

    case: Case
    nfe: int
    ours: Errors
    peer: Errors
    titles: tuple[str, str]
    rare: tuple[float, float] | None = None

    @property
    def ratios(self) -> Errors:
        """Ours over the best peer's, pooled and whitened."""
        return self.ours[0] / self.peer[0], self.ours[1] / self.peer[1]


def peer_errors(peer: Peer, problem: SpectrumProblem, nfe: int) -> Errors:
    """Errors of a peer within the budget; inf where it has no number of steps for it."""
    look, num_steps = Look(problem.model, problem.t_min), peer.steps_within(nfe)
    if not num_steps:
        return LOST
    with torch.no_grad():
        y = peer.run(look, look.start(problem.x_T), num_steps, 0)
    if look.count > nfe:
        raise AssertionError(f"{peer.title} took {look.count} evaluations with {num_steps} steps")
    return problem.errors(y if peer.at_zero else look.end(y), peer.at_zero)


def ends(sampler: Sampler, problem: SpectrumProblem) -> Tensor | None:
    """Where one of our samplers ends; None if it does not."""
    try:
        noise = FromStart(problem.x_T, problem.model)
        return sampler.sample(problem.model, len(problem.x_T), noise=noise).x
    except SolverError:
        return None


def rare_weight(problem: SpectrumProblem, x: Tensor) -> float:
    """The share of the last component of the data in the ends x: mean of p(last component | x)."""
    model, t = problem.model, torch.tensor(problem.t_min, dtype=torch.float64)
    assert isinstance(model.data, GaussianMixture)
    last = torch.full((len(x),), model.num_classes - 1)
    prior = float(model.data.components.weights[-1])
    return prior * float((model.log_prob(x, t, last) - model.log_prob(x, t)).exp().mean())


def measure(cases: Iterable[Case], peers: Sequence[Peer]) -> list[Column]:
    """The columns of all cases."""
    columns = []
    for case in cases:
        start = time.perf_counter()
        problem = make_problem(case)
        for nfe in EVALUATIONS:
            columns.append(column(problem, peers, nfe))
        ratios = "  ".join(f"{c.ratios[0]:.2f} {c.ratios[1]:.2f}" for c in columns[-len(EVALUATIONS) :])
        print(f"   {case.name:24s} {ratios}   {time.perf_counter() - start:.0f} s", flush=True)
    return columns


def column(problem: SpectrumProblem, peers: Sequence[Peer], nfe: int) -> Column:
    """Our default against all peers on one problem at one budget."""
    found = [(peer_errors(peer, problem, nfe), peer.title) for peer in peers]
    best = [min(found, key=lambda pair: pair[0][kind]) for kind in (0, 1)]
    return against(problem, nfe, (best[0][0][0], best[1][0][1]), (best[0][1], best[1][1]))


def renewed(cases: Iterable[Case], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of all cases with our default measured again, beside the peers of ``records``."""
    known = {(row["problem"], row["nfe"]): row for row in rows}
    columns = []
    for case in cases:
        problem = make_problem(case)
        for nfe in EVALUATIONS:
            best = [known[case.name, nfe][f"peer_{kind}"] for kind in KINDS_OF_ERROR]
            columns.append(against(problem, nfe, (best[0][0], best[1][0]), (best[0][1], best[1][1])))
    return columns


def against(problem: SpectrumProblem, nfe: int, peer: Errors, titles: tuple[str, str]) -> Column:
    """Our default on one problem at one budget, beside the best errors of the peers."""
    sampler = default().within(nfe, problem.t_min, problem.model)
    assert sampler is not None
    x = ends(sampler, problem)
    rare = None
    if problem.case.kind == "rare" and x is not None:
        rare = rare_weight(problem, x), rare_weight(problem, problem.end)
    ours = LOST if x is None else problem.errors(x)
    return Column(problem.case, nfe, ours, peer, titles, rare)


def table(columns: Sequence[Column]) -> str:
    """Ratios by kind, condition and features as geometric means over the processes, then by process, with the
    worst single column of every row in brackets."""
    lines = ["default over best peer: geometric mean (worst); pooled, then whitened, at " + str(EVALUATIONS)]

    def line(title: str, chosen: Sequence[Column]) -> None:
        cells = []
        for kind in (0, 1):
            for nfe in EVALUATIONS:
                ratios = [c.ratios[kind] for c in chosen if c.nfe == nfe]
                cells.append(f"{geometric_mean(ratios):5.2f} ({max(ratios):.2f})")
        lines.append(f"{title:24s}" + "".join(f"{cell:>14s}" for cell in cells))

    kinds: dict[tuple[str, int, float], list[Column]] = {}
    processes: dict[str, list[Column]] = {}
    for c in columns:
        kinds.setdefault((c.case.kind, c.case.D, c.case.condition), []).append(c)
        processes.setdefault(c.case.process, []).append(c)
    for (kind, D, condition), chosen in kinds.items():
        line(f"{kind} {D}-D {condition:g} to 1", chosen)
    for process, chosen in processes.items():
        line(process, chosen)
    line("all", columns)
    for c in columns:
        if c.rare is not None and c.case.process in ("vp", "ve"):
            lines.append(f"{c.case.name}, NFE {c.nfe}: rare mode {c.rare[0]:.4f}, exact ends {c.rare[1]:.4f}")
    return "\n".join(lines)


def records(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """The columns for JSON, four digits of every error."""
    return [
        {
            "problem": c.case.name,
            "nfe": c.nfe,
            **{kind: digits(c.ours[i]) for i, kind in enumerate(KINDS_OF_ERROR)},
            **{f"peer_{kind}": [digits(c.peer[i]), c.titles[i]] for i, kind in enumerate(KINDS_OF_ERROR)},
            **({} if c.rare is None else {"rare": [digits(x) for x in c.rare]}),
        }
        for c in columns
    ]
