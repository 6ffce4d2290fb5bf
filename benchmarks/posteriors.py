"""Posterior samplers beside posteriors that are known: how far each method is from the truth.

    python -m benchmarks posteriors

Problems under VP: mixtures in 2, 8 and 64 dimensions and the Gaussian with the covariance of the digits.
Observations: a mask of half the features, a blur, n/2 random projections (one in 2-D); noise in units of the
data's std.  One y is drawn from the data for every seed.  For every method and number of evaluations,
against draws of the exact posterior:

    W2         sliced Wasserstein distance of order 2, in units of the root-mean-square posterior std
    energy     energy distance, unbiased
    coverage   part of the exact draws' coordinates inside the samples' 90% intervals

The floor is what two sets of exact draws have.  Methods that need more than one evaluation a step are given
fewer steps; backward passes are not counted.  azula's methods (extra ``peers``) run on the same denoiser,
observation and number of evaluations, with its own time grid, over the same range of noise levels.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit import guidance, samplers
from sde_toolkit.metrics import energy_distance, sliced_wasserstein
from sde_toolkit.models import ExactModel, ExactPosterior, Gaussian, GaussianMixture
from sde_toolkit.sdes import VPSDE

EVALUATIONS, NOISES, SEEDS, SAMPLES = (20, 50), (0.3,), 3, 256
Draw = Callable[["Case", int, int], Tensor]


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


def cases(seed: int) -> Iterator[Case]:
    """All problems and observations, each with a y of its own for a seed."""
    for name, data in problems().items():
        n, model = data.event_shape[0], ExactModel(data, VPSDE())
        maps: dict[str, Any] = {
            "mask": torch.arange(n) % 2 == 0,
            "blur": guidance.gaussian_blur((n,), 1.0),
            "projection": guidance.projection((n,), max(1, n // 2), 5),
        }
        for seen, A in maps.items():
            for noise in NOISES:
                observation = guidance.LinearObservation(A, noise * data.std)
                y = observation.draw(data.sample(1, 1000 + seed), 2000 + seed)[0]
                truth = model.posterior(guidance.Observed(observation, y))
                yield Case(name, seen, noise, model, observation, y, truth)


def _ours(method: guidance.Method, per_step: int = 1) -> Draw:
    def draw(case: Case, nfe: int, seed: int) -> Tensor:
        sampler = samplers.ancestral(max(2, nfe // per_step), denoise=False)
        observed = guidance.Observed(case.observation, case.y, method)
        return sampler.sample(case.model, SAMPLES, observation=observed, seed=seed, throw=False).x

    return draw


def _particles(case: Case, nfe: int, seed: int) -> Tensor:
    smc = guidance.TwistedSMC(nfe, particles=SAMPLES)
    observed = guidance.Observed(case.observation, case.y)
    return smc.sample(case.model, SAMPLES, observation=observed, seed=seed).x


def _dps(case: Case, nfe: int, seed: int) -> Tensor:
    return _ours(guidance.DPS(1.0, nfe))(case, nfe, seed)


def ours() -> dict[str, Draw]:
    """Our methods, on ancestral steps."""
    return {
        "TwistedSMC": _particles,
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


def measured(case: Case, x: Tensor, seed: int) -> dict[str, float]:
    """The distances of samples x with shape (n, D) from the exact posterior."""
    exact = case.truth.data.sample(SAMPLES, 5000 + seed)
    scale = case.truth.data.std
    if not bool(x.isfinite().all()):
        return {"W2": math.inf, "energy": math.inf, "coverage": 0.0}
    low, high = x.quantile(0.05, dim=0), x.quantile(0.95, dim=0)
    return {
        "W2": sliced_wasserstein(x, exact, 64, seed, 2) / scale,
        "energy": energy_distance(x, exact) / scale,
        "coverage": float(((exact >= low) & (exact <= high)).double().mean()),
    }


def run(methods: dict[str, Draw]) -> list[dict[str, Any]]:
    """One row for every case, number of evaluations and method: means over seeds and their standard
    errors."""
    found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for seed in range(SEEDS):
        for case in cases(seed):
            name = (case.problem, case.seen, case.noise)
            floor = case.truth.data.sample(SAMPLES, 7000 + seed)
            found.setdefault((*name, 0, "floor"), []).append(measured(case, floor, seed))
            for nfe in EVALUATIONS:
                for label, draw in methods.items():
                    if label == "azula RePaint" and case.seen != "mask":
                        continue
                    values = measured(case, draw(case, nfe, seed), seed)
                    found.setdefault((*name, nfe, label), []).append(values)
        print(f"   seed {seed} done", flush=True)
    keys = ("problem", "observation", "noise", "nfe", "method")
    return [dict(zip(keys, key, strict=True)) | _summary(values) for key, values in found.items()]


def _summary(values: list[dict[str, float]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in values[0]:
        each = torch.tensor([v[name] for v in values])
        error = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan
        out[name], out[f"{name} error"] = digits(float(each.mean())), digits(error)
    return out


def columns(rows: list[dict[str, Any]], measure: str = "W2") -> list[dict[str, Any]]:
    """Per problem and observation (means over noises and evaluations): the best of ours and of azula's."""
    table: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        values = table.setdefault((row["problem"], row["observation"]), {})
        values.setdefault(row["method"], []).append(math.inf if row[measure] is None else row[measure])
    out = []
    for (problem, seen), methods in table.items():
        mean = {name: sum(v) / len(v) for name, v in methods.items()}
        peers = {name: v for name, v in mean.items() if name.startswith("azula")}
        own = {name: v for name, v in mean.items() if name != "floor" and name not in peers}
        best, peer = min(own, key=own.__getitem__), min(peers, key=peers.__getitem__, default="")
        out.append({
            "problem": problem, "observation": seen, "floor": digits(mean["floor"]), "best of ours": best,
            measure: digits(own[best]), "best of azula": peer,
            f"azula {measure}": digits(peers.get(peer, math.nan)),
            "ratio": digits(own[best] / peers[peer]) if peers else None,
        })  # fmt: skip
    return out


def overall(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Per method and problem: mean of W2 over observations, noises and evaluations."""
    table: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        value = math.inf if row["W2"] is None else row["W2"]
        table.setdefault(row["method"], {}).setdefault(row["problem"], []).append(value)
    return {method: {name: digits(sum(v) / len(v)) for name, v in by.items()} for method, by in table.items()}


def main() -> None:
    """Print how far every method is from the exact posteriors, and write posteriors.json."""
    methods = ours()
    if importlib.util.find_spec("azula") is None:
        print("   azula is not installed: its methods are left out (pip install -e '.[peers]')")
    else:
        from benchmarks.peers.posteriors import peers

        methods |= peers(SAMPLES)
    rows = run(methods)
    for name, values in overall(rows).items():
        print(f"   {name:20s}" + "".join(f"  {key} {value}" for key, value in values.items()))
    best = {measure: columns(rows, measure) for measure in ("W2", "energy")}
    for row in best["W2"] + best["energy"]:
        print("   " + "  ".join(f"{key} {value}" for key, value in row.items()))
    settings = {
        "evaluations": EVALUATIONS, "noises": NOISES, "seeds": SEEDS, "samples": SAMPLES, "sde": "VPSDE()",
        "steps": "ancestral, uniform in time, no denoising at the end",
    }  # fmt: skip
    write_result("posteriors", settings, {"columns": best, "methods": overall(rows), "rows": rows})


if __name__ == "__main__":
    main()
