"""The training of a run: in its directory, from its newest checkpoint on, with a log of the steps.

    history.csv    step, loss, gradient norm, learning rate, seconds: means over ``log_every`` steps

A run that was stopped or killed goes on from its last checkpoint, and ends with the same bits as one that was
not; rows of the log after that checkpoint are dropped and written again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sde_toolkit.config import (
    Config,
    build_dataset,
    build_loss,
    build_model,
    build_optimization,
    config_for,
    config_json,
    load_config,
    override_config,
    trained_sections,
)
from sde_toolkit.data import Dataset, absolute_places
from sde_toolkit.models import NetworkModel
from sde_toolkit.runs.store import Run, need_same_shapes, open_run
from sde_toolkit.runs.trust import need_confirmed, stored_config
from sde_toolkit.training import (
    Checkpoint,
    TrainState,
    UpdateInfo,
    fit,
    latest_checkpoint,
    restore,
    snapshot_bytes,
)
from sde_toolkit.utils import WorkdirLock, atomic_write, integer

HISTORY = ("step", "loss", "grad_norm", "learning_rate", "seconds")
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
    on_start: Callable[[Start], None] | None = None,
    on_step: Callable[[UpdateInfo], None] | None = None,
) -> Run:
    """Train in ``workdir``, from the newest checkpoint there or from the beginning, and open the result.

    Args:
        workdir: made if it does not exist.
        source: name or path of a configuration; None takes that of the run in ``workdir``.
        overrides: of the configuration.
        on_start: called once before the first update.
        on_step: called after every update.

    Raises:
        ValueError: no configuration, one that differs from that of the checkpoint, a workdir in use, a bad
            value.
        OSError: the disk has no room for checkpoints.
        sde_toolkit.training.NonFiniteError: the loss became nan or inf.
    """
    overrides = absolute_places(overrides)
    checkpoint = latest_checkpoint(workdir)
    config, unconfirmed = _training_config(workdir, source, overrides, checkpoint)
    for name in ("num_steps", "batch_size", "checkpoint_every", "log_every", "keep"):
        integer(f"config.training.{name}", config.training[name], 1)
    with WorkdirLock(workdir) as lock:
        _require_room(workdir, MIN_FREE_BYTES)
        need_confirmed(config, unconfirmed)
        if source is None and checkpoint is not None:
            need_same_shapes(checkpoint, config)
        dataset, settings, loss = build_dataset(config), config.training, build_loss(config)
        if config.data.name == "files":
            config = override_config(config, {"data.digest": dataset.digest})
        model = build_model(config, dataset.event_shape, dataset.data_std, dataset.moments)
        state = TrainState(model, build_optimization(config), config.seed, config.to_dict())
        checkpoint = latest_checkpoint(workdir)
        if checkpoint is not None:
            # a field that came after the checkpoint has its default, which is how the run was trained
            restore(state, replace(checkpoint, config=trained_sections(checkpoint.config).to_dict()))
        atomic_write(workdir / "config.json", config_json(config).encode())
        start = _start(state, model, dataset, config)
        _require_room(workdir, MIN_FREE_BYTES + start.num_snapshots * start.snapshot_bytes)
        if on_start is not None:
            on_start(start)
        with _history(workdir, state, settings.log_every) as log:
            fit(state, dataset, loss, settings.num_steps, settings.batch_size, lock,
                settings.checkpoint_every, settings.keep, on_step, settings.label_dropout, log,
                snapshot_every=settings.snapshot_every)  # fmt: skip
    return open_run(workdir, overrides)


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
        return stored_config(checkpoint, overrides)
    if "data.source" not in overrides:
        raise ValueError(
            f"config must be given to start a run in {workdir}; add --config=digits, or --data=PATH for "
            "data of your own"
        )
    about_data = {name: value for name, value in overrides.items() if name.startswith("data.")}
    dataset = build_dataset(load_config("vectors", about_data))
    return load_config(config_for(dataset.event_shape), overrides), ()


def _start(state: TrainState, model: NetworkModel, dataset: Dataset, config: Config) -> Start:
    settings = config.training
    size = sum(parameter.numel() for parameter in model.network.parameters())
    unused = _unused_classes(dataset, model) if config.data.name == "files" else 0
    every = settings.snapshot_every
    count = settings.num_steps // every - state.step // every if every else 0
    return Start(state.step, settings.num_steps, size, unused, max(count, 0), snapshot_bytes(state))


def _unused_classes(dataset: Dataset, model: NetworkModel) -> int:
    labels = dataset.labels_train
    return 0 if labels is None or model.num_classes else int(labels.max()) + 1


def _require_room(workdir: Path, wanted: int) -> None:
    free = shutil.disk_usage(workdir).free
    if free < wanted:
        raise OSError(
            f"{workdir} is on a disk with {free / 2**20:.0f} MiB free, and training asks for "
            f"{wanted / 2**20:.0f} MiB; make room or choose another workdir"
        )


@contextlib.contextmanager
def _history(workdir: Path, state: TrainState, every: int) -> Iterator[Callable[[UpdateInfo], None]]:
    """A log of the steps to come: the mean loss of every ``every`` of them, appended as they come.

    The sums of the steps since the last row are among the notes of ``state``, and so in every checkpoint: the
    rows are those of a run that was never stopped.
    """
    path = workdir / "history.csv"
    kept = [row for row in read_history(workdir) if row["step"] <= state.step]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HISTORY)
    writer.writerows(_cells(row) for row in kept)
    atomic_write(path, text.getvalue().encode())
    with open(path, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")

        def log(info: UpdateInfo) -> None:
            sums = _pending(state)
            sums["count"] += 1
            for name in HISTORY[1:]:
                sums[name] += getattr(info, name)
            if info.step % every == 0:
                means = {name: sums[name] / sums["count"] for name in HISTORY[1:]}
                rows.writerow(_cells({"step": info.step, **means}))
                file.flush()
                del state.notes["history"]

        yield log


def _cells(row: Mapping[str, float]) -> list[str]:
    return [str(int(row["step"])), *(f"{row[name]:.6g}" for name in HISTORY[1:])]


def _pending(state: TrainState) -> dict[str, float]:
    """The sums since the last row, which a checkpoint may hold; fresh ones if it holds something else."""
    names = ("count", *HISTORY[1:])
    sums = state.notes.get("history")
    if not isinstance(sums, dict) or any(type(sums.get(name)) not in (int, float) for name in names):
        sums = state.notes["history"] = dict.fromkeys(names, 0)
    return sums


def read_history(workdir: Path) -> list[dict[str, float]]:
    """The training log of a run, by step; lines that a kill cut short, or that are no rows, are left out."""
    path = workdir / "history.csv"
    rows: dict[float, dict[str, float]] = {}
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for text in file:
            line = dict(zip(HISTORY, text.split(","), strict=False))
            with contextlib.suppress(KeyError, ValueError):
                row = {name: float(line[name]) for name in HISTORY}
                if all(map(math.isfinite, row.values())) and row["step"].is_integer():
                    rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]
