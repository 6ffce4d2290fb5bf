"""What may be put around a preset inside a pipeline, as the plain values that a configuration holds.

    corrector          {"kind": "Langevin", "snr": 0.16, "num_steps": 1, ...}
    corrector_first    whether it runs where a step begins
    restarts           [{"nsr_min": 0.1, "nsr_max": 1.0, "num_steps": 5, "grid": "karras", ...}, ...]
    last_draw          False: the last step leaves its draw out

Correctors and restarts that values do not describe, such as a corrector of a user's own class, are refused,
since a pipeline that is saved with them would be another one when it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from sde_toolkit.samplers import (
    AnnealedLangevin,
    Corrector,
    Grid,
    Langevin,
    Restart,
    Sampler,
    grids,
    predictor_corrector,
    restarting,
    without_last_draw,
)

_CORRECTORS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Langevin, AnnealedLangevin)}


def described(
    corrector: Corrector | None, corrector_first: bool, restarts: Sequence[Restart], last_draw: bool
) -> dict[str, Any]:
    """The values for a configuration.

    Raises:
        ValueError: a corrector or a grid that has no name, or a place for no corrector.
    """
    if corrector_first and corrector is None:
        raise ValueError("corrector_first needs a corrector, got none; give corrector=Langevin()")
    kind = type(corrector).__name__
    if corrector is not None and type(corrector) is not _CORRECTORS.get(kind):
        raise ValueError(
            f"corrector must be one of {', '.join(_CORRECTORS)}, whose values a configuration can hold, got "
            f"{kind}"
        )
    return {
        "corrector": None if corrector is None else {"kind": kind, **asdict(corrector)},  # type: ignore[call-overload]
        "corrector_first": corrector_first,
        "restarts": [_plain(restart) for restart in restarts] or None,
        "last_draw": last_draw,
    }


def named_grid(name: str) -> Grid:
    """The grid of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in grids.BY_NAME:
        raise ValueError(f"grid must be one of {', '.join(sorted(grids.BY_NAME))}, got {name!r}")
    return grids.BY_NAME[name]


def _plain(restart: Restart) -> dict[str, Any]:
    values = {field.name: getattr(restart, field.name) for field in fields(restart)}
    names = [name for name, grid in grids.BY_NAME.items() if grid == restart.grid]
    if not names:
        raise ValueError(
            f"the grid of a restart must be one by name, such as karras, got {grids.label(restart.grid)}, "
            "which a configuration cannot hold"
        )
    return values | {"grid": names[0], "stream": int(restart.stream)}


def wrapped(sampler: Sampler, config: Mapping[str, Any]) -> Sampler:
    """The sampler with what a configuration puts around it.

    Raises:
        ValueError: values of another kind, or a sampler that they do not fit.
    """
    if not config["last_draw"]:
        sampler = without_last_draw(sampler)
    if config["restarts"]:
        sampler = restarting(sampler, *(_restart(dict(values)) for values in config["restarts"]))
    if config["corrector"]:
        values = dict(config["corrector"])
        kind = values.pop("kind", None)
        if kind not in _CORRECTORS:
            raise ValueError(f"the kind of a corrector must be one of {', '.join(_CORRECTORS)}, got {kind!r}")
        made = _CORRECTORS[kind](**values)
        sampler = predictor_corrector(sampler, made, bool(config["corrector_first"]))
    return sampler


def _restart(values: dict[str, Any]) -> Restart:
    return Restart(**{**values, "grid": named_grid(values.get("grid", "karras"))})
