"""The state of a training run, and its checkpoints.

A run is (network theta, its moving average, the optimiser's moments, the step number n).  After update n,
counted from 0,

    ema <- d_n ema + (1 - d_n) theta,      d_n = min(ema_decay, (1 + n) / (10 + n))

with the theta just updated, so the average includes the last update.  While d_n grows the average spans
about the last tenth of the run, however long the run is.  Everything random in a training step is a
function of (seed, n), so there are no generators and no data position to save: n is both, and a resumed
run is the uninterrupted one bit for bit.

A checkpoint is one safetensors file.  Tensors: ``model.*``, ``ema.*``, ``optimizer.<parameter>.<key>``,
``data.*`` (moments of the training data); an inference checkpoint has ``ema.*`` and ``data.*`` only.  The
header holds one JSON document under "sde_toolkit": format version, kind, step, config, metrics, versions
of the libraries.  Nothing is ever unpickled. Files appear whole or not at all (``sde_toolkit.files``),
under <workdir>/checkpoints/step-<n>.safetensors.

Reference for the average: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
Models" (2312.02696).
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sde_toolkit.batches import integer
from sde_toolkit.files import atomic_write, remove_leftovers
from sde_toolkit.score import NetworkModel

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


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up and decay, gradient clipping and a moving average of the weights.

    Args:
        learning_rate: after the warm-up.
        warmup_steps: updates over which the learning rate rises linearly; 0 for none.
        decay_steps: updates over which it falls linearly to a hundredth, where it stays; 0 for a rate that
            does not fall.
        betas: decay of the first and second moment.
        weight_decay: decoupled, per unit of learning rate.
        max_grad_norm: the gradient is scaled down to this Euclidean norm; infinity for no clipping.
        ema_decay: largest decay of the moving average, in [0, 1).

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9995

    def __post_init__(self) -> None:
        integer("warmup_steps", self.warmup_steps, 0)
        integer("decay_steps", self.decay_steps, 0)
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.learning_rate == math.inf:
            raise ValueError("learning_rate must be finite, got inf; try 1e-3")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}; try 0")
        if not all(0 <= value < 1 for value in (*self.betas, self.ema_decay)):
            raise ValueError(f"betas and ema_decay must be in [0, 1), got {self.betas} and {self.ema_decay}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        rise = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        fall = max(0.01, 1 - step / self.decay_steps) if self.decay_steps else 1.0
        return self.learning_rate * rise * fall

    def ema_decay_at(self, step: int) -> float:
        """The decay of the moving average at update ``step``, counted from 0."""
        return min(self.ema_decay, (1 + step) / (10 + step))


class TrainState:
    """A training run: the model, its moving average, the optimiser and the step number.

    Args:
        model: the network to train, under its forward process; trained in place.
        optimization: the rule of the updates.
        seed: of all randomness of the run, with the step number.
        config: a nested mapping of JSON values that says what the run is; stored in every checkpoint.

    Attributes:
        model, ema: the trained model and, for sampling, the model of the averaged weights.
        optimizer: AdamW on the parameters of ``model.network``.
        step: number of updates made.
        data: moments of the training data, "mean" and "std", shaped as an event, and "covariance" where it is
            known in full, for a network with classes also "class_mean", ... (``sde_toolkit.moments``); empty
            until ``fit`` fills it.
        updating: whether an update is under way; such a state is not saved.

    Raises:
        TypeError: ``config`` holds something that JSON has no word for.
    """

    def __init__(
        self,
        model: NetworkModel,
        optimization: Optimization | None = None,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.seed, self.step = model, integer("seed", seed, 0), 0
        self.config = _as_json(config or {})
        self.optimization = optimization or Optimization()
        average = copy.deepcopy(model.network).requires_grad_(False).eval()
        self.ema = copy.copy(model)
        self.ema.network = average
        model.network.train()
        rule = self.optimization
        self.optimizer = torch.optim.AdamW(
            model.network.parameters(),
            lr=rule.learning_rate,
            betas=rule.betas,
            weight_decay=rule.weight_decay,
        )
        # AdamW's own initial state, made now so that every tensor of the run always is there to save
        for parameter in model.network.parameters():
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
        self.data: dict[str, Tensor] = {}
        self.updating = False

    @property
    def run(self) -> dict[str, Any]:
        """What decides the bits of the run besides its model: the seed and the rule of the updates."""
        return _as_json({"seed": self.seed, "optimization": asdict(self.optimization)})

    def update(self) -> None:
        """Take one optimiser step with the gradients in place, average the weights, and count the step."""
        self.updating = True
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimization.learning_rate_at(self.step)
        self.optimizer.step()
        self._average(1 - self.optimization.ema_decay_at(self.step))
        self.step += 1
        self.updating = False

    @torch.no_grad()
    def _average(self, share: float) -> None:
        average, network = self.ema.network, self.model.network
        for mean, value in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, share)
        for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
            kept.copy_(buffer)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the run under the names that they have in a checkpoint."""
        tensors = _prefixed("model", self.model.network.state_dict())
        tensors |= _prefixed("ema", self.ema.network.state_dict())
        for name, parameter in self.model.network.named_parameters():
            tensors |= _prefixed(f"optimizer.{name}", self.optimizer.state[parameter])
        return tensors | _prefixed("data", self.data)


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
    tensors = {**_prefixed("ema", checkpoint.part("ema")), **_prefixed("data", checkpoint.part("data"))}
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
        except FileNotFoundError:  # a live run has replaced it by a newer one since we looked
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
    _copy(_prefixed("ema", network.state_dict()), checkpoint)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields of ``COMPARED_SECTIONS`` outside ``FREE_FIELDS`` that differ, as "name: old -> new"."""
    a, b = (_flat({key: c[key] for key in COMPARED_SECTIONS if key in c}) for c in map(_as_json, (old, new)))
    differing = [n for n in a | b if n not in FREE_FIELDS and a.get(n, _ABSENT) != b.get(n, _ABSENT)]
    return [f"{n}: {a.get(n, _ABSENT)!r} -> {b.get(n, _ABSENT)!r}" for n in differing]


def _directory(workdir: Path | str) -> Path:
    return Path(workdir) / "checkpoints"


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as a reader of a checkpoint gets it: tuples become lists."""
    try:
        return json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"config must hold numbers, strings, lists and mappings only, got one with {error}"
        ) from error


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
