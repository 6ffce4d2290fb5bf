"""A run of a sampler turned inside out: whoever drives it evaluates the network, one call at a time.

A sampler calls its model; a pipeline of another library calls its network itself and hands the output to a
scheduler.  Between two evaluations a run is the state y of the solver and what it carries, so

    request = run.begin(x)                  the first input of the network, and the time that it is told
    request = run.answer(output)            the next one; None at the end, when ``run.result`` holds the
    samples

Inside a step with several evaluations the step is begun again with the answers that are known: a step is a
function of the state, the carry, the step's draw and the answers, so that this changes nothing but the cost
of its linear combinations.  There is no thread and no hidden state; the samples are those of
``Sampler.sample``, operation by operation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_toolkit.interop.pipelines.opening import model_of
from sde_toolkit.interop.pipelines.schedules import Schedule
from sde_toolkit.models import ModuleModel, Moments, in_run, outside_inference_mode, without_autocast
from sde_toolkit.samplers import PreparedSampler, start_state
from solvers import BrownianMotion, FixedGrid, Interval, Method, NoiseSource, StepNormals


class Request(NamedTuple):
    """What a run wants to know next.

    Attributes:
        x: the network's input with shape (B, *).
        tau: what it is told of the time, a number.
        number: of the step that asks.
        plain: whether x is the state where that step begins, so that a run may begin here.
    """

    x: Tensor
    tau: float
    number: int
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


class Run:
    """One run of a sampler on a fixed grid.

    Args:
        network: the stand-in that the sampler's model asks.
        prepared: the sampler on that model.
        noise: normals for all samples; None for a sampler without draws.
    """

    result: Tensor | None = None

    def __init__(self, network: StandIn, prepared: PreparedSampler, noise: NoiseSource | None) -> None:
        sampler, control = prepared.sampler, prepared.control
        if not (isinstance(control, FixedGrid) and isinstance(sampler.method, Method)):
            raise ValueError(
                f"preset must be a sampler on a fixed grid, got {sampler.name}, which chooses its own steps"
            )
        self._network, self._sampler, self._prepared = network, sampler, prepared
        self._method, self._model = sampler.method, prepared.model
        asked = in_run(prepared.model)
        self._guided = asked if sampler.guidance is None else sampler.guidance(asked)
        self._term: Any = sampler.equation(self._guided)
        self._intervals: list[Interval] = list(control.intervals)
        self._ts = control.ts
        plain = noise is None or isinstance(noise, BrownianMotion)
        self._noise: Any = noise if plain else StepNormals(noise)  # type: ignore[arg-type]
        self._number = 0

    def begin(self, x: Tensor) -> Request | None:
        """Begin at the first time, with states x of shape (B, *) from the process' prior there."""
        with torch.no_grad(), outside_inference_mode(), without_autocast():
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self._sampler.start != "prior":
                z = x / self._model.sde.prior_std
                x = start_state(self._sampler.start, self._model, z, self._ts[0])
            self._y = x
            self._carry = self._method.start(self._term, self._ts[0], x, self._prepared.plan)
            return self._go_on()

    def answer(self, output: Tensor) -> Request | None:
        """Go on with the network's output for the last request."""
        self._network.answers.append(output.to(self._model.dtype))
        with torch.no_grad(), outside_inference_mode(), without_autocast():
            return self._go_on()

    def replace(self, y: Tensor) -> Request | None:
        """Go on from another state than the one that the last request showed; its step has just begun."""
        self._y = y.to(self._y.dtype)
        self._carry = self._method.replaced(self._carry)
        with torch.no_grad(), outside_inference_mode(), without_autocast():
            return self._go_on()

    def _go_on(self) -> Request | None:
        try:
            while self._number < len(self._intervals):
                self._network.used = 0
                interval = self._intervals[self._number]
                step = self._method.step(self._term, interval, self._y, self._carry, self._noise)
                self._y, self._carry, self._number = step.y, step.carry, self._number + 1
                self._network.answers.clear()
            self._network.used = 0
            x = self._y
            if self._sampler.denoise:
                x = self._guided.denoise(x, self._ts[-1])
        except _Asked as asked:
            plain = not self._network.answers and asked.x.shape == self._y.shape
            tau = float(asked.tau.flatten()[0])
            return Request(asked.x, tau, self._number, plain)
        self.result = x
        return None
