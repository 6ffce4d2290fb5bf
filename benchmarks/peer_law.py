"""Part C of the comparison: the law of stochastic samplers at equal evaluations.

    W2        between the output and the exact law on an 8-D Gaussian with standard deviations from 1.4 to .1,
              off the origin.  All samplers here are affine in their start and draws, so the output's law is
              exact: the production sampler runs once on a batch of unit impulses, in place of its normals.
    energy    squared energy distance, unbiased, between 2500 samples and 10000 draws of the exact law, on the
              ring and on the 8-D mixture, for every sampler under the schedule that is best by W2 at this
              budget.  Its own noise is given as the floor: the root mean square of the same statistic for
              exact draws; below it a figure means nothing.

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
from benchmarks.peer_models import Look, Peer
from benchmarks.peer_ours import Entry
from sde_toolkit.correctors import Langevin
from sde_toolkit.exact import ExactData, ExactModel, Gaussian
from sde_toolkit.samplers import PRIOR
from sde_toolkit.sde import VPSDE
from solvers import Normals, SolverError
from solvers.brownian import STEPS

EVALUATIONS = (20, 50)
SAMPLES, TRUTH, CHUNK, SEED = 2500, 10000, 250, 3
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
    """The problems, with their exact laws at both ends."""

    def __init__(self) -> None:
        sde = VPSDE()
        self.t_min = float(sde.inverse_nsr(torch.tensor(NSR_MIN, dtype=torch.float64)))
        end = torch.tensor(self.t_min, dtype=torch.float64)
        self.alpha, self.sigma = float(sde.alpha(end)), float(sde.sigma(end))
        self.gaussian = ExactModel(gaussian(), sde)
        self.mixtures = {"ring": ExactModel(ring(), sde), "mixture8": ExactModel(mixture(8, seed=0), sde)}
        self.truth = {
            (name, at_zero): self._truth(m.data, at_zero)
            for name, m in self.mixtures.items()
            for at_zero in (False, True)
        }
        self.floor = {name: self._floor(name) for name in self.mixtures}

    def draws(self, data: ExactData, num: int, seed: int, at_zero: bool) -> Tensor:
        """Exact draws of the law at an end."""
        x0 = data.sample(num, seed=seed)
        z = Normals(seed + 1, num, data.event_shape).draw(0)
        return x0 if at_zero else self.alpha * x0 + self.sigma * z

    def _truth(self, data: ExactData, at_zero: bool) -> tuple[Tensor, float]:
        y = self.draws(data, TRUTH, 100, at_zero).float()
        return y, mean_distance(y)

    def _floor(self, name: str) -> float:
        data = self.mixtures[name].data
        sets = [self.draws(data, SAMPLES, 1000 + 10 * k, False) for k in range(FLOOR_SETS)]
        return math.sqrt(sum(self.energy(name, x, False) ** 2 for x in sets) / FLOOR_SETS)

    def energy(self, name: str, x: Tensor, at_zero: bool) -> float:
        """Unbiased estimate of 2 E|X - Y| - E|X - X'| - E|Y - Y'|."""
        y, within = self.truth[name, at_zero]
        x = x.float()
        across = sum(float(torch.cdist(part, y).sum(dtype=torch.float64)) for part in x.split(CHUNK))
        return 2 * across / (len(x) * len(y)) - mean_distance(x) - within

    def w2(self, response: Tensor, at_zero: bool) -> float:
        """Exact W2 from the response to impulses, with shape (R, D)."""
        data = self.gaussian.data
        mean, std = data.mean, data.covariance.diagonal().sqrt()
        if not at_zero:
            mean, std = self.alpha * mean, (self.alpha**2 * std.square() + self.sigma**2).sqrt()
        out_mean, out_std = response[0], (response[1:] - response[0]).square().sum(0).sqrt()
        return float(((out_mean - mean).square().sum() + (out_std - std).square().sum()).sqrt())


def mean_distance(x: Tensor) -> float:
    """Mean of |x_i - x_j| over pairs i != j."""
    total = sum(float(torch.cdist(part, x).sum(dtype=torch.float64)) for part in x.split(CHUNK))
    return total / (len(x) * (len(x) - 1))


def _peer_run(peer: Peer, model: ExactModel, t_min: float, x_T: Tensor, nfe: int) -> Tensor | None:
    look, num_steps = Look(model, t_min), peer.steps_within(nfe)
    if not num_steps:
        return None
    with torch.no_grad():
        y = peer.run(look, look.start(x_T), num_steps, SEED)
    assert look.count <= nfe
    return y if peer.at_zero else look.end(y)


def _peer_w2(peer: Peer, laws: Laws, nfe: int) -> float:
    rows = Rows(DRAWS_PER_LOOK * nfe, 8)
    with drawing(rows.next):
        response = _peer_run(peer, laws.gaussian, laws.t_min, rows.start(), nfe)
    return math.nan if response is None else laws.w2(response, peer.at_zero)


def _peer_energy(peer: Peer, laws: Laws, name: str, nfe: int) -> float:
    model = laws.mixtures[name]
    x = _peer_run(peer, model, laws.t_min, Normals(SEED, SAMPLES, model.event_shape).draw(0, PRIOR), nfe)
    usable = x is not None and bool(x.isfinite().all())
    return laws.energy(name, x, peer.at_zero) if usable else math.nan


def _our_w2(entry: Entry, laws: Laws, nfe: int) -> float:
    sampler = entry.within(nfe, laws.t_min, laws.gaussian)
    # the steps of the one corrector look at norms, so it is not affine
    if sampler is None or isinstance(sampler.corrector, Langevin):
        return math.nan
    rows = Rows(DRAWS_PER_LOOK * nfe, 8)
    return laws.w2(sampler.sample(laws.gaussian, rows.shape[0], noise=rows).x, False)


def _our_energy(entry: Entry, laws: Laws, name: str, nfe: int) -> float:
    sampler = entry.within(nfe, laws.t_min, laws.mixtures[name])
    if sampler is None:
        return math.nan
    try:
        result = sampler.sample(laws.mixtures[name], SAMPLES, seed=SEED)
    except SolverError:
        return math.nan
    assert result.nfe <= nfe
    return laws.energy(name, result.x, False)


def measure(peers: Iterable[Peer], entries: Iterable[Entry], laws: Laws) -> list[LawRow]:
    """W2 of all stochastic samplers under all schedules; energy distances of the best schedules."""
    pairs: list[tuple[LawRow, Any]] = []
    for peer in peers:
        schedule = f"{peer.schedule}{', to zero' if peer.at_zero else ''}"
        w2 = [_peer_w2(peer, laws, nfe) for nfe in EVALUATIONS]
        pairs.append((LawRow(peer.library, peer.name, schedule, {"gaussian": w2}), peer))
    for entry in entries:
        w2 = [_our_w2(entry, laws, nfe) for nfe in EVALUATIONS]
        pairs.append((LawRow("sde_toolkit", entry.name, entry.grid, {"gaussian": w2}), entry))
    for row, _ in pairs:
        row.errors.update({name: [math.nan] * len(EVALUATIONS) for name in laws.mixtures})
    groups: dict[str, list[tuple[LawRow, Any]]] = {}
    for row, who in pairs:
        groups.setdefault(who.sampler, []).append((row, who))
    for group in groups.values():
        for i, nfe in enumerate(EVALUATIONS):
            known = [pair for pair in group if math.isfinite(pair[0].errors["gaussian"][i])]
            tried = [min(known, key=lambda pair: pair[0].errors["gaussian"][i])] if known else group
            for row, who in tried:
                energy = _peer_energy if isinstance(who, Peer) else _our_energy
                for name in laws.mixtures:
                    row.errors[name][i] = energy(who, laws, name, nfe)
    return [row for row, _ in pairs]


def smallest(rows: Iterable[LawRow], problem: str, i: int) -> tuple[float, str]:
    """The smallest distance by size, estimates may be negative, and whose it is."""
    found = [(abs(r.errors[problem][i]), r) for r in rows if math.isfinite(r.errors[problem][i])]
    value, row = min(found, key=lambda pair: pair[0])
    return value, f"{row.library} {row.sampler}, {row.schedule}"


def table(rows: Sequence[LawRow], laws: Laws) -> str:
    """Every sampler at its best schedule, then the best of ours against the best peer."""
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
            usable = any(math.isfinite(r.errors[name][i]) for r in group)
            values.append(smallest(group, name, i)[0] if usable else math.nan)
        lines.append(line(title, values))
    lines.append(line("floor", (laws.floor.get(name, 0.0) for name, _, _ in columns)))
    ours = [r for r in rows if r.library == "sde_toolkit"]
    others = [r for r in rows if r.library != "sde_toolkit"]
    if ours and others:
        best = [(smallest(others, n, i), smallest(ours, n, i)) for n, i, _ in columns]
        lines.append(line("best peer", (peer[0] for peer, _ in best)))
        lines.append(line("our best", (our[0] for _, our in best)))
        lines.append(line("ratio", (our[0] / peer[0] for peer, our in best)))
        lines += [
            f"  {n} {k}: {peer[1]} | {our[1]}" for (n, _, k), (peer, our) in zip(columns, best, strict=True)
        ]
    return "\n".join(lines)
