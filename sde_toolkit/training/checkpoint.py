"""Checkpoints of training runs.

A checkpoint is one safetensors file.  Tensors: ``model.*``, ``ema.*``, ``optimizer.<parameter>.<key>``,
``data.*`` (moments of the training data); an inference checkpoint has ``ema.*`` and ``data.*`` only.  The
header holds one JSON document under "sde_toolkit": format version, kind, step, config, metrics, versions of
the libraries.  Nothing is ever unpickled.  Files appear whole or not at all (``sde_toolkit.utils.files``),
under <workdir>/checkpoints/step-<n>.safetensors.
"""

from __future__ import annotations

import contextlib
import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sde_toolkit.training.state import TrainState, as_json, prefixed
from sde_toolkit.utils import atomic_write, integer, remove_leftovers

FORMAT_VERSION = 1

Kind = Literal["training", "inference"]

COMPARED_SECTIONS = ("seed", "data", "sde", "model", "loss", "optimization", "training")
"""Top-level entries of a config that decide what a run's weights are: resuming under others is refused."""

FREE_FIELDS = ("training.num_steps", "training.checkpoint_every", "training.keep", "training.log_every")
"""Fields in those sections that may change between two parts of one run."""

_HEADER = "sde_toolkit"
_FIELDS = {"kind": str, "step": int, "config": dict, "run": dict, "metrics": dict, "libraries": dict}
_ABSENT = "(absent)"
_FILE_NAME = "step-{step:08d}.safetensors"
_LIBRARIES = ("sde-toolkit", "torch", "numpy", "safetensors", "diffusers")


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

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, "model", "ema", "optimizer" or "data", under the rest of their names."""
        start = name + "."
        return {key[len(start) :]: value for key, value in self.tensors.items() if key.startswith(start)}


def save_checkpoint(
    state: TrainState, workdir: Path | str, keep: int = 2, metrics: Mapping[str, Any] | None = None
) -> Path:
    """Write a training checkpoint below ``workdir``, keep the last ``keep`` of them, and return its path.

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
    about = {"step": state.step, "config": state.config, "run": state.run, "metrics": dict(metrics or {})}
    _write(path, {"kind": "training", **about}, state.tensors())
    remove_leftovers(directory)
    earlier = [other for other in checkpoint_paths(workdir) if other.name < path.name]
    for other in earlier[: len(earlier) - (keep - 1)]:
        other.unlink()
    return path


def export_checkpoint(checkpoint: Checkpoint, path: Path | str) -> None:
    """Write what sampling needs of ``checkpoint`` to ``path``: averaged weights, data moments, config.

    Raises:
        OSError: the disk is full or not writable; an earlier file is untouched.
    """
    tensors = {**prefixed("ema", checkpoint.part("ema")), **prefixed("data", checkpoint.part("data"))}
    about = {name: getattr(checkpoint, name) for name in ("step", "config", "run", "metrics")}
    _write(Path(path), {"kind": "inference", **about}, tensors)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a training or inference checkpoint onto the CPU; no code in the file is ever run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is pickled, truncated, or no checkpoint of a format that this version reads.
    """
    path = Path(path)
    with open(path, "rb") as binary:
        start = binary.read(9)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        # torch.save's archive, or a bare pickle; a safetensors file has a brace at byte 8
        if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
            raise ValueError(
                f"checkpoint must be a safetensors file, got a pickled one, {path}; it was not loaded, "
                "because unpickling runs code: save a checkpoint with this library instead"
            ) from error
        raise ValueError(
            f"checkpoint must be a whole safetensors file, got a truncated or foreign one, {path} ({error}); "
            "remove it, or copy it again"
        ) from error
    document = _parse_header(path, header)
    return Checkpoint(path=path, tensors=tensors, **document)


def checkpoint_paths(workdir: Path | str) -> list[Path]:
    """The training checkpoints below ``workdir``, oldest first."""
    return sorted(_directory(workdir).glob("step-*.safetensors"))


def latest_checkpoint(workdir: Path | str) -> Checkpoint | None:
    """Return the newest training checkpoint below ``workdir`` that can be read, None if there is none.

    Kills leave no broken file, so one that cannot be read was damaged from outside: it is left in place,
    a RuntimeWarning names it, and the one before it is taken.

    Raises:
        ValueError: there are checkpoints, but none can be read.
    """
    problem: ValueError | None = None
    for path in reversed(checkpoint_paths(workdir)):
        try:
            return read_checkpoint(path)
        except FileNotFoundError:  # a live run has replaced it by a newer one
            return latest_checkpoint(workdir)
        except ValueError as error:
            problem = error
            warnings.warn(
                f"going back to the checkpoint before {path.name}: {error}", RuntimeWarning, stacklevel=2
            )
    if problem is not None:
        raise ValueError(
            f"no checkpoint in {_directory(workdir)} can be read; remove them to start anew"
        ) from problem
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
    differing = differing or config_differences(checkpoint.run, state.run)
    if differing:
        raise ValueError(
            f"config must be that of {checkpoint.path}, got other values: {'; '.join(differing)}; restore "
            "the former values, or use another workdir"
        )
    targets = state.tensors()
    _copy({name: target for name, target in targets.items() if not name.startswith("data.")}, checkpoint)
    state.data = checkpoint.part("data")
    state.step, state.updating = checkpoint.step, False


def load_ema(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the averaged weights of a training or inference checkpoint into ``network``.

    Raises:
        ValueError: tensors that are missing or of another shape or type; the network has not changed then.
    """
    _copy(prefixed("ema", network.state_dict()), checkpoint)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields of ``COMPARED_SECTIONS`` outside ``FREE_FIELDS`` that differ, as "name: old -> new"."""
    a, b = (_flat({key: c[key] for key in COMPARED_SECTIONS if key in c}) for c in map(as_json, (old, new)))
    differing = [n for n in a | b if n not in FREE_FIELDS and a.get(n, _ABSENT) != b.get(n, _ABSENT)]
    return [f"{n}: {a.get(n, _ABSENT)!r} -> {b.get(n, _ABSENT)!r}" for n in differing]


def _directory(workdir: Path | str) -> Path:
    return Path(workdir) / "checkpoints"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return fields


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _write(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    document = {"format_version": FORMAT_VERSION, **about, "libraries": _versions()}
    whole = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    atomic_write(path, safetensors.torch.save(whole, {_HEADER: json.dumps(document)}))


def _parse_header(path: Path, header: str | None) -> dict[str, Any]:
    try:
        document = json.loads(header or "")
        found, writer = document.pop("format_version"), document["libraries"]
        complete = found != FORMAT_VERSION or {name: kind(document[name]) for name, kind in _FIELDS.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint must be written by this library, got a safetensors file of another kind, {path}"
        ) from error
    if found != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint must have format version {FORMAT_VERSION}, got {found} in {path}, written by "
            f"{writer}; read it with that version of sde-toolkit"
        )
    return complete


def _copy(targets: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Copy the tensors of these names in place, after a check of them all."""
    for name, target in targets.items():
        source = checkpoint.tensors.get(name)
        if source is None:
            raise ValueError(
                f"checkpoint must hold the tensor {name!r}, got {checkpoint.path} without it; build the "
                "network with the checkpoint's config"
            )
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(
                f"tensor {name!r} must have shape {tuple(target.shape)} and type {target.dtype}, got "
                f"{tuple(source.shape)} and {source.dtype} in {checkpoint.path}; build the network with the "
                "checkpoint's config"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(checkpoint.tensors[name])
