"""Log-likelihoods beside the method as it was published with score-based SDEs, in one process.

    python -m benchmarks.likelihood_speed

The baseline follows Song et al. (2011.13456), appendix D.2 and section 4.3: the probability-flow ODE of the
whole batch in t from 1e-5 to T as one system, scipy's RK45 at rtol = atol = 1e-5, the divergence by one
Rademacher probe that is drawn once, and the network called for the drift and once more for the divergence.

Problems: an 8-D mixture of five Gaussians under VP, whose density is known, 256 draws; the digits network, 64
held-out images, against the exact divergence on a grid of 80 steps of order 4.  All values are log p at
t = 1e-5, under the prior N(0, I) for the network and under the data's own law at T for the mixture.

Errors are root-mean-square over the samples, in nats per sample: "error" that of the value, "solver" that of
the run alone, against a fine run with the same probes.  Seconds are the median of 3 turns, taken in rotation.
The ratios are those of the seconds of the baseline to the fastest of our rows whose error, or whose solver
error, is no larger.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.flows import mixture
from benchmarks.record import write_result
from sde_toolkit.data import digits
from sde_toolkit.likelihood import (
    Divergence,
    Endpoint,
    ExactDivergence,
    FlowSolver,
    Hutchinson,
    log_likelihood,
)
from sde_toolkit.models import ExactModel, ScoreModel
from sde_toolkit.runs import open_shipped
from sde_toolkit.sdes import VPSDE
from solvers import AB2, AB3, AB4
from solvers.terms import expand_like

THREADS, REPEATS, SEED = 1, 3, 7
T_MIN, TOLERANCE, FINE = 1e-5, 1e-5, 1e-8


@dataclass(frozen=True)
class Problem:
    """A model, data, and their exact log-densities.

    Attributes:
        name: for the table.
        model, x: with shape (B, *).
        prior: log-density at T.
        exact: log p at T_MIN with shape (B,).
    """

    name: str
    model: ScoreModel
    x: Tensor
    prior: Callable[[Tensor], Tensor]
    exact: Tensor


@dataclass(frozen=True)
class Row:
    """One way to compute likelihoods: () -> values with shape (B,) and evaluations, and the same, finely."""

    name: str
    run: Callable[[], tuple[Tensor, float]]
    fine: Callable[[], tuple[Tensor, float]]


def published(problem: Problem, tolerance: float) -> tuple[Tensor, float]:
    """The baseline of the module's head; counts network calls."""
    model, x = problem.model, problem.x
    sde, shape, calls = model.sde, x.shape, 0
    generator = torch.Generator().manual_seed(SEED)
    probe = torch.randint(0, 2, shape, generator=generator).to(x) * 2 - 1

    def drift(y: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        f, half = sde.f(t), 0.5 * sde.g_squared(t)
        return expand_like(f, y) * y - expand_like(half, y) * model.score(y, t)

    def divergence(y: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.requires_grad_()
            (gradient,) = torch.autograd.grad((drift(y, t) * probe).sum(), y)
        return (gradient * probe).flatten(1).sum(1)

    def field(t: float, state: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(state[: x.numel()]).reshape(shape).to(x.dtype)
        times = torch.full((len(x),), t, dtype=torch.float64)
        with torch.no_grad():
            v = drift(y, times)
        rate = divergence(y, times)
        return np.concatenate([v.flatten().double().numpy(), rate.double().numpy()])

    state = np.concatenate([x.flatten().double().numpy(), np.zeros(len(x))])
    solution = solve_ivp(field, (T_MIN, sde.T), state, method="RK45", rtol=tolerance, atol=tolerance)
    end = torch.from_numpy(solution.y[:, -1])
    y = end[: x.numel()].reshape(shape).to(x.dtype)
    return problem.prior(y).double() + end[x.numel() :], float(calls)


def ours(problem: Problem, divergence: Divergence, solver: FlowSolver) -> tuple[Tensor, float]:
    """``log_likelihood`` without its budget."""
    found = log_likelihood(
        problem.model,
        problem.x,
        divergence=divergence,
        t_min=T_MIN,
        seed=SEED,
        num_diagnostic_samples=0,
        solver=solver,
        endpoint=Endpoint(prior=problem.prior),
    )
    return found.nats, float(found.nfe.double().mean())


def mixture_problem() -> Problem:
    """256 draws of the 8-D mixture under VP."""
    data = mixture(8, seed=8)
    model = ExactModel(data, VPSDE())
    x = data.sample(256, seed=SEED)
    end, start = (torch.tensor(t, dtype=torch.float64) for t in (1.0, T_MIN))
    return Problem("mixture8", model, x, lambda y: model.log_prob(y, end), model.log_prob(x, start))


def digits_problem() -> Problem:
    """64 held-out digits under the network that ships."""
    model = open_shipped("digits").model
    x = digits().scaled_test()[:64]
    prior = model.sde.prior_log_prob
    fine = log_likelihood(
        model,
        x,
        t_min=T_MIN,
        num_diagnostic_samples=0,
        solver=FlowSolver(AB4, num_steps=80),
        endpoint=Endpoint(prior=prior),
    )
    return Problem("digits network", model, x, prior, fine.nats)


def rows_of(problem: Problem) -> list[Row]:
    """The baseline, then ours: fixed grids and tolerances, one probe, a few, and the exact divergence."""
    exact = problem.x.dtype == torch.float64
    fine = FlowSolver(rtol=FINE, atol=FINE) if exact else FlowSolver(AB4, num_steps=160)
    rows = [
        Row(
            "published, one probe",
            lambda: published(problem, TOLERANCE),
            lambda: published(problem, FINE if exact else TOLERANCE / 10),
        )
    ]
    choices: list[tuple[str, Divergence]] = [("one probe", Hutchinson(1))]
    few = Hutchinson(2, orthogonal=True)
    choices += [("two probes", few), ("exact", ExactDivergence())] if problem.x[0].numel() < 16 else []
    for label, divergence in choices:
        ways: list[tuple[str, FlowSolver]] = [
            *((f"ab2 {n} steps", FlowSolver(AB2, num_steps=n)) for n in (5, 7)),
            *((f"ab3 {n} steps", FlowSolver(AB3, num_steps=n)) for n in (7, 9)),
            *((f"ab4 {n} steps", FlowSolver(AB4, num_steps=n)) for n in (10, 16, 24, 36, 56)),
            *((f"dopri5 {tol:.0e}", FlowSolver(rtol=tol, atol=tol)) for tol in (1e-3, 1e-5)),
        ]
        for name, solver in ways:
            rows.append(
                Row(
                    f"{name}, {label}",
                    lambda d=divergence, s=solver: ours(problem, d, s),
                    lambda d=divergence: ours(problem, d, fine),
                )
            )
    return rows


def measure(problem: Problem) -> list[dict[str, Any]]:
    """Errors and seconds of all rows."""
    rows, known = rows_of(problem), {}
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    values: dict[str, tuple[Tensor, float]] = {}
    for _ in range(REPEATS):
        for row in rows:
            begin = time.perf_counter()
            values[row.name] = row.run()
            seconds[row.name].append(time.perf_counter() - begin)
    table = []
    for row in rows:
        value, calls = values[row.name]
        label = row.name.split(", ")[1] if row is not rows[0] else row.name
        if label not in known:
            known[label] = row.fine()[0]
        table.append(
            {
                "name": row.name,
                "evaluations": calls,
                "error": _rms(value - problem.exact),
                "solver": _rms(value - known[label]),
                "seconds": statistics.median(seconds[row.name]),
            }
        )
    return table


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def ratios(table: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of the first row over those of the fastest row that is as accurate, in either sense."""
    base, found = table[0], {}
    for column in ("error", "solver"):
        good = [row for row in table[1:] if row[column] <= base[column]]
        best = min(good, key=lambda row: row["seconds"], default=None)
        found[column] = (
            None if best is None else {"row": best["name"], "ratio": base["seconds"] / best["seconds"]}
        )
    return found


def main() -> None:
    """Print and write both tables."""
    torch.set_num_threads(THREADS)
    results = {}
    for make in (mixture_problem, digits_problem):
        problem = make()
        table = measure(problem)
        found = ratios(table)
        results[problem.name] = {"rows": table, "ratios": found}
        print(f"{problem.name}, {len(problem.x)} samples")
        print(f"  {'':<28}{'calls':>8}{'error':>10}{'solver':>10}{'seconds':>10}")
        for row in table:
            print(
                f"  {row['name']:<28}{row['evaluations']:>8.0f}{row['error']:>10.3f}{row['solver']:>10.4f}"
                f"{row['seconds']:>10.3f}"
            )
        for column, best in found.items():
            if best is not None:
                print(f"  at equal {column}: {best['ratio']:.1f} times faster ({best['row']})")
    settings = {"threads": THREADS, "repeats": REPEATS, "seed": SEED, "t_min": T_MIN, "tolerance": TOLERANCE}
    print(f"wrote {write_result('likelihood_speed', settings, results)}")


if __name__ == "__main__":
    main()
