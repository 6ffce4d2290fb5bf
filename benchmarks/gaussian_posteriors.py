"""Posterior samplers on Gaussian data, where nothing need be sampled: orders, and exact distances.

    python -m benchmarks gaussian_posteriors

Data with the mean and covariance of the digits, observed as in ``benchmarks.posteriors``, under VP.  With the
exact covariance of x0 given x_t the guided prediction is that of the exact posterior, so that

    orders      the error of a deterministic sampler's flow from T to t_min against the posterior's own flow,
                root mean square over states of the prior, in posterior stds, falls with the sampler's order

and every method whose prediction is affine in the state, x0_hat(x) = M x + m, has an output that is Gaussian,
N(b, C), with N steps of ``ancestral`` from N(0, I):

    x_s = F x_t + alpha_s (1 - r) m + sigma_s sqrt(1 - r) z,     F = alpha_s ((1 - r) M + r / alpha_t I)

for r = nsr_s^2 / nsr_t^2; M and m are read off at 0 and the unit vectors.  Methods that act after a step are
affine in its noise too: their law is that of their impulse response (``sde_toolkit.lab.gaussian_output``),
up to 100 evaluations, because its cost grows with the square of their number.  W2 to the posterior, in
posterior stds and divided by the root of the number of features, is exact; its mean and standard error are
over the y of 3 seeds.  That of the same steps on the posterior's own model is the discretisation error, and
the noise that is left at t_min is in it.  DPS (steps scaled by norms), TwistedSMC and azula's iterations are
not of that form; nor are PiGDM's and TMPD's predictions far from y, where their moves are bounded.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.posteriors import EVALUATIONS, NOISES, OBSERVATIONS, SEEDS, Case, cases
from benchmarks.record import digits, write_result
from sde_toolkit import guidance, samplers
from sde_toolkit.lab import gaussian_output
from sde_toolkit.metrics import gaussian_w2
from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers import T_MIN, grids

STEPS, STATES = (16, 32, 64, 128), 8
IMPULSES = EVALUATIONS[:3]


def exact_methods() -> dict[str, guidance.Method]:
    """Methods with the covariance of Gaussian data itself."""
    return {
        "GaussianInformed": guidance.GaussianInformed(),
        "PiGDM, moments": guidance.PiGDM("moments"),
        "TMPD, full": guidance.TMPD("full"),
        "MMPS": guidance.MMPS(),
    }


def affine_methods() -> dict[str, guidance.Method]:
    """Methods whose prediction is affine in the state on Gaussian data."""
    return {
        "GaussianInformed": guidance.GaussianInformed(),
        "PiGDM, moments": guidance.PiGDM("moments"),
        "MMPS": guidance.MMPS(),
        "ScoreALD": guidance.ScoreALD(),
        "DDNM": guidance.DDNM(),
        "DiffPIR": guidance.DiffPIR(),
    }


def between_methods() -> dict[str, tuple[guidance.Method, int]]:
    """Methods that act after a step, and the evaluations that they need for one."""
    return {
        "DDRM": (guidance.DDRM(), 2), "Replacement": (guidance.Replacement(), 1),
        "RePaint": (guidance.RePaint(5), 5),
    }  # fmt: skip


def flow_errors(case: Case, model: ScoreModel) -> dict[str, list[float]]:
    """Sampler -> errors of its flow at ``STEPS``."""
    T, scale = case.model.sde.T, case.truth.data.std
    shape = (STATES, *case.model.event_shape)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = case.truth.flow(x, torch.tensor(T), torch.tensor(T_MIN))
    found: dict[str, list[float]] = {}
    for preset in (samplers.ddim, samplers.heun, samplers.dpm_solver_pp):
        for N in STEPS:
            sampler = preset(N, grid=grids.log_snr, denoise=False)
            away = sampler.sample(model, STATES, x_start=x, noised=True, t_start=T).x - wanted
            found.setdefault(sampler.name, []).append(float(away.square().mean().sqrt()) / scale)
    return found


def affine(model: ScoreModel, t: Tensor) -> tuple[Tensor, Tensor]:
    """M with shape (D, D) and m with shape (D,) of x0_hat(x) = M x + m."""
    D = math.prod(model.event_shape)
    units = torch.eye(D, dtype=torch.float64)
    probe = torch.linspace(-2, 2, D, dtype=torch.float64)
    states = torch.cat([units.new_zeros(1, D), units, probe[None]])
    with torch.no_grad():
        out = model.denoise(states, t)
    m, M = out[0], (out[1:-1] - out[0]).mT
    assert float((out[-1] - M @ probe - m).abs().max()) < 1e-6 * float(out[-1].abs().max())
    return M, m


def output_law(model: ScoreModel, num_steps: int) -> tuple[Tensor, Tensor]:
    """Mean with shape (D,) and covariance with shape (D, D) of N steps of ``ancestral`` without a last
    denoising."""
    sde, D = model.sde, math.prod(model.event_shape)
    times = grids.uniform(sde, num_steps, T_MIN, sde.T)
    eye = torch.eye(D, dtype=torch.float64)
    mean, covariance = eye.new_zeros(D), eye.clone()
    for t, s in itertools.pairwise(times):
        M, m = affine(model, t)
        r, alpha_s = float(sde.nsr(s) / sde.nsr(t)) ** 2, float(sde.alpha(s))
        F = alpha_s * ((1 - r) * M + r / float(sde.alpha(t)) * eye)
        mean = F @ mean + alpha_s * (1 - r) * m
        covariance = F @ covariance @ F.mT + float(sde.sigma(s)) ** 2 * (1 - r) * eye
    return mean, covariance


def distance(case: Case, mean: Tensor, covariance: Tensor) -> float:
    """The exact W2 of an output's law, in units of the posterior's std and per feature."""
    data = case.truth.data
    scale = data.std * math.sqrt(len(mean))
    return gaussian_w2(mean, covariance, data.mean.flatten(), data.covariance) / scale


def _guided(case: Case, method: guidance.Method) -> ScoreModel:
    return guidance.PosteriorModel(case.model, case.observation, method, case.y)


def orders() -> list[dict[str, Any]]:
    """Errors and fitted orders of the samplers given projections, for every method and for the posterior's
    own model."""
    rows = []
    case = next(case for case in cases(0, (0.3,), ("digits",)) if case.seen == "projection")
    models = {"posterior": case.truth} | {k: _guided(case, v) for k, v in exact_methods().items()}
    for method, model in models.items():
        for sampler, errors in flow_errors(case, model).items():
            order = -float(np.polyfit(np.log2(STEPS[-3:]), np.log2(errors[-3:]), 1)[0])
            found = {"errors": [digits(e) for e in errors], "order": digits(order)}
            rows.append({"method": method, "sampler": sampler} | found)
    return rows


def distances_of(case: Case) -> dict[tuple[str, int], float]:
    """Method and number of evaluations -> the exact W2 given one y."""
    models = {"posterior": case.truth} | {k: _guided(case, v) for k, v in affine_methods().items()}
    found = {
        (method, N): distance(case, *output_law(model, N))
        for method, model in models.items()
        for N in EVALUATIONS
    }
    for label, (method, each) in between_methods().items():
        observed = guidance.Observed(case.observation, case.y, method)
        for N in IMPULSES:
            sampler = samplers.ancestral(N // each, denoise=False)
            found[label, N] = distance(case, *gaussian_output(sampler, case.model, observed))
    return found


def distances() -> list[dict[str, Any]]:
    """Exact W2 of every method that has one: means over the y of the seeds, with standard errors."""
    rows = []
    for seen, noise in itertools.product(OBSERVATIONS, NOISES):
        each = [
            distances_of(case)
            for seed in range(SEEDS)
            for case in cases(seed, (noise,), ("digits",))
            if case.seen == seen
        ]
        for method, N in each[0]:
            W2 = torch.tensor([values[method, N] for values in each], dtype=torch.float64)
            error = digits(float(W2.std()) / math.sqrt(SEEDS))
            of = {"observation": seen, "noise": noise, "nfe": N, "method": method}
            rows.append(of | {"W2": digits(float(W2.mean())), "W2 error": error})
        print(f"   distances: {seen}, noise {noise}: done", flush=True)
    return rows


def main() -> None:
    """Print orders and distances, and write gaussian_posteriors.json."""
    fitted = orders()
    for row in fitted:
        print("   " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    exact = distances()
    for row in exact:
        print("   " + "  ".join(f"{key} {value}" for key, value in row.items()))
    settings = {
        "steps": STEPS, "states": STATES, "evaluations": EVALUATIONS, "noises": NOISES, "seeds": SEEDS,
        "evaluations of impulse responses": IMPULSES, "grid of the orders": "log_snr", "grid of the "
        "distances": "uniform", "fit": "last three errors",
    }  # fmt: skip
    write_result("gaussian_posteriors", settings, {"orders": fitted, "distances": exact})


if __name__ == "__main__":
    main()
