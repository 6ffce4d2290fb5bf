"""What a checkpoint's configuration is believed, and what counts only when it is given with the call.

Anyone may have written the file that is opened.  So of what stands in its configuration

    a process of yours            is not imported: the run is opened where the call gives its name
    a directory to write to       is not used
    a dotted path of a function   is not imported
    a number beyond ``MOST``      is not acted on

A field that is given with the call, as an override or on the command line, is the caller's own and counts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from sde_toolkit.config import Config, checkpoint_config, override_config
from sde_toolkit.training import COMPARED_SECTIONS, Checkpoint

MOST = 1_000_000
"""The largest number of examples, samples or steps that a file may ask for by itself."""

_FUNCTION = re.compile(r"[\w.]+:[\w.]+")
_FUNCTIONS = ("training.trackers",)
"""Fields without effect on what is opened: they are left at their defaults without a warning."""
_PATHS = ("sampling.calibration_cache",)
_REPEATS = ("depth", "layers_per_block")


def stored_config(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """The configuration of a checkpoint under overrides, and the fields that still want to be confirmed.

    Fields that are not believed are left at their defaults, with a warning, where they are about the use of
    the weights alone; the size of the data is kept and wants to be confirmed.

    Raises:
        ValueError: the configuration is broken, or an override is not valid.
    """
    values, unconfirmed = dict(checkpoint.config), []
    for section, fields in checkpoint.config.items():
        if not isinstance(fields, Mapping):
            continue
        values[section] = kept = dict(fields)
        for name, value in fields.items():
            path = f"{section}.{name}"
            reason = _doubt(path, value)
            if reason is None:
                continue
            if path == "sde.name" and path not in overrides:
                raise ValueError(
                    f"config.sde.name = {str(value)[:200]} stands in {checkpoint.path} and is not used, "
                    f"since {reason}; give it yourself with --config.sde.name={str(value)[:200]}"
                )
            if section == "data":
                unconfirmed += [] if path in overrides else [path]
            elif section not in COMPARED_SECTIONS or path in _FUNCTIONS:
                del kept[name]
                if path not in overrides and path not in _FUNCTIONS:
                    _warn(checkpoint, path, value, reason)
        if section == "sampling" and "sampler" in fields and "sampler" not in kept:
            values[section] = {}  # its other fields are those of the sampler
    try:
        config = checkpoint_config(values)
    except (TypeError, OverflowError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"the configuration in {checkpoint.path} is broken ({error!r})") from error
    return override_config(config, overrides), tuple(unconfirmed)


def need_confirmed(config: Config, unconfirmed: tuple[str, ...]) -> None:
    """Refuse, with a ValueError, to make data of a size that a file alone asks for."""
    for path in unconfirmed:
        section, _, name = path.partition(".")
        value = config[section][name]
        raise ValueError(
            f"config.{path} = {value} stands in the checkpoint and is not acted on by itself, since "
            f"{_doubt(path, value)}; confirm it with --config.{path}={value}"
        )


def need_few_parts(config: Config, num_tensors: int) -> None:
    """Refuse, with a ValueError, a network of more parts than there are tensors for."""
    fields = config.model.to_dict()
    for name in _REPEATS:
        if fields.get(name, 0) > num_tensors:
            raise ValueError(
                f"config.model.{name} must be at most the number of tensors, {num_tensors}, got "
                f"{fields[name]}"
            )


def _doubt(path: str, value: object) -> str | None:
    """Why a field is not believed; None if it is."""
    if path in _PATHS:
        return "no path in a file is written to" if value else None
    section, _, name = path.partition(".")
    if path == "data.conditions":  # columns, a key or an array, of which numbers are read
        return None
    if path == "sde.name":
        return "nothing that a file names is imported" if ":" in str(value) else None
    if section == "data" and name != "bounds" and isinstance(value, str) and _FUNCTION.fullmatch(value):
        return "nothing that a file names is imported" if not value.startswith("hf:") else None
    if name in ("sampler", "samplers", "problems", "metrics", "conditions", "trackers"):
        entries = value if isinstance(value, list) else [value]
        names = [str(entry).partition("(")[0] for entry in entries]
        return "nothing that a file names is imported" if any(set(n) & set(".:/") for n in names) else None
    if name in ("seed", "seeds"):
        return None
    numbers = value if isinstance(value, list) else [value]
    large = any(isinstance(number, int) and number > MOST for number in numbers)
    return f"a number beyond {MOST:,} counts only when it is given with the call" if large else None


def _warn(checkpoint: Checkpoint, path: str, value: object, reason: str) -> None:
    warnings.warn(
        f"config.{path} = {str(value)[:200]} in {checkpoint.path.name} is not used, since {reason}; give it "
        f"yourself with --config.{path}=...",
        stacklevel=4,
    )
