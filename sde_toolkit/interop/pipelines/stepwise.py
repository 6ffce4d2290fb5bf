"""A run of a sampler turned inside out: whoever drives it evaluates the network, one call at a time.

A sampler calls its model; a pipeline of another library calls its network itself and hands the output to a
scheduler.  Between two evaluations a run is the state y of the solver and what it carries, so

    request = run.begin(x)                  the first input of the network, and the time that it is told
    request = run.answer(output)            the next one; None at the end, when ``run.result`` holds the
    samples

A run is a list of moves (``programs``): steps, corrections, restarts, the end.  Inside a move with several
evaluations it is begun again with the answers that are known: a move is a function of the state, the carry,
its draws and the answers, so that this changes nothing but the cost of its linear combinations.  There is no
thread and no hidden state; the samples are those of ``Sampler.sample``, operation by operation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sde_toolkit.interop.pipelines.opening import model_of
from sde_toolkit.interop.pipelines.programs import Beginning, Key, later, program
from sde_toolkit.interop.pipelines.schedules import Schedule
from sde_toolkit.models import ModuleModel, Moments, in_run, outside_inference_mode, without_autocast
from sde_toolkit.samplers import Sampler, Start, start_state
from sde_toolkit.utils import Stream
from solvers import FixedGrid, Method, NoiseSource

_SAME = 1e-9
"""Times are one up to this, relative to them."""


class Request(NamedTuple):
    """What a run wants to know next.

    Attributes:
        x: the network's input with shape (B, *).
        tau: what it is told of the time, a number.
        key: of the move that asks.
        plain: whether x is the state where that move begins.
    """

    x: Tensor
    tau: float
    key: Key
    plain: bool


class _Asked(Exception):
    """An evaluation without an answer."""

    def __init__(self, x: Tensor, tau: Tensor) -> None:
        super().__init__()
        self.x, self.tau = x, tau


class StandIn(nn.Module):
    """In the place of a network: returns the answers that are known, and asks for the next one."""

    embeds_real_times = True

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Tensor] = []
        self.used = 0

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """The next answer, with the shape of x or twice its channels."""
        if self.used == len(self.answers):
            raise _Asked(x, tau)
        self.used += 1
        return self.answers[self.used - 1]


def stand_in_model(
    schedule: Schedule, like: Tensor, data_std: float | None, moments: Moments | None, learned: bool
) -> tuple[StandIn, ModuleModel]:
    """A stand-in, and the model around it, for states with the shape, type and device of ``like`` (B, *)."""
    network = StandIn()
    shape = tuple(like.shape[1:])
    return network, model_of(network, schedule, shape, data_std, moments, learned, like=like[:0])


class Kept:
    """Normals, each kept as long as a move that is begun again may ask for it.

    Args:
        source: where they come from.
    """

    def __init__(self, source: NoiseSource) -> None:
        self._source = source
        self._made: dict[int, dict[int, Tensor]] = {}

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        """Standard normals with shape (B, *), the same for the same index."""
        made = self._made.setdefault(stream, {})
        if index not in made:
            made[index] = self._source.draw(index, stream)
        return made[index]

    def forget(self) -> None:
        """Keep the latest of every stream alone."""
        for made in self._made.values():
            for index in list(made)[:-1]:
                del made[index]


class Run:
    """One run of a sampler on a fixed grid.

    Args:
        network: the stand-in that the model asks.
        sampler: what is run.
        model: of the stand-in.
        noise: normals for all samples.
        begin: where it begins, if not at its beginning.
    """

    result: Tensor | None = None

    def __init__(
        self,
        network: StandIn,
        sampler: Sampler,
        model: ModuleModel,
        noise: NoiseSource,
        begin: Beginning | None = None,
    ) -> None:
        self._network, self._model, self._noise = network, model, Kept(noise)
        asked = in_run(model)
        guided = asked if sampler.guidance is None else sampler.guidance(asked)
        self._start: Start = "prior"
        if begin is None:
            prepared = sampler.prepare(model)
            if not (isinstance(prepared.control, FixedGrid) and isinstance(sampler.method, Method)):
                raise ValueError(
                    f"preset must be a sampler on a fixed grid, got {sampler.name}, which chooses its own "
                    "steps"
                )
            self.ts, self._start = prepared.control.ts, sampler.start
            self.moves = list(program(prepared, guided, self._noise))
        else:
            self.moves = list(later(begin, sampler, model, guided, self._noise))
        self._number = 0

    def begin(self, x: Tensor) -> Request | None:
        """Begin at the first time, with states x of shape (B, *) from the process' prior there."""
        with torch.no_grad(), outside_inference_mode(), without_autocast():
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self._start != "prior":
                x = start_state(self._start, self._model, x / self._model.sde.prior_std, self.ts[0])
            self._y = x
            return self._go_on()

    def answer(self, output: Tensor) -> Request | None:
        """Go on with the network's output for the last request."""
        self._network.answers.append(output.to(self._model.dtype))
        with torch.no_grad(), outside_inference_mode(), without_autocast():
            return self._go_on()

    def replace(self, y: Tensor) -> Request | None:
        """Go on from another state than the one that the last request showed; its move has just begun."""
        self._y = y.to(self._y.dtype)
        leg = self.moves[self._number].leg
        with torch.no_grad(), outside_inference_mode(), without_autocast():
            if leg is not None:
                leg.moved()
            return self._go_on()

    def _go_on(self) -> Request | None:
        try:
            while self._number < len(self.moves):
                self._network.used = 0
                move = self.moves[self._number]
                self._y = move.apply(self._y)
                if move.leg is not None and not move.steps:
                    move.leg.moved()
                self._number += 1
                self._network.answers.clear()
                self._noise.forget()
        except _Asked as asked:
            tau = float(asked.tau.flatten()[0])
            own = self._told(move.t)
            plain = not self._network.answers and abs(tau - own) <= _SAME * abs(own)
            return Request(asked.x, tau, move.key, plain)
        self.result = self._y
        return None

    def _told(self, t: Tensor) -> float:
        """What the network is told of a time."""
        like = self._y.new_ones(1, *self._y.shape[1:], dtype=torch.float64)
        return float(self._model.arguments(like, t.double())[1])
