"""Sequential Monte Carlo given an observation: particles, weighted and resampled on their way to data.

The twisted diffusion sampler (2306.17775), algorithm 1, for P particles and the levels t_1 > t_2 > ... > t_N
> 0, where the network is evaluated, and t_{N+1} = 0:

    paper                                                      here
    1  x_{t_1} ~ p, w <- twist(x_{t_1})                        the same; given y where moments are known
    2  for t = t_1, ..., t_N, and s the next level:
    3      resample the particles by w                         of groups whose weights are uneven
    4      x_s ~ q(x_s | x_t, y)                               ``kernels``: proposals
    5      w <- p(x_s | x_t) twist(x_s) / q(x_s | x_t, y) / twist(x_t)
    6  at s = 0 the twist is the likelihood p(y | x0) itself

Particles of a group are a weighted sample of the posterior of the model in N steps, and the mean of the
weights has the mean p(y), for every P; errors of averages fall like P^(-1/2).  What P does not mend is the
error of the model in N steps, p(x0) as the kernel makes it; with "moments" that is 0 for Gaussian data, and
with proposals given y all weights are then equal.  The bias of a group of P particles falls like 1 / P.

Groups are independent of each other, and are computed whole also where a part of their samples is asked for.

Reference: Wu et al., "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models"
(2306.17775), algorithm 1 and section 3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.gains import Gains
from sde_toolkit.guidance.inverse.observations import LinearObservation, Observation
from sde_toolkit.guidance.inverse.observed import Observed
from sde_toolkit.guidance.inverse.particles.groups import (
    Draws,
    batches,
    check_groups,
    effective,
    failures,
    groups_of,
    resampled,
    weighed,
)
from sde_toolkit.guidance.inverse.particles.kernels import KERNELS, TWISTS, Steps
from sde_toolkit.models import (
    Condition,
    ScoreModel,
    evaluating,
    in_run,
    outside_inference_mode,
    without_autocast,
)
from sde_toolkit.samplers import T_MIN, CountedModel, Grid, Samples, check_draw, grids, label
from sde_toolkit.utils import check_fields, checked, integer, require

MOST_JACOBIAN = 64
"""Most features of which the covariance of x0 given x_t is taken from the network, row by row."""


@dataclass(frozen=True)
class Particles(Samples):
    """Samples given an observation from groups of particles, and what the weights say of p(y).

    Attributes:
        particles: P, of every group.
        first_group: the number of the first group.
        log_evidence: log of an unbiased estimate of p(y), in nats, with shape (G,), one per group.
        log_weights: normalised to the sum 1 in every group, before the last resampling, with shape (G, P).
    """

    particles: int = field(kw_only=True)
    first_group: int = field(kw_only=True)
    log_evidence: Tensor = field(kw_only=True)
    log_weights: Tensor = field(kw_only=True)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {len(self.log_evidence)} groups of {self.particles} particles)"

    @property
    def effective(self) -> Tensor:
        """The effective number of particles before the last resampling, 1 / sum w^2, with shape (G,)."""
        return effective(self.log_weights)


@dataclass(frozen=True)
class TwistedSMC:
    """The twisted diffusion sampler: exact for the model in ``num_steps`` steps as ``particles`` grows.

    Args:
        num_steps: evaluations of the network per particle, at least 2.
        particles: P, in every group.  The particles of a group depend on each other.  Where y is sharp and
            the twist poor, as "likelihood" is, few keep their weight (``Particles.effective``): take more.
        kernel: what x0 given x_t is taken to be, "jacobian", "moments" or "small", see ``kernels``; when
            None, for linear observations, "jacobian" for exact models of at most ``MOST_JACOBIAN`` features,
            whose derivatives are right, "moments" where the model has them, and "jacobian" again; else
            "small".
        twist: "jacobian", "moments", "isotropic" or "likelihood"; when None as the kernel, "isotropic" with
            "small", and "likelihood" for observations that are not linear.
        grid: times of the evaluations; when None equal steps of arctan(nsr / c), c half the std of the data.
        resample_below: groups are resampled when the effective number of particles is below this part of P.
        t_min: time of the last evaluation.

    Raises:
        ValueError: a number out of range, or another kernel or twist.
    """

    num_steps: int
    particles: int = 64
    kernel: str | None = None
    twist: str | None = None
    grid: Grid | None = None
    resample_below: float = 0.5
    t_min: float = T_MIN

    def __post_init__(self) -> None:
        check_fields(self)
        integer("num_steps", self.num_steps, 2)
        integer("particles", self.particles, 1)
        if not 0 <= self.resample_below <= 1:
            raise ValueError(
                f"resample_below must be a part of the particles, 0 to 1, got {self.resample_below}"
            )
        if not 0 < self.t_min < math.inf:
            raise ValueError(
                f"t_min must be positive, because the network is evaluated there, got {self.t_min}"
            )
        for name, value, all_ in (("kernel", self.kernel, KERNELS), ("twist", self.twist, TWISTS)):
            if value is not None and value not in all_:
                raise ValueError(f"{name} must be {', '.join(map(repr, all_))} or None, got {value!r}")

    @property
    def nfe(self) -> int:
        """Evaluations per particle."""
        return self.num_steps

    @property
    def settings(self) -> dict[str, Any]:
        """The options as plain values, for records."""
        return {"sampler": "twisted_smc"} | asdict(self) | {"grid": self.grid and label(self.grid)}

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
        throw: bool = True,
    ) -> Particles:
        """Draw samples with the global indices first_sample, ..., first_sample + num_samples - 1.

        Args:
            model: any ``ScoreModel``.
            num_samples: at least 1; a multiple of P wastes none.
            observation: the law of y given x0, and y; where y has one row per sample, the samples of a group
                have the same.  Its method is not used.
            condition: a class for all samples, or one row per sample, the same within a group.
            seed: of the noise and of the resampling.
            batch_size: samples per evaluation, rounded down to whole groups, one at least; all when None.
            first_sample: global index of the first sample.
            throw: raise an error if a group fails; otherwise ``Particles.failed`` names its samples.

        Raises:
            TypeError: an argument of another type.
            ValueError: an argument out of range; an observation or a model that the kernel or the twist
                cannot do; rows of one group that differ.
            solvers.SolverError: no particle of a group has a weight above 0.
        """
        check_draw(num_samples, batch_size, None, None, seed, first_sample, throw, False)
        require("observation", observation, Observed)
        P, wanted = self.particles, range(first_sample, first_sample + num_samples)
        groups, start = groups_of(wanted, P), time.perf_counter()
        run = _Run(self.on(model, observation.observation), model, observation.observation)
        y, rows = self._rows(model, observation, condition, wanted)
        first = (groups * P).clamp(min=wanted.start) - wanted.start  # a sample of every group
        y = y if observation.shared else y[first.to(y.device)]
        rows = None if rows is None else rows[first.to(rows.device)]
        x, log_evidence, log_weights = run(
            seed, groups, y, rows, batch_size or len(groups) * P, each=not observation.shared
        )
        x = x[wanted.start - int(groups[0]) * P :][:num_samples].to(model.dtype)
        failed = failures(log_evidence, x, wanted, P, float(run.times[-1]), throw)
        return Particles(
            x, run.model.rows / num_samples, time.perf_counter() - start, seed, first_sample,
            run.smc.settings, model.scaling, failed, particles=P, first_group=int(groups[0]),
            log_evidence=log_evidence, log_weights=log_weights,
        )  # fmt: skip

    @checked
    def sample_given(
        self,
        model: ScoreModel,
        observation: Observation,
        y: Tensor,
        condition: Tensor | None,
        parts: Sequence[range],
        seed: int,
        batch_size: int,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[list[Tensor], float, float]:
        """For each of n observations the samples with the indices of its part, with shape (len(part), *D);
        network evaluations in all, and seconds.

        Args:
            model, observation, seed, batch_size: as for ``sample``.
            y: with shape (n, *Y).
            condition: of the model, with shape (n, ...), or None.
            parts: of the samples, n of them without a group in common.
            progress: told how many samples are finished, batch by batch.

        Raises:
            ValueError, solvers.SolverError: as for ``sample``.
        """
        if not len(parts) or not all(len(part) and part.step == 1 and part.start >= 0 for part in parts):
            raise ValueError("parts must be one or more ranges of indices from 0 up, none of them empty")
        integer("batch_size", batch_size, 1)
        y = observation.rows(y, len(parts))
        condition = model.conditions(condition, len(parts))
        P, found, start = self.particles, list[Tensor](), time.perf_counter()
        run = _Run(self.on(model, observation), model, observation)
        groups = [groups_of(part, P) for part in parts]
        for some in batches([len(own) for own in groups], max(1, batch_size // P)):
            sizes = [len(groups[i]) for i in some]
            at = torch.tensor(some).repeat_interleave(torch.tensor(sizes))
            own = None if condition is None else condition[at.to(condition.device)]
            x, log_evidence, _ = run(
                seed, torch.cat([groups[i] for i in some]), y[at.to(y.device)], own, batch_size, each=True
            )
            of_parts = zip(x.split([P * n for n in sizes]), log_evidence.split(sizes), some, strict=True)
            for of_part, evidence, i in of_parts:
                mine = of_part[parts[i].start - int(groups[i][0]) * P :][: len(parts[i])]
                failures(evidence, mine, parts[i], P, float(run.times[-1]), True)
                found.append(mine)
            if progress is not None:
                progress(sum(len(parts[i]) for i in some))
        return found, run.model.rows, time.perf_counter() - start

    def on(self, model: ScoreModel, observation: Observation) -> TwistedSMC:
        """The same with the kernel, the twist, the grid and the end that are taken for this model.

        Raises:
            ValueError: what cannot be had with them.
        """
        linear, moments = isinstance(observation, LinearObservation), model.moments is not None
        n = math.prod(model.event_shape)
        kernel, twist = self.kernel, self.twist
        if kernel is None and linear and moments and not (model.exact and n <= MOST_JACOBIAN):
            kernel = "moments"
        if kernel is None:
            kernel = "jacobian" if linear and n <= MOST_JACOBIAN else "small"
        if twist is None:
            twist = ("isotropic" if kernel == "small" else kernel) if linear else "likelihood"
        self._check(model, observation, kernel, twist)
        end = model.sde.default_t_min
        t_min = self.t_min if end is None or self.t_min != T_MIN else end
        grid = grids.Arctan(0.5 * model.data_std) if self.grid is None else self.grid
        return replace(self, kernel=kernel, twist=twist, grid=grid, t_min=t_min)

    def _check(self, model: ScoreModel, observation: Observation, kernel: str, twist: str) -> None:
        n, T = math.prod(model.event_shape), model.sde.T
        if tuple(observation.event_shape) != tuple(model.event_shape):
            raise ValueError(
                f"observation must be of samples with shape {tuple(model.event_shape)}, the model's, got "
                f"{tuple(observation.event_shape)}; give event_shape={tuple(model.event_shape)}"
            )
        if self.t_min >= T:
            raise ValueError(f"t_min must be smaller than T = {T} of the process, got {self.t_min}")
        if not isinstance(observation, LinearObservation) and (kernel, twist) != ("small", "likelihood"):
            raise ValueError(
                f"kernel {kernel!r} with twist {twist!r} needs a LinearObservation, got {observation!r}; "
                "leave both out, for 'small' and 'likelihood'"
            )
        if "moments" in (kernel, twist) and model.moments is None:
            raise ValueError(
                "'moments' needs the mean and the covariance of the data, but the model has none; set "
                "model.moments = estimate_moments(x) of examples x in model scale"
            )
        if "jacobian" in (kernel, twist) and n > MOST_JACOBIAN:
            raise ValueError(
                f"'jacobian' needs at most {MOST_JACOBIAN} features, one backward pass each, got {n}; take "
                "'moments'"
            )
        without = isinstance(observation, LinearObservation) and not bool(observation.std.any())
        if without and (kernel == "small" or twist == "likelihood"):
            raise ValueError(
                f"std of the observation must be positive for kernel {kernel!r} and twist {twist!r}, got 0; "
                "take kernel='moments' or a small std"
            )

    def _rows(
        self, model: ScoreModel, observed: Observed, condition: Condition | None, wanted: range
    ) -> tuple[Tensor, Tensor | None]:
        """y with shape (1, *Y) or (B, *Y), and the conditions with shape (B, ...), of the samples."""
        y = observed.observation.rows(observed.y, None if observed.shared else len(wanted))
        rows = model.conditions(condition, len(wanted))
        for name, value in (("y", y), ("condition", rows)):
            if value is not None and len(value) == len(wanted):
                check_groups(name, value, wanted, self.particles)
        return y, rows


class _Run:
    """The runs of one sampler on one model and one observation."""

    def __init__(self, smc: TwistedSMC, model: ScoreModel, observation: Observation) -> None:
        self.smc, self.original, self.observation = smc, model, observation
        self.model = CountedModel(in_run(model))
        sde = model.sde
        assert smc.grid is not None
        self.times = smc.grid(sde, smc.num_steps - 1, smc.t_min, sde.T)
        if len(self.times) != smc.num_steps or not float(self.times[-1]) > 0:
            raise ValueError(
                f"grid {label(smc.grid)} must give num_steps = {smc.num_steps} times above 0, got "
                f"{len(self.times)} down to {float(self.times[-1])}"
            )
        self.levels = [*sde.nsr(self.times).square().tolist(), 0.0]
        self.gains: Gains | None = None
        if model.moments is not None and isinstance(observation, LinearObservation):
            self.gains = Gains(model.moments, observation)

    def __call__(
        self, seed: int, groups: Tensor, y: Tensor, condition: Tensor | None, batch_size: int, each: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples with shape (G P, *D), log evidences with shape (G,) and log weights with shape (G, P).

        Args:
            seed: of all.
            groups: their numbers, with shape (G,).
            y: with shape (1, *Y) for all, or (G, *Y) where ``each`` has its own.
            condition: of the model, with shape (G, ...), or None.
            batch_size: samples per evaluation, at least one group.
            each: see y.
        """
        P, parts = self.smc.particles, []
        y = y.to(self.model.device, self.model.dtype)
        with outside_inference_mode(), evaluating(self.original), without_autocast(), torch.no_grad():
            for at in torch.arange(len(groups)).split(max(1, batch_size // P)):
                own = y[at.to(y.device)].repeat_interleave(P, 0) if each else y
                rows = None if condition is None else condition[at.to(condition.device)]
                rows = None if rows is None else rows.repeat_interleave(P, 0)
                parts.append(self._groups(seed, groups[at], own, rows))
        x, log_evidence, log_weights = (torch.cat(v) for v in zip(*parts, strict=True))
        return x, log_evidence, log_weights

    def _groups(
        self, seed: int, groups: Tensor, y: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for one evaluation's groups, y with shape (1, *Y) or (G P, *Y)."""
        smc, P, model = self.smc, self.smc.particles, self.model
        assert smc.kernel is not None
        assert smc.twist is not None
        steps = Steps(model, self.observation, (smc.kernel, smc.twist), y, condition, self.gains)
        draws = Draws(seed, groups, P, model, steps)
        u, log_w = self._start(steps, draws)
        cloud = steps.evaluate(u, self.times[0])
        log_w = (log_w + cloud.twist).reshape(len(groups), P)
        log_evidence, x = torch.zeros_like(log_w[:, 0], dtype=torch.float64), u
        for k, (n2_t, n2_s) in enumerate(zip(self.levels[:-1], self.levels[1:], strict=True)):
            index, log_w, gained = self._resampled(log_w, draws.uniforms(k))
            log_evidence = log_evidence + gained
            cloud = cloud if index is None else cloud.pick(index)
            x, ratio = steps.move(cloud, draws.normals(k + 1), n2_t, n2_s)
            after = ratio - cloud.twist
            if n2_s > 0:
                cloud = steps.evaluate(x, self.times[k + 1])
                after = after + cloud.twist
            log_w = weighed(log_w + after.reshape(log_w.shape))
        total = log_w.double().logsumexp(1)
        log_evidence = log_evidence + total - math.log(P)
        where = resampled(log_w, draws.uniforms(len(self.levels)), draws.uniforms(len(self.levels) + 1))
        return x[where.flatten()], log_evidence, log_w - total[:, None].to(log_w)

    def _start(self, steps: Steps, draws: Draws) -> tuple[Tensor, Tensor]:
        """States u with shape (B, *D) at the first level, and log p / q with shape (B,)."""
        model, t = self.model, self.times[0]
        z = draws.normals(0)
        if self.gains is not None:
            return steps.start(z, self.levels[0])
        if model.moments is not None:
            x = model.moments.marginal_sample(z[0], model.sde.alpha(t), model.sde.sigma(t))
        else:
            x = model.sde.prior_sample(z[0])
        return x / model.sde.alpha(t).to(x), x.new_zeros(len(x))

    def _resampled(self, log_w: Tensor, u: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Numbers of the particles that go on, None for all; their log weights (G, P); what the groups that
        were resampled add to log p(y), with shape (G,)."""
        G, P = log_w.shape
        log_w = weighed(log_w)
        uneven = effective(log_w) < self.smc.resample_below * P
        gained = torch.zeros(G, dtype=torch.float64, device=log_w.device)
        if not bool(uneven.any()):
            return None, log_w, gained
        gained = torch.where(uneven, log_w.double().logsumexp(1) - math.log(P), gained)
        own = torch.arange(G * P, device=log_w.device).reshape(G, P)
        index = torch.where(uneven[:, None], resampled(log_w, u), own)
        return index.flatten(), torch.where(uneven[:, None], 0.0, log_w), gained
