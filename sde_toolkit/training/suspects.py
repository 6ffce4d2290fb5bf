"""Which examples a step that went wrong was made of.

    <workdir>/checkpoints/nonfinite-step-<n>.json     a loss, gradient or weight that is not finite
    <workdir>/checkpoints/spike-step-<n>.json         a loss far above those before it

The document holds the step, the seed, the mean loss, and the examples of the batch as positions in the
training data, each with its loss: those that are not finite first, then the largest.  Under antithetic pairs
(``DenoisingLoss``) a row may be about the example of its partner in the same batch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from sde_toolkit.data import batch_indices
from sde_toolkit.training.state import NonFiniteError, TrainState
from sde_toolkit.utils import WorkdirLock, atomic_write

Kind = Literal["nonfinite", "spike"]

_NAMED = 8
"""Examples that an error names."""


def suspects(state: TrainState, num_data: int, batch_size: int, step: int) -> list[tuple[int, float]]:
    """The examples of update ``step``, counted from 0, with their losses, the worst first.

    They are the losses that ``state`` keeps of it; none where the loss gave another number of them.
    """
    losses = [] if state.losses is None else state.losses.reshape(-1).double().tolist()
    indices = batch_indices(num_data, batch_size, step, state.seed).tolist()
    if len(losses) != len(indices):
        return []
    order = sorted(zip(indices, losses, strict=True), key=lambda pair: (math.isfinite(pair[1]), -pair[1]))
    return [(index, loss) for index, loss in order]


def write_suspects(
    kind: Kind, state: TrainState, num_data: int, batch_size: int, step: int, workdir: Path
) -> Path:
    """Write the document of update ``step``, counted from 0, and return its path.

    Raises:
        OSError: the disk is full or not writable.
    """
    found = suspects(state, num_data, batch_size, step)
    losses = [loss for _, loss in found]
    document: dict[str, Any] = {
        "kind": kind,
        "step": step + 1,
        "seed": state.seed,
        "batch_size": batch_size,
        "loss": _plain(sum(losses) / len(losses)) if losses else None,
        "examples": [{"index": index, "loss": _plain(loss)} for index, loss in found],
    }
    directory = workdir / "checkpoints"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{kind}-step-{step + 1:08d}.json"
    atomic_write(path, json.dumps(document, indent=1).encode())
    return path


def with_examples(
    error: NonFiniteError, state: TrainState, num_data: int, batch_size: int, lock: WorkdirLock | None
) -> NonFiniteError:
    """The error with the examples of its step, which a file lists where the run has a directory."""
    found = suspects(state, num_data, batch_size, state.step)
    broken = [str(index) for index, loss in found if not math.isfinite(loss)]
    text = str(error)
    if broken:
        more = ", ..." if len(broken) > _NAMED else ""
        text += f".  Training examples without a finite loss: {', '.join(broken[:_NAMED])}{more}"
    if found and lock is not None:
        path = write_suspects("nonfinite", state, num_data, batch_size, state.step, lock.path)
        text += f".  The examples of this step are listed in {path}"
    return NonFiniteError(text)


def _plain(number: float) -> float | str:
    """The number, as JSON has it."""
    return number if math.isfinite(number) else str(number)
