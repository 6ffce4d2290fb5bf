"""The split Gibbs sampler: samples of p(x | y) from draws of p(x0 | x_t) and Gaussian draws, in turn.

Data x are joined by a second variable z, at a distance rho from x in law, of which y = A z + noise is seen:

    pi(x, z)  ~  p(x) N(z; x, rho^2 I) N(y; A z, R)

    z given x    Gaussian, drawn exactly: with z0 = x + rho N(0, I) and y0 = A z0 + N(0, R),
                 z = z0 + rho^2 A^T (rho^2 A A^T + R)^-1 (y - y0)
    x given z    is x0 given x_t = alpha z at the noise-to-signal ratio rho: the reverse SDE from there,
                 by any sampler that draws

Integrating z out, x has the law p(x) N(y; A x, R + rho^2 A A^T).  The papers take R = s^2 I, the noise of the
observation, and are exact as rho goes to 0 only.  Here what the split adds is taken from it: along every
eigenvector of A A^T, with its eigenvalue e, R is max(s^2 - rho^2 e, 0), so that y given x has the variance

    max(s^2, rho^2 e)

For rho <= s / (largest e)^(1/2), which is the default, the stationary law of x is p(x | y), whatever rho; the
reverse SDE's steps and the number of iterations are what is left.  For larger ones it is the posterior given
y with the noise rho e^(1/2) in these directions.

rho falls geometrically from ``rho_start`` over the first part of the iterations and then stays: a large rho
moves x far, modes included, a small one by about rho in an iteration, so that a Gaussian direction of
standard deviation l that y does not see forgets its start in about l^2 / rho^2 iterations.

Iteration k of sample i of a seed has noise of its own: any split into batches gives the same samples.

Not promised: that a chain of few iterations has the stationary law, least where modes are far apart and rho
is small; the steps of the reverse SDE have errors of their own, see ``guidance.calibrate``.

References: Coeurdoux, Dobigeon and Chainais, "Plug-and-Play Split Gibbs Sampler: Embedding Deep Generative
Priors in Bayesian Inference" (2304.11134); Wu et al., "Principled Probabilistic Imaging using Diffusion
Models as Plug-and-Play Priors" (2405.18782).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.maps import EntriesMap
from sde_toolkit.guidance.inverse.observations import LinearObservation, Measured, Observation, reciprocal
from sde_toolkit.guidance.inverse.observed import Observed
from sde_toolkit.models import Condition, ScoreModel, in_run, known_moments
from sde_toolkit.samplers import PreparedSampler, Sampler, Samples, sde_dpm_solver_pp
from sde_toolkit.utils import Stream, check_fields, checked, integer, require, seed_sequence
from solvers import FixedGrid, Normals

LEAST_RHO = 0.02
"""The least default of rho, in units of the data's standard deviation: below, chains hardly move."""

_ABOVE = 1.1
"""The least default of rho, in units of the noise-to-signal ratio at t_min, which it must be above."""

START_RHO = 2.0
"""The default of ``rho_start``, in units of the data's standard deviation."""

NUM_STEPS = 20
"""Steps of the reverse SDE of an iteration, where no sampler is given."""


@dataclass(frozen=True)
class SplitGibbs:
    """The split Gibbs sampler for linear observations with Gaussian noise.

    Args:
        num_iterations: of both steps; each costs a run of the sampler.
        rho: the distance in law of x from z at the end, in model scale; when None s / (largest e)^(1/2), as
            the module says, and at least ``LEAST_RHO`` times the data's std, and above the ratio at t_min.
        rho_start: at the first iteration; when None ``START_RHO`` times the data's std.
        annealed: the part of the iterations in which rho falls, 0 to 1.
        sampler: with draws of its own, of x0 given x_t; when None ``sde_dpm_solver_pp`` with ``NUM_STEPS``.

    Raises:
        ValueError: a number out of range, or a sampler without noise.
    """

    num_iterations: int
    rho: float | None = None
    rho_start: float | None = None
    annealed: float = 0.5
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_iterations", self.num_iterations, 1)
        for name, value in (("rho", self.rho), ("rho_start", self.rho_start)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, or None, got {value}")
        if self.rho is not None and self.rho_start is not None and self.rho_start < self.rho:
            raise ValueError(f"rho_start must be at least rho = {self.rho}, got {self.rho_start}")
        if not 0 <= self.annealed <= 1:
            raise ValueError(f"annealed must be a part of the iterations, 0 to 1, got {self.annealed}")
        if self.sampler is not None and self.sampler.weak_order is None:
            raise ValueError(
                "sampler must draw x0 given x_t, by a reverse SDE such as ancestral or sde_dpm_solver_pp, "
                f"got {self.sampler.name}, which has no noise"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The options as plain values, for records."""
        own = {
            name: value for name, value in asdict(replace(self, sampler=None)).items() if name != "sampler"
        }
        inner = {} if self.sampler is None else {f"inner_{k}": v for k, v in self.sampler.settings.items()}
        return {"sampler": "split_gibbs"} | own | inner

    def on(self, model: ScoreModel, observation: Observation) -> SplitGibbs:
        """The same with the distances and the sampler that are taken for this model.

        Raises:
            ValueError: an observation that is not linear or of another event shape, or a rho that the process
                has not above the end of the sampler.
        """
        if not isinstance(observation, LinearObservation):
            raise ValueError(f"SplitGibbs needs a LinearObservation, got {observation!r}; take TwistedSMC")
        if tuple(observation.event_shape) != tuple(model.event_shape):
            raise ValueError(
                f"observation must be of samples with shape {tuple(model.event_shape)}, the model's, got "
                f"{tuple(observation.event_shape)}; give event_shape={tuple(model.event_shape)}"
            )
        std = model.data_std
        map_, s = observation.scaled
        sampler = (sde_dpm_solver_pp(NUM_STEPS) if self.sampler is None else self.sampler).on(model.sde)
        ends = model.sde.nsr(torch.tensor([sampler.t_min, model.sde.T], dtype=torch.float64)).tolist()
        rho = self.rho
        if rho is None:
            most = 1.0 if isinstance(map_, EntriesMap) else math.sqrt(max(float(map_.spectrum.max()), 1e-300))
            least = max(LEAST_RHO * std, _ABOVE * ends[0])
            rho = min(max(float(s) / most, least), START_RHO * std)
        start = max(rho, START_RHO * std if self.rho_start is None else self.rho_start)
        if not ends[0] < rho < ends[1]:
            raise ValueError(
                f"rho must lie between the noise-to-signal ratios {ends[0]:.4g} at t_min and {ends[1]:.4g} "
                f"at T, got {rho:.4g}"
            )
        return replace(self, rho=rho, rho_start=min(start, 0.999 * ends[1]), sampler=sampler)

    def rhos(self) -> list[float]:
        """rho of every iteration; of what ``on`` returns."""
        assert self.rho is not None
        assert self.rho_start is not None
        falling = round(self.annealed * self.num_iterations)
        ratio = self.rho / self.rho_start
        return [
            self.rho_start * ratio ** (k / falling) if k < falling else self.rho
            for k in range(self.num_iterations)
        ]

    @checked
    def sample(
        self,
        model: ScoreModel,
        num_samples: int,
        *,
        observation: Observed,
        condition: Condition | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        first_sample: int = 0,
    ) -> Samples:
        """Draw samples, the ends of as many chains, with the global indices first_sample, ...

        Args:
            model: any ``ScoreModel``.
            num_samples: at least 1.
            observation: the law of y given x0, and y, one for all or one row per sample.  Its method is not
                used.
            condition: a class for all samples, or one row per sample.
            seed: of the noise.
            batch_size: samples per evaluation; all at once when None.
            first_sample: global index of the first sample.

        Raises:
            TypeError: an argument of another type.
            ValueError: an argument out of range; an observation or a rho that cannot be had.
            solvers.SolverError: a sample became nan or inf.
        """
        integer("num_samples", num_samples, 1)
        integer("first_sample", first_sample, 0)
        integer("seed", seed, 0, 2**64 - 1)
        if batch_size is not None:
            integer("batch_size", batch_size, 1)
        require("observation", observation, Observed)
        seen = observation.observation
        self.on(model, seen)
        y = seen.rows(observation.y, None if observation.shared else num_samples)
        rows, batch = model.conditions(condition, num_samples), batch_size or num_samples
        chains, parts = self.chains(model, seen, seed), []
        for first in range(0, num_samples, batch):
            part = range(first_sample + first, first_sample + min(first + batch, num_samples))
            given = None if rows is None else rows[first : first + batch]
            parts.append(chains(part, y if len(y) == 1 else y[first : first + batch], given))
        return Samples(
            torch.cat(parts), chains.rows / num_samples, chains.seconds, seed, first_sample,
            chains.gibbs.settings, model.scaling,
        )  # fmt: skip

    def chains(self, model: ScoreModel, observation: Observation, seed: int) -> Chains:
        """The chains on one model, ready to run batch by batch; errors are those of ``on``."""
        return Chains(self.on(model, observation), model, observation, seed)


class Chains:
    """The chains of one sampler on one model and one observation.

    Attributes:
        rows: evaluations of the network by now.
        seconds: of wall time.
    """

    def __init__(self, gibbs: SplitGibbs, model: ScoreModel, observation: Observation, seed: int) -> None:
        assert isinstance(observation, LinearObservation)
        assert gibbs.sampler is not None
        self.gibbs, self.model, self.observation, self.seed = gibbs, model, observation, seed
        rhos = gibbs.rhos()
        prepared = {rho: _prepared(gibbs.sampler, model, rho) for rho in set(rhos)}
        self._plan = [prepared[rho] for rho in rhos]
        self._dtype, self.rows, self.seconds = in_run(model).dtype, 0.0, 0.0

    def __call__(self, keys: Sequence[int] | Tensor, y: Tensor, condition: Tensor | None) -> Tensor:
        """The ends x of the chains with the numbers ``keys``, with shape (B, *D), for y with shape (B, *Y) or
        (1, *Y)."""
        begin, model, count, dtype = time.perf_counter(), self.model, len(keys), self._dtype
        each = math.prod(model.event_shape) + self.observation.A.count
        measured = self.observation.measured(y, torch.empty(0, dtype=dtype, device=model.device))
        normals = Normals(self.seed, keys, (each,), dtype, model.device)
        x = known_moments(model).mean.to(model.device, dtype).expand(count, *model.event_shape)
        for k, prepared in enumerate(self._plan):
            assert prepared.t_start is not None
            t = torch.tensor(prepared.t_start, dtype=torch.float64)
            z = given_x(x, measured, float(model.sde.nsr(t)), normals.draw(k, Stream.GIBBS))
            seed = _seed(self.seed, k)
            noise = Normals(seed, keys, model.event_shape, dtype, model.device)
            made = prepared.sample(
                count, condition=condition, seed=seed, noise=noise, noised=True,
                x_start=(model.sde.alpha(t).to(z) * z).to(model.dtype),
            )  # fmt: skip
            x, self.rows = made.x.to(dtype), self.rows + made.nfe * count
        self.seconds += time.perf_counter() - begin
        return x.to(model.dtype)


def given_x(x: Tensor, measured: Measured, rho: float, draws: Tensor) -> Tensor:
    """A draw of z given x and y, with shape (B, *D).

    Args:
        x: with shape (B, *D).
        measured: y, A and s.
        rho: the distance in law of x from z.
        draws: standard normals with shape (B, n + m).
    """
    s2, r2 = measured.std**2, rho**2
    first, second = draws.split((x[0].numel(), draws.shape[1] - x[0].numel()), 1)
    z = x + rho * first.reshape(x.shape)
    y = measured.forward(z) + measured.of_gram(lambda e: (s2 - r2 * e).clamp(min=0).sqrt(), second)
    change = measured.of_gram(lambda e: r2 * reciprocal((r2 * e).clamp(min=s2)), measured.values - y)
    return z + measured.backward(change)


def _prepared(sampler: Sampler, model: ScoreModel, rho: float) -> PreparedSampler:
    """The sampler from the time at which the noise-to-signal ratio is rho; on indices, from the nearest."""
    t = float(model.sde.inverse_nsr(torch.tensor(rho, dtype=torch.float64)))
    control = sampler.prepare(model, t_start=t).control
    begin = float(control.ts[0]) if isinstance(control, FixedGrid) else t
    return sampler.prepare(model, t_start=begin)


def _seed(seed: int, iteration: int) -> int:
    """The seed of the reverse SDE of an iteration."""
    low, high = seed_sequence(seed, Stream.GIBBS, iteration).generate_state(2).tolist()
    return int(high) << 32 | int(low)
