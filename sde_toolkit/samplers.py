"""Reverse-time samplers: from noise to data in N looks at a model.

A sampler is a choice of equation, of method, of time grid and, if wanted, of a corrector:

    equation (a term of ``solvers``)                    method                      sampler
    reverse SDE            dx = [f x - g^2 score] dt + g dW   Euler-Maruyama        euler_maruyama
    probability-flow ODE   dx = [f x - g^2 score / 2] dt      Euler, Heun           euler, heun
                                                              Dopri5, SciPy RK45    dopri5, scipy_rk45
    one-step recursions    x_s = a x_t + b z_hat + c z        themselves            ddim, ancestral,
    reverse_diffusion

The recursions, for a step from t to s < t, with r = alpha_t / alpha_s and q^2 = sigma_t^2 - r^2 sigma_s^2
(mean factor and variance of the forward transition from s to t):

    DDIM(eta)            x_s = alpha_s x0_hat + sqrt(sigma_s^2 - v^2) z_hat + v z,     v = eta sigma_s q /
    sigma_t
    ancestral            DDIM with eta = 1: the mean and the variance of q(x_s | x_t, x0_hat)
    reverse diffusion    x_s = (2 - r) x_t + q^2 score + q z

A run starts from the prior at T, ends at t_min > 0 and, with ``denoise``, replaces the last state by x0_hat
(Tweedie), which costs one evaluation.  Predictor-corrector runs some steps of Langevin dynamics after every
step.

Sample i of a seed is a function of (seed, i) alone: normals are keyed by sample and draw
(``solvers.brownian``).

References: Song et al. (2011.13456), algorithms 1-5 and appendix E; Song, Meng and Ermon, "Denoising
Diffusion Implicit Models" (2010.02502), eq. 12; Ho, Jain and Abbeel (2006.11239), algorithm 2.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.correctors import Corrector, Langevin
from sde_toolkit.equations import Equation, ddim_step, probability_flow, reverse_diffusion_step, reverse_sde
from sde_toolkit.grids import Grid
from sde_toolkit.moments import Moments
from sde_toolkit.score import ScoreModel
from solvers import (
    DOPRI5,
    EULER,
    EULER_MARUYAMA,
    HEUN,
    RECURSION,
    Adaptive,
    FixedGrid,
    Integrator,
    Method,
    NoiseSource,
    Normals,
    RungeKutta,
    solve,
)

PRIOR = 1
"""Stream of the noise source that the start of a run is drawn from."""

T_MIN = 1e-3
"""Default end of the reverse run, score_sde's choice for VP."""

_NEVER_AT_END = (EULER, EULER_MARUYAMA, RECURSION)


@dataclass(frozen=True)
class Samples:
    """Samples and how they were made.

    Attributes:
        x: the samples with shape (B, *).
        nfe: network evaluations per sample, counted (a mean where samples choose their own steps).
        seconds: wall time.
        seed: of the noise; sample i of the batch has the global index first_sample + i.
        settings: the sampler's options, as plain values.
    """

    x: Tensor
    nfe: float
    seconds: float
    seed: int
    first_sample: int
    settings: Mapping[str, Any]


class CountedModel(ScoreModel):
    """A model that counts its evaluations, one for every row of a batch."""

    def __init__(self, model: ScoreModel) -> None:
        self._model, self.rows = model, 0
        self.sde, self.predicts, self.data_std = model.sde, model.predicts, model.data_std
        self.event_shape, self.dtype, self.device = model.event_shape, model.dtype, model.device

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Those of the model."""
        return self._model.moments

    def raw(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The model's own prediction at x_t with shape (B, *)."""
        self.rows += len(x_t)
        return self._model.raw(x_t, t)


@dataclass(frozen=True)
class Sampler:
    """A reverse-time sampler: equation, method, grid and options; make one with this module's functions.

    Args:
        name: for records and messages.
        equation: model -> the equation to integrate down to t_min, see ``sde_toolkit.equations``.
        method: of ``solvers``.
        num_steps: steps on the grid; None where the method chooses its own by rtol and atol.
        t_min: end of the run, 0 <= t_min < T.
        grid: times of the steps, see ``sde_toolkit.grids``.
        denoise: whether the last state is replaced by x0_hat there, for one more evaluation.
        corrector: run after every step, or None.
        rtol, atol: tolerances of adaptive methods.
        options: what else distinguishes the sampler, for the records.

    Raises:
        ValueError: num_steps below 1, t_min negative or not finite, a corrector with an adaptive method.
    """

    name: str
    equation: Callable[[ScoreModel], Equation] = field(repr=False)
    method: Method | Integrator
    num_steps: int | None
    t_min: float = T_MIN
    grid: Grid = grids.uniform
    denoise: bool = True
    corrector: Corrector | None = None
    rtol: float = 1e-5
    atol: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_steps is not None and operator.index(self.num_steps) < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 <= self.t_min < math.inf:
            raise ValueError(f"t_min must be a finite time >= 0, got {self.t_min}")
        if self.corrector is not None and self.num_steps is None:
            raise ValueError(f"a corrector needs a fixed grid, but {self.name} chooses its own steps")

    @property
    def settings(self) -> dict[str, Any]:
        """The options as plain values, for records."""
        common: dict[str, Any] = {"sampler": self.name, "t_min": self.t_min, "denoise": self.denoise}
        if self.num_steps is None:
            steps: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol}
        else:
            steps = {"num_steps": self.num_steps, "grid": _name(self.grid)}
        corrector = {} if self.corrector is None else {"corrector": repr(self.corrector)}
        return common | steps | corrector | dict(self.options)

    def sample(
        self,
        model: ScoreModel,
        num_samples: int,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        first_sample: int = 0,
        noise: NoiseSource | None = None,
    ) -> Samples:
        """Draw samples with the global indices first_sample, ..., first_sample + num_samples - 1.

        Args:
            model: any ``ScoreModel``.
            num_samples: at least 1.
            seed: of the noise.
            batch_size: samples per evaluation; all at once when None.  The samples do not depend on it.
            first_sample: global index of the first sample.
            noise: a source of normals for all samples in one batch, instead of the seed's own.

        Raises:
            ValueError: an argument out of range, or t_min >= T of the model's process; before any evaluation.
            solvers.SolverError: a sample became nan or inf, or an adaptive run stalled.
        """
        batch = self._check(model, num_samples, batch_size, noise)
        counted, start = CountedModel(model), time.perf_counter()
        parts = []
        for first in range(0, num_samples, batch):
            rows = range(first_sample + first, first_sample + min(first + batch, num_samples))
            source = noise or Normals(seed, rows, model.event_shape, model.dtype, model.device)
            parts.append(self._run(counted, source))
        seconds = time.perf_counter() - start
        return Samples(
            torch.cat(parts), counted.rows / num_samples, seconds, seed, first_sample, self.settings
        )

    def _check(
        self, model: ScoreModel, num_samples: int, batch_size: int | None, noise: NoiseSource | None
    ) -> int:
        """Refuse what cannot work with this model; return the batch size."""
        if num_samples < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError(f"num_samples and batch_size must be >= 1, got {num_samples} and {batch_size}")
        if noise is not None and batch_size is not None:
            raise ValueError("a noise source serves one batch: leave batch_size out when noise is given")
        if self.t_min >= model.sde.T:
            raise ValueError(f"t_min must be smaller than T = {model.sde.T} of the process, got {self.t_min}")
        # an evaluation at the end of the last step divides by sigma there
        looks_at_end = self.denoise or self.corrector is not None or self.method not in _NEVER_AT_END
        if looks_at_end and float(model.sde.sigma(torch.tensor(self.t_min, dtype=torch.float64))) == 0:
            raise ValueError(
                f"{self.name} evaluates the score at t_min, but sigma({self.t_min}) = 0; "
                "raise t_min, or use a sampler that does not look there with denoise=False"
            )
        return batch_size or num_samples

    def _control(self, model: ScoreModel, equation: Equation) -> FixedGrid | Adaptive:
        if self.num_steps is None:
            return Adaptive(equation.start, self.t_min, rtol=self.rtol, atol=self.atol)
        return FixedGrid(self.grid(model.sde, self.num_steps, self.t_min, equation.start))

    @torch.no_grad()
    def _run(self, model: ScoreModel, noise: NoiseSource) -> Tensor:
        """One batch, from the prior to the data."""
        corrector = self.corrector
        after = None if corrector is None else lambda interval, x: corrector(model, interval, x, noise)
        x_T = model.sde.prior_sample(noise.draw(0, PRIOR))
        equation = self.equation(model)
        control = self._control(model, equation)
        y = equation.enter(x_T)
        solution = solve(equation.term, y, self.method, control, noise=noise, after_step=after)
        x = equation.leave(solution.y, solution.ts[-1])
        return model.denoise(x, solution.ts[-1]) if self.denoise else x


def _name(grid: Grid) -> str:
    return str(getattr(grid, "__name__", repr(grid)))


def euler_maruyama(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Euler-Maruyama on the reverse SDE (2011.13456, appendix D); one evaluation per step."""
    return Sampler("euler_maruyama", reverse_sde, EULER_MARUYAMA, num_steps, t_min, grid, denoise)


def reverse_diffusion(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """The reverse-diffusion sampler (2011.13456, eq. 46), for any process; one evaluation per step."""
    return Sampler("reverse_diffusion", reverse_diffusion_step, RECURSION, num_steps, t_min, grid, denoise)


def ancestral(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Ancestral sampling: DDPM's under VP, SMLD's under VE (2011.13456, appendix F); one evaluation per
    step."""
    return Sampler(
        "ancestral", lambda model: ddim_step(model, 1.0), RECURSION, num_steps, t_min, grid, denoise
    )


def ddim(
    num_steps: int,
    *,
    eta: float = 0.0,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """DDIM (2010.02502, eq. 12); eta = 0 is deterministic, eta = 1 ancestral; one evaluation per step.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}; 0 is deterministic, 1 is ancestral sampling")
    return Sampler(
        "ddim",
        lambda model: ddim_step(model, eta),
        RECURSION,
        num_steps,
        t_min,
        grid,
        denoise,
        options={"eta": eta},
    )


def _flow(name: str, method: RungeKutta, num_steps: int, t_min: float, grid: Grid, denoise: bool) -> Sampler:
    return Sampler(name, probability_flow, method, num_steps, t_min, grid, denoise)


def euler(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Euler's method on the probability-flow ODE in t; one evaluation per step."""
    return _flow("euler", EULER, num_steps, t_min, grid, denoise)


def heun(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Heun's method on the probability-flow ODE in t; two evaluations per step."""
    return _flow("heun", HEUN, num_steps, t_min, grid, denoise)


def dopri5(*, rtol: float = 1e-5, atol: float = 1e-5, t_min: float = T_MIN, denoise: bool = True) -> Sampler:
    """Dormand-Prince 5(4) on the probability-flow ODE, the step size chosen for every sample on its own."""
    return Sampler("dopri5", probability_flow, DOPRI5, None, t_min, denoise=denoise, rtol=rtol, atol=atol)


def adaptive(
    method: Method | Integrator,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """Any adaptive method on the probability-flow ODE, for instance ``solvers.reference.SciPy("RK45")``."""
    name = f"scipy_{method.name.lower()}" if isinstance(method, Integrator) else method.name
    return Sampler(name, probability_flow, method, None, t_min, denoise=denoise, rtol=rtol, atol=atol)


def predictor_corrector(predictor: Sampler, corrector: Corrector | None = None) -> Sampler:
    """A predictor followed at every time by Langevin steps (2011.13456, algorithm 1).

    Args:
        predictor: any sampler on a fixed grid, for instance ``reverse_diffusion(500)``.
        corrector: ``Langevin()`` when None; ``AnnealedLangevin()`` suits data of few dimensions.
    """
    corrector = Langevin() if corrector is None else corrector
    return replace(predictor, name=f"{predictor.name}+langevin", corrector=corrector)
