"""Training: one step, and the loop around it.

Update n draws its batch, its times and noises, and its dropout masks as functions of (seed, n):

    x0 = dataset.batch(n, batch_size, seed),      loss(model, x0, generator(seed, n)).mean()
    gradient, scaled down to max_grad_norm  ->  AdamW with warm-up  ->  moving average

The loss of a network with conditions is given them: labels, or rows of vectors or tokens.  A share
``label_dropout`` of the examples comes with the null class, or a row of nan, instead of its own, so that the
network learns the law of all data as well (``conditioning``).  That, too, is a function of (seed, n).

So a run that was interrupted and restored goes on as if nothing had happened, bit for bit, on the same
machine with the same number of threads.  A loss or gradient that is not finite stops the run before the
update.

Not promised: equal bits on another machine, another number of threads or another version of torch.

Reference: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2207.12598) for the dropped labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sde_toolkit.data import Dataset, TrainingData, batch_size_of, training_data
from sde_toolkit.models import class_tensors, evaluating, recording
from sde_toolkit.training.checkpoint import checkpoint_paths, save_checkpoint
from sde_toolkit.training.conditioning import batch_condition, check_conditions, class_moments
from sde_toolkit.training.objective import Loss, check_missing_entries, observing
from sde_toolkit.training.parallel import gathered, whole_tensor
from sde_toolkit.training.snapshots import drop_snapshots, save_snapshot
from sde_toolkit.training.state import NonFiniteError, TrainState, UpdateInfo
from sde_toolkit.training.suitability import warn_if_unsuitable
from sde_toolkit.training.suspects import with_examples
from sde_toolkit.utils import (
    LostProcessError,
    Stream,
    WorkdirLock,
    check_called,
    checked,
    integer,
    returned,
    step_generator,
)

DEFAULT_BATCH_SIZE = 128
"""Examples per update where nothing says otherwise."""


@checked
@observing
@recording()
def train_step(state: TrainState, x0: Tensor, loss: Loss, labels: Tensor | None = None) -> UpdateInfo:
    """Make one update of ``state`` from the examples x0 with shape (B, *) and return what it was.

    The labels with shape (B,), where the network has classes, may be those of the null class.  For a model
    with ``condition_shape`` they are rows of it; to networks of the library a row of nan is no condition.

    Raises:
        NonFiniteError: the loss or the norm of its gradient is not finite, and nothing has been updated; or
            a weight is not finite after the update, and the state is to be restored.
        ValueError: a state that such an error or an interruption left in the middle of an update.
    """
    start = time.perf_counter()
    if state.updating:
        raise ValueError(
            "state must be between two updates, got one that was interrupted in an update; restore it"
        )
    if x0.ndim < 2:
        raise ValueError(f"x0 must have shape (B, *), got {tuple(x0.shape)}")
    x0 = _moved(x0, state.model.device).to(state.model.dtype)
    state.optimizer.zero_grad(set_to_none=True)
    condition = state.model.conditions(labels, len(x0))
    rest = () if condition is None else (condition,)

    def losses() -> Tensor:
        generator = step_generator(state.seed, state.step, Stream.NOISE)
        masks = step_generator(state.seed, state.step, Stream.DROPOUT)
        with torch.random.fork_rng(devices=[]):  # dropout knows the global generator only
            torch.default_generator.set_state(masks.get_state())
            return returned("loss", loss(state.model, x0, generator, *rest), "mean")

    state.losses = state.shared.gradients(state.model, len(x0), losses)
    mean, rule = state.losses.mean(), state.optimization
    total = whole_tensor(nn.utils.clip_grad_norm_(state.model.network.parameters(), rule.max_grad_norm))
    kind = torch.promote_types(mean.dtype, total.dtype)
    value, norm = torch.stack(
        [mean.to(kind), total.to(mean.device, kind)]
    ).tolist()  # one wait for the device
    _require_finite(state, "loss", value)
    _require_finite(state, "norm of the gradient", norm)
    learning_rate = rule.learning_rate_at(state.step)
    state.update()
    return UpdateInfo(state.step, value, norm, learning_rate, len(x0), time.perf_counter() - start)


def _moved(x0: Tensor, device: torch.device) -> Tensor:
    """The examples on the device; to a GPU from pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and x0.device.type == "cpu":
        return x0.pin_memory().to(device, non_blocking=True)
    return x0.to(device)


@checked
def fit(
    state: TrainState,
    dataset: TrainingData,
    loss: Loss,
    num_steps: int,
    batch_size: int | None = None,
    workdir: WorkdirLock | Path | str | None = None,
    checkpoint_every: int = 500,
    keep: int = 2,
    on_step: Callable[[UpdateInfo], None] | None = None,
    label_dropout: float = 0.1,
    on_update: Callable[[UpdateInfo], object] | None = None,
    progress: bool = False,
    snapshot_every: int = 0,
) -> list[UpdateInfo]:
    """Train until ``num_steps`` updates have been made since the beginning of the run; at once if they have.

    Args:
        state: the run, trained in place; restore the latest checkpoint into it to go on with an
            interrupted one.
        dataset: where the batches come from, a ``Dataset``, or data in model scale: examples with shape
            (N, *), (examples, labels), (examples, conditions), a torch data set or a ``DataLoader``
            (``data.training_data``).  Its moments, and those of its classes if the network has classes,
            become those of ``state.model`` and ``state.ema``, and are stored in ``state.data``; a model that
            predicts the "residual" keeps the moments that it has.
        loss: such as ``DenoisingLoss()``.
        num_steps: total number of updates, those made before included.
        batch_size: examples per update; that of a loader, else 128, when None.  A resumed run may have
            another one: it goes on from batch ``step`` of this size, and is not the run that was never
            stopped.
        workdir: where checkpoints go, a directory, or its lock, held; None for no checkpoints.  Of several
            processes (``TrainState(parallel=...)``) the first one locks it and writes.
        checkpoint_every: number of updates between checkpoints; there is one at the end, and at a
            KeyboardInterrupt.
        keep: number of checkpoints to keep.
        on_step: called after every update and the checkpoint of its step, with the networks in evaluation
            mode, so that looking at them changes nothing.
        label_dropout: share of the examples that a network with conditions sees without theirs, in [0, 1]:
            with the null class, or a row of nan; at 0 the model without a condition stays untrained.
        on_update: called after every update, before the checkpoint of its step, which holds the
            ``state.notes`` that it leaves; where it returns True, in one process at least, the run ends with
            a checkpoint of this step.
        progress: whether a bar is shown on standard error.
        snapshot_every: number of updates after which the averages in ``state.traces`` are stored in
            ``workdir`` (``training.snapshots``), for ``reconstruct``; 0 for never.

    Returns:
        What every update of this call was.

    Raises:
        NonFiniteError: see ``train_step``; the checkpoints are those of before, and the sentence names the
            examples (``training.suspects``).
        OSError: a checkpoint could not be written (a full disk); earlier ones are untouched.
        LostProcessError: another process has ended; the last whole update is saved.
        ValueError: a count or ``label_dropout`` out of range, a data set of another event shape, labels that
            are missing or not among the network's classes, conditions of another shape, or none for a network
            that has them, a lock that is not held, or snapshots without traces or a workdir.
    """
    batch_size = batch_size_of(dataset, DEFAULT_BATCH_SIZE) if batch_size is None else batch_size
    dataset = training_data(dataset)
    check_called("loss", loss, 3 + _conditional(state, dataset))
    _check_numbers(
        label_dropout,
        num_steps=num_steps,
        batch_size=batch_size,
        keep=keep,
        checkpoint_every=checkpoint_every,
    )
    _check_snapshots(state, workdir, snapshot_every)
    with _locked(state, workdir) as lock:
        _check_parts(state, dataset, loss, lock)
        check_conditions(state.model, dataset, label_dropout)
        warn_if_unsuitable(dataset, state.model.sde)
        _set_moments(state, dataset)
        history, processes = [], state.parallel.processes
        saver = _Saver(state, lock, keep, state.step, snapshot_every)
        saver.begin()
        try:
            for _ in _steps(state.step, num_steps, progress):
                x0 = dataset.batch(state.step, batch_size, state.seed, state.parallel.own(batch_size))
                condition = batch_condition(state, dataset, batch_size, label_dropout)
                info = train_step(state, x0, loss, condition)
                saver.losses.append(info.loss)
                history.append(info)
                saver.snapshot()
                last = on_update is not None and processes.any(on_update(info) is True)
                if state.step % checkpoint_every == 0 or state.step == num_steps or last:
                    saver.save()
                if on_step is not None:
                    with evaluating(state.model, state.ema):
                        on_step(info)
                if last:
                    break
        except NonFiniteError as error:
            raise with_examples(error, state, len(dataset.train), batch_size, lock) from error
        except (KeyboardInterrupt, LostProcessError):
            if not state.updating and not state.parallel.shard:
                saver.save()
            raise
    return history


@dataclass
class _Saver:
    """Checkpoints of a run, each with the mean loss since the one before; none without a directory."""

    state: TrainState
    lock: WorkdirLock | None
    keep: int
    saved: int
    snapshot_every: int = 0
    losses: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Remove the snapshots that are about to be made again."""
        if self.lock is not None and self.state.traces:
            drop_snapshots(self.lock.path, after=self.state.step)

    def snapshot(self) -> None:
        """Store the traces of this step if it is one of theirs, before the checkpoint of the same step."""
        if not self.snapshot_every or self.state.step % self.snapshot_every:
            return
        tensors = gathered(self.state.trace_tensors()) if self._takes_part else {}
        if self.lock is not None:
            save_snapshot(self.state, self.lock.path, tensors)

    def save(self) -> None:
        """Write the checkpoint of this step if there is none yet."""
        if self.saved >= self.state.step:
            return
        tensors = gathered(self.state.tensors()) if self._takes_part else {}
        if self.lock is not None:
            mean = {"loss": sum(self.losses) / len(self.losses)} if self.losses else {}
            save_checkpoint(self.state, self.lock.path, self.keep, mean, tensors)
        self.losses.clear()
        self.saved = self.state.step

    @property
    def _takes_part(self) -> bool:
        """Whether this process writes, or holds a part of what is written."""
        return self.lock is not None or self.state.parallel.shard


@contextmanager
def _locked(state: TrainState, workdir: WorkdirLock | Path | str | None) -> Iterator[WorkdirLock | None]:
    """The lock that is given, or that of the directory that is given; None but for the first process."""
    if state.parallel.processes.rank:
        yield None
    elif isinstance(workdir, (str, Path)):
        with _own_lock(state, workdir) as lock:
            yield lock
    else:
        yield workdir


@contextmanager
def _own_lock(state: TrainState, given: Path | str) -> Iterator[WorkdirLock]:
    """The lock of a directory without checkpoints of a later step, which would be taken for the newest."""
    if not str(given):
        raise ValueError("workdir must be a path, got an empty one; use None for no checkpoints")
    with WorkdirLock(Path(given).expanduser()) as lock:
        newest = max((path.stem for path in checkpoint_paths(lock.path)), default="")
        if newest > f"step-{state.step:08d}":
            raise ValueError(
                f"workdir must hold no checkpoint after the state's step {state.step}, got {newest} in "
                f"{lock.path}; restore(state, latest_checkpoint(workdir)) to go on, or use another one"
            )
        yield lock


def _steps(first: int, last: int, progress: bool) -> Iterable[int]:
    """The steps to make, with a bar on standard error if one is wanted."""
    steps = range(first, last)
    return tqdm(steps, initial=min(first, last), total=last, unit="update") if progress else steps


def _conditional(state: TrainState, dataset: Dataset) -> bool:
    """Whether the loss is called with a condition."""
    model = state.model
    return not dataset.missing and (model.num_classes > 0 or model.condition_shape is not None)


def _check_numbers(label_dropout: float, **counts: int) -> None:
    """Refuse numbers out of range."""
    for name, number in counts.items():
        integer(name, number, 1)
    if not 0 <= label_dropout <= 1:
        raise ValueError(f"label_dropout must be in [0, 1], got {label_dropout}")


def _check_snapshots(state: TrainState, workdir: object, snapshot_every: int) -> None:
    """Refuse snapshots of nothing, or nowhere."""
    if not integer("snapshot_every", snapshot_every, 0):
        return
    if not state.traces:
        raise ValueError(
            f"snapshot_every must be 0 for a run that tracks no averages, got {snapshot_every}; give it "
            "TrainState(model, Optimization(ema_traces=(0.05, 0.1)))"
        )
    if workdir is None:
        raise ValueError(f"snapshot_every = {snapshot_every} needs a workdir to store averages in, got None")


def _set_moments(state: TrainState, dataset: Dataset) -> None:
    """Give the models the moments of the data and of its classes.

    Moments that a network's residual is read by stay.
    """
    count, moments = state.model.num_classes, dataset.moments
    if state.model.network_predicts == "residual" and state.model.moments is not None:
        moments = state.model.moments
    of_classes = class_moments(dataset, count) if count else None
    state.data = moments.tensors() | (class_tensors(of_classes) if of_classes else {})
    state.data |= dataset.scaling.tensors()
    for model in (state.model, state.ema):
        model.set_moments(moments, of_classes)
        model.scaling = dataset.scaling


def _check_parts(state: TrainState, dataset: Dataset, loss: Loss, workdir: WorkdirLock | None) -> None:
    """Refuse data of another shape, and a directory that is not ours."""
    if dataset.event_shape != state.model.event_shape:
        raise ValueError(
            f"dataset must have the model's event shape {state.model.event_shape}, got {dataset.event_shape}"
        )
    if dataset.missing:
        check_missing_entries(state.model, loss)
    if workdir is not None and not workdir.held:
        raise ValueError(
            f"workdir must be locked by this run, got {workdir.path}; use `with WorkdirLock(...) as workdir:`"
        )


def _require_finite(state: TrainState, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the {name} must be finite, got {value} at step {state.step + 1}; nothing was updated in this "
            "step: lower the learning rate, lengthen the warm-up, or look for extreme values in the data"
        )
