"""Part C of the comparison: the law of stochastic samplers at equal evaluations.

    W2        between the output and the exact law on an 8-D Gaussian with standard deviations from 1.4 to .1,
              off the origin.  All samplers here are affine in their start and draws, so the output's law is
              exact: the production sampler runs once on a batch of unit impulses, in place of its normals.
    energy    squared energy distance, unbiased, of samples to the exact law (``peers.energy``), on the ring
              and on the 8-D mixture, in float32, of every sampler under the schedule that is best by W2 at
              this budget.

The estimate of an energy distance has noise that falls as 1 / n, and the best of many figures below it is a
lottery.  Each column is a tournament of rounds (``ROUNDS``, ``LAST``), with more samples and fresh draws each
time: those of a side go on that are not worse than its best by two errors of each, the first ones if they are
many.  It ends when the best of either side is ``FIRM`` errors above zero.  An error is never taken below the
floor, the root mean square for exact draws, and the comparison counts a figure below its error as that.

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
from benchmarks.peers.energy import deviation_noise, dihedral, estimate, project
from benchmarks.peers.models import Look, Peer
from benchmarks.peers.ours import Entry, FromStart
from benchmarks.record import digits
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.samplers import Langevin
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import Stream
from solvers import Normals, SolverError
from solvers.brownian import STEPS

EVALUATIONS = (20, 50)
ROUNDS = ((1 << 14, (12, 12)), (1 << 17, (4, 4)), (1 << 19, (2, 1)))
"""Samples of each round but the last, and how many peers and of ours go on at most."""
LAST = {"ring": 1 << 22, "mixture8": 1 << 21}
"""Samples of the last round; all columns take about forty minutes."""
FIRM = 4
CHUNK, BLOCK, BLOCKS, SEED = 1 << 16, 1 << 14, 8, 3
DRAWS_PER_LOOK = 2
FLOOR_BLOCKS = 32


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
        if stream == Stream.PRIOR:
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


class Draws:
    """Normals of a torch generator, in order within each stream: faster than counter-based ones."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._generator, self._shape = torch.Generator().manual_seed(seed), shape
        self._last = dict[int, tuple[int, Tensor]]()

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Draw number ``index`` of ``stream``, the last one or a later one."""
        last = self._last.get(stream, (-1, None))
        assert index >= last[0], "an earlier draw is forgotten"
        if index > last[0]:
            self._last[stream] = index, torch.randn(self._shape, generator=self._generator)
        return self._last[stream][1]


class Laws:
    """The problems, with their exact laws at both ends."""

    def __init__(self) -> None:
        sde = VPSDE()
        self.t_min = float(sde.inverse_nsr(torch.tensor(NSR_MIN, dtype=torch.float64)))
        end = torch.tensor(self.t_min, dtype=torch.float64)
        self.alpha, self.sigma = float(sde.alpha(end)), float(sde.sigma(end))
        self.gaussian = ExactModel(gaussian(), sde)
        problems = {"ring": (ring(), dihedral(8)), "mixture8": (mixture(8, seed=0), None)}
        self.mixtures = {name: ExactModel(x0, sde, torch.float32) for name, (x0, _) in problems.items()}
        self.energies = {
            (name, at_zero): project(x0, *((1.0, 0.0) if at_zero else (self.alpha, self.sigma)), symmetries)
            for name, (x0, symmetries) in problems.items()
            for at_zero in (False, True)
        }
        self._noise = {name: self._pair_noise(name) for name in problems}

    def _pair_noise(self, name: str) -> float:
        draws = (self.mixtures[name].data.sample(BLOCK, seed=1000 + k) for k in range(FLOOR_BLOCKS))
        return BLOCK * deviation_noise(torch.stack([self.energies[name, True].deviation(x) for x in draws]))

    def floor(self, name: str, num: int) -> float:
        """Root mean square of the estimate from ``num`` exact draws; 0 where distances are exact."""
        blocks = num // block_size(num)
        return math.sqrt(2 * blocks / (blocks - 1)) * self._noise[name] / num if name in self._noise else 0.0

    def w2(self, response: Tensor, at_zero: bool) -> float:
        """Exact W2 from the response to impulses, with shape (R, D)."""
        data = self.gaussian.data
        mean, std = data.mean, data.covariance.diagonal().sqrt()
        if not at_zero:
            mean, std = self.alpha * mean, (self.alpha**2 * std.square() + self.sigma**2).sqrt()
        out_mean, out_std = response[0], (response[1:] - response[0]).square().sum(0).sqrt()
        return float(((out_mean - mean).square().sum() + (out_std - std).square().sum()).sqrt())


def block_size(num: int) -> int:
    """Samples in a block of a round with ``num``."""
    return min(BLOCK, num // BLOCKS)


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


def _our_w2(entry: Entry, laws: Laws, nfe: int) -> float:
    sampler = entry.within(nfe, laws.t_min, laws.gaussian)
    # the steps of the one corrector look at norms, so it is not affine
    if sampler is None or isinstance(sampler.corrector, Langevin):
        return math.nan
    rows = Rows(DRAWS_PER_LOOK * nfe, 8)
    return laws.w2(sampler.sample(laws.gaussian, rows.shape[0], noise=rows).x, False)


def _samples(who: Peer | Entry, laws: Laws, name: str, nfe: int, num: int, seed: int) -> Tensor | None:
    """Samples with shape (num, D), from the same starts for all; None where the sampler has no run or leaves
    the numbers."""
    model = laws.mixtures[name]
    x_T = Normals(seed, num, model.event_shape, model.dtype).draw(0, Stream.PRIOR)
    if isinstance(who, Peer):
        x = _peer_run(who, model, laws, x_T, nfe, seed)
    else:
        x = _our_run(who, model, laws, x_T, nfe, seed)
    return x if x is not None and bool(x.isfinite().all()) else None


def _our_run(entry: Entry, model: ExactModel, laws: Laws, x_T: Tensor, nfe: int, seed: int) -> Tensor | None:
    sampler = entry.within(nfe, laws.t_min, model)
    if sampler is None:
        return None
    noise = FromStart(x_T, model, Draws(seed, tuple(x_T.shape)))
    try:
        result = sampler.sample(model, len(x_T), noise=noise)
    except SolverError:
        return None
    assert result.nfe <= nfe
    return result.x


@dataclass(frozen=True)
class Figure:
    """A distance, its standard error and whose it is."""

    value: float
    error: float
    title: str

    @property
    def known(self) -> float:
        """The distance, or the error where that is larger."""
        return max(self.value, self.error)


def energy(who: Peer | Entry, laws: Laws, name: str, nfe: int, num: int, seed: int) -> Figure:
    """Squared energy distance of ``num`` samples; nan where there are none."""
    law = laws.energies[name, isinstance(who, Peer) and who.at_zero]
    deviations: list[Tensor] = []
    chunk = min(CHUNK, num)
    for k in range(num // chunk):
        x = _samples(who, laws, name, nfe, chunk, seed + k)
        if x is None:
            return Figure(math.nan, math.nan, who.title)
        deviations += [law.deviation(block) for block in x.split(block_size(num))]
    value, error = estimate(torch.stack(deviations))
    return Figure(value, max(error, laws.floor(name, num)), who.title)


Pair = tuple[LawRow, Any]


def measure(peers: Iterable[Peer], entries: Iterable[Entry], laws: Laws) -> list[Pair]:
    """W2 of all stochastic samplers under all schedules."""
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
    return pairs


def entrants(pairs: Sequence[Pair], i: int) -> list[Pair]:
    """Every sampler under the schedule that is best by W2 at a budget, under all where W2 is not known."""
    groups: dict[str, list[Pair]] = {}
    for row, who in pairs:
        groups.setdefault(who.sampler, []).append((row, who))
    chosen = []
    for group in groups.values():
        known = [pair for pair in group if math.isfinite(pair[0].errors["gaussian"][i])]
        chosen += [min(known, key=lambda pair: pair[0].errors["gaussian"][i])] if known else group
    return chosen


@dataclass(frozen=True)
class Round:
    """Figures of one round, each side from the best."""

    samples: int
    floor: float
    peers: list[Figure]
    ours: list[Figure]


@dataclass(frozen=True)
class Duel:
    """The best of ours and the best peer in one column.

    Attributes:
        problem, nfe: the column.
        peer, ours: the best of either side, of the last round; of energy distances their squares.
        ratio: ours over the peer's, both at least their errors.
        most: the ratio with both two errors off to our disadvantage; inf where nothing is left of the peer's.
        root: of the ratio, for energy distances; of W2 the ratio itself.
        resolved: whether one of the two is above twice its error; otherwise the ratio says nothing.
        rounds: of the tournament.
    """

    problem: str
    nfe: int
    peer: Figure
    ours: Figure
    ratio: float
    most: float
    root: float
    resolved: bool
    rounds: list[Round]


def duel(problem: str, nfe: int, rounds: list[Round]) -> Duel:
    """The outcome of a column from the last round."""
    last = rounds[-1]
    peer, ours = last.peers[0], last.ours[0]
    ratio, least = ours.known / peer.known, peer.value - 2 * peer.error
    most = (max(ours.value, 0) + 2 * ours.error) / least if least > 0 else math.inf
    root = math.sqrt(ratio) if last.samples else ratio
    resolved = any(f.value > 2 * f.error for f in (peer, ours))
    return Duel(problem, nfe, peer, ours, ratio, most, root, resolved, rounds)


def going_on(figures: Sequence[Figure], most: int) -> list[str]:
    """Titles of those that are not clearly worse than the best, at most ``most``."""
    best = figures[0]
    near = [f for f in figures if f.value - 2 * f.error <= best.value + 2 * best.error]
    return [f.title for f in near[:most]]


def tournament(pairs: Sequence[Pair], laws: Laws, name: str, i: int) -> Duel:
    """One column of energy distances; the rows take the figures of the first round."""
    nfe, rounds = EVALUATIONS[i], list[Round]()
    inside = {who.title: (row, who) for row, who in entrants(pairs, i)}
    for k, (num, most) in enumerate((*ROUNDS, (LAST[name], (0, 0)))):
        sides: tuple[list[Figure], list[Figure]] = [], []
        for row, who in inside.values():
            figure = energy(who, laws, name, nfe, num, SEED + (k << 16))
            if not k:
                row.errors[name][i] = figure.value
            if math.isfinite(figure.value):
                sides[row.library == "sde_toolkit"].append(figure)
        peers, ours = (sorted(side, key=lambda f: f.value) for side in sides)
        rounds.append(Round(num, laws.floor(name, num), peers, ours))
        print(f"{name} {nfe}, {num} samples: {peers[0]} | {ours[0]}", flush=True)
        if k and any(side[0].value > FIRM * side[0].error for side in (peers, ours)):
            break
        staying = [
            title for side, top in zip((peers, ours), most, strict=True) for title in going_on(side, top)
        ]
        inside = {title: inside[title] for title in staying}
    return duel(name, nfe, rounds)


def duels(pairs: Sequence[Pair], laws: Laws) -> list[Duel]:
    """One for every column."""
    made = []
    for i, nfe in enumerate(EVALUATIONS):
        sides: tuple[list[Figure], list[Figure]] = [], []
        for row, who in pairs:
            if math.isfinite(row.errors["gaussian"][i]):
                figure = Figure(row.errors["gaussian"][i], 0.0, who.title)
                sides[row.library == "sde_toolkit"].append(figure)
        best = [[min(side, key=lambda f: f.value)] for side in sides]
        made.append(duel("gaussian", nfe, [Round(0, 0.0, *best)]))
    return made + [
        tournament(pairs, laws, name, i) for name in laws.mixtures for i in range(len(EVALUATIONS))
    ]


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
    lines.append(line("floor", (laws.floor(name, ROUNDS[0][0]) for name, _, _ in columns)))
    return "\n".join(lines)


def comparison(made: Sequence[Duel]) -> str:
    """The duels as text."""
    heads = (("best peer", 21), ("our best", 21), ("floor", 10), ("ratio", 8), ("at most", 9), ("root", 8))
    lines = [f"{'column':<14}" + "".join(f"{head:>{width}}" for head, width in heads)]
    for d in made:
        sides = "".join(f"{f'{f.value:.3g} +- {f.error:.1g}':>21}" for f in (d.peer, d.ours))
        lines.append(f"{f'{d.problem} {d.nfe}':<14}{sides}{d.rounds[-1].floor:>10.2g}")
        lines[-1] += f"{d.ratio:>8.2g}{d.most:>9.2g}{d.root:>8.2g}"
        lines[-1] += "" if d.resolved else " (both noise)"
        lines[-1] += f"   {d.rounds[-1].samples} samples, {d.peer.title} | {d.ours.title}"
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
