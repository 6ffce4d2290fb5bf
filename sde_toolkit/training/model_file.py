"""One file for one model: weights, process, prediction, scaling, moments, and how to rebuild the network.

    save_model(model, "digits.safetensors")
    model = load_model("digits.safetensors")                            a network of this library
    model = load_model("mine.safetensors", network=Mine(width=64))      a network of yours

The file is that of ``sde_toolkit.training.tensor_file``, of kind "model".  Tensors: ``network.*``, under the
plain names of a network that was compiled or run in parallel; ``data.*``, moments and scaling; ``sde.*``, the
tables of a chain.  The document holds the description of the model (``sde_toolkit.training.description``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_toolkit.data import scaling_from_tensors
from sde_toolkit.models import (
    IndexedModel,
    ModuleModel,
    Moments,
    NetworkModel,
    class_moments_from_tensors,
    class_tensors,
    moments_from_tensors,
    plain_tensors,
)
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.training.checkpoint import refuse_checkpoint
from sde_toolkit.training.description import describe_model, described_model
from sde_toolkit.training.state import prefixed
from sde_toolkit.training.tensor_file import need_fields, part_of, read_tensors, write_tensors
from sde_toolkit.utils import as_device, check_output_file, checked

_WEIGHTS = {"model": "network", "inference": "ema"}
"""Kinds of files that hold one model, and the part with its weights."""


@checked
def save_model(model: ModuleModel, path: Path | str) -> Path:
    """Write a model to one file, atomically, and return its path.

    Of a network of this library, such as ``UNet``, the file says how to rebuild it; any other module, with
    or without parameters, is saved too and given to ``load_model`` again.  The same holds for the process.

    Args:
        model: a ``NetworkModel`` or ``IndexedModel``; of a training run, ``state.ema`` is the one to sample.
        path: of the file; an earlier model is replaced, a training checkpoint is not.

    Raises:
        TypeError: a model of another class, or a network whose state_dict holds more than tensors.
        ValueError: ``path`` is a directory, a link, a device, a training checkpoint, or cannot be written.
        OSError: the disk is full; an earlier file is untouched.
    """
    if type(model) not in (NetworkModel, IndexedModel):
        raise TypeError(
            "model must be a NetworkModel or an IndexedModel, whose class the file names, got "
            f"{type(model).__name__}; save the model inside, such as state.ema of a training run"
        )
    place = check_output_file(path, "path")
    refuse_checkpoint(place, "path")
    about, tables = describe_model(model)
    tensors = prefixed("network", plain_tensors(model.network)) | prefixed("sde", tables)
    tensors |= prefixed("data", _data_tensors(model))
    write_tensors(place, {"kind": "model", "model": about}, tensors)
    return place


@checked
def load_model(
    path: Path | str,
    network: nn.Module | None = None,
    *,
    sde: ForwardSDE | None = None,
    device: torch.device | str = "cpu",
) -> ModuleModel:
    """The model of a file that ``save_model`` or ``sde-toolkit export`` wrote, in evaluation mode: equal by
    value to the one saved.

    Args:
        path: of the file.
        network: for a network that is not of this library: one built like the one saved.  Its weights are
            replaced, in place.
        sde: for a process that is not of this library: the one of the model.
        device: where the model goes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file or one of another kind; ``network`` or ``sde`` are missing where they are
            needed, or do not fit; a given network has not changed then.
        TypeError: ``network`` is no module.
    """
    if not str(path):
        raise ValueError("path must name a file, got an empty one")
    place, where = Path(path).expanduser(), as_device("device", device)
    if network is not None and not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    document, tensors = read_tensors(place, "model file")
    kind = str(document.get("kind"))
    if kind not in _WEIGHTS:
        raise ValueError(
            f"model file must be one of save_model or of sde-toolkit export, got one of kind {kind!r}"[:300]
            + f", {place}; open the directory of a run by open_run(workdir)"
        )
    need_fields(place, document, {"kind": str, "model": dict}, "model file")
    tables, weights = part_of(tensors, "sde"), part_of(tensors, _WEIGHTS[kind])
    try:
        made = described_model(document["model"], tables, weights, place, network, sde)
        _set_data(made, part_of(tensors, "data"))
    except ValueError as error:
        raise ValueError(f"{place} cannot be loaded: {error}") from error
    return made.eval().to(where)


def _data_tensors(model: ModuleModel) -> dict[str, Tensor]:
    """Moments and scaling of a model, for its file; a scaling that has no tensors is left out."""
    found: dict[str, Tensor] = {} if model.moments is None else model.moments.tensors()
    if model.moments is not None and model.moments.kind == "scalar":
        found |= {"scalar": model.moments.covariance}
    if model.class_moments is not None:
        found |= class_tensors(model.class_moments)
    tensors = getattr(model.scaling, "tensors", None)
    return found if tensors is None else found | tensors()


def _set_data(model: ModuleModel, tensors: Mapping[str, Tensor]) -> None:
    moments = moments_from_tensors(tensors) if "mean" in tensors else None
    if moments is not None and "scalar" in tensors:
        moments = Moments(moments.mean, tensors["scalar"])
    model.set_moments(moments, class_moments_from_tensors(tensors))
    model.scaling = scaling_from_tensors(tensors)
