"""The training of a run: in its directory, from its newest checkpoint on.

A run that was stopped or killed goes on from its last checkpoint, and ends with the same bits as one that was
not.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_toolkit.config import (
    AUTOCAST,
    Config,
    build_dataset,
    build_loss,
    build_model,
    build_optimization,
    config_for,
    config_json,
    load_config,
    override_config,
)
from sde_toolkit.data import Dataset, absolute_places
from sde_toolkit.models import ModuleModel
from sde_toolkit.networks import checkpoint_blocks
from sde_toolkit.runs.learning.changes import check_allowed, with_changes
from sde_toolkit.runs.learning.watch import check_watch, watching
from sde_toolkit.runs.store import Run, need_same_shapes, open_run
from sde_toolkit.runs.trust import need_confirmed, stored_config
from sde_toolkit.training import (
    Checkpoint,
    Parallel,
    TrainState,
    UpdateInfo,
    fit,
    latest_checkpoint,
    restore,
    snapshot_bytes,
)
from sde_toolkit.utils import Processes, WorkdirLock, atomic_write, integer, launched

MIN_FREE_BYTES = 64 * 2**20
"""Free space that a training run asks for before it starts."""


@dataclass(frozen=True)
class Start:
    """Where a training run begins: at step 0, or where an earlier part of it was saved.

    Attributes:
        step: number of updates made.
        num_steps: of the whole run.
        num_parameters: of the network.
        unused_classes: number of classes of data of your own for a network that takes none; 0 otherwise.
        num_snapshots: of the averages, still to be stored (``training.snapshots``).
        snapshot_bytes: that one of them takes.
    """

    step: int
    num_steps: int
    num_parameters: int
    unused_classes: int = 0
    num_snapshots: int = 0
    snapshot_bytes: int = 0


def train_run(
    workdir: Path,
    source: str | None,
    overrides: Mapping[str, Any],
    *,
    allow: Sequence[str] = (),
    on_start: Callable[[Start], None] | None = None,
    on_step: Callable[[UpdateInfo], None] | None = None,
) -> Run:
    """Train in ``workdir``, from the newest checkpoint there or from the beginning, and open the result.

    Args:
        workdir: made if it does not exist.  Of several processes the first writes there, and all read.
        source: name or path of a configuration; None takes that of the run in ``workdir``.
        overrides: of the configuration.
        allow: fields that may differ from those of the checkpoint (``ALLOWED``), which is written down in
            the configuration of the run.
        on_start: called once before the first update.
        on_step: called after every update.

    Raises:
        ValueError: no configuration, one that differs from that of the checkpoint, a workdir in use, a bad
            value.
        OSError: the disk has no room for checkpoints.
        sde_toolkit.utils.LostProcessError: another process has ended; the last whole update is saved.
        sde_toolkit.training.NonFiniteError: the loss became nan or inf.
    """
    overrides = absolute_places(overrides)
    checkpoint = latest_checkpoint(workdir)
    config, unconfirmed = _training_config(workdir, source, overrides, checkpoint)
    for name in ("num_steps", "batch_size", "checkpoint_every", "log_every", "keep", "accumulate"):
        integer(f"config.training.{name}", config.training[name], 1)
    check_watch(config)
    allow = check_allowed(allow)
    with launched() as processes, _locked(workdir, processes) as lock:
        _require_room(workdir, MIN_FREE_BYTES)
        need_confirmed(config, unconfirmed)
        if source is None and checkpoint is not None:
            need_same_shapes(checkpoint, config)
        dataset, settings, loss = build_dataset(config), config.training, build_loss(config)
        if config.data.name == "files":
            config = override_config(config, {"data.digest": dataset.digest})
        if (rows := dataset.conditions_train) is not None and not config.model.condition_shape:
            config = override_config(config, {"model.condition_shape": tuple(rows.shape[1:])})
        if (checkpoint := latest_checkpoint(workdir)) is not None:
            checkpoint, config = with_changes(checkpoint, config, allow)
        processes.wait()  # all have read the same checkpoint
        model = build_model(config, dataset.event_shape, dataset.data_std, dataset.moments)
        parallel = Parallel(processes, settings.accumulate, settings.shard)
        parallel.parts(settings.batch_size)
        state = TrainState(model, build_optimization(config), config.seed, config.to_dict(), parallel)
        if checkpoint is not None:
            restore(state, checkpoint)
        if lock is not None:
            atomic_write(workdir / "config.json", config_json(config).encode())
        if settings.checkpointing:
            checkpoint_blocks(state.model.network)
        if settings.compile:
            state.model.network.compile()
        with watching(workdir, state, dataset, loss, config) as watch, _autocast(config, state):
            start = _start(state, model, dataset, config, watch.finished)
            _require_room(workdir, MIN_FREE_BYTES + start.num_snapshots * start.snapshot_bytes)
            if on_start is not None:
                on_start(start)

            def after_step(info: UpdateInfo) -> None:
                watch.on_step(info)
                if on_step is not None:
                    on_step(info)

            fit(state, dataset, loss, start.num_steps, settings.batch_size, lock,
                settings.checkpoint_every, settings.keep, after_step, settings.label_dropout, watch.on_update,
                snapshot_every=settings.snapshot_every)  # fmt: skip
        processes.wait()  # the last checkpoint is written
    return open_run(workdir, overrides)


def _autocast(config: Config, state: TrainState) -> contextlib.AbstractContextManager[object]:
    """The type of products that ``config.training.autocast`` names."""
    dtype = AUTOCAST[config.training.autocast]
    return torch.autocast(state.model.device.type, dtype) if dtype else contextlib.nullcontext()


@contextlib.contextmanager
def _locked(workdir: Path, processes: Processes) -> Iterator[WorkdirLock | None]:
    """The lock of the directory, for the first process; the others begin when it is held."""
    if processes.rank:
        processes.wait()
        yield None
        return
    with WorkdirLock(workdir) as lock:
        processes.wait()
        yield lock


def _training_config(
    workdir: Path, source: str | None, overrides: Mapping[str, Any], checkpoint: Checkpoint | None
) -> tuple[Config, tuple[str, ...]]:
    """The named configuration; else that of the checkpoint; else one that suits the data that are given; and
    the fields that want to be confirmed."""
    if source is not None:
        config = load_config(source, overrides)
        if config.data.name != "files":
            return config, ()
        written = {f"data.{name}": config.data[name] for name in ("source", "held_out")}
        found = absolute_places(written)
        return config if found == written else override_config(config, found), ()
    if checkpoint is not None:
        config, unconfirmed = stored_config(checkpoint, overrides)
        _warn_of_trackers(checkpoint, config, overrides)
        return config, unconfirmed
    if "data.source" not in overrides:
        raise ValueError(
            f"config must be given to start a run in {workdir}; add --config=digits, or --data=PATH for "
            "data of your own"
        )
    about_data = {name: value for name, value in overrides.items() if name.startswith("data.")}
    dataset = build_dataset(load_config("vectors", about_data))
    return load_config(config_for(dataset.event_shape), overrides), ()


def _warn_of_trackers(checkpoint: Checkpoint, config: Config, overrides: Mapping[str, Any]) -> None:
    section = checkpoint.config.get("training")
    stored = section.get("trackers", "") if isinstance(section, dict) else ""
    if stored != config.training.trackers and "training.trackers" not in overrides:
        warnings.warn(
            f"config.training.trackers = {str(stored)[:200]} stands in the checkpoint and is not used, since "
            "nothing that a file names is imported; give it yourself with --config.training.trackers=...",
            stacklevel=3,
        )


def _start(state: TrainState, model: ModuleModel, dataset: Dataset, config: Config, finished: bool) -> Start:
    settings = config.training
    num_steps = state.step if finished else settings.num_steps
    size = sum(parameter.numel() for parameter in model.network.parameters())
    unused = _unused_classes(dataset, model) if config.data.name == "files" else 0
    every = settings.snapshot_every
    count = num_steps // every - state.step // every if every else 0
    return Start(state.step, num_steps, size, unused, max(count, 0), snapshot_bytes(state))


def _unused_classes(dataset: Dataset, model: ModuleModel) -> int:
    labels = dataset.labels_train
    return 0 if labels is None or model.num_classes else int(labels.max()) + 1


def _require_room(workdir: Path, wanted: int) -> None:
    free = shutil.disk_usage(workdir).free
    if free < wanted:
        raise OSError(
            f"{workdir} is on a disk with {free / 2**20:.0f} MiB free, and training asks for "
            f"{wanted / 2**20:.0f} MiB; make room or choose another workdir"
        )
