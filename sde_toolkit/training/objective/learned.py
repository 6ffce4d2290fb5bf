"""Parts of a loss that learn from the losses of the batches: their memory, and when it changes.

A law of the times or a weight may follow what training sees.  Such a part is an object with a memory, and

    memory of step n + 1  =  a function of (memory of step n, times and losses of the whole batch n)

made after the update.  The memory of a run is in ``TrainState.notes``, and so in its checkpoints: a part
takes its memory from there before every step, and a run that was interrupted goes on bit for bit.  One loss
may serve several runs.  Where processes share a batch, every process has the losses of all of it
(``TrainState.losses``) and draws the same times again, so that all memories stay equal.
"""

from __future__ import annotations

import base64
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.utils import Stream, step_generator

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_NOTE = "learned"
"""The entry of ``TrainState.notes``."""


class LearnedPart(ABC):
    """A part of a loss with a memory of float64 tensors on the host."""

    def __init__(self) -> None:
        self._memory = self.fresh()

    @abstractmethod
    def fresh(self) -> dict[str, Tensor]:
        """The memory of a run that has not begun."""

    @abstractmethod
    def observe(self, model: ScoreModel, place: Tensor, losses: Tensor) -> None:
        """Change the memory by a batch: times (or indices) and losses, each with shape (B,)."""

    def tensors(self) -> dict[str, Tensor]:
        """The memory."""
        return dict(self._memory)

    def load(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Take a memory; that of a run that has not begun where there is none.

        Raises:
            ValueError: one of another part.
        """
        fresh = self.fresh()
        found = fresh if tensors is None else dict(tensors)
        shapes = [{name: tuple(value.shape) for name, value in kept.items()} for kept in (fresh, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the memory of {type(self).__name__} must have {shapes[0]}, got {shapes[1]}: the run was "
                "begun with another law or weight; go on with that one, or start anew"
            )
        self._memory = found


class Learns(Protocol):
    """A loss with learned parts."""

    @property
    def learned_parts(self) -> dict[str, LearnedPart]:
        """The parts by name."""
        ...

    def observe(self, model: ScoreModel, losses: Tensor, generator: torch.Generator) -> None:
        """Tell the parts of a batch: its losses (B,), and the generator that its call began with."""
        ...


def observing(step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A step of training (state, x0, loss, labels) after which the loss's learned parts are told of it."""
    make = cast(Callable[..., Any], step)

    @functools.wraps(step)
    def run(state: Any, x0: Tensor, loss: Any, labels: Tensor | None = None) -> Any:
        parts: dict[str, LearnedPart] = getattr(loss, "learned_parts", {})
        if not parts:
            return make(state, x0, loss, labels)
        noted, number = state.notes.get(_NOTE, {}), state.step
        for name, part in parts.items():
            part.load(decoded(noted[name]) if name in noted else None)
        info = make(state, x0, loss, labels)
        state.updating = True  # the memory is part of the update: one that is cut short here is not saved
        loss.observe(state.model, state.losses, step_generator(state.seed, number, Stream.NOISE))
        state.notes[_NOTE] = {name: encoded(part.tensors()) for name, part in parts.items()}
        state.updating = False
        return info

    return cast(Callable[Arguments, Result], run)


def encoded(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A memory as JSON values that keep all bits."""
    return {
        name: [list(value.shape), base64.b64encode(value.numpy().astype("<f8").tobytes()).decode("ascii")]
        for name, value in tensors.items()
    }


def decoded(noted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The memory that ``encoded`` was given."""
    found = {}
    for name, (shape, text) in noted.items():
        values = np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)
        found[name] = torch.from_numpy(values).reshape(shape)
    return found
