"""Part C of the comparison: the law of stochastic samplers at equal evaluations.

    W2        between the output and the exact law on an 8-D Gaussian with standard deviations from 1.4 to .1,
              off the origin.  All samplers here are affine in their start and draws, so the output's law is
              exact: the production sampler runs once on a batch of unit impulses, in place of its normals.
    energy    squared energy distance, unbiased, of samples to the exact law (``peer_energy``), on the ring
              and on the 8-D mixture: of 16384 samples for every sampler under the schedule that is best by W2
              at this budget, then, from new seeds, of 131072 samples for the three best of ours and of the
              peers.  The noise of the statistic is given as the floor, its root mean square for exact draws.
              Below it a figure means nothing, and the comparison counts it as the floor.

Under VP; a sampler that ends at the smallest noise-to-signal ratio, .002, is held against the law there, one
that ends at noise zero against the data.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.flows import NSR_MIN, mixture, ring
from benchmarks.peer_energy import project
from benchmarks.peer_models import Look, Peer
from benchmarks.peer_ours import Entry
from benchmarks.record import digits
from sde_toolkit.correctors import Langevin
from sde_toolkit.exact import ExactData, ExactModel, Gaussian
from sde_toolkit.samplers import PRIOR
from sde_toolkit.sde import VPSDE
from solvers import Normals, SolverError
from solvers.brownian import STEPS

EVALUATIONS = (20, 50)
SAMPLES, CHUNK, SEED = 16384, 16384, 3
CANDIDATES, MORE = 3, 8
DRAWS_PER_LOOK = 2
FLOOR_SETS = 8


@dataclass(frozen=True)
class LawRow:
    """Distances of one sampler under one schedule.

    Attributes:
        library, sampler, schedule: whose.
        errors: problem -> one for every entry of ``EVALUATIONS``; nan where there is none.
    """

    library: str
    sampler: str
    schedule: str
    errors: dict[str, list[float]]


def gaussian() -> Gaussian:
    """Eight independent features with unequal scales and means."""
    variances = torch.logspace(math.log10(2.0), -2, 8, dtype=torch.float64)
    return Gaussian(torch.linspace(-1, 1, 8, dtype=torch.float64), variances)


class Rows:
    """Unit impulses: row 0 has none, row 1 the start's, and every further draw a row of its own."""

    def __init__(self, most: int, num_features: int) -> None:
        self.shape, self._row = (2 + most, num_features), dict[tuple[int, int], int]()

    def start(self) -> Tensor:
        """The start's impulse with shape (R, D)."""
        return self._impulse(1)

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """The impulse of one draw of our samplers."""
        if stream == PRIOR:
            return self.start()
        return self._impulse(2 + self._row.setdefault((index, stream), len(self._row)))

    def next(self, *_: Any, **__: Any) -> Tensor:
        """The next impulse, for samplers that draw in order."""
        return self.draw(len(self._row))

    def _impulse(self, row: int) -> Tensor:
        z = torch.zeros(self.shape, dtype=torch.float64)
        z[row] = 1
        return z


@contextmanager
def drawing(source: Callable[..., Tensor]) -> Iterator[None]:
    """The peers' normals come from ``source``."""
    modules = [m for name, m in sys.modules.items() if name.startswith("diffusers.schedulers.scheduling_")]
    patched = [(m, "randn_tensor") for m in modules if hasattr(m, "randn_tensor")] + [(torch, "randn_like")]
    before = [(m, name, getattr(m, name)) for m, name in patched]
    for m, name in patched:
        setattr(m, name, source)
    try:
        yield
    finally:
        for m, name, value in before:
            setattr(m, name, value)


class Laws:
    """The problems, with their exact laws at both ends.

    Args:
        scale: how many times as many samples as ``SAMPLES``.
        seed: of the samplers.
    """

    def __init__(self, scale: int = 1, seed: int = SEED) -> None:
        self.samples, self.seed = scale * SAMPLES, seed
        sde = VPSDE()
        self.t_min = float(sde.inverse_nsr(torch.tensor(NSR_MIN, dtype=torch.float64)))
        end = torch.tensor(self.t_min, dtype=torch.float64)
        self.alpha, self.sigma = float(sde.alpha(end)), float(sde.sigma(end))
        self.gaussian = ExactModel(gaussian(), sde)
        data = {"ring": ring(), "mixture8": mixture(8, seed=0)}
        self.mixtures = {name: ExactModel(x0, sde) for name, x0 in data.items()}
        self._laws = {
            (name, at_zero): project(x0, *((1.0, 0.0) if at_zero else (self.alpha, self.sigma)))
            for name, x0 in data.items()
            for at_zero in (False, True)
        }
        self.floor = {name: self._floor(name, x0) for name, x0 in data.items()}

    def _floor(self, name: str, data: ExactData) -> float:
        sets = (data.sample(self.samples, seed=1000 + k) for k in range(FLOOR_SETS))
        return math.sqrt(sum(self.energy(name, x, True)[0] ** 2 for x in sets) / FLOOR_SETS)

    def parts(self) -> list[tuple[int, int]]:
        """Seeds and numbers of samples of a run in parts."""
        starts = range(0, self.samples, CHUNK)
        return [(self.seed + 1000 * k, min(CHUNK, self.samples - i)) for k, i in enumerate(starts)]

    def energy(self, name: str, x: Tensor, at_zero: bool) -> tuple[float, float]:
        """Unbiased squared energy distance and its standard error, see ``peer_energy``."""
        return self._laws[name, at_zero].energy(x)

    def w2(self, response: Tensor, at_zero: bool) -> float:
        """Exact W2 from the response to impulses, with shape (R, D)."""
        data = self.gaussian.data
        mean, std = data.mean, data.covariance.diagonal().sqrt()
        if not at_zero:
            mean, std = self.alpha * mean, (self.alpha**2 * std.square() + self.sigma**2).sqrt()
        out_mean, out_std = response[0], (response[1:] - response[0]).square().sum(0).sqrt()
        return float(((out_mean - mean).square().sum() + (out_std - std).square().sum()).sqrt())


def _peer_run(
    peer: Peer, model: ExactModel, laws: Laws, x_T: Tensor, nfe: int, seed: int = SEED
) -> Tensor | None:
    look, num_steps = Look(model, laws.t_min), peer.steps_within(nfe)
    if not num_steps:
        return None
    with torch.no_grad():
        y = peer.run(look, look.start(x_T), num_steps, seed)
    assert look.count <= nfe
    return y if peer.at_zero else look.end(y)


def _peer_w2(peer: Peer, laws: Laws, nfe: int) -> float:
    rows = Rows(DRAWS_PER_LOOK * nfe, 8)
    with drawing(rows.next):
        response = _peer_run(peer, laws.gaussian, laws, rows.start(), nfe)
    return math.nan if response is None else laws.w2(response, peer.at_zero)


def _peer_energy(peer: Peer, laws: Laws, name: str, nfe: int) -> tuple[float, float]:
    model, parts = laws.mixtures[name], []
    for seed, num in laws.parts():
        x_T = Normals(seed, num, model.event_shape).draw(0, PRIOR)
        x = _peer_run(peer, model, laws, x_T, nfe, seed)
        if x is None or not bool(x.isfinite().all()):
            return math.nan, math.nan
        parts.append(x)
    return laws.energy(name, torch.cat(parts), peer.at_zero)


def _our_w2(entry: Entry, laws: Laws, nfe: int) -> float:
    sampler = entry.within(nfe, laws.t_min, laws.gaussian)
    # the steps of the one corrector look at norms, so it is not affine
    if sampler is None or isinstance(sampler.corrector, Langevin):
        return math.nan
    rows = Rows(DRAWS_PER_LOOK * nfe, 8)
    return laws.w2(sampler.sample(laws.gaussian, rows.shape[0], noise=rows).x, False)


def _our_energy(entry: Entry, laws: Laws, name: str, nfe: int) -> tuple[float, float]:
    sampler = entry.within(nfe, laws.t_min, laws.mixtures[name])
    if sampler is None:
        return math.nan, math.nan
    parts = []
    for seed, num in laws.parts():
        try:
            result = sampler.sample(laws.mixtures[name], num, seed=seed)
        except SolverError:
            return math.nan, math.nan
        assert result.nfe <= nfe
        parts.append(result.x)
    return laws.energy(name, torch.cat(parts), False)


Pair = tuple[LawRow, Any]


def measure(peers: Iterable[Peer], entries: Iterable[Entry], laws: Laws) -> list[Pair]:
    """W2 of all stochastic samplers under all schedules; energy distances of the best schedules."""
    pairs: list[Pair] = []
    for peer in peers:
        schedule = f"{peer.schedule}{', to zero' if peer.at_zero else ''}"
        w2 = [_peer_w2(peer, laws, nfe) for nfe in EVALUATIONS]
        pairs.append((LawRow(peer.library, peer.name, schedule, {"gaussian": w2}), peer))
    for entry in entries:
        w2 = [_our_w2(entry, laws, nfe) for nfe in EVALUATIONS]
        pairs.append((LawRow("sde_toolkit", entry.name, entry.grid, {"gaussian": w2}), entry))
    for row, _ in pairs:
        row.errors.update({name: [math.nan] * len(EVALUATIONS) for name in laws.mixtures})
    groups: dict[str, list[Pair]] = {}
    for row, who in pairs:
        groups.setdefault(who.sampler, []).append((row, who))
    for group in groups.values():
        for i, nfe in enumerate(EVALUATIONS):
            known = [pair for pair in group if math.isfinite(pair[0].errors["gaussian"][i])]
            tried = [min(known, key=lambda pair: pair[0].errors["gaussian"][i])] if known else group
            for row, who in tried:
                for name in laws.mixtures:
                    row.errors[name][i] = _energy(who, laws, name, nfe)[0]
    return pairs


def _energy(who: Peer | Entry, laws: Laws, name: str, nfe: int) -> tuple[float, float]:
    return (_peer_energy if isinstance(who, Peer) else _our_energy)(who, laws, name, nfe)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Duel:
    """The best of ours and the best peer in one column.

    Attributes:
        problem, nfe: the column.
        peer, ours: (distance, standard error, title); near the floor the error is an upper bound.
        floor: noise of the distance; 0 where it is exact.
        ratio: ours over the peer's, both at least the floor.
        resolved: whether one of the two is above twice its noise; otherwise the ratio says nothing.
    """

    problem: str
    nfe: int
    peer: tuple[float, float, str]
    ours: tuple[float, float, str]
    floor: float
    ratio: float
    resolved: bool


def duels(pairs: Sequence[Pair], laws: Laws) -> list[Duel]:
    """One for every column; energy distances are measured again with ``laws``."""
    made = []
    for problem in ("gaussian", *laws.mixtures):
        floor = laws.floor.get(problem, 0.0)
        for i, nfe in enumerate(EVALUATIONS):
            sides = []
            for ours in (False, True):
                side = [(r, w) for r, w in pairs if (r.library == "sde_toolkit") == ours]
                side = [pair for pair in side if math.isfinite(pair[0].errors[problem][i])]
                side = sorted(side, key=lambda pair: pair[0].errors[problem][i])[:CANDIDATES]
                if floor:
                    again = [(*_energy(w, laws, problem, nfe), w.title) for _, w in side]
                else:
                    again = [(r.errors[problem][i], 0.0, w.title) for r, w in side]
                sides.append(min(again))
            peer, our = sides
            ratio = max(our[0], floor) / max(peer[0], floor)
            resolved = any(value > 2 * max(floor, error) for value, error, _ in sides)
            made.append(Duel(problem, nfe, peer, our, floor, ratio, resolved))
    return made


def table(rows: Sequence[LawRow], laws: Laws) -> str:
    """Every sampler at its best schedule."""
    columns = [(name, i, nfe) for name in ("gaussian", *laws.mixtures) for i, nfe in enumerate(EVALUATIONS)]
    lines = [f"{'W2 (gaussian), energy distance':<46}" + "".join(f"{f'{n} {k}':>14}" for n, _, k in columns)]

    def line(title: str, values: Iterable[float]) -> str:
        return f"{title:<46}" + "".join(f"{v:>14.3g}" for v in values)

    groups: dict[str, list[LawRow]] = {}
    for row in rows:
        groups.setdefault(f"{row.library} {row.sampler}", []).append(row)
    for title, group in groups.items():
        values = []
        for name, i, _ in columns:
            known = [r.errors[name][i] for r in group if math.isfinite(r.errors[name][i])]
            values.append(min(known, default=math.nan))
        lines.append(line(title, values))
    lines.append(line("floor", (laws.floor.get(name, 0.0) for name, _, _ in columns)))
    return "\n".join(lines)


def comparison(made: Sequence[Duel]) -> str:
    """The duels as text."""
    lines = [f"{'column':<14}{'best peer':>21}{'our best':>21}{'floor':>10}{'ratio':>8}"]
    for d in made:
        sides = "".join(f"{f'{value:.3g} +- {error:.1g}':>21}" for value, error, _ in (d.peer, d.ours))
        lines.append(f"{f'{d.problem} {d.nfe}':<14}{sides}{d.floor:>10.2g}{d.ratio:>8.2g}")
        lines[-1] += "" if d.resolved else " (both noise)"
        lines[-1] += f"   {d.peer[2]} | {d.ours[2]}"
    return "\n".join(lines)


def records(rows: Sequence[LawRow]) -> list[dict[str, Any]]:
    """The rows for JSON, four digits of every distance, null where there is none."""
    return [
        {
            "library": r.library,
            "sampler": r.sampler,
            "schedule": r.schedule,
            "distances": {name: [digits(v) for v in values] for name, values in r.errors.items()},
        }
        for r in rows
    ]
