"""Our own samplers for the side-by-side benchmark: every preset on every grid that suits it.

A sampler is asked for with a budget of evaluations and takes as many steps as its declared evaluations allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers import AnnealedLangevin, Langevin, Sampler, grids
from sde_toolkit.utils import Stream
from solvers import HEUN, MIDPOINT, RK4, SHARK, SOSRA, SRA1, NoiseSource
from solvers.brownian import STEPS

Make = Callable[..., Sampler]
GRIDS = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "log_snr": grids.log_snr,
    "karras": grids.karras,
}


class FromStart:
    """A noise source whose draw of the prior is the given start.

    Args:
        x_T: states at T with shape (B, *).
        model: whose prior they belong to.
        noise: for all other draws; a deterministic sampler needs none.
    """

    def __init__(self, x_T: Tensor, model: ScoreModel, noise: NoiseSource | None = None) -> None:
        self._z, self._noise = (x_T / model.sde.prior_std).to(model.dtype), noise

    def draw(self, index: int, stream: int = STEPS) -> Tensor:
        """Standard normals with shape (B, *)."""
        if stream == Stream.PRIOR:
            return self._z
        assert self._noise is not None
        return self._noise.draw(index, stream)


@dataclass(frozen=True)
class Entry:
    """One sampler on one grid.

    Attributes:
        name, grid: for the tables.
        make: (num_steps, t_min, model) -> the sampler, without final denoising.
    """

    name: str
    grid: str
    make: Callable[[int, float, ScoreModel], Sampler]

    @property
    def title(self) -> str:
        """Sampler and grid, as in the tables."""
        return f"sde_toolkit {self.name}, {self.grid}"

    @property
    def sampler(self) -> str:
        """Library and sampler."""
        return f"sde_toolkit {self.name}"

    def within(self, nfe: int, t_min: float, model: ScoreModel) -> Sampler | None:
        """The sampler with the most steps whose declared evaluations are at most ``nfe``."""
        for num_steps in range(nfe, 0, -1):
            made = self.make(num_steps, t_min, model)
            assert made.nfe is not None
            if made.nfe <= nfe:
                return made
        return None


def default(eta: float = 0.0) -> Entry:
    """The default sampler, on the grid of its own, from the prior like all others."""

    def made(n: int, t_min: float, model: ScoreModel) -> Sampler:
        return replace(samplers.default(model, n, t_min=t_min, eta=eta), start="prior")

    return Entry(f"default, eta {eta:g}" if eta else "default", "its own grid", made)


def _entries(makers: dict[str, tuple[Make, dict[str, Any]]]) -> Iterator[Entry]:
    for name, (make, options) in makers.items():
        for label, grid in GRIDS.items():

            def made(
                num_steps: int,
                t_min: float,
                model: ScoreModel,
                make: Make = make,
                grid: Any = grid,
                options: Any = options,
            ) -> Sampler:
                return make(num_steps, t_min=t_min, grid=grid, denoise=False, **options)

            yield Entry(name, label, made)


def deterministic() -> Iterator[Entry]:
    """Every preset of the probability flow with a fixed number of steps."""
    s = samplers
    makers: dict[str, tuple[Make, dict[str, Any]]] = {
        "euler": (s.euler, {}),
        "heun": (s.heun, {}),
        "ddim": (s.ddim, {}),
        "edm": (s.edm, {}),
        "pndm": (s.pndm, {}),
        "dpm_solver_pp_2s": (s.dpm_solver_pp_2s, {}),
    }
    for order in (2, 3):
        makers[f"dpm_solver_pp {order}M"] = s.dpm_solver_pp, {"order": order}
        makers[f"unip-{order}"] = s.unip, {"order": order}
        makers[f"unipc-{order}"] = s.unipc, {"order": order}
        makers[f"deis tAB-{order}"] = s.deis, {"degree": order}
        makers[f"dpm_solver-{order}"] = s.dpm_solver, {"order": order}
    for order in (3, 4):
        makers[f"lms-{order}"] = s.lms, {"order": order}
        makers[f"ipndm-{order}"] = s.ipndm, {"order": order}
        for predicts in ("data", "noise", "velocity"):
            makers[f"exponential_adams-{order}, {predicts}"] = (
                s.exponential_adams,
                {"order": order, "predicts": predicts},
            )
    for tableau in (MIDPOINT, HEUN, s.KUTTA3, RK4):
        makers[f"deis_rho_rk {tableau.name}"] = s.deis_rho_rk, {"tableau": tableau}
    yield from _entries(makers)


def stochastic() -> Iterator[Entry]:
    """Every preset that draws, with a fixed number of steps."""
    s = samplers
    makers: dict[str, tuple[Make, dict[str, Any]]] = {
        "euler_maruyama": (s.euler_maruyama, {}),
        "reverse_diffusion": (s.reverse_diffusion, {}),
        "ancestral": (s.ancestral, {}),
        "ddpm, large": (s.ddpm, {"variance": "large"}),
        "ddim, eta 1/2": (s.ddim, {"eta": 0.5}),
        "exponential_integrator": (s.exponential_integrator, {}),
        "exponential_integrator, eta 1/2": (s.exponential_integrator, {"eta": 0.5}),
        "stochastic_heun": (s.stochastic_heun, {}),
        "edm, churn 10": (s.edm, {"s_churn": 10.0}),
    }
    for method in (SRA1, SHARK, SOSRA):
        makers[method.name] = s.sra, {"method": method}
    for order in (1, 2):
        makers[f"sde_dpm_solver_pp-{order}"] = s.sde_dpm_solver_pp, {"order": order}
    for order in (1, 2, 3):
        makers[f"er_sde-{order}"] = s.er_sde, {"order": order}
    for past, corrections in ((2, 1), (3, 2), (3, 3)):
        for tau in (0.2, 0.5, 1.0):
            options = {"predictor_steps": past, "corrector_steps": corrections, "tau": tau}
            makers[f"sa_solver P{past} C{corrections}, tau {tau:g}"] = s.sa_solver, options
    yield from _entries(makers)
    for eta in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0):
        yield default(eta)
    for label, corrector in (("langevin", Langevin()), ("annealed langevin", AnnealedLangevin())):
        for predictor, make in (("reverse_diffusion", s.reverse_diffusion), ("ddim", s.ddim)):
            for grid_label, grid in GRIDS.items():

                def made(
                    n: int,
                    t_min: float,
                    model: ScoreModel,
                    make: Make = make,
                    grid: Any = grid,
                    corrector: Any = corrector,
                ) -> Sampler:
                    return s.predictor_corrector(make(n, t_min=t_min, grid=grid, denoise=False), corrector)

                yield Entry(f"{predictor} + {label}", grid_label, made)
