"""Checkpoints of score_sde (.pth): tensors read without running anything, and checked against their names.

    {"model": {"module.sigmas", "module.all_modules.0...": tensors},
     "ema": {"decay", "num_updates", "shadow_params": [tensors]},      moving averages, in the order of the
     "optimizer": ..., "step": n}                                      parameters, those that are trained

and the table "sigmas", which the configuration gives too, may be missing.

A .pth file is a pickle.  It is read by torch's weights-only unpickler, which makes tensors and plain
containers and refuses everything else before it is called, so nothing that a file asks for is run.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), whose checkpoints have this form.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.interop.score_sde.keys import NOISE_LEVELS, Entry, entries_of, to_ours
from sde_toolkit.interop.score_sde.settings import ScoreSDEConfig

_WHAT = 'a checkpoint of score_sde, a .pth file with "model" and "ema"'
_PREFIX = "module."
_CLOSE = 1e-4
"""Relative distance between noise levels of a file and of its configuration that rounding explains."""
_SHOWN = 4


def read_tensors_of(path: Path | str, config: ScoreSDEConfig, ema: bool = True) -> dict[str, Tensor]:
    """The tensors of our network in a checkpoint, on the host in their types.

    Args:
        path: of the checkpoint.
        config: of the model in it.
        ema: its moving averages; otherwise the weights of its last step.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of score_sde, asks for code to be run, or holds another model than the
            configuration's.
    """
    path = Path(path).expanduser()
    saved = _loaded(path)
    entries = entries_of(config)
    tensors = {NOISE_LEVELS: config.noise_levels} | _named(path, saved)
    _check_names(path, tensors, entries)
    _check_levels(path, tensors[NOISE_LEVELS], config)
    if ema:
        tensors = tensors | _averages(path, saved.get("ema"), entries)
    _check_shapes(path, tensors, entries)
    return to_ours(config, tensors)


def _loaded(path: Path) -> dict[str, Any]:
    """The containers and tensors of a file."""
    if not path.is_file():
        wrong = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"path must be {_WHAT}, got {path}, which is {wrong}; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols of pickle
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        raise ValueError(f"path must be {_WHAT}, got {path}: {_reason(error)}") from None
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), Mapping):
        keys = sorted(map(str, saved))[:_SHOWN] if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(f"path must be {_WHAT}, got {path}, which holds {keys}")
    return saved


def _reason(error: Exception) -> str:
    """What is wrong with a file that was not read."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked:
        return (
            f"it asks for {asked[1]}, which weights do not need; nothing was run, so take a file from a "
            "source that you trust"
        )
    return f"it cannot be read as weights ({type(error).__name__}); download it again"


def _named(path: Path, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the model by name, without the prefix of parallel training."""
    found = {}
    for name, value in saved["model"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(
                f'path must be {_WHAT}, got {path}, whose "model" holds {type(value).__name__} for {name!r}, '
                "not a tensor of real numbers"
            )
        found[name.removeprefix(_PREFIX)] = value
    return found


def _check_names(path: Path, tensors: Mapping[str, Tensor], entries: Sequence[Entry]) -> None:
    wanted = [NOISE_LEVELS, *(entry.key for entry in entries)]
    missing = [name for name in wanted if name not in tensors]
    more = sorted(set(tensors) - set(wanted))
    if missing or more:
        lacks = f"lacks {_few(missing)}" if missing else ""
        has = f"has {_few(more)}" if more else ""
        raise ValueError(
            f"path and config must be those of one model, got {path}, which "
            f"{' and '.join(filter(None, (lacks, has)))}; give the configuration that it was trained with"
        )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _check_levels(path: Path, levels: Tensor, config: ScoreSDEConfig) -> None:
    """Refuse a table of noise levels that is not the configuration's."""
    good = levels.ndim == 1 and len(levels) == config.num_scales
    ends = torch.tensor([config.sigma_max, config.sigma_min], dtype=torch.float64)
    if good and len(levels) > 1:
        good = bool(((levels[[0, -1]].double() / ends - 1).abs() < _CLOSE).all())
    if not good:
        got = f"{len(levels)} from {float(levels[0]):.4g} to {float(levels[-1]):.4g}" if levels.numel() else 0
        raise ValueError(
            f"path and config must be those of one model, got {path} with the noise levels {got}, and a "
            f"config with {config.num_scales} from {config.sigma_max:.4g} to {config.sigma_min:.4g}"
        )


def _averages(path: Path, saved: Any, entries: Sequence[Entry]) -> dict[str, Tensor]:
    """The moving averages by name."""
    values = saved.get("shadow_params") if isinstance(saved, Mapping) else None
    averaged = [entry for entry in entries if entry.averaged]
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, Tensor) for value in values):
        raise ValueError(
            f"path must be {_WHAT}, got {path} without moving averages; ema=False takes the last weights"
        )
    if len(values) != len(averaged):
        raise ValueError(
            f"path and config must be those of one model, got {path} with {len(values)} moving averages for "
            f"{len(averaged)} parameters; ema=False takes the last weights"
        )
    return {entry.key: value for entry, value in zip(averaged, values, strict=True)}


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], entries: Sequence[Entry]) -> None:
    for entry in entries:
        got = tuple(tensors[entry.key].shape)
        if got != entry.shape or not tensors[entry.key].is_floating_point():
            raise ValueError(
                f"path and config must be those of one model, got {path}, where {entry.key} has shape {got} "
                f"and not {entry.shape}; give the configuration that it was trained with"
            )
        if not bool(tensors[entry.key].isfinite().all()):
            raise ValueError(f"path must hold finite weights, got {path} with nan or inf in {entry.key}")
