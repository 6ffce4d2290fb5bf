"""Posterior samplers beside posteriors that are known: how far each method is from the truth.

    python -m benchmarks posteriors               measure what is missing, then write the table
    python -m benchmarks.posteriors --report      write the table of what has been measured

Problems under VP: mixtures in 2, 8 and 64 dimensions and the Gaussian with the covariance of the digits.
Observations: a mask of half the features, a blur, n/2 random projections (one in 2-D); noise in units of the
data's std.  One y is drawn from the data for every seed.  For every method and number of evaluations,
against the exact posterior:

    W2         sliced Wasserstein distance of order 2, in units of the root-mean-square posterior std
    energy     energy distance, unbiased
    coverage   part of the exact draws' coordinates inside the samples' 90% intervals

The floor is what as many exact draws have as a method has.  Methods that need more than one evaluation a step
are given fewer steps; backward passes are not counted.  The draws of TwistedSMC are one group of particles;
with its kernel "jacobian" it makes as many backward passes as there are features, with "moments" none.
azula's methods (extra ``peers``) run on the same denoiser, observation and number of evaluations, with its
own time grid, over the same range of noise levels.

Orderings of methods are told by differences on the same y, which have smaller errors than the values.

Every block (a problem, an observation, a noise, a number of evaluations, a seed) is kept in runs/posteriors
when it is done; a second call goes on from there, and measures in old blocks what methods they lack.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit import guidance, samplers
from sde_toolkit.metrics import energy_distance, sliced_wasserstein
from sde_toolkit.models import ExactModel, ExactPosterior, Gaussian, GaussianMixture
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import atomic_write

EVALUATIONS, NOISES, SEEDS, EXACT = (20, 50, 100, 500), (0.1, 0.3, 1.0), 3, 4096
SMALL, LARGE = ("2-D", "8-D"), ("64-D", "digits")
OBSERVATIONS = ("mask", "blur", "projection")
STAGES = (
    ((0.3,), (20, 50), SMALL),
    ((0.3,), (20, 50), LARGE),
    ((0.1, 1.0), (20,), SMALL),
    ((0.1, 1.0), (20,), LARGE),
    ((0.3,), (100,), SMALL),
    ((0.1, 1.0), (50,), SMALL),
    ((0.3,), (100,), LARGE),
    ((0.3,), (500,), SMALL),
    ((0.1, 1.0), (50,), LARGE),
    ((0.1, 1.0), (100, 500), SMALL),
    ((0.1, 1.0), (100,), LARGE),
    (NOISES, (500,), LARGE),
)
"""What is measured first: noises, evaluations and problems."""

T_QUANTILE = 2.31
"""Of Student's law with 8 degrees of freedom, two-sided 5%."""

STORE = Path("runs/posteriors/blocks.json")
Draw = Callable[["Case", int, int, int], Tensor]
Block = dict[str, dict[str, float]]


def draws(problem: str, nfe: int) -> int:
    """Samples of every method, chosen by what they cost."""
    if problem in SMALL:
        return 1024
    return 256 if nfe < 500 else 64


class Case(NamedTuple):
    """One problem with one observation."""

    problem: str
    seen: str
    noise: float
    model: ExactModel
    observation: guidance.LinearObservation
    y: Tensor
    truth: ExactPosterior


def _normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(n: int, count: int, seed: int) -> GaussianMixture:
    """Gaussians of unequal weights and full covariances, whose means are some stds apart."""
    root = 0.4 * _normals(seed, count, n, n) / math.sqrt(n)
    covariances = root @ root.mT + 0.01 * torch.eye(n, dtype=torch.float64)
    return GaussianMixture(
        (0.5 * _normals(seed + 1, count)).softmax(0), _normals(seed + 2, count, n), covariances
    )


def problems() -> dict[str, Gaussian | GaussianMixture]:
    """Name -> law of the data."""
    rows = torch.as_tensor(load_digits().data / 8 - 1)
    return {
        "2-D": mixture(2, 4, 11),
        "8-D": mixture(8, 5, 22),
        "64-D": mixture(64, 5, 33),
        "digits": Gaussian(rows.mean(0), rows.mT.cov() + 1e-4 * torch.eye(64, dtype=torch.float64)),
    }


def cases(
    seed: int, noises: Sequence[float] = NOISES, names: Sequence[str] = (*SMALL, *LARGE)
) -> Iterator[Case]:
    """Problems and observations, each with a y of its own for a seed."""
    for name, data in problems().items():
        if name not in names:
            continue
        n, model = data.event_shape[0], ExactModel(data, VPSDE())
        maps: dict[str, Any] = {
            "mask": torch.arange(n) % 2 == 0,
            "blur": guidance.gaussian_blur((n,), 1.0),
            "projection": guidance.projection((n,), max(1, n // 2), 5),
        }
        for seen, A in maps.items():
            for noise in noises:
                observation = guidance.LinearObservation(A, noise * data.std)
                y = observation.draw(data.sample(1, 1000 + seed), 2000 + seed)[0]
                truth = model.posterior(guidance.Observed(observation, y))
                yield Case(name, seen, noise, model, observation, y, truth)


def _ours(method: guidance.Method, per_step: int = 1) -> Draw:
    def draw(case: Case, nfe: int, seed: int, count: int) -> Tensor:
        sampler = samplers.ancestral(max(2, nfe // per_step), denoise=False)
        observed = guidance.Observed(case.observation, case.y, method)
        return sampler.sample(case.model, count, observation=observed, seed=seed, throw=False).x

    return draw


def _particles(kernel: str) -> Draw:
    def draw(case: Case, nfe: int, seed: int, count: int) -> Tensor:
        smc = guidance.TwistedSMC(nfe, particles=count, kernel=kernel)
        observed = guidance.Observed(case.observation, case.y)
        return smc.sample(case.model, count, observation=observed, seed=seed).x

    return draw


def _dps(case: Case, nfe: int, seed: int, count: int) -> Tensor:
    return _ours(guidance.DPS(1.0, nfe))(case, nfe, seed, count)


def ours() -> dict[str, Draw]:
    """Our methods, on ancestral steps."""
    return {
        "TwistedSMC": _particles("jacobian"),
        "TwistedSMC, moments": _particles("moments"),
        "GaussianInformed": _ours(guidance.GaussianInformed()),
        "MMPS": _ours(guidance.MMPS()),
        "PiGDM": _ours(guidance.PiGDM()),
        "PiGDM, moments": _ours(guidance.PiGDM("moments")),
        "TMPD": _ours(guidance.TMPD()),
        "DPS": _dps,
        "ScoreALD": _ours(guidance.ScoreALD()),
        "DDNM": _ours(guidance.DDNM()),
        "DDRM": _ours(guidance.DDRM(), 2),
        "DiffPIR": _ours(guidance.DiffPIR()),
        "Replacement": _ours(guidance.Replacement()),
        "RePaint": _ours(guidance.RePaint(5), 5),
    }


def measured(case: Case, x: Tensor, exact: Tensor, seed: int) -> dict[str, float]:
    """The distances of samples x with shape (n, D) from exact draws with shape (EXACT, D)."""
    if not bool(x.isfinite().all()):
        return {"W2": math.inf, "energy": math.inf, "coverage": 0.0}
    scale = case.truth.data.std
    low, high = x.quantile(0.05, dim=0), x.quantile(0.95, dim=0)
    return {
        "W2": sliced_wasserstein(x, exact, 64, seed, 2) / scale,
        "energy": energy_distance(x, exact[:1024]) / scale,
        "coverage": float(((exact >= low) & (exact <= high)).double().mean()),
    }


def measure_block(case: Case, nfe: int, seed: int, methods: dict[str, Draw], found: Block) -> Block:
    """Method -> its distances, and those of the floor; ``found`` with those that it lacks."""
    every = {"floor": lambda case, nfe, seed, count: case.truth.data.sample(count, 7000 + seed)} | methods
    missing = [label for label in every if label not in found and not _left_out(label, case.seen)]
    if not missing:
        return found
    count, exact = draws(case.problem, nfe), case.truth.data.sample(EXACT, 5000 + seed)
    return found | {
        label: measured(case, every[label](case, nfe, seed, count), exact, seed) for label in missing
    }


def _left_out(label: str, seen: str) -> bool:
    """Whether a method cannot have an observation."""
    return label == "azula RePaint" and seen != "mask"


class Store:
    """The blocks that have been measured, by (problem, observation, noise, evaluations, seed), in one file
    that is written whole after every block.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks: dict[tuple[Any, ...], Block] = {}
        if path.exists():
            self.blocks = {tuple(key): block for key, block in json.loads(path.read_text(encoding="utf-8"))}

    def __setitem__(self, key: tuple[Any, ...], block: Block) -> None:
        self.blocks[key] = block
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, json.dumps(list(self.blocks.items())).encode())


def run(methods: dict[str, Draw], store: Store) -> None:
    """Measure, stage by stage, what the store does not have."""
    for noises, evaluations, names in STAGES:
        for nfe in evaluations:
            for seed in range(SEEDS):
                for case in cases(seed, noises, names):
                    key = (case.problem, case.seen, case.noise, nfe, seed)
                    had = store.blocks.get(key, {})
                    block = measure_block(case, nfe, seed, methods, had)
                    if block is not had:
                        store[key] = block
            print(f"   noise {noises}, {nfe} evaluations, {', '.join(names)}: done", flush=True)


def rows_of(store: Store) -> list[dict[str, Any]]:
    """One row for every case, number of evaluations and method that has all its seeds: means over seeds and
    their standard errors."""
    found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for (*case, nfe, _), block in sorted(store.blocks.items()):
        for method, values in block.items():
            found.setdefault((*case, nfe, method), []).append(values)
    keys = ("problem", "observation", "noise", "nfe", "method")
    return [
        dict(zip(keys, key, strict=True)) | _summary(values)
        for key, values in found.items()
        if len(values) == SEEDS
    ]


def _summary(values: list[dict[str, float]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in values[0]:
        each = torch.tensor([v[name] for v in values])
        error = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan
        out[name], out[f"{name} error"] = digits(float(each.mean())), digits(error)
    return out


Columns = dict[tuple[str, str], dict[str, Tensor]]
"""Problem and observation -> method -> its means, one for each seed."""


def columns_of(store: Store, measure: str) -> Columns:
    """Means over the noises and evaluations that every problem and observation has, with shape (SEEDS,)."""
    shared = cells_of_all(store)
    table: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    for (problem, seen, noise, nfe, seed), block in store.blocks.items():
        if (noise, nfe) in shared:
            for method, values in block.items():
                seeds = table.setdefault((problem, seen), {}).setdefault(method, [[] for _ in range(SEEDS)])
                seeds[seed].append(values[measure])
    return {
        column: {method: torch.tensor(seeds).mean(1) for method, seeds in table[column].items()}
        for column in itertools.product((*SMALL, *LARGE), OBSERVATIONS)
        if column in table
    }


def cells_of_all(store: Store) -> set[tuple[float, int]]:
    """The noises and evaluations that every problem and observation has, with all seeds."""
    seeds: dict[tuple[Any, ...], set[int]] = {}
    for (problem, seen, noise, nfe, seed), _ in store.blocks.items():
        seeds.setdefault((problem, seen, noise, nfe), set()).add(seed)
    cells: dict[tuple[str, str], set[tuple[float, int]]] = {key[:2]: set() for key in seeds}
    for (problem, seen, noise, nfe), found in seeds.items():
        if len(found) == SEEDS:
            cells[problem, seen].add((noise, nfe))
    return set.intersection(*cells.values()) if cells else set()


def _told(each: Tensor, name: str) -> dict[str, float | None]:
    """Mean and standard error over seeds."""
    error = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan
    return {name: digits(float(each.mean())), f"{name} error": digits(error)}


def best_of(columns: Columns, measure: str) -> list[dict[str, Any]]:
    """Per problem and observation: the best of ours and of azula's."""
    out = []
    for (problem, seen), methods in columns.items():
        mean = {name: float(each.mean()) for name, each in methods.items()}
        peers = [name for name in mean if name.startswith("azula")]
        best = min((name for name in mean if name != "floor" and name not in peers), key=mean.__getitem__)
        row = {"problem": problem, "observation": seen, "floor": digits(mean["floor"]), "best of ours": best}
        row |= _told(methods[best], measure)
        if peers:
            peer = min(peers, key=mean.__getitem__)
            row |= {"best of azula": peer} | _told(methods[peer], f"azula {measure}")
            row["ratio"] = digits(mean[best] / mean[peer])
        out.append(row)
    return out


def overall(columns: Columns) -> dict[str, dict[str, dict[str, float | None]]]:
    """Per method and problem: the mean of W2 over observations, with its standard error over seeds."""
    table: dict[str, dict[str, list[Tensor]]] = {}
    for (problem, _), methods in columns.items():
        for method, each in methods.items():
            table.setdefault(method, {}).setdefault(problem, []).append(each)
    return {
        method: {name: _told(torch.stack(parts).mean(0), "W2") for name, parts in by.items()}
        for method, by in table.items()
    }


def orderings(columns: Columns) -> list[dict[str, Any]]:
    """For pairs of methods in all columns: the difference of their W2 on the same y, and in how many columns
    the first is ahead.

    The difference is the mean over problems; its standard error is that of the seeds within problems, with
    (SEEDS - 1) x problems degrees of freedom, and it holds where it is below 0 by more than ``T_QUANTILE``
    of them.
    """
    everywhere = set.intersection(*(set(methods) for methods in columns.values())) - {"floor"}
    order = sorted(everywhere, key=lambda m: float(torch.stack([c[m] for c in columns.values()]).mean()))
    rows = []
    for a, b in itertools.combinations(order, 2):
        away = {column: methods[a] - methods[b] for column, methods in columns.items()}
        problems_ = sorted({problem for problem, _ in columns})
        each = [torch.stack([d for (p, _), d in away.items() if p == name]).mean(0) for name in problems_]
        difference = torch.stack(each).mean()
        error = torch.stack([d.var() / SEEDS for d in each]).sum().sqrt() / len(each)
        ahead = sum(bool(d.mean() < 0) for d in away.values())
        rows.append({
            "ahead": a, "behind": b, "difference": digits(float(difference)), "error": digits(float(error)),
            "holds": bool(difference < -T_QUANTILE * error), "columns": f"{ahead} of {len(away)}",
        })  # fmt: skip
    return rows


def report(store: Store) -> None:
    """Print how far every method is from the exact posteriors and which orderings do not hold, and write
    posteriors.json."""
    columns = {measure: columns_of(store, measure) for measure in ("W2", "energy", "coverage")}
    methods, ordered = overall(columns["W2"]), orderings(columns["W2"])
    for name, values in methods.items():
        print(f"   {name:20s}" + "".join(
            f"  {key} {found['W2']} +- {found['W2 error']}" for key, found in values.items()
        ))  # fmt: skip
    best = {measure: best_of(columns[measure], measure) for measure in ("W2", "energy")}
    for row in best["W2"] + best["energy"] + [row for row in ordered if not row["holds"]]:
        print("   " + "  ".join(f"{key} {value}" for key, value in row.items()))
    coverages = {
        method: digits(
            float(torch.stack([c[method] for c in columns["coverage"].values() if method in c]).mean())
        )
        for method in methods
    }
    settings = {
        "evaluations": EVALUATIONS, "noises": NOISES, "seeds": SEEDS, "exact draws": EXACT,
        "samples": {name: {nfe: draws(name, nfe) for nfe in EVALUATIONS} for name in problems()},
        "sde": "VPSDE()", "steps": "ancestral, uniform in time, no denoising at the end",
        "means over": sorted(cells_of_all(store)), "t quantile of orderings": T_QUANTILE,
    }  # fmt: skip
    results = {"columns": best, "methods": methods, "coverage": coverages, "orderings": ordered}
    write_result("posteriors", settings, results | {"rows": rows_of(store)})


def main() -> None:
    """Measure what is missing, and report."""
    methods, store = ours(), Store(STORE)
    if importlib.util.find_spec("azula") is None:
        print("   azula is not installed: its methods are left out (pip install -e '.[peers]')")
    else:
        from benchmarks.peers.posteriors import peers

        methods |= peers()
    run(methods, store)
    report(store)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="only write the table of what is measured")
    if parser.parse_args().report:
        report(Store(STORE))
    else:
        main()
