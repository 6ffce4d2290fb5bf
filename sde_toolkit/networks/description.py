"""Networks in words: what a file says of one, and the network for the words.

A network of this library is its name, a dotted path, and the arguments that it was made with; a ``Doubled``
or ``SelfConditioned`` one says so beside the words for the network inside.  A network of
yours is its name alone: nothing in a file is imported, so whoever reads the file must bring the network.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sde_toolkit.models import NoiseLevel
from sde_toolkit.networks.dit import DiT
from sde_toolkit.networks.doubled import Doubled, SelfConditioned
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.networks.ncsnpp import NCSNpp
from sde_toolkit.networks.unet import UNet
from sde_toolkit.networks.unet1d import UNet1D

_KNOWN: dict[str, type[nn.Module]] = {
    f"sde_toolkit.networks.{kind.__name__}": kind for kind in (MLP, UNet, DiT, NCSNpp, UNet1D)
}
_REPEATS = ("depth", "layers_per_block")
"""Arguments that say how often a part is there."""


def describe_network(network: nn.Module) -> dict[str, Any]:
    """The description of a network, as JSON holds it; "arguments" is None for one that is not known."""
    if type(network) is SelfConditioned:
        return describe_network(network.doubled) | {"self_conditioned": True}
    if type(network) is Doubled:
        return describe_network(network.network) | {"outputs": network.outputs}
    for name, kind in _KNOWN.items():
        if type(network) is kind:
            arguments = dict(network.arguments)  # type: ignore[arg-type]
            level = arguments.pop("noise_level", None)
            if level is None or isinstance(level, NoiseLevel):
                return {"name": name, "arguments": arguments, "noise_level": level is not None}
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    return {"name": name, "arguments": None, "noise_level": False}


def described_network(
    description: Mapping[str, Any], most_tensors: int, noise_level: NoiseLevel | None = None
) -> nn.Module:
    """The network that ``describe_network`` described.

    Under ``torch.device("meta")`` it takes no memory, whatever sizes the description claims.

    Args:
        description: of the network.
        most_tensors: a description with more repetitions than that is refused.
        noise_level: of the model that the network is for.

    Raises:
        ValueError: a network that is not known, or arguments that it does not take.
    """
    if (outputs := description.get("outputs")) is not None:
        inner = described_network({**description, "outputs": None}, most_tensors, noise_level)
        wrapper = SelfConditioned if description.get("self_conditioned") is True else Doubled
        return wrapper(inner, 1 if outputs == 1 else 2)
    name, arguments = description.get("name"), description.get("arguments")
    if not isinstance(name, str) or name not in _KNOWN or not isinstance(arguments, Mapping):
        raise ValueError(
            f"network must be given for one that is not of this library, {str(name)[:200]}; build it and "
            "pass it as network="
        )
    if any(_count(arguments.get(repeat)) > most_tensors for repeat in (*_REPEATS, "channels")):
        raise ValueError(
            f"network {name} must have at most {most_tensors} parts, as it has tensors, got more"
        )
    kind = _KNOWN[name]
    defaults = {key: value.default for key, value in inspect.signature(kind).parameters.items()}
    made = {key: _plain(key, value, defaults) for key, value in arguments.items()}
    if description.get("noise_level") is True:
        made["noise_level"] = noise_level
    try:
        return kind(**made)
    except (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError, IndexError) as error:
        raise ValueError(f"network {name} cannot be built from its arguments ({error})") from error


def on_meta(
    description: Mapping[str, Any], most_tensors: int, noise_level: NoiseLevel | None = None
) -> nn.Module:
    """``described_network`` on the meta device: its shapes, and no memory."""
    with torch.device("meta"):
        return described_network(description, most_tensors, noise_level)


def _count(value: object) -> int:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) else 0


def _plain(name: str, value: object, defaults: Mapping[str, Any]) -> Any:
    """An argument in the type that its default has."""
    if name not in defaults or name == "noise_level":
        raise ValueError(f"network has no argument {name[:200]!r}")
    numbers = isinstance(value, list) and all(type(part) is int for part in value)
    if name == "event_shape" or isinstance(defaults[name], tuple):
        if numbers:
            return tuple(value)  # type: ignore[arg-type]
    elif type(value) is type(defaults[name]) or (type(value) is int and isinstance(defaults[name], float)):
        return value
    raise ValueError(f"network argument {name!r} must be like {defaults[name]!r}, got {str(value)[:200]}")
