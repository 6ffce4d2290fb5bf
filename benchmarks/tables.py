"""A table of columns of several kinds with missing entries: log-likelihoods in its own units.

Six dependent columns with a joint density that is a product of conditionals known in closed form:

    energy    (0, inf)    log energy ~ N(0, .5^2)
    share     (0, 1)      Beta(2 + energy, 3)
    place     the line    .4 N(-1.2, .6^2) + .6 N(.8 + .5 log energy, .7^2)
    life      (0, inf)    Gamma(2.5, rate 1 + 2 share)
    height    the line    N(.3 place^2, .6^2)
    yield     (0, 1)      Beta(3 exp(.3 height), 3)

Rows are trained on with all entries ("complete"), with entries missing completely at random ("mcar", 15 % of
every column), or at random ("mar": energy and place are always there; the others are missing with a
probability that rises with both of them, 17 % of their entries).  What is printed is the divergence

    KL = mean of log p_true(w) - log p_model(w)      over fresh complete rows w, in the table's own units

with its standard error, beside the same of the Gaussian of the transformed columns, with which the network
starts.  The sizes below were chosen on other draws (seeds 1, 2 and 77) than those that are reported.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit.data import Dataset, Support, from_array
from sde_toolkit.likelihood import FlowSolver, log_likelihood
from sde_toolkit.models import NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, IncompleteLoss, Optimization, TrainState, fit

ROWS, FRESH = 150_000, 6000
WIDTH, DEPTH, STEPS, BATCH, RATE = 128, 3, 8000, 512, 2e-3
TRAIN_SEED, HIDE_SEED, FRESH_SEED, RUN_SEED = 201, 202, 203, 21
KINDS = ("complete", "mcar", "mar")
INF = math.inf
SUPPORT = Support(
    torch.tensor([0.0, 0.0, -INF, 0.0, -INF, 0.0]), torch.tensor([INF, 1.0, INF, INF, INF, 1.0])
)


def draw(count: int, seed: int) -> np.ndarray:
    """Complete rows with shape (count, 6)."""
    rng = np.random.default_rng(seed)
    log_energy = rng.normal(0, 0.5, count)
    energy = np.exp(log_energy)
    share = rng.beta(2 + energy, 3.0)
    first = rng.random(count) < 0.4
    place = np.where(first, rng.normal(-1.2, 0.6, count), rng.normal(0.8 + 0.5 * log_energy, 0.7, count))
    life = rng.gamma(2.5, 1 / (1 + 2 * share))
    height = rng.normal(0.3 * place**2, 0.6)
    gain = rng.beta(3 * np.exp(0.3 * height), 3.0)
    return np.stack([energy, share, place, life, height, gain], 1)


def log_density(w: np.ndarray) -> np.ndarray:
    """log p of rows w with shape (N, 6), in nats."""
    energy, share, place, life, height, gain = w.T
    parts = (
        math.log(0.4) + stats.norm.logpdf(place, -1.2, 0.6),
        math.log(0.6) + stats.norm.logpdf(place, 0.8 + 0.5 * np.log(energy), 0.7),
    )
    return (
        stats.lognorm.logpdf(energy, 0.5)
        + stats.beta.logpdf(share, 2 + energy, 3.0)
        + np.logaddexp(*parts)
        + stats.gamma.logpdf(life, 2.5, scale=1 / (1 + 2 * share))
        + stats.norm.logpdf(height, 0.3 * place**2, 0.6)
        + stats.beta.logpdf(gain, 3 * np.exp(0.3 * height), 3.0)
    )


def hidden(w: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """The rows with nan where an entry is missing; no row is without any entry."""
    rng, missing = np.random.default_rng(seed), np.zeros(w.shape, bool)
    if kind == "mcar":
        missing = rng.random(w.shape) < 0.15
    elif kind == "mar":
        chance = 0.8 / (1 + np.exp(2.0 - 2 * np.log(w[:, 0]) - 1.2 * w[:, 2]))
        missing[:, [1, 3, 4, 5]] = rng.random((len(w), 4)) < chance[:, None]
    missing[missing.all(1)] = False
    return np.where(missing, np.nan, w)


def trained(dataset: Dataset, steps: int, width: int) -> NetworkModel:
    """The average of the run."""
    network = MLP((6,), width=width, depth=DEPTH, condition_shape=(6,), seed=RUN_SEED)
    model = NetworkModel(network, VPSDE(), "residual", (6,), dataset.data_std, dataset.moments)
    state = TrainState(model, Optimization(learning_rate=RATE, decay_steps=steps), RUN_SEED)
    fit(state, dataset, IncompleteLoss(DenoisingLoss()), steps, BATCH)
    return state.ema


def divergence(log_q: Tensor, truth: np.ndarray) -> tuple[float, float]:
    """The mean of log p - log q and its standard error."""
    apart = truth - log_q.numpy()
    return float(apart.mean()), float(apart.std(ddof=1) / math.sqrt(len(apart)))


def measure(
    kind: str, rows: int = ROWS, steps: int = STEPS, fresh: int = FRESH, width: int = WIDTH
) -> dict[str, Any]:
    """One line of the table."""
    begin = time.perf_counter()
    table = hidden(draw(rows, TRAIN_SEED), kind, HIDE_SEED)
    dataset = from_array(table, support=SUPPORT, missing="mask", test_fraction=1e-3)
    model = trained(dataset, steps, width)
    w = draw(fresh, FRESH_SEED)
    x, truth = dataset.scaling.to_model(torch.from_numpy(w)), log_density(w)
    log_det, law = dataset.scaling.log_det(x), dataset.moments
    gaussian = torch.distributions.MultivariateNormal(law.mean, law.covariance).log_prob(x.double())
    found = log_likelihood(model, x, solver=FlowSolver(rtol=1e-4, atol=1e-4)).nats
    kl, error = divergence(found + log_det, truth)
    return {
        "kind": kind,
        "missing": float(np.isnan(table).mean()),
        "incomplete_rows": float(np.isnan(table).any(1).mean()),
        "kl": kl,
        "standard_error": error,
        "kl_gaussian": divergence(gaussian + log_det, truth)[0],
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    """Print the table and write it."""
    rows = []
    print("kind        missing   rows hit   KL / nats          Gaussian   seconds")
    for kind in KINDS:
        r = measure(kind)
        rows.append({name: digits(v) if isinstance(v, float) else v for name, v in r.items()})
        print(
            f"{kind:<10}  {r['missing']:>6.1%}   {r['incomplete_rows']:>7.1%}    {r['kl']:.4f} +- "
            f"{r['standard_error']:.4f}   {r['kl_gaussian']:.3f}      {r['seconds']:.0f}",
            flush=True,
        )
    settings = {
        "rows": ROWS, "fresh": FRESH, "width": WIDTH, "depth": DEPTH, "steps": STEPS, "batch": BATCH,
        "learning_rate": RATE, "seeds": [TRAIN_SEED, HIDE_SEED, FRESH_SEED, RUN_SEED],
    }  # fmt: skip
    write_result("tables", settings, rows)
