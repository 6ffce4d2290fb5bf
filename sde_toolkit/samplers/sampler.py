"""The sampler: from noise to data in N network evaluations.

A sampler is a choice of equation (``sde_toolkit.samplers.equations``), of a method of ``solvers``, of a time
grid and, if wanted, of a corrector, of restarts and of guidance.  The literature's samplers are made by the
functions of ``sde_toolkit.samplers``.

A run starts from the prior at T, from the Gaussian with the data's moments there, or from given data with the
noise of any time (``sde_toolkit.samplers.starts``), and goes down to t_min >= 0.  The end is a matter of
options:

    denoise         the last state is replaced by x0_hat (Tweedie), for one more evaluation; it is the same as
                    one more step of first order from t_min to sigma = 0
    t_min = 0       for processes without noise at 0 the last step goes to sigma = 0 itself
    lower_final     (multistep methods) the last steps use the formulas of lower order, which those in
                    log(alpha / sigma) must do on the way to sigma = 0

Predictor-corrector runs some steps of Langevin dynamics after every step; restarts go back to a higher noise
level and down again.  ``callback`` is given every step of a fixed grid, and may replace the state.

``prepare`` makes everything that runs on one model share: the times, and the coefficients of every step.
Nothing is kept between calls elsewhere.  States are float32 at least; a model of half precision is asked in
its own type.

The noise of sample i of a seed is a function of (seed, i) alone: normals are keyed by sample and draw
(``solvers.brownian``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models import (
    Condition,
    ScoreModel,
    evaluating,
    in_run,
    outside_inference_mode,
    without_autocast,
)
from sde_toolkit.samplers import checks, grids
from sde_toolkit.samplers.choices import Choices
from sde_toolkit.samplers.records import Callback, CountedModel, Observed, Samples, StepInfo, WithoutDraw
from sde_toolkit.samplers.restarts import restarted
from sde_toolkit.samplers.starts import Start, check_start, given_states, start_state
from sde_toolkit.utils import require
from solvers import (
    EULER,
    EULER_MARUYAMA,
    RECURSION,
    SPREAD,
    Adams,
    Adaptive,
    FixedGrid,
    Integrator,
    Interval,
    Method,
    NoiseSource,
    Normals,
    SchemeMethod,
    SolverError,
    Term,
    solve,
)

_NEVER_AT_END = (EULER, EULER_MARUYAMA, RECURSION, SPREAD, Adams(1))
"""Methods that do not evaluate the end of a step; schemes check theirs."""


@dataclass(frozen=True, repr=False)
class Sampler(Choices):
    """A reverse-time sampler: equation, method, grid and options.

    Args:
        name: for records and messages.
        equation: model -> the term to integrate down to t_min, see ``sde_toolkit.samplers.equations``.
        method: of ``solvers``.
        num_steps: steps on the grid; None where the method chooses its own by rtol and atol.
        t_min: end of the run, 0 <= t_min < T; ``T_MIN`` stands for the first index of a chain.
        grid: times of the steps, see ``sde_toolkit.samplers.grids``.
        denoise: whether the last state is replaced by x0_hat there, for one more evaluation.
        corrector: run after every step, or None.
        corrector_first: run it before every step instead, at the time where the step begins.
        last_draw: False leaves the draw of the last step out, so that the run ends at the step's mean.
        start: "prior", "moments" for the Gaussian with the model's moments, or moments for that with these.
        restarts: intervals that are gone through again, or none.
        guidance: model -> the model that is sampled from, such as one with a threshold or a guided one.
        rtol, atol: tolerances of adaptive methods.
        max_steps: attempted steps of an adaptive method after which a sample has failed.
        options: what else distinguishes the sampler, for the records.

    The facts ``order``, ``strong_order``, ``weak_order`` and ``nfe`` are those that the method declares.

    Raises:
        ValueError: num_steps below 1, t_min negative or not finite; a corrector or restarts with a method
            that does the whole run or chooses its own steps; restarts of a stochastic method; no last
            draw where the last thing done is no step with a draw.
    """

    def prepare(
        self, model: ScoreModel, observation: Observed | None = None, *, t_start: float | None = None
    ) -> PreparedSampler:
        """The sampler ready for one model: its times, and every coefficient that does not depend on a state.

        Keep the result where a sampler is run again and again; ``sample`` prepares afresh every time.

        Args:
            model: any ``ScoreModel``.
            observation: what was observed of the samples, or None.
            t_start: first time of runs from given states, instead of T; every call then needs ``x_start``.

        Raises:
            ValueError: t_min >= T of the model's process, or an evaluation where there is no noise; a grid
                that cannot begin at t_start.
        """
        return self._prepared(model, observation, t_start, t_start is not None)

    def _prepared(
        self, model: ScoreModel, observation: Observed | None, t_start: float | None, given: bool
    ) -> PreparedSampler:
        """The sampler for a model, from the prior or from states that are given."""
        if not isinstance(model, ScoreModel):
            require("model", model, ScoreModel)
        if (own := self.on(model.sde)) is not self:
            return own._prepared(model, observation, t_start, given)
        checks.check_observation(observation)
        sampler = self if observation is None else observation.on(self)
        with outside_inference_mode(), evaluating(model), without_autocast():
            guided = sampler._guided(model)
            posed = model if observation is None else observation.model(guided)
            sampler._check(posed)
            if t_start is not None:
                t_start = checks.first_time(t_start, self.t_min, model.sde.T)
            for restart in sampler.restarts:
                restart.check(model.sde, t_start)
            control = sampler._control(posed, t_start, given)
            plan = None
            if isinstance(control, FixedGrid) and isinstance(sampler.method, Method):
                like = torch.empty((1, *model.event_shape), dtype=in_run(model).dtype, device=model.device)
                term = sampler.equation(guided if observation is None else posed)
                plan = sampler.method.prepare(term, control, like)
        return PreparedSampler(sampler, model, control, plan, posed, observation, t_start)

    def sample(
        self,
        model: ScoreModel,
        num_samples: int,
        *,
        condition: Condition | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        first_sample: int = 0,
        start: Start | None = None,
        x_start: Tensor | None = None,
        t_start: float | None = None,
        noised: bool = False,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
        throw: bool = True,
        gradients: bool = False,
        observation: Observed | None = None,
    ) -> Samples:
        """Draw samples with the global indices first_sample, ..., first_sample + num_samples - 1.

        Args:
            model: any ``ScoreModel``.
            num_samples: at least 1.
            condition: a class for all samples, or a tensor with one row per sample; for models that take one.
            seed: of the noise.
            batch_size: samples per evaluation; all at once when None.  Samples of a model that treats rows
                alike do not depend on it; those of a network agree to rounding.
            first_sample: global index of the first sample.
            start: of the runs, as for ``Sampler``; the sampler's own when None.
            x_start: clean data in model scale with shape (num_samples, *D) that the runs start from, with the
                noise of t_start (image to image, 2108.01073), instead of the prior.
            t_start: where these runs start, t_min < t_start <= T; where the grid does when None.  The same
                number of steps goes from there to t_min; grids on indices start at the nearest one.
            noised: x_start are the states at t_start themselves, such as latents: no noise is added.
            noise: a source of normals for all samples in one batch, instead of the seed's own.
            callback: called with a ``StepInfo`` after every step of every batch; needs a fixed grid.  Where
                it returns a tensor with the shape of the state, the run goes on from there.
            throw: raise an error if a sample fails; otherwise all are returned, the failed ones as far as
                they came, and ``Samples.failed`` tells which they are.
            gradients: let autograd record the run, on a fixed grid; only the states between the steps are
                kept, and every step is computed again for its gradient.
            observation: what was observed of the samples, such as ``Observed(LinearObservation(A, std), y)``:
                they are drawn given it, by a method of ``sde_toolkit.guidance``.

        Raises:
            TypeError: an argument of another type.
            ValueError: an argument out of range, or t_min >= T of the model's process; before any
                evaluation.
            solvers.SolverError: a sample became nan or inf, or an adaptive run stalled; its ``samples`` are
                global indices.
        """
        checks.check_draw(num_samples, batch_size, noise, callback, seed, first_sample, throw, gradients)
        checks.check_observation(observation)
        checks.check_given(x_start, t_start, start)
        sampler = self if start is None else replace(self, start=start)
        return sampler._prepared(model, observation, t_start, x_start is not None).sample(
            num_samples, condition=condition, seed=seed, batch_size=batch_size, first_sample=first_sample,
            x_start=x_start, noised=noised, noise=noise, callback=callback, throw=throw, gradients=gradients,
        )  # fmt: skip

    def _check_callback(self, callback: Callback | None, gradients: bool) -> None:
        for name, asked in (("a callback needs", callback is not None), ("gradients need", gradients)):
            if asked and (self.num_steps is None or isinstance(self.method, Integrator)):
                raise ValueError(f"{name} a fixed grid, but {self.name} does the whole run by itself")

    def _guided(self, model: ScoreModel) -> ScoreModel:
        return model if self.guidance is None else self.guidance(model)

    def _check(self, model: ScoreModel) -> None:
        """Refuse what cannot work with this model."""
        check_start(self.start, model)
        if model.device.type == "meta":
            raise ValueError(
                "model must hold values, got one on the meta device; load its weights, as in "
                "network.to_empty(device='cpu') and load_state_dict"
            )
        if self.t_min >= model.sde.T:
            raise ValueError(f"t_min must be smaller than T = {model.sde.T} of the process, got {self.t_min}")
        never = self.method in _NEVER_AT_END or isinstance(self.method, SchemeMethod)
        evaluates_end = self.denoise or (self.corrector and not self.corrector_first) or not never
        zero = torch.zeros((), dtype=torch.float64)  # where sigma can be 0, and a score divides by it
        if self.t_min == 0 and evaluates_end and float(model.sde.sigma(zero)) == 0:
            raise ValueError(
                f"{self.name} evaluates the score at t_min, but sigma({self.t_min}) = 0; "
                "raise t_min, or use a sampler that does not evaluate there, with denoise=False"
            )

    def _control(self, model: ScoreModel, t_start: float | None, given: bool) -> FixedGrid | Adaptive:
        begin = model.sde.T if t_start is None else t_start
        if self.num_steps is None:
            rtol = checks.relative_tolerance(self.rtol, model.dtype)
            return Adaptive(begin, self.t_min, rtol=rtol, atol=self.atol, max_steps=self.max_steps)
        grid = FixedGrid(self.grid(model.sde, self.num_steps, self.t_min, begin))
        checks.check_times(grid, self.grid, self.num_steps, self.t_min, model.sde.T, t_start)
        if not given:
            grids.warn_of_start(model.sde, grid.ts, self.name, self.start == "prior")
        if model.predicts == "noise" or self.name == "pndm":
            grids.warn_of_first_step(model.sde, grid.ts, self.name)
        return grid


@dataclass(frozen=True)
class PreparedSampler:
    """A sampler with everything that its runs on one model share, from ``Sampler.prepare``.

    Args:
        sampler: the sampler.
        model: what is sampled from; its weights may change, its process, prediction and moments may not.
        control: the times of the steps, or the tolerances.
        plan: the method's coefficients on these times, or None.
        posed: the model given what was observed, whose moments and conditions count; ``model`` without.
        observation: what was observed, or None.
        t_start: where given states start that every call needs; None for starts at random.
    """

    sampler: Sampler
    model: ScoreModel = field(repr=False)
    control: FixedGrid | Adaptive = field(repr=False)
    plan: Any = field(repr=False)
    posed: ScoreModel = field(repr=False)
    observation: Observed | None = None
    t_start: float | None = None

    def sample(
        self,
        num_samples: int,
        *,
        condition: Condition | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        first_sample: int = 0,
        x_start: Tensor | None = None,
        noised: bool = False,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
        throw: bool = True,
        gradients: bool = False,
    ) -> Samples:
        """Draw samples; arguments and errors are those of ``Sampler.sample``, but for the start.

        The states of ``x_start`` are at ``t_start`` of ``Sampler.prepare``.
        """
        sampler, model = self.sampler, self.model
        checks.check_draw(num_samples, batch_size, noise, callback, seed, first_sample, throw, gradients)
        sampler._check_callback(callback, gradients)
        given = given_states(x_start, noised, model, num_samples)
        checks.check_states(given, self.t_start, self._begin)
        seen = self.observation
        counted, start = CountedModel(in_run(model), callback is not None), time.perf_counter()
        guided = sampler._guided(counted)
        rows = (
            guided.conditions(condition, num_samples)
            if seen is None
            else seen.conditions(self.posed, condition, num_samples)
        )
        guided = guided if seen is None else seen.model(guided)
        batch, parts, failed = batch_size or num_samples, [], dict[int, str]()
        with outside_inference_mode(), evaluating(model, guided), without_autocast():
            equation = sampler.equation(guided)
            for first in range(0, num_samples, batch):
                part = range(first_sample + first, first_sample + min(first + batch, num_samples))
                source = noise or Normals(seed, part, model.event_shape, counted.dtype, model.device)
                row = None if rows is None else rows[first : first + batch]
                term = equation if row is None else replace(equation, args=(row,))
                with torch.set_grad_enabled(gradients):
                    z = checks.first_normals(source, (len(part), *model.event_shape), counted.dtype)
                    if given is None:
                        x = start_state(sampler.start, self.posed, z, self._begin, row)
                    else:
                        x = given.at(model, first, z, self._begin)
                    x, broken = self._run(counted, guided, term, x, row, source, callback, part, throw)
                parts.append(x)
                failed |= broken
        seconds = time.perf_counter() - start
        x = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(model.dtype)
        nfe = counted.rows / num_samples
        plain = rows is None and given is None and seen is None
        if plain and callback is None and sampler.guidance is None:
            checks.warn_of_moments(sampler.name, sampler.method, x, model.sde, sampler.t_min, nfe)
        settings = sampler.settings
        if given is not None:
            settings["x_start"] = "noised" if noised else "clean"
            settings["t_start"] = float(self._begin)
        return Samples(x, nfe, seconds, seed, first_sample, settings, model.scaling, failed)

    def motion(self, noise: NoiseSource) -> NoiseSource:
        """The normals of the steps: those given, with zeros for a last step that leaves its draw out."""
        sampler = self.sampler
        return noise if sampler.last_draw else WithoutDraw(noise, (sampler.num_steps or 0) - 1)

    @property
    def _begin(self) -> Tensor:
        """The first time of the runs, with shape ()."""
        control = self.control
        begin = control.t0 if isinstance(control, Adaptive) else float(control.ts[0])
        return torch.tensor(begin, dtype=torch.float64)

    def _run(
        self,
        counted: CountedModel,
        model: ScoreModel,
        term: Term,
        start: Tensor,
        condition: Tensor | None,
        noise: NoiseSource,
        callback: Callback | None,
        part: range,
        throw: bool,
    ) -> tuple[Tensor, dict[int, str]]:
        """One batch, the samples of ``part``, from their start to the data, and which of them failed."""
        sampler, control, before = self.sampler, self.control, counted.rows

        def after(interval: Interval, x: Tensor) -> Tensor | None:
            new = None
            for restart in sampler.restarts:
                again = restarted(restart, model.sde, term, sampler.method, control, interval, x, noise)
                if again is not None:
                    new = x = again
            corrected = sampler.corrected(interval)
            if sampler.corrector is not None and corrected is not None:
                new = x = sampler.corrector(model, corrected, x, noise, condition)
            if callback is not None:
                ends = (interval.number, sampler.num_steps or 0, interval.t, interval.s)
                info = StepInfo(*ends, x, counted.latest_x0_hat(), (counted.rows - before) / len(x), part[0])
                returned = checks.called(callback, info, self.model.dtype)
                new = new if returned is None else returned
            return new

        hooked = sampler.corrector is not None or sampler.restarts or callback is not None
        if sampler.corrector is not None and sampler.corrector_first:
            t = self._begin
            start = sampler.corrector(model, Interval(0, t, t, 0.0), start, noise, condition)
        try:
            solution = solve(
                term, start, sampler.method, control,
                noise=self.motion(noise),
                after_step=after if hooked else None, throw=throw, plan=self.plan,
                checkpoint=torch.is_grad_enabled(),
            )  # fmt: skip
            x = solution.y
            if sampler.denoise:
                x = model.denoise(x, solution.ts[-1], condition)
                checks.check_end(x, solution, throw)
        except SolverError as error:
            raise (error.located(part) if part[0] else error) from None
        return x, {} if throw else checks.failures(solution.status, x, part)
