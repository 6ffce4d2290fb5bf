"""What a run of a sampler consists of: moves of a state, each with the evaluations that it makes.

    step      one step of the sampler's grid
    noise     back to a higher noise level, where a restart is due; no evaluation
    down      one step of a restart
    correct   the corrector's Langevin steps at one time
    denoise   the clean prediction at the end

A run may begin later, as image to image does, where one of these asks for its first evaluation.  At a step it
is the sampler on the times that are left.  Inside a restart these are the rest of the way down and the steps
after it; restarts that go back to more noise than there was at the beginning are left out, as they would
undo what the run was given.  Anywhere else, in the middle of a step, one step of DDIM with the evaluation
that is asked for leads to the next of those times.

A method whose first steps take more evaluations than the others has no such steps in the middle of a run:
PNDM goes on with the multistep formulas alone (iPNDM, as with diffusers' ``skip_prk_steps``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, in_run
from sde_toolkit.samplers import PRESETS, PreparedSampler, Sampler, grids
from solvers import BrownianMotion, FixedGrid, Interval, Method, NoiseSource, SchemeMethod, StepNormals

Key = tuple[Any, ...]
"""Which move of a whole run: its kind, and numbers."""

_WITHOUT_START = {"pndm": "ipndm"}
_BEFORE = 1e-6
"""How far before its first evaluation a run begins whose first step is a closed form, relative to t."""
_SAME = 1e-6
"""Times and levels are one up to this, relative to them."""


class Leg:
    """A fixed grid that is gone through once.

    Args:
        method, term, plan: as for ``solvers.solve``.
        first: the first time.
        noise: of its steps, or None.
    """

    def __init__(
        self, method: Method, term: Any, first: Tensor, plan: Any, noise: BrownianMotion | None
    ) -> None:
        self.method, self._term, self._first, self._plan = method, term, first, plan
        self._noise = noise
        self._carry: Any = None

    def step(self, interval: Interval, y: Tensor) -> Tensor:
        """The state with shape (B, *) after a step from y."""
        carry = self._carry
        if interval.number == 0:
            carry = self.method.start(self._term, self._first, y, self._plan)
        step = self.method.step(self._term, interval, y, carry, self._noise)
        self._carry = step.carry
        return step.y

    def moved(self) -> None:
        """Take note that the state is not what the last step returned."""
        if self._carry is not None:
            self._carry = self.method.replaced(self._carry)


class Move(NamedTuple):
    """One part of a run.

    Attributes:
        key: which one.
        t: where it begins, with shape ().
        apply: the state after it for the state before, both with shape (B, *).
        leg: whose step it is, or which one it interrupts, or None.
    """

    key: Key
    t: Tensor
    apply: Callable[[Tensor], Tensor]
    leg: Leg | None = None

    @property
    def steps(self) -> bool:
        """Whether it is a step of a grid."""
        return self.key[0] in ("step", "down")


def program(
    prepared: PreparedSampler, guided: ScoreModel, noise: NoiseSource, keys: Sequence[Key] | None = None
) -> Iterator[Move]:
    """The moves of a run.

    Args:
        prepared: a sampler on a fixed grid.
        guided: the model that is asked.
        noise: normals.
        keys: of the steps, where they are part of another run.
    """
    sampler, control, method = prepared.sampler, prepared.control, prepared.sampler.method
    assert isinstance(control, FixedGrid)
    assert isinstance(method, Method)
    term, ts = sampler.equation(guided), control.ts
    steps = [("step", i) for i in range(len(ts) - 1)] if keys is None else keys
    shown = (
        isinstance(method, SchemeMethod) and method.evaluates_end and (sampler.corrector or sampler.restarts)
    )
    exposed = replace(method, exposed=True) if shown else method  # type: ignore[type-var]
    motion = prepared.motion(noise)
    motion = motion if isinstance(motion, BrownianMotion) else StepNormals(motion)
    main = Leg(exposed, term, ts[0], prepared.plan, motion)

    def correct(at: Interval) -> Iterator[Move]:
        if sampler.corrector is not None and (key := steps[at.number])[0] == "step":
            apply = partial(sampler.corrector, guided, at, noise=noise)
            yield Move(("correct", key[1]), at.s, apply, main)

    if sampler.corrector_first:
        yield from correct(Interval(0, ts[0], ts[0], 0.0))
    for interval, key in zip(control.intervals, steps, strict=True):
        yield Move(key, interval.t, partial(main.step, interval), main)
        yield from _restarts(prepared, term, guided, interval, noise, main)
        if (at := sampler.corrected(interval)) is not None:
            yield from correct(at)
    if sampler.denoise:
        yield Move(("denoise",), ts[-1], lambda y: guided.denoise(y, ts[-1]))


def _restarts(
    prepared: PreparedSampler, term: Any, guided: ScoreModel, interval: Interval, noise: Any, main: Leg
) -> Iterator[Move]:
    """The restarts that are due after a step."""
    sampler, model, sde = prepared.sampler, prepared.model, guided.sde
    method: Any = sampler.method
    for restart in sampler.restarts:
        if restart.due(sde, prepared.control.ts) != interval.number:  # type: ignore[union-attr]
            continue
        down = restart.down(sde, interval.s)
        like = torch.empty((1, *model.event_shape), dtype=in_run(model).dtype, device=model.device)
        plan = method.prepare(term, down, like)
        for k in range(restart.repeats):
            again = partial(restart.noised, sde, down, noise=noise, k=k)
            yield Move(("noise", int(restart.stream), k), interval.s, again, main)
            leg = Leg(method, term, down.ts[0], plan, None)
            for part in down.intervals:
                key = ("down", int(restart.stream), k, part.number)
                yield Move(key, part.t, partial(leg.step, part), leg)


class Beginning(NamedTuple):
    """Where a run begins that is part of a whole one.

    Attributes:
        moves: of the whole run.
        key: of the move that asks for the evaluation with which it begins.
        plain: whether that move asks for it first, at the time where it begins.
        t: the time of the evaluation, with shape ().
        end: of the whole run, with shape ().
        closed: whether a run's first step is a closed form, without an evaluation.
    """

    moves: Sequence[Move]
    key: Key
    plain: bool
    t: Tensor
    end: Tensor
    closed: bool


def later(
    begin: Beginning, sampler: Sampler, model: ScoreModel, guided: ScoreModel, noise: NoiseSource
) -> Iterator[Move]:
    """The moves of a run of ``sampler`` on ``model`` that begins in the middle, see the module's text."""
    kind = begin.key[0]
    number = next(i for i, move in enumerate(begin.moves) if move.key == begin.key)
    here, rest = begin.moves[number], begin.moves[number:]
    opens = begin.plain and (here.steps or (kind == "correct" and sampler.corrector_first))
    way = begin.key[:3] if kind == "down" else None
    left = [move for move in rest[not opens :] if move.key[0] == "step" or move.key[:3] == way]
    times, keys = [*(move.t for move in left), begin.end], [move.key for move in left]
    if not opens and float(begin.t) > float(times[0]) * (1 + _SAME):
        ddim = _on(PRESETS["ddim"].make(1, denoise=False), [begin.t, times[0]])
        yield from program(ddim.prepare(model, t_start=float(begin.t)), guided, noise, [begin.key])
    if not left:
        if sampler.denoise:
            yield Move(("denoise",), begin.end, lambda y: guided.denoise(y, begin.end))
        return
    most = float(guided.sde.nsr(times[0])) * (1 + _SAME)
    kept = [restart for restart in sampler.restarts if restart.nsr_max <= most]
    kept = [restart for restart in kept if kind != "down" or restart.stream != begin.key[1]]
    if begin.closed:
        times, keys = [(times[0] * (1 + _BEFORE)).clamp(max=guided.sde.T), *times], [("lead",), *keys]
    part = _on(replace(_without_start(sampler), restarts=tuple(kept)), times)
    moves = program(part.prepare(model, t_start=float(times[0])), guided, noise, keys)
    if sampler.corrector_first and kind == "step" and opens:
        next(moves)  # the correction before this step, which it did not ask for
    yield from moves


def _on(sampler: Sampler, times: Sequence[Tensor]) -> Sampler:
    """A sampler on other times, for states that are given."""
    grid = grids.Explicit(torch.stack(list(times)))
    return replace(sampler, num_steps=len(times) - 1, grid=grid, t_min=float(times[-1]), start="prior")


def _without_start(sampler: Sampler) -> Sampler:
    if sampler.name not in _WITHOUT_START:
        return sampler
    other = PRESETS[_WITHOUT_START[sampler.name]].make(sampler.num_steps, order=sampler.options["order"])
    return replace(sampler, equation=other.equation, method=other.method)
