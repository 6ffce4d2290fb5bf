"""A model in words: what a file says of one, and the model for the words and the weights.

    class, predicts, event_shape, data_std, condition_shape, fractional,
    learned_variance                                                        of the model
    process                                                                 ``sde_toolkit.sdes``
    network                                                                 ``sde_toolkit.networks``

Saved models and checkpoints hold it.  Nothing in it is imported or run, and the shapes that it claims are
compared with the tensors of the file before a network of these shapes is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.models import (
    IndexedModel,
    ModuleModel,
    NetworkModel,
    NoiseLevel,
    inner_network,
    plain_tensors,
    prediction_name,
)
from sde_toolkit.networks import describe_network, described_network, on_meta
from sde_toolkit.sdes import ChainSDE, ForwardSDE, describe_process, described_process
from sde_toolkit.training.tensor_file import check_tensors, copy_tensors, need_fields

_FIELDS = {
    "class": str, "predicts": str, "event_shape": list, "data_std": float, "fractional": bool,
    "process": dict, "network": dict,
}  # fmt: skip


def describe_model(model: ModuleModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a model, as JSON holds it, and the tables of its process."""
    process, tables = describe_process(model.sde)
    return {
        "class": type(model).__name__,
        "predicts": model.network_predicts,
        "event_shape": list(model.event_shape),
        "data_std": model.data_std,
        "condition_shape": None if model.condition_shape is None else list(model.condition_shape),
        "fractional": bool(getattr(model, "fractional", False)),
        **({"learned_variance": True} if model.learned_variance else {}),
        "process": process,
        "network": describe_network(inner_network(model.network)),
    }, tables


def described_model(
    about: Mapping[str, Any],
    tables: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    where: Path,
    network: nn.Module | None = None,
    sde: ForwardSDE | None = None,
) -> ModuleModel:
    """The model that ``describe_model`` described, with these weights, without moments and scaling.

    Args:
        about: the description.
        tables: of the process.
        weights: of the network, under their plain names.
        where: the file that they come from, for errors.
        network, sde: those of the model, where they are not of this library.

    Raises:
        ValueError: a broken description; ``network`` or ``sde`` is missing or does not fit.
    """
    need_fields(where, about, _FIELDS, "model")
    process = described_process(about["process"], tables, sde)
    kind = about["class"]
    if kind != "NetworkModel" and not (kind == "IndexedModel" and isinstance(process, ChainSDE)):
        raise ValueError(
            f"the model must be a NetworkModel, or an IndexedModel of a chain, got {kind[:200]!r} under "
            f"{process!r}; build it yourself, and load_ema(its network, read_checkpoint(path))"
        )
    shapes = [_shape("event_shape", about["event_shape"])]
    if about.get("condition_shape") is not None:
        shapes.append(_shape("condition_shape", about["condition_shape"]))
    event_shape, condition_shape = shapes[0], shapes[1] if len(shapes) > 1 else None
    if not 0 < about["data_std"] < math.inf:
        raise ValueError(f"data_std must be a finite positive number, got {about['data_std']}")
    predicts, types = prediction_name(about["predicts"]), _float_types(weights)
    if network is None:
        level = NoiseLevel(process, about["data_std"])
        sketch = _as_type(on_meta(about["network"], len(weights), level), types)
        check_tensors(plain_tensors(sketch), weights, where)
        network = described_network(about["network"], len(weights), level)
    targets = plain_tensors(network)
    extra = sorted(set(weights) - set(targets))
    if extra:
        raise ValueError(f"network must have the tensors of the file, got one without {', '.join(extra[:3])}")
    check_tensors({name: _typed(target, types) for name, target in targets.items()}, weights, where)
    copy_tensors(plain_tensors(_as_type(network, types)), weights, where)
    if kind == "NetworkModel":
        return NetworkModel(
            network, process, predicts, event_shape, about["data_std"], condition_shape=condition_shape
        )
    assert isinstance(process, ChainSDE)
    return IndexedModel(
        network, process.chain, predicts, event_shape, about["fractional"], about["data_std"],
        condition_shape=condition_shape, learned_variance=about.get("learned_variance") is True,
    )  # fmt: skip


def _shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and 0 < size < 2**40 for size in value):
        raise ValueError(f"{name} must be a list of positive integers, got {str(value)[:200]}")
    return tuple(value)


def _float_types(weights: Mapping[str, Tensor]) -> set[torch.dtype]:
    return {weight.dtype for weight in weights.values() if weight.is_floating_point()}


def _as_type(network: nn.Module, types: set[torch.dtype]) -> nn.Module:
    """The network in the one type of these, as it is where there are several."""
    return network.to(next(iter(types))) if len(types) == 1 else network


def _typed(tensor: Tensor, types: set[torch.dtype]) -> Tensor:
    """What has the tensor's shape and the type that ``_as_type`` gives it, and takes no memory."""
    cast = len(types) == 1 and tensor.is_floating_point()
    return torch.empty_like(tensor, device="meta", dtype=next(iter(types)) if cast else tensor.dtype)
