"""Exact Wasserstein errors of the classical samplers on Gaussian data, beside the published table.

    python -m benchmarks.gaussian_table                       the covariance of the digits
    python -m benchmarks.gaussian_table --eigenvalues FILE    eigenvalues of any covariance, a .npy file

Data N(0, diag(l)) under VP with beta from 0.1 to 20, exact score, start from N(0, I), N points t_k = t_min +
(T - t_min) k / (N - 1), so N - 1 steps, no final denoising.  Coordinates do not mix and every sampler is
linear, so its output is N(0, diag(l_out)) and

    W2 = sqrt( sum_i (sqrt(l_out,i) - sqrt(l_i))^2 ).

l_out comes from the production samplers without Monte-Carlo noise.  A linear sampler maps independent normals
(x_T, z_1, z_2, ...) to sum_j c_j z_j, of variance sum_j c_j^2: the squared length of its output when the
normals are replaced by orthonormal vectors of some R^m, laid out along the batch.  Unit impulses are one
choice, with m = 1 + the number of draws.  A sampler with one draw per step adds that draw to a state that has
no other memory, so it is enough that a draw is orthogonal to the state that it meets, and m = 3 suffices: see
``OrthogonalDraws``.  The result is the same to rounding.

A cell is infinite where the score would be evaluated at t = 0, where sigma = 0 and the score of a singular
covariance is infinite; the samplers refuse to look there.

Reference: Pierret and Galerne, "Diffusion models for Gaussian distributions: Exact solutions and Wasserstein
errors" (2405.14250), whose table ``PUBLISHED`` repeats; its spectrum is the covariance of CIFAR-10.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import write_result
from sde_toolkit.data import digits
from sde_toolkit.models import ExactModel, Gaussian, ScoreModel, Wrapper
from sde_toolkit.samplers import (
    Sampler,
    ancestral,
    euler,
    euler_maruyama,
    exponential_integrator,
    heun,
    probability_flow,
)
from sde_toolkit.sdes import VPSDE
from solvers import RK4
from solvers.brownian import STEPS

POINTS = (50, 250, 500, 1000)
T_MINS = (0.0, 1e-5, 1e-4, 1e-3)
VARIABLE = "SDE_TOOLKIT_EIGENVALUES"
"""Environment variable with the path of the eigenvalues, instead of the option."""

PUBLISHED = {
    ("euler_maruyama", 0.0): ("4.78", ".66", ".32", ".16"),
    ("euler_maruyama", 1e-3): ("4.68", ".70", ".40", ".27"),
    ("euler", 0.0): ("1.78", ".44", ".26", ".17"),
    ("euler", 1e-3): ("1.79", ".48", ".32", ".25"),
}
"""(sampler, t_min) -> the printed errors at ``POINTS``."""


class Watched(Wrapper):
    """A model that remembers the last state it was evaluated at."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model)
        self.state = torch.empty(0)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The model's own prediction."""
        self.state = x_t
        return self.model.raw(x_t, t, condition)


class OrthogonalDraws:
    """Vectors of R^3 along the batch, with shape (3, D), in place of the normals of a one-step sampler.

    x_T is the first unit vector.  The state x_k after a step lies in the span of x_{k-1} and z_{k-1}, which
    are orthogonal.  Their cross product, scaled to length one, is the draw of step k: orthogonal to x_k, and
    so it is too if the model has already seen x_k itself when the draw is asked for.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._last = torch.zeros(3, *watched.event_shape, dtype=torch.float64)

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """The next vectors, with shape (3, D)."""
        z = torch.zeros_like(self._last)
        if stream != STEPS:
            z[0] = 1
            return z
        if index == 0:
            z[1] = 1
        else:
            z = torch.linalg.cross(self._watched.state, self._last, dim=0)
            z = z / z.norm(dim=0)
        self._last = z
        return z


def samplers(num_points: int, t_min: float) -> dict[str, Sampler]:
    """The rows of the table, as samplers with num_points - 1 steps."""
    steps = num_points - 1
    made = [
        euler_maruyama(steps, t_min=t_min, denoise=False),
        ancestral(steps, t_min=t_min, denoise=False),
        exponential_integrator(steps, t_min=t_min, denoise=False),
        euler(steps, t_min=t_min, denoise=False),
        heun(steps, t_min=t_min, denoise=False),
        Sampler("rk4", probability_flow, RK4, steps, t_min, denoise=False),
    ]
    return {sampler.name: sampler for sampler in made}


def output_variances(sampler: Sampler, eigenvalues: Tensor) -> Tensor:
    """Exact variances of the sampler's output, with the shape (D,) of the eigenvalues of the data."""
    watched = Watched(ExactModel(Gaussian(torch.zeros_like(eigenvalues), eigenvalues), VPSDE()))
    return sampler.sample(watched, 3, noise=OrthogonalDraws(watched)).x.square().sum(0)


def error(sampler: Sampler, eigenvalues: Tensor) -> float:
    """W2 between the sampler's output and the data; infinite where the score is needed at sigma = 0."""
    if sampler.t_min == 0 and sampler.name in ("heun", "rk4"):
        return math.inf
    out = output_variances(sampler, eigenvalues)
    return float((out.sqrt() - eigenvalues.sqrt()).square().sum().sqrt())


def measure(eigenvalues: Tensor) -> list[dict[str, object]]:
    """One row per sampler and t_min: the errors at ``POINTS``, and evaluations per sample."""
    rows: list[dict[str, object]] = []
    for name in samplers(2, 0.5):
        for t_min in T_MINS:
            errors = [error(samplers(points, t_min)[name], eigenvalues) for points in POINTS]
            rows.append({"sampler": name, "t_min": t_min, "w2": errors})
    return rows


def agrees(value: float, printed: str) -> bool:
    """Whether a value rounds to the printed digits."""
    return abs(value - float(printed)) <= 0.5 * 10.0 ** -len(printed.split(".")[1]) * (1 + 1e-9)


def disagreements(rows: Sequence[dict[str, object]]) -> list[str]:
    """Cells that do not have their published digits, as sentences."""
    found = []
    for row in rows:
        values = row["w2"]
        assert isinstance(values, list)
        for value, printed in zip(values, PUBLISHED.get((row["sampler"], row["t_min"]), ()), strict=False):
            if not agrees(value, printed):
                found.append(f"{row['sampler']}, t_min = {row['t_min']}: {value:.4f}, published {printed}")
    return found


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as text."""
    lines = [f"{'W2':<24}{'t_min':>8}" + "".join(f"{f'N = {points}':>12}" for points in POINTS)]
    for row in rows:
        assert isinstance(row["w2"], list)
        cells = "".join(f"{'infinite' if math.isinf(w) else f'{w:.4g}':>12}" for w in row["w2"])
        lines.append(f"{row['sampler']:<24}{row['t_min']:>8g}{cells}")
    return "\n".join(lines)


def load(path: Path | str) -> Tensor:
    """Eigenvalues with shape (D,), float64, from a .npy file."""
    values = np.load(path, allow_pickle=False)
    return torch.as_tensor(values, dtype=torch.float64)


def digits_eigenvalues() -> Tensor:
    """Eigenvalues of the covariance of the digits that ship inside scikit-learn, in model scale."""
    return torch.linalg.eigvalsh(digits().covariance)


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table and write JSON; fail if a published cell comes out with other digits."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="exact W2 of classical samplers on Gaussian data")
    parser.add_argument(
        "--eigenvalues",
        metavar="FILE",
        default=os.environ.get(VARIABLE),
        help=f"the published spectrum, a .npy file with 3072 eigenvalues; by default ${VARIABLE}",
    )
    path = parser.parse_args(arguments).eigenvalues
    spectra: dict[str, Callable[[], Tensor]] = {"gaussian_table_digits": digits_eigenvalues}
    if path is not None:
        spectra["gaussian_table"] = lambda: load(path)
    complaints = []
    for name, spectrum in spectra.items():
        eigenvalues = spectrum()
        rows = measure(eigenvalues)
        print(
            f"{name}: {len(eigenvalues)} eigenvalues from {eigenvalues.min():.3g} to {eigenvalues.max():.3g}"
        )
        print(table(rows))
        settings = {
            "points": POINTS,
            "eigenvalues": len(eigenvalues),
            "trace": float(eigenvalues.sum()),
            "sde": repr(VPSDE()),
            "start": "N(0, I)",
            "denoise": False,
        }
        write_result(name, settings, [row | {"w2": [_finite(w) for w in row["w2"]]} for row in rows])
        if name == "gaussian_table":
            complaints = disagreements(rows)
    if complaints:
        raise SystemExit("\n".join(complaints))


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "infinite"


if __name__ == "__main__":
    main(sys.argv[1:])
