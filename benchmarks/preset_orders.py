"""Measured orders of the samplers: every preset on exact data with N, 2N, 4N, ... steps.

Deterministic samplers.  From one set of starts at T the end at t_min is compared with the exact flow (root
mean square over starts and features) on a 3-D Gaussian of unequal scales and on a 2-D mixture of three
Gaussians.

Stochastic samplers.  On scalar Gaussian data a sampler is affine in its start and in its draws.  Run on a
batch of unit impulses it puts out its coefficients k_0 (start) and k_j (draws), hence, without sampling, for
a start with the exact law at T,

    weak error       | k_0^2 Var(x_T) + sum_j k_j^2 - Var(x_end) |
    strong error^2   (k_0 - K(T))^2 Var(x_T) + sum_j int_step (k_j / sqrt(n_t^2 - n_s^2) - eta K(n))^2 d(n^2)

against the reverse family in the clock n = sigma / alpha, dy = (1 + eta^2) z_hat dn + eta dM, d<M> = d(n^2),
for which K(n) = alpha_end ((c^2 + n_end^2) / (c^2 + n^2))^((1 + eta^2) / 2) (Ito's isometry; draws belong to
the increments of M).

The process is VP from T = 1.  Multistep samplers start with formulas of low order there, which from pure
noise costs less than the errors seen here; started at mid noise it would limit the order to 2 (to 3 with a
corrector).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.orders import TOLERANCE
from benchmarks.record import write_result
from sde_toolkit import samplers
from sde_toolkit.models import ExactData, ExactModel, Gaussian, GaussianMixture
from sde_toolkit.samplers import PRESETS, Preset, Sampler, grids, in_angle, in_lam, in_nsr
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import Stream
from solvers import HEUN, RK4, SHARK, SOSRA, Adams, AdditiveRungeKutta, Normals
from solvers.brownian import AREA, STEPS

Make = Callable[..., Sampler]


def _with(make: Make, **options: object) -> Make:
    return lambda num_steps, **more: make(num_steps, **options, **more)


VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "exponential_integrator, eta 0": ("exponential_integrator", {"eta": 0.0}),
    "dpm_solver 1": ("dpm_solver", {"order": 1}),
    "dpm_solver 2": ("dpm_solver", {"order": 2}),
    "dpm_solver 3": ("dpm_solver", {"order": 3}),
    "dpm_solver_pp 1M": ("dpm_solver_pp", {"order": 1}),
    "dpm_solver_pp 2M": ("dpm_solver_pp", {"order": 2}),
    "dpm_solver_pp 3M": ("dpm_solver_pp", {"order": 3}),
    "dpm_solver_pp 2M heun": ("dpm_solver_pp", {"form": "heun"}),
    "multistep_dpm_solver 2M": ("multistep_dpm_solver", {}),
    "multistep_dpm_solver 3M heun": ("multistep_dpm_solver", {"order": 3, "form": "heun"}),
    "deis tAB0": ("deis", {"degree": 0}),
    "deis tAB1": ("deis", {"degree": 1}),
    "deis tAB2": ("deis", {"degree": 2}),
    "deis tAB3": ("deis", {"degree": 3, "grid": grids.karras}),
    "deis log-rho 2": ("deis", {"degree": 2, "clock": in_lam}),
    "deis rhoAB 2": ("deis", {"degree": 2, "clock": in_nsr}),
    "deis_rho_rk heun": ("deis_rho_rk", {"tableau": HEUN}),
    "deis_rho_rk kutta3": ("deis_rho_rk", {}),
    "deis_rho_rk rk4": ("deis_rho_rk", {"tableau": RK4}),
    "lms 2": ("lms", {"order": 2}),
    "lms 4": ("lms", {}),
    "s-pndm": ("pndm", {"order": 2}),
    "exponential_adams noise": ("exponential_adams", {"predicts": "noise", "order": 2}),
    "exponential_adams data": ("exponential_adams", {"predicts": "data", "order": 3, "grid": grids.karras}),
    "exponential_adams velocity": ("exponential_adams", {"predicts": "velocity", "clock": in_angle}),
    "exponential_adams score": ("exponential_adams", {"predicts": "score", "order": 2}),
    "unip 1": ("unip", {"order": 1}),
    "unip 2 B1": ("unip", {"order": 2, "b": samplers.b1}),
    "unip 3": ("unip", {"order": 3, "grid": grids.karras}),
    "unipc 1": ("unipc", {"order": 1}),
    "unipc 2 B1 noise": ("unipc", {"order": 2, "b": samplers.b1, "predicts": "noise"}),
    "unipc 2": ("unipc", {"order": 2}),
    "unipc 3": ("unipc", {"order": 3, "grid": grids.karras}),
    "sa_solver 3 + 3, tau 0": (
        "sa_solver",
        {"predictor_steps": 3, "corrector_steps": 3, "tau": 0.0, "grid": grids.karras},
    ),
    "ddpm small": ("ddpm", {}),
    "ddpm large": ("ddpm", {"variance": "large"}),
    "ddim, eta 1/2": ("ddim", {"eta": 0.5}),
    "eta_family, eta 1/2": ("eta_family", {"eta": 0.5}),
    "sra1": ("sra", {}),
    "shark": ("sra", {"method": SHARK}),
    "sosra": ("sra", {"method": SOSRA}),
    "sde_dpm_solver_pp 1": ("sde_dpm_solver_pp", {"order": 1}),
    "sde_dpm_solver_pp 2M": ("sde_dpm_solver_pp", {}),
    "sde_dpm_solver_pp 3M": ("sde_dpm_solver_pp", {"order": 3}),
    "sde_dpm_solver 1": ("sde_dpm_solver", {"order": 1}),
    "sde_dpm_solver 2M": ("sde_dpm_solver", {}),
    "sa_solver 1 + 0": ("sa_solver", {"predictor_steps": 1, "corrector_steps": 0}),
    "sa_solver 2 + 1": ("sa_solver", {}),
    "sa_solver 3 + 3": ("sa_solver", {"predictor_steps": 3, "corrector_steps": 3}),
    "sa_solver released, tau 1/2": ("sa_solver", {"tau": 0.5, "released": True}),
    "er_sde 1": ("er_sde", {"order": 1}),
    "er_sde 2": ("er_sde", {"order": 2}),
    "er_sde 3": ("er_sde", {}),
    "edm churn": ("edm", {"s_churn": 0.5}),
}
"""Label -> preset and options, beyond the presets with their default options."""


def _is_default(preset: Preset, options: dict[str, object]) -> bool:
    """Whether these are the preset's own options, on whatever grid."""
    own = preset.options
    return all(value == own[name].default for name, value in options.items() if name in own)


def preset_makers() -> dict[str, Make]:
    """Every preset of the catalogue that declares an order, with its default options, and the variants.

    Presets that are made for a model, choose their own steps or have an end of their own are measured
    elsewhere.
    """
    found = {label: _with(PRESETS[name].function, **options) for label, (name, options) in VARIANTS.items()}
    covered = {name for name, options in VARIANTS.values() if _is_default(PRESETS[name], options)}
    for name, preset in PRESETS.items():
        usual = preset.kind == "fixed" and "t_min" in preset.parameters
        if usual and name not in covered and preset.make(1).order is not None:
            found[name] = preset.function
    return found


SDE = VPSDE()
GAUSSIAN = Gaussian(
    mean=[0.5, -1.0, 0.2], covariance=[[1.0, 0.3, -0.1], [0.3, 0.5, 0.05], [-0.1, 0.05, 0.08]]
)
MIXTURE = GaussianMixture(
    weights=[0.5, 0.3, 0.2], means=[[-1.2, 0.3], [0.9, 0.8], [0.4, -1.1]], covariances=[0.05, 0.1, 0.2]
)
SCALAR = Gaussian(mean=[0.7], covariance=[0.25])


def _stochastic(make: Make) -> bool:
    """Whether the sampler draws noise: methods for equations with noise run on those without it too."""
    sampler = make(1)
    term = sampler.equation(ExactModel(SCALAR, SDE))
    return sampler.weak_order is not None and getattr(term, "diffusion", True) is not None


MAKERS = preset_makers()
DETERMINISTIC = {name: make for name, make in MAKERS.items() if not _stochastic(make)}
STOCHASTIC = {name: make for name, make in MAKERS.items() if _stochastic(make)}

END = 0.2
HALVINGS = 3
NEAR_ROUNDING = 3e-10
STARTS = 8


@dataclass(frozen=True)
class PresetCase:
    """A preset on a problem: ``run(N)`` returns its error and its evaluations per sample."""

    name: str
    kind: str
    problem: str
    declared: float
    first: int
    run: Callable[[int], tuple[float, float]]
    make: Make


@dataclass(frozen=True)
class PresetOrder:
    """One case at several step counts."""

    case: PresetCase
    num_steps: tuple[int, ...]
    nfe: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Observed order by least squares."""
        return -float(np.polyfit(np.log2(self.num_steps), np.log2(self.errors), 1)[0])

    def complaints(self) -> list[str]:
        """What contradicts the declaration."""
        case, found = self.case, []
        if not abs(self.slope - case.declared) <= TOLERANCE:
            found.append(
                f"{case.name}, {case.problem}: {case.kind} order {case.declared:g} declared, "
                f"{self.slope:.3f} measured"
            )
        for steps, nfe in zip(self.num_steps, self.nfe, strict=True):
            declared = case.make(steps, denoise=False).nfe
            if nfe != declared:
                found.append(f"{case.name}: {declared} evaluations declared, {nfe:g} in {steps} steps")
        return found


def measure(case: PresetCase, halvings: int) -> PresetOrder:
    """Run a case with N, 2N, ..., 2^halvings N steps, or until rounding is near, and at least twice."""
    num_steps: list[int] = []
    results: list[tuple[float, float]] = []
    for k in range(halvings + 1):
        num_steps.append(case.first * 2**k)
        results.append(case.run(num_steps[-1]))
        if k and results[-1][0] < NEAR_ROUNDING:
            break
    errors, nfe = zip(*results, strict=True)
    return PresetOrder(case, tuple(num_steps), nfe, errors)


@functools.cache
def _flow(data: ExactData) -> Tensor:
    model = ExactModel(data, SDE)
    z = Normals(0, STARTS, model.event_shape).draw(0, Stream.PRIOR)
    start, end = (torch.tensor(u, dtype=torch.float64) for u in (SDE.T, END))
    return model.flow(SDE.prior_sample(z), start, end)


def flow_error(make: Make, data: ExactData, num_steps: int) -> tuple[float, float]:
    """Root mean square distance to the end of the exact flow."""
    samples = make(num_steps, t_min=END, denoise=False).sample(ExactModel(data, SDE), STARTS)
    return float((samples.x - _flow(data)).square().mean().sqrt()), samples.nfe


class SamplerImpulses:
    """Draws that are unit impulses: row 0 gets none, row 1 the start, then one row per step for W, and for
    H."""

    def __init__(self, num_steps: int, areas: bool = False) -> None:
        self._first = {Stream.PRIOR: 1, STEPS: 2, AREA: 2 + num_steps}
        self.rows = 2 + num_steps * (1 + areas)

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """One column of the identity, with shape (B, 1)."""
        z = torch.zeros(self.rows, 1, dtype=torch.float64)
        z[self._first[stream] + index] = 1.0
        return z


def response(sampler: Sampler, model: ExactModel) -> tuple[float, float, Tensor, float]:
    """Output for zero draws, coefficients of the start and of the draws (N,) or (2 N,), and evaluations."""
    assert sampler.num_steps is not None
    areas = isinstance(sampler.method, AdditiveRungeKutta) and sampler.method.area is not None
    noise = SamplerImpulses(sampler.num_steps, areas)
    samples = sampler.sample(model, noise.rows, noise=noise)
    x = samples.x.flatten()
    return float(x[0]), float(x[1] - x[0]), x[2:] - x[0], samples.nfe


def _levels(t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return float(SDE.alpha(time)), float(SDE.nsr(time))


def _variance(t: float) -> float:
    alpha, nsr = _levels(t)
    return alpha**2 * (float(SCALAR.covariance) + nsr**2)


def weak_error(make: Make, num_steps: int) -> tuple[float, float]:
    """Error of the output's variance, from the exact variance at T."""
    _, start, draws, nfe = response(make(num_steps, t_min=END, denoise=False), ExactModel(SCALAR, SDE))
    return abs(start**2 * _variance(SDE.T) + float(draws.square().sum()) - _variance(END)), nfe


def strong_error(make: Make, eta: float, num_steps: int) -> tuple[float, float]:
    """Root mean square distance to the exact solution with the same M."""
    sampler = make(num_steps, t_min=END, denoise=False)
    _, start, draws, nfe = response(sampler, ExactModel(SCALAR, SDE))
    variance, (alpha_T, n_T), (alpha_end, n_end) = float(SCALAR.covariance), _levels(SDE.T), _levels(END)

    def kernel(square: Tensor) -> Tensor:  # K as a function of n^2
        return alpha_end * ((variance + n_end**2) / (variance + square)) ** ((1 + eta**2) / 2)

    squares = SDE.nsr(sampler.grid(SDE, num_steps, END)).square()
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    length = -squares.diff()[:, None]
    at = squares[1:, None] + length * (nodes + 1) / 2
    error = (draws[:, None] / length.sqrt() - eta * kernel(at)).square()
    total = float((length * weights / 2 * error).sum())
    total += (start - float(kernel(torch.tensor(n_T**2))) / alpha_T) ** 2 * _variance(SDE.T)
    return math.sqrt(total), nfe


ETAS = {"ddim, eta 1/2": 0.5, "eta_family, eta 1/2": 0.5, "sa_solver released, tau 1/2": 0.5}
"""Stochasticity where it is not 1."""

_FIRST = {1: 64, 2: 128, 3: 128, 4: 256}
_LATE = {"deis tAB3": 512, "dpm_solver_pp 3M": 1024, "ipndm": 256, "pndm": 256, "s-pndm": 256,
         "sa_solver 2 + 1": 512, "sde_dpm_solver 2M": 256, "sa_solver 3 + 3": 1024, "sra1": 256, "shark": 256,
         "sosra": 256}  # fmt: skip
_LATE_STRONG = {"sde_dpm_solver 2M": 64}
"""Samplers with a dominant term of higher order at moderate step counts."""


def cases(names: Sequence[str] | None = None) -> list[PresetCase]:
    """The cases of every preset, or of those named."""
    found: list[PresetCase] = []
    for name, make in preset_makers().items():
        if names is not None and name not in names:
            continue
        sampler = make(1)
        if not _stochastic(make):
            assert sampler.order is not None
            first = _LATE.get(name, _FIRST[sampler.order])
            for problem, data in (("Gaussian", GAUSSIAN), ("mixture", MIXTURE)):
                run = functools.partial(flow_error, make, data)
                found.append(PresetCase(name, "deterministic", problem, sampler.order, first, run, make))
            continue
        assert sampler.weak_order is not None
        first = _LATE.get(name, 64)
        weak = functools.partial(weak_error, make)
        found.append(PresetCase(name, "weak", "scalar Gaussian", sampler.weak_order, first, weak, make))
        if sampler.strong_order == 1.0 and not isinstance(sampler.method, Adams):
            strong = functools.partial(strong_error, make, ETAS.get(name, 1.0))
            early = _LATE_STRONG.get(name, 32)
            found.append(PresetCase(name, "strong", "scalar Gaussian", 1.0, early, strong, make))
    return found


def main() -> None:
    """Measure, print the table, write JSON; fail if an order or a cost is not as declared."""
    torch.set_num_threads(1)
    rows, complaints = [], []
    print(f"{'sampler, problem':<48}{'kind':<15}{'declared':>9}{'observed':>10}{'N':>7}{'error':>11}")
    for case in cases():
        m = measure(case, HALVINGS)
        complaints += m.complaints()
        numbers = f"{case.declared:>9g}{m.slope:>10.3f}{m.num_steps[-1]:>7}{m.errors[-1]:>11.2e}"
        wrong = "  WRONG" if m.complaints() else ""
        print(f"{case.name + ', ' + case.problem:<48}{case.kind:<15}{numbers}{wrong}", flush=True)
        rows.append(
            {
                "sampler": case.name,
                "problem": case.problem,
                "kind": case.kind,
                "declared": case.declared,
                "observed": m.slope,
                "num_steps": m.num_steps,
                "nfe": m.nfe,
                "errors": m.errors,
            }
        )
    settings = {"halvings": HALVINGS, "tolerance": TOLERANCE, "t_min": END, "dtype": "float64"}
    write_result("preset_orders", settings, rows)
    if complaints:
        raise SystemExit("\n".join(complaints))


if __name__ == "__main__":
    main()
