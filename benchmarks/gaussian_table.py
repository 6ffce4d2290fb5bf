"""Exact Wasserstein errors of the classical samplers on Gaussian data, beside the published table.

    python -m benchmarks.gaussian_table                       the covariance of the digits
    python -m benchmarks.gaussian_table --eigenvalues FILE    eigenvalues of any covariance, a .npy file

Data N(0, diag(l)) under VP with beta from 0.1 to 20, exact score, start from p_T or from N(0, I), P points
t_k = t_min + (T - t_min) k / (P - 1), so P - 1 steps, no final denoising.  Coordinates do not mix and every
sampler is linear, so its output is N(0, diag(l_out)) and

    W2 = sqrt( sum_i (sqrt(l_out,i) - sqrt(l_i))^2 ).

l_out comes from the production samplers without Monte-Carlo noise.  A linear sampler maps independent normals
(x_T, z_1, z_2, ...) to sum_j c_j z_j, of variance sum_j c_j^2: the squared length of its output when the
normals are replaced by orthonormal vectors of some R^m, laid out along the batch.  Unit impulses are one
choice, with m = 1 + the number of draws.  A sampler with one draw per step adds that draw to a state that has
no other memory, so it is enough that a draw is orthogonal to the state that it meets, and m = 3 suffices: see
``OrthogonalDraws``.  The result is the same to rounding.

The columns say N, the evaluations of the published table.  Its cells have P = N points, Heun's too, which
takes two evaluations per step there; those of RK4 have P = N // 4 (``points``).  Its DDPM row takes

    x_s = (x_t + q score) / sqrt(1 - q) + sqrt(q) z,     q = (t - s) beta_t,

with the rate at t in place of 1 - (alpha_t / alpha_s)^2; that is the row "ddpm_rate".  The row "ancestral",
with the exact posterior, is ours.

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
    scheme,
)
from sde_toolkit.samplers.equations import ReverseSteps
from sde_toolkit.samplers.presets.one_step import ONE_DRAW
from sde_toolkit.sdes import VPSDE
from solvers import RK4, Form, Term
from solvers.brownian import STEPS

COLUMNS = (50, 250, 500, 1000)
T_MINS = (0.0, 1e-5, 1e-4, 1e-3)
VARIABLE = "SDE_TOOLKIT_EIGENVALUES"
"""Environment variable with the path of the eigenvalues, instead of the option."""

STARTS = ("p_T", "N(0, I)")

PRINTED = """
    euler_maruyama          0      4.78  4.78  0.65  0.66  0.32  0.32  0.16  0.16
    euler_maruyama          1e-5   4.77  4.77  0.66  0.66  0.32  0.32  0.16  0.16
    euler_maruyama          1e-4   4.76  4.76  0.66  0.66  0.32  0.32  0.17  0.17
    euler_maruyama          1e-3   4.68  4.68  0.70  0.70  0.40  0.40  0.27  0.27
    exponential_integrator  0      2.81  2.81  0.57  0.57  0.30  0.30  0.16  0.16
    exponential_integrator  1e-5   2.81  2.81  0.57  0.57  0.30  0.30  0.16  0.16
    exponential_integrator  1e-4   2.82  2.82  0.58  0.58  0.31  0.31  0.17  0.17
    exponential_integrator  1e-3   2.91  2.91  0.67  0.67  0.41  0.41  0.29  0.29
    ddpm_rate               0      6.82  6.82  0.97  0.97  0.47  0.47  0.23  0.23
    ddpm_rate               1e-5   6.82  6.82  0.97  0.97  0.47  0.47  0.24  0.23
    ddpm_rate               1e-4   6.81  6.81  0.98  0.98  0.47  0.47  0.24  0.24
    ddpm_rate               1e-3   6.74  6.74  1.00  1.00  0.53  0.53  0.32  0.32
    euler                   0      1.72  1.78  0.38  0.44  0.20  0.26  0.10  0.17
    euler                   1e-5   1.72  1.78  0.38  0.44  0.20  0.26  0.10  0.17
    euler                   1e-4   1.72  1.78  0.38  0.44  0.20  0.26  0.11  0.17
    euler                   1e-3   1.73  1.79  0.42  0.48  0.27  0.32  0.21  0.25
    heun                    0      -     -     -     -     -     -     -     -
    heun                    1e-5  23.42 23.42  2.86  2.87  1.05  1.06  0.37  0.38
    heun                    1e-4   4.68  4.68  0.43  0.44  0.12  0.14  0.03  0.08
    heun                    1e-3   0.58  0.59  0.13  0.15  0.16  0.18  0.17  0.19
    rk4                     0      -     -     -     -     -     -     -     -
    rk4                     1e-5  67.32 67.32  5.49  5.49  2.11  2.11  0.77  0.77
    rk4                     1e-4  14.35 14.35  0.93  0.93  0.29  0.29  0.07  0.10
    rk4                     1e-3   2.60  2.60  0.09  0.12  0.15  0.17  0.17  0.19
"""
"""The published table: sampler, t_min, and for every N of ``COLUMNS`` the errors from the two ``STARTS``."""

PUBLISHED = {
    (name, float(t_min), start): tuple(cells[k :: len(STARTS)])
    for name, t_min, *cells in map(str.split, PRINTED.strip().splitlines())
    for k, start in enumerate(STARTS)
}
"""(sampler, t_min, start) -> the printed errors at ``COLUMNS``; "-" where one is infinite."""


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

    x_T is the first unit vector times ``start``, its standard deviations with shape (D,).  The state x_k
    after a step lies in the span of x_{k-1} and z_{k-1}, which are orthogonal.  Their cross product, scaled
    to length one, is the draw of step k: orthogonal to x_k, and so it is too if the model has already seen
    x_k itself when the draw is asked for.
    """

    def __init__(self, watched: Watched, start: Tensor) -> None:
        self._watched, self._start = watched, start
        self._last = torch.zeros(3, *watched.event_shape, dtype=torch.float64)

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """The next vectors, with shape (3, D)."""
        z = torch.zeros_like(self._last)
        if stream != STEPS:
            z[0] = self._start
            return z
        if index == 0:
            z[1] = 1
        else:
            z = torch.linalg.cross(self._watched.state, self._last, dim=0)
            z = z / z.norm(dim=0)
        self._last = z
        return z


def rate_equation(model: ScoreModel) -> Term:
    """The step of DDPM with beta_i = (t - s) beta_t, the published table's."""

    def rule(k: ReverseSteps) -> Form:
        q = (k.t.time - k.s.time) * model.sde.g_squared(k.t.time)
        return (k.x + q * k.m[0]) / (1 - q).sqrt() + q.sqrt() * k.z

    return scheme(rule, "score", noisy=True)(model)


def points(name: str, column: int) -> int:
    """The number of points behind a published cell, see the module's text."""
    return column // 4 if name == "rk4" else column


def samplers(num_points: int, t_min: float) -> dict[str, Sampler]:
    """The rows of the table, as samplers with num_points - 1 steps."""
    steps = num_points - 1
    made = [
        euler_maruyama(steps, t_min=t_min, denoise=False),
        exponential_integrator(steps, t_min=t_min, denoise=False),
        Sampler("ddpm_rate", rate_equation, ONE_DRAW, steps, t_min, denoise=False),
        ancestral(steps, t_min=t_min, denoise=False),
        euler(steps, t_min=t_min, denoise=False),
        heun(steps, t_min=t_min, denoise=False),
        Sampler("rk4", probability_flow, RK4, steps, t_min, denoise=False),
    ]
    return {sampler.name: sampler for sampler in made}


def output_variances(sampler: Sampler, eigenvalues: Tensor, start: str = "N(0, I)") -> Tensor:
    """Exact variances of the sampler's output, with the shape (D,) of the eigenvalues of the data.

    Args:
        sampler: one of ``samplers``.
        eigenvalues: with shape (D,), float64.
        start: one of ``STARTS``.
    """
    sde = VPSDE()
    watched = Watched(ExactModel(Gaussian(torch.zeros_like(eigenvalues), eigenvalues), sde))
    T = torch.tensor(sde.T, dtype=torch.float64)
    variances = sde.alpha(T).square() * eigenvalues + sde.sigma(T).square()
    std = variances.sqrt() if start == "p_T" else torch.ones_like(eigenvalues)
    return sampler.sample(watched, 3, noise=OrthogonalDraws(watched, std)).x.square().sum(0)


def error(sampler: Sampler, eigenvalues: Tensor, start: str = "N(0, I)") -> float:
    """W2 between the sampler's output and the data; infinite where the score is needed at sigma = 0."""
    if sampler.t_min == 0 and sampler.name in ("heun", "rk4"):
        return math.inf
    out = output_variances(sampler, eigenvalues, start)
    return float((out.sqrt() - eigenvalues.sqrt()).square().sum().sqrt())


def measure(eigenvalues: Tensor, columns: Sequence[int]) -> list[dict[str, object]]:
    """One row per sampler, t_min and start: the errors at ``columns``."""
    return [
        {
            "sampler": name,
            "t_min": t_min,
            "start": start,
            "w2": [
                error(samplers(points(name, column), t_min)[name], eigenvalues, start) for column in columns
            ],
        }
        for name in samplers(2, 0.5)
        for t_min in T_MINS
        for start in STARTS
    ]


def agrees(value: float | str, printed: str) -> bool:
    """Whether a value rounds to the printed digits; "-" stands for infinity."""
    if printed == "-":
        return value in (math.inf, "infinite")
    if isinstance(value, str):
        return False
    return abs(value - float(printed)) <= 0.5 * 10.0 ** -len(printed.split(".")[1]) * (1 + 1e-9)


def disagreements(rows: Sequence[dict[str, object]]) -> list[str]:
    """Cells that do not have their published digits, as sentences."""
    found = []
    for row in rows:
        values, key = row["w2"], (row["sampler"], row["t_min"], row["start"])
        assert isinstance(values, list)
        for value, printed in zip(values, PUBLISHED.get(key, ()), strict=False):
            if not agrees(value, printed):
                found.append("{}, t_min = {}, from {}: ".format(*key) + f"{value}, published {printed}")
    return found


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as text."""
    lines = [f"{'W2':<24}{'t_min':>8}  {'start':<8}" + "".join(f"{f'N = {n}':>12}" for n in COLUMNS)]
    for row in rows:
        assert isinstance(row["w2"], list)
        cells = "".join(f"{'infinite' if math.isinf(w) else f'{w:.4g}':>12}" for w in row["w2"])
        lines.append(f"{row['sampler']:<24}{row['t_min']:>8g}  {row['start']:<8}{cells}")
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
        rows = measure(eigenvalues, COLUMNS)
        print(
            f"{name}: {len(eigenvalues)} eigenvalues from {eigenvalues.min():.3g} to {eigenvalues.max():.3g}"
        )
        print(table(rows))
        settings = {
            "evaluations": COLUMNS,
            "points": {name: [points(name, column) for column in COLUMNS] for name in samplers(2, 0.5)},
            "eigenvalues": len(eigenvalues),
            "trace": float(eigenvalues.sum()),
            "sde": repr(VPSDE()),
            "starts": STARTS,
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
