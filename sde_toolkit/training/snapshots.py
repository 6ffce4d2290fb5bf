"""Stored averages of a run, and the average of any length afterwards.

    <workdir>/snapshots/step-<n>.safetensors      the traces of the run after n updates

A run whose rule has ``ema_traces`` tracks averages with power-function profiles, and ``fit`` stores them all
every ``snapshot_every`` updates, beside the checkpoints; nothing of it changes the run.  A file takes 4 bytes
for each weight and trace.  ``reconstruct`` combines them to the average of any length at any step
(``training.averages``), in float64, one file in memory at a time; the newest checkpoint holds the traces of
its own step and counts as one more file.  Buffers are those of the last file at or before the step.

Files appear whole or not at all.  A run that goes on from an earlier checkpoint first removes those of later
steps, and makes them again.

Reference: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2312.02696).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.training.averages import PowerProfile, combine, gamma_of, need_length
from sde_toolkit.training.checkpoint import Checkpoint, latest_checkpoint, refuse_checkpoint, write_inference
from sde_toolkit.training.state import TrainState, prefixed
from sde_toolkit.training.tensor_file import file_kind, need_fields, part_of, read_tensors, write_tensors
from sde_toolkit.utils import check_output_file, checked, integer

_NAME = re.compile(r"step-(\d{8,15})\.safetensors")
_FIELDS = {"kind": str, "step": int, "lengths": list}
_NEGLIGIBLE = 1e-9
"""Size of coefficients, relative to the largest, below which a file is not read."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The average of one length at one step.

    Attributes:
        sigma_rel: the length, as a share of the run.
        step: number of updates after which the average ends.
        residual: share of the profile that the stored ones miss, in the mean square, relative to its norm.
        nearest: the stored step that is nearest to it; a step between two of them is badly represented.
        weights: the tensors of the network, under their plain names.
    """

    sigma_rel: float
    step: int
    residual: float
    nearest: int
    weights: dict[str, Tensor] = field(repr=False)


def save_snapshot(
    state: TrainState, workdir: Path | str, tensors: Mapping[str, Tensor] | None = None
) -> Path:
    """Store the traces of a run below ``workdir``, and return the path of the file.

    ``tensors`` are those of the traces, whole, where they are sharded.

    Raises:
        OSError: the disk is full or not writable.
    """
    directory = _directory(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{state.step:08d}.safetensors"
    about = {
        "kind": "snapshot",
        "step": state.step,
        "lengths": list(state.optimization.ema_traces),
    }
    write_tensors(path, about, state.trace_tensors() if tensors is None else tensors)
    return path


def snapshot_bytes(state: TrainState) -> int:
    """Size of the tensors of one file of ``save_snapshot``."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.trace_tensors().values())


def drop_snapshots(workdir: Path | str, after: int) -> None:
    """Remove what was stored after this step, by a part of the run that is made again."""
    for step, path in _stored(workdir):
        if step > after:
            path.unlink()


@checked
def reconstruct(
    workdir: Path | str, sigma_rel: float | Sequence[float], step: int | None = None
) -> list[Reconstruction]:
    """The averages of these lengths of a run that stored its traces.

    Args:
        workdir: of the run.
        sigma_rel: lengths, as shares of the run, from 1e-4 to 0.288 (the plain mean of all updates).
        step: number of updates after which the averages end; that of the newest checkpoint if not given.

    Raises:
        ValueError: nothing is stored there, a length out of range, or a step after the newest checkpoint.
    """
    lengths = [sigma_rel] if isinstance(sigma_rel, (int, float)) else list(sigma_rel)
    if not lengths:
        raise ValueError("sigma_rel must be one length or more, got none; try (0.05, 0.1)")
    for length in lengths:
        need_length("sigma_rel", length)
    checkpoint = _with_traces(workdir)
    end = checkpoint.step if step is None else integer("step", step, 1)
    if end > checkpoint.step:
        raise ValueError(f"step must be at most {checkpoint.step}, that of the newest checkpoint, got {end}")
    paths: dict[int, Path | None] = {n: path for n, path in _stored(workdir) if 0 < n < checkpoint.step}
    paths[checkpoint.step] = None
    gammas = [gamma_of(length) for length in checkpoint.run["optimization"]["ema_traces"]]
    while True:
        times = sorted(paths)
        found = [combine(times, gammas, PowerProfile(gamma_of(length), end)) for length in lengths]
        try:
            sums = _sums(paths, [made.coefficients for made in found], checkpoint)
            buffers = _buffers(paths, end, checkpoint)
            break
        except _UnreadableError as error:
            warnings.warn(f"a snapshot is left out: {error}", RuntimeWarning, stacklevel=2)
            del paths[error.step]
    nearest = min(times, key=lambda time: abs(time - end))
    return [
        Reconstruction(length, end, made.residual, nearest, _typed(total, checkpoint) | buffers)
        for length, made, total in zip(lengths, found, sums, strict=True)
    ]


def export_average(checkpoint: Checkpoint, average: Reconstruction, path: Path | str) -> None:
    """Write an average as a file like that of ``export_checkpoint``, which ``load_model`` reads.

    Args:
        checkpoint: of the run; the moments of the data and the configuration are taken from it.
        average: one of ``reconstruct``.
        path: of the file.

    Raises:
        OSError: the disk is full or not writable; an earlier file is untouched.
        ValueError: ``path`` is a directory, a link, a device or a training checkpoint.
    """
    rest = {name: value for name, value in checkpoint.tensors.items() if not name.startswith("ema.")}
    metrics = {"sigma_rel": average.sigma_rel, "residual": average.residual}
    made = replace(
        checkpoint, step=average.step, tensors=rest | prefixed("ema", average.weights), metrics=metrics
    )
    place = check_output_file(path)
    if file_kind(place) == "training":
        refuse_checkpoint(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_inference(made, place)


def _directory(workdir: Path | str) -> Path:
    return Path(workdir).expanduser() / "snapshots"


def _stored(workdir: Path | str) -> Iterator[tuple[int, Path]]:
    """The steps and paths of what is stored, in order."""
    for path in sorted(_directory(workdir).glob("step-*.safetensors")):
        match = _NAME.fullmatch(path.name)
        if match is not None and path.is_file() and not path.is_symlink():
            yield int(match[1]), path


def _with_traces(workdir: Path | str) -> Checkpoint:
    """The newest checkpoint of a run that tracks averages."""
    checkpoint = latest_checkpoint(Path(workdir).expanduser())
    if checkpoint is None:
        raise ValueError(f"workdir {workdir} holds no checkpoint; train there first")
    if not checkpoint.part("traces"):
        raise ValueError(
            f"workdir must hold a run that stores averages, got {workdir}, whose run does not; train another "
            "one with --config.training.snapshot_every=100, or, in Python, with "
            "Optimization(ema_traces=(0.05, 0.1)) and fit(..., snapshot_every=100)"
        )
    if checkpoint.kind != "training" or checkpoint.step < 1:
        raise ValueError(f"workdir must hold a run of one update or more, got {checkpoint.path}")
    return checkpoint


class _UnreadableError(ValueError):
    """A snapshot is damaged or of another run."""

    def __init__(self, step: int, reason: object) -> None:
        super().__init__(str(reason))
        self.step = step


def _traces(step: int, path: Path | None, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of the traces at a step, under "<number>.<name>"; those of the checkpoint have no path."""
    if path is None:
        return checkpoint.part("traces")
    try:
        document, tensors = read_tensors(path, "snapshot")
        need_fields(path, document, _FIELDS, "snapshot")
        tensors, wanted = part_of(tensors, "traces"), checkpoint.part("traces")
        shapes = [{name: (t.shape, t.dtype) for name, t in part.items()} for part in (wanted, tensors)]
        lengths = checkpoint.run["optimization"]["ema_traces"]
        if shapes[0] != shapes[1] or document["lengths"] != lengths or document["step"] != step:
            raise ValueError(f"{path} is not of the run in {checkpoint.path}; remove it")
    except (ValueError, OSError) as error:
        raise _UnreadableError(step, error) from error
    return tensors


def _sums(
    paths: Mapping[int, Path | None], coefficients: list[np.ndarray], checkpoint: Checkpoint
) -> list[dict[str, Tensor]]:
    """The combinations of the averaged tensors, in float64, one for each array of coefficients."""
    names = _averaged(checkpoint)
    totals: list[dict[str, Tensor]] = [{} for _ in coefficients]
    least = [_NEGLIGIBLE * np.abs(array).max() for array in coefficients]
    for j, step in enumerate(sorted(paths)):
        wanted = [np.abs(array[j]).max() > floor for array, floor in zip(coefficients, least, strict=True)]
        if not any(wanted):
            continue
        tensors = _traces(step, paths[step], checkpoint)
        for total, array, use in zip(totals, coefficients, wanted, strict=True):
            for name in names if use else ():
                for k, coefficient in enumerate(array[j]):
                    part = float(coefficient) * tensors[f"{k}.{name}"].double()
                    total[name] = total[name] + part if name in total else part
    return totals


def _averaged(checkpoint: Checkpoint) -> list[str]:
    """The names of the tensors that are averaged: the parameters, and other names of the same tensors."""
    model = checkpoint.part("model")
    moved = {name.rpartition(".")[0] for name in checkpoint.part("optimizer")} & set(model)
    return [
        name
        for name, tensor in model.items()
        if name in moved
        or (tensor.is_floating_point() and any(torch.equal(tensor, model[other]) for other in moved))
    ]


def _buffers(paths: Mapping[int, Path | None], end: int, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What is not averaged, from the last file at or before the step, else from the first."""
    averaged = set(_averaged(checkpoint))
    if averaged == set(checkpoint.part("ema")):
        return {}
    step = max((time for time in paths if time <= end), default=min(paths))
    first = part_of(_traces(step, paths[step], checkpoint), "0")
    return {name: tensor for name, tensor in first.items() if name not in averaged}


def _typed(total: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    like = checkpoint.part("ema")
    return {name: tensor.to(like[name].dtype) for name, tensor in total.items()}
