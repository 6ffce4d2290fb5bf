"""Checkpoints of training runs.

A checkpoint is one safetensors file.  Tensors: ``model.*``, ``ema.*``, ``traces.<number>.*`` (where averages
are tracked for later), ``optimizer.<parameter>.<key>``, ``data.*`` (moments of the training data); an
inference checkpoint has ``ema.*`` and ``data.*`` only.  The header holds one JSON document under
"sde_toolkit": format version, kind, step, config, metrics, versions of the libraries.  Nothing is ever
unpickled.  Files appear whole or not at all (``sde_toolkit.utils.files``), under
<workdir>/checkpoints/step-<n>.safetensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sde_toolkit.data import is_share
from sde_toolkit.models import ModuleModel, class_moments_from_tensors, moments_from_tensors, plain_tensors
from sde_toolkit.training.description import describe_model
from sde_toolkit.training.state import Optimization, TrainState, as_json, prefixed
from sde_toolkit.training.tensor_file import (
    check_tensors,
    copy_tensors,
    file_kind,
    need_fields,
    part_of,
    read_tensors,
    write_tensors,
)
from sde_toolkit.utils import check_output_file, checked, integer, remove_leftovers

Kind = Literal["training", "inference"]

COMPARED_SECTIONS = ("seed", "data", "sde", "model", "loss", "optimization", "training")
"""Top-level entries of a config that decide what a run's weights are: resuming under others is refused."""

FREE_FIELDS = (
    "training.num_steps",
    "training.checkpoint_every",
    "training.keep",
    "training.log_every",
    "training.snapshot_every",  # 0 tracks no traces, which are compared
    *(f"training.{name}" for name in ("evaluate_every", "evaluate_examples", "evaluate_bins", "keep_best")),
    *(f"training.{name}" for name in ("patience", "sample_every", "spike_factor", "trackers", "changes")),
    *(
        f"training.{name}" for name in ("accumulate", "shard", "compile", "checkpointing")
    ),  # the draws are the same
    "data.source",  # data may have moved; the digest of their values is what may not change
    "data.workers",  # the batches are the same
)
"""Fields in those sections that may change between two parts of one run."""

_FIELDS = {"kind": str, "step": int, "config": dict, "run": dict, "metrics": dict, "libraries": dict}
_KINDS = ("training", "inference")
_ABSENT = "(absent)"
_FILE_PATTERN = "step-*.safetensors"
_FILE_NAME = "step-{step:08d}.safetensors"
_ATTEMPTS = 20
"""How often the directory of a run that replaces its checkpoints all the time is looked at again."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: where it was read.
        kind: "training", or "inference" for the averaged weights alone.
        step: number of updates made.
        config: what the run is, as ``TrainState`` got it.
        run: seed and rule of the updates.
        metrics: what the writer measured, such as the mean loss since the checkpoint before.
        model: what its model is, see ``sde_toolkit.training.description``; empty in older files.
        libraries: versions of the libraries that wrote it.
        tensors: all tensors under their full names, on the CPU.
    """

    path: Path
    kind: Kind
    step: int
    config: dict[str, Any]
    run: dict[str, Any]
    metrics: dict[str, Any]
    libraries: dict[str, str]
    tensors: dict[str, Tensor] = field(repr=False)
    model: dict[str, Any] = field(default_factory=dict, repr=False)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, "model", "ema", "optimizer" or "data", under the rest of their names."""
        return part_of(self.tensors, name)


@checked
def save_checkpoint(
    state: TrainState,
    workdir: Path | str,
    keep: int = 2,
    metrics: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a training checkpoint below ``workdir``, keep the last ``keep`` of them, and return its path.

    ``tensors`` are those of the state, whole (``training.parallel.gathered``), where they are sharded.

    The caller is the only writer there (``WorkdirLock``).

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
        ValueError: ``keep`` below 1, or the state is in the middle of an update.
    """
    integer("keep", keep, 1)
    if state.updating:
        raise ValueError(
            "state must be between two updates, got one that was interrupted in an update; restore it"
        )
    directory = _directory(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _FILE_NAME.format(step=state.step)
    measured = {**(metrics or {}), **({"notes": state.notes} if state.notes else {})}
    about = {"step": state.step, "config": state.config, "run": state.run, "metrics": measured}
    about["model"], tables = describe_model(state.ema)
    tensors = dict(state.tensors() if tensors is None else tensors)
    write_tensors(path, {"kind": "training", **about}, tensors | prefixed("sde", tables))
    remove_leftovers(directory)
    earlier = [other for other in checkpoint_paths(workdir) if other.name < path.name and _ordinary(other)]
    for other in earlier[: len(earlier) - (keep - 1)]:
        other.unlink()
    return path


def export_checkpoint(checkpoint: Checkpoint, path: Path | str) -> None:
    """Write what sampling needs of ``checkpoint`` to ``path``: averaged weights, data moments, config.

    Raises:
        OSError: the disk is full or not writable; an earlier file is untouched.
        ValueError: ``path`` is a directory, a link, a device or a training checkpoint.
    """
    path = check_output_file(path)
    refuse_checkpoint(path)
    write_inference(checkpoint, path)


def export_state(
    state: TrainState, path: Path, metrics: Mapping[str, Any], average: ModuleModel | None = None
) -> None:
    """Write the averaged weights of a run as it is now, like ``export_checkpoint``; the folder is made.

    ``average`` is the whole model of them where they are sharded (``TrainState.gather_average``).

    Raises:
        OSError: the disk is full or not writable; an earlier file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    average = state.ema if average is None else average
    about, tables = describe_model(average)
    tensors = prefixed("ema", plain_tensors(average.network)) | prefixed("data", state.data)
    document = {"step": state.step, "config": state.config, "run": state.run, "metrics": dict(metrics)}
    write_tensors(path, {"kind": "inference", **document, "model": about}, tensors | prefixed("sde", tables))


def write_inference(checkpoint: Checkpoint, path: Path) -> None:
    """The same for a path that was checked."""
    tensors = {**prefixed("ema", checkpoint.part("ema")), **prefixed("data", checkpoint.part("data"))}
    tensors |= prefixed("sde", checkpoint.part("sde"))
    about = {name: getattr(checkpoint, name) for name in ("step", "config", "run", "metrics", "model")}
    write_tensors(path, {"kind": "inference", **about}, tensors)


@checked
def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a training or inference checkpoint onto the CPU; no code in the file is ever run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is pickled, truncated, or no checkpoint of a format that this version reads.
    """
    path = Path(path)
    document, tensors = read_tensors(path)
    if document.get("kind") == "model":
        raise ValueError(
            f"checkpoint must be that of a run, got a saved model, {path}; read it by load_model"
        )
    need_fields(path, document, _FIELDS, "checkpoint")
    if document["kind"] not in _KINDS or document["step"] < 0:
        raise ValueError(
            f"checkpoint must be of kind {' or '.join(_KINDS)} and have a step >= 0, got "
            f"{document['kind']!r} and {document['step']} in {path}; it is of another kind, or damaged"
        )
    known = {name: document[name] for name in _FIELDS}
    model = document.get("model")
    return Checkpoint(path=path, tensors=tensors, model=model if isinstance(model, dict) else {}, **known)


def checkpoint_paths(workdir: Path | str) -> list[Path]:
    """What has the name of a training checkpoint below ``workdir``, oldest first."""
    return sorted(_directory(workdir).glob(_FILE_PATTERN))


@checked
def latest_checkpoint(workdir: Path | str) -> Checkpoint | None:
    """Return the newest training checkpoint below ``workdir`` that can be read, None if there is none.

    Kills leave no broken file, so one that cannot be read was damaged from outside, and a directory, a pipe
    or a dangling link was put there.  It is left in place, a RuntimeWarning names it, and the one before it
    is taken.  A live run may replace its checkpoints meanwhile.

    Raises:
        ValueError: there are checkpoints, but none can be read.
    """
    problems: dict[Path, Exception] = {}
    for _ in range(_ATTEMPTS):
        moved = False
        for path in reversed(checkpoint_paths(workdir)):
            if path in problems:
                continue
            try:
                return read_checkpoint(path)
            except (ValueError, OSError) as error:
                if not path.is_symlink() and not path.exists():  # a live run has replaced it by a newer one
                    moved = True
                    break
                problems[path] = error
                reason = "it is a link to nothing" if isinstance(error, FileNotFoundError) else error
                message = f"going back to the checkpoint before {path.name}: {reason}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        if not moved:
            break
    if problems:
        raise ValueError(
            f"no checkpoint in {_directory(workdir)} can be read; remove them to start anew"
        ) from next(iter(problems.values()))
    return None


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put ``state`` exactly where the run was when ``checkpoint`` was saved.

    Raises:
        ValueError: an inference checkpoint, a checkpoint of another config, or tensors that are missing or of
            another shape or type; the state has not changed then.
    """
    if checkpoint.kind != "training":
        raise ValueError(
            f"checkpoint must be of kind 'training' to resume, got {checkpoint.kind!r}, {checkpoint.path}; "
            "start a new run, or sample from it"
        )
    differing = config_differences(checkpoint.config, state.config)
    differing = differing or config_differences(_with_defaults(checkpoint.run), state.run)
    if differing:
        raise ValueError(
            f"config must be that of {checkpoint.path}, got other values: {'; '.join(differing)}; restore "
            "the former values, or use another workdir"
        )
    data = checkpoint.part("data")
    residual = bool(data) and state.model.network_predicts == "residual"
    moments = moments_from_tensors(data) if residual else None
    of_classes = class_moments_from_tensors(data) if residual else None
    targets = state.tensors()
    trained = {name: target for name, target in targets.items() if not name.startswith("data.")}
    copy_tensors(trained, checkpoint.tensors, checkpoint.path)
    state.data = data
    for model in (state.model, state.ema) if residual else ():
        model.moments = None  # those that the network's output was read by in training take their place
        model.set_moments(moments, of_classes)
    state.step, state.updating = checkpoint.step, False
    notes = checkpoint.metrics.get("notes")
    state.notes = dict(notes) if isinstance(notes, dict) else {}


def load_ema(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the averaged weights of a training or inference checkpoint into ``network``.

    Raises:
        ValueError: tensors that are missing or of another shape or type; the network has not changed then.
    """
    copy_tensors(prefixed("ema", plain_tensors(network)), checkpoint.tensors, checkpoint.path)


def check_ema(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse averaged weights that do not fit a network, which may be on the meta device.

    Raises:
        ValueError: tensors that are missing or of another shape or type.
    """
    check_tensors(prefixed("ema", plain_tensors(network)), checkpoint.tensors, checkpoint.path)


def refuse_checkpoint(path: Path, name: str = "output") -> None:
    """Refuse, with a ValueError, to write over a training checkpoint, or under such a name beside them."""
    among = path.parent.name == "checkpoints" and path.match(_FILE_PATTERN)
    if among or file_kind(path) == "training":
        raise ValueError(
            f"{name} must not be a training checkpoint, got {path}; a run goes on from it: name another file"
        )


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields of ``COMPARED_SECTIONS`` outside ``FREE_FIELDS`` that differ, as "name: old -> new"."""
    a, b = (_flat({key: c[key] for key in COMPARED_SECTIONS if key in c}) for c in map(as_json, (old, new)))
    differing = [n for n in a | b if n not in FREE_FIELDS and a.get(n, _ABSENT) != b.get(n, _ABSENT)]
    places = {"data.held_out": lambda text: not is_share(text), "data.conditions": _is_array}
    for name, is_place in places.items():  # another place of the same values, which the digest holds
        if all(is_place(str(c.get(name, "0"))) for c in (a, b)):
            differing = [n for n in differing if n != name]
    return [f"{n}: {a.get(n, _ABSENT)!r} -> {b.get(n, _ABSENT)!r}" for n in differing]


def _is_array(text: str) -> bool:
    return text.lower().endswith(".npy")


def _with_defaults(run: Mapping[str, Any]) -> dict[str, Any]:
    """The seed and rule of a run; fields of the rule that came after it have their defaults."""
    rule = run.get("optimization")
    return {**run, "optimization": {**asdict(Optimization()), **rule}} if isinstance(rule, dict) else {**run}


def _ordinary(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _directory(workdir: Path | str) -> Path:
    return Path(workdir) / "checkpoints"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return fields
