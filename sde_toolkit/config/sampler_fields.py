"""The section ``sampling``: fields that all samplers share, and those of the chosen one.

The own fields of a sampler are the keyword parameters of its preset, with their defaults
(``sde_toolkit.samplers.catalogue``).  A parameter that takes an object holds a name here; ``OBJECTS`` has the
names, by parameter.  A parameter with any other default cannot be set from a configuration and keeps it.

Where several samplers are compared, each is written as an entry: a name, with options in parentheses where
they differ from the preset's defaults,

    ddim        ddim(eta=0.5)        edm(s_churn=40, grid=karras)        mypackage.mine(strength=2)

An entry may set own fields and those of ``ENTRY_FIELDS``.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import torch

from sde_toolkit import guidance, samplers
from sde_toolkit.config.names import CALIBRATED_GRID, EXPLICIT_GRID, GRIDS, OWN_GRID
from sde_toolkit.config.schema import coerce, nearest, need
from sde_toolkit.models import Moments, ScoreModel, known_moments
from sde_toolkit.samplers import (
    PRESETS,
    AnnealedLangevin,
    Corrector,
    Grid,
    Langevin,
    Preset,
    Sampler,
    calibrated,
    equations,
    find_preset,
    grids,
)
from solvers import EULER_MARUYAMA, HEUN, MIDPOINT, RK4, SHARK, SOSRA, SRA1, STOCHASTIC_HEUN

SAMPLERS = PRESETS
"""The samplers by name; a dotted path names one too."""

OWN_START = "own"
"""Stands for the start that the sampler has."""

COMMON: dict[str, Any] = {
    "num_steps": 20, "num_samples": 64, "seed": 0, "batch_size": 256,
    "t_min": 1e-3, "denoise": True, "last_draw": True, "start": OWN_START, "rtol": 1e-3, "atol": 1e-3,
    "grid": OWN_GRID, "times": (1.0, 1e-3), "calibration_samples": 32, "calibration_cache": "",
    "corrector": "none", "corrector_snr": 0.16, "corrector_num_steps": 1,
    "corrector_first": False,
    "restart_min": 0.0, "restart_max": 1.0, "restart_num_steps": 5, "restart_repeats": 1,
    "threshold": "none", "threshold_limit": 1.0, "threshold_quantile": 0.995,
    "guidance_scale": 1.0, "guidance_min": 0.0, "guidance_max": 1e9, "guidance_rescale": 0.0,
}  # fmt: skip
"""Fields of ``config.sampling`` that all samplers share, with their defaults; ``meanings`` explains them."""

SAMPLER = "default"

CORRECTORS: dict[str, Callable[[float, int], Corrector] | None] = {
    "none": None, "langevin": Langevin, "annealed": AnnealedLangevin,
}  # fmt: skip
THRESHOLDS: dict[str, Callable[[Mapping[str, Any]], guidance.Threshold | None]] = {
    "none": lambda s: None,
    "static": lambda s: guidance.StaticThreshold(s["threshold_limit"]),
    "dynamic": lambda s: guidance.DynamicThreshold(s["threshold_quantile"], s["threshold_limit"]),
}
NAMES: dict[str, tuple[str, ...]] = {
    "grid": (*GRIDS, OWN_GRID, EXPLICIT_GRID, CALIBRATED_GRID),
    "start": (OWN_START, *samplers.STARTS),
    "corrector": tuple(CORRECTORS),
    "threshold": tuple(THRESHOLDS),
}
"""Common fields that hold names, and the names."""

MOMENTS: dict[str, Callable[[ScoreModel], Moments | None]] = {
    "own": lambda model: None,
    "diagonal": lambda model: known_moments(model).diagonal(),
    "scalar": lambda model: known_moments(model).scalar(),
}
OBJECTS: dict[str, Mapping[str, Any]] = {
    "clock": {
        "t": equations.in_time, "nsr": equations.in_nsr, "lam": equations.in_lam, "angle": equations.in_angle,
    },
    "b": {"b1": samplers.b1, "b2": samplers.b2},
    "tableau": {"heun": HEUN, "midpoint": MIDPOINT, "kutta3": samplers.KUTTA3, "rk4": RK4},
    "method": {
        "euler_maruyama": EULER_MARUYAMA, "stochastic_heun": STOCHASTIC_HEUN, "sra1": SRA1, "shark": SHARK,
        "sosra": SOSRA,
    },
    "phi": {"er": samplers.er_scale, "square": torch.square},
    "moments": {"own": None},
}  # fmt: skip
"""Parameter of a preset -> names for its values."""

ALIASES = {"predictor_corrector": ("reverse_diffusion", {"corrector": "langevin"})}
"""Names for a preset together with common fields."""

_LARGE = 1e9
"""Stands for infinity, which JSON lacks."""

_STEPS = ("num_steps", "last_draw", "corrector", "restart_min")
_GRID = ("grid", "times", "calibration_samples", "calibration_cache")
_CORRECTOR = ("corrector_snr", "corrector_num_steps", "corrector_first")
_RESTART = ("restart_max", "restart_num_steps", "restart_repeats")
_THRESHOLD = ("threshold", "threshold_limit", "threshold_quantile")
_GUIDANCE = ("guidance_scale", "guidance_min", "guidance_max", "guidance_rescale")

ENTRY_FIELDS = tuple(
    name for name in COMMON if name not in ("num_steps", "num_samples", "seed", "batch_size")
)
"""Common fields that an entry in parentheses may set."""


def own_fields(preset: Preset) -> dict[str, Any]:
    """The fields that belong to a preset, with their defaults.

    Raises:
        ValueError: an option has the name of a field that all samplers share.
    """
    found = {}
    for option in preset.options.values():
        if option.name in COMMON or option.name == "sampler":
            raise ValueError(
                f"sampler {preset.name!r} has an option {option.name!r}, which is a field of all samplers; "
                "give it another name"
            )
        default = _plain(option.name, option.default)
        if default is not None:
            found[option.name] = default
    return found


def _plain(name: str, default: Any) -> Any:
    """The default as a field holds it; None where it cannot hold it."""
    if name in OBJECTS:
        return next((key for key, value in OBJECTS[name].items() if value is default), None)
    if isinstance(default, float) and math.isinf(default):
        return math.copysign(_LARGE, default)
    if isinstance(default, tuple):
        plain = all(type(part) in (bool, int, float, str) for part in default)
        return default if plain and len({type(part) for part in default}) == 1 else None
    return default if type(default) in (bool, int, float, str) else None


def choices(preset: Preset) -> dict[str, tuple[str, ...]]:
    """The own fields that hold names, and the names."""
    found = {}
    for name in own_fields(preset):
        kind = preset.options[name].type
        if name == "moments":
            found[name] = tuple(MOMENTS)
        elif name in OBJECTS:
            fit = OBJECTS[name].items()
            found[name] = tuple(k for k, v in fit if not isinstance(kind, type) or isinstance(v, kind))
        elif get_origin(kind) is Literal and isinstance(preset.options[name].default, str):
            found[name] = get_args(kind)
    return found


class OwnFields(Mapping[str, Mapping[str, Any]]):
    """Sampler -> its own fields, for every preset and every dotted path."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        return own_fields(find_preset(name))

    def __iter__(self) -> Iterator[str]:
        return iter(PRESETS)

    def __len__(self) -> int:
        return len(PRESETS)


def parse_entry(text: str) -> tuple[str, dict[str, Any]]:
    """The preset's name and the options of an entry such as "ddim(eta=0.5)", as they stand; aliases resolved.

    Raises:
        ValueError: it has another form.
    """
    name, options = parse_call(text, "sampler", "ddim(eta=0.5)")
    own = name if ".py:" in name else name.replace(":", ".")
    name, more = ALIASES.get(name, (own, {}))
    return name, {**more, **options}


def parse_call(text: str, what: str, example: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of an entry in parentheses, as they stand.

    Args:
        text: the entry.
        what: it is, for the errors.
        example: of an entry.

    Raises:
        ValueError: it has another form.
    """
    match = re.fullmatch(r"\s*([\w./~:+-]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    wrong = f"{what} {text!r} must be a name, with options as in {example}"
    if match is None:
        raise ValueError(wrong)
    options: dict[str, Any] = {}
    try:
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # a null byte is a ValueError in Python 3.10
        raise ValueError(wrong) from error
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError(wrong)
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in options:
            raise ValueError(wrong)
        try:
            word = isinstance(keyword.value, ast.Name)
            options[keyword.arg] = keyword.value.id if word else ast.literal_eval(keyword.value)  # type: ignore[attr-defined]
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise ValueError(f"{wrong}; {keyword.arg} must be a number or a name") from None
    return match[1], options


def checked_entry(text: str) -> tuple[Preset, dict[str, Any]]:
    """The preset and the options of an entry, in the types of its fields.

    Raises:
        ValueError: an unknown sampler or field, or a value of the wrong type.
    """
    name, options = parse_entry(text)
    preset = find_preset(name)
    fields = {**{key: COMMON[key] for key in ENTRY_FIELDS}, **own_fields(preset)}
    for key in options:
        if key not in fields:
            raise ValueError(f"sampler {preset.name!r} has no option {key!r}; {nearest(key, fields)}")
    made = {key: coerce(f"{key} of {preset.name}", value, fields[key]) for key, value in options.items()}
    need_names(f"sampler {preset.name!r}: ", preset, made)
    return preset, made


def need_names(where: str, preset: Preset, fields: Mapping[str, Any]) -> None:
    """Refuse unknown names among the values of fields; ``where`` begins the sentence."""
    for key, valid in {**NAMES, **choices(preset)}.items():
        if key in fields:
            need(f"{where}{key}", fields[key], valid)


def entry_label(text: str) -> str:
    """The entry as it was written, without blanks and quotes, fit for a file name."""
    return re.sub(r"[\s'\"]", "", text).replace(":", ".")


def entries_on_grids(text: str, names: Iterable[str]) -> list[str]:
    """The entry once for every grid of these names; once alone where it says its grid or takes none."""
    preset, options = checked_entry(text)
    if "grid" not in preset.parameters or "grid" in options:
        return [text]
    head, bracket, rest = text.strip().partition("(")
    inside = rest.rstrip().removesuffix(")").strip() if bracket else ""
    found = []
    for name in names:
        more = "" if name == OWN_GRID else f"grid={name}"
        both = ", ".join(part for part in (inside, more) if part)
        found.append(f"{head}({both})" if both else head)
    return found


def resolve_entry(text: str, section: Mapping[str, Any]) -> tuple[Preset, dict[str, Any]]:
    """The preset of an entry and all its fields.

    Own fields are those of ``section``, ``config.sampling``, where that has chosen the same sampler, else the
    preset's defaults; common fields are those of ``section``; options in the entry come before both.
    """
    preset, options = checked_entry(text)
    own = own_fields(preset)
    if section["sampler"] == preset.name:
        own = {name: section[name] for name in own}
    return preset, {**{name: section[name] for name in COMMON}, **own, **options}


def changed_fields(text: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have an effect on the sampler of an entry and are not what the entry alone would have.

    The number of steps, and the tolerance of a sampler that chooses its own steps, are left out.
    """
    preset, fields = resolve_entry(text, section)
    _, plain = resolve_entry(text, {**COMMON, "sampler": ""})
    left_out = ("num_steps",) if preset.kind != "adaptive" else ("rtol",)
    names = [name for name in effective_fields(preset, fields) if name not in left_out]
    return {name: fields[name] for name in names if fields[name] != plain[name]}


def make_sampler(preset: Preset, s: Mapping[str, Any], num_steps: int, model: ScoreModel | None) -> Sampler:
    """The sampler of a preset with these fields, and what they put around it."""
    options = {name: _value(preset, name, s[name], model) for name in own_fields(preset)}
    options |= {name: s[name] for name in ("t_min", "denoise", "rtol", "atol") if name in preset.parameters}
    gridded = "grid" in preset.parameters
    if gridded and s["grid"] not in (OWN_GRID, CALIBRATED_GRID):
        options["grid"] = _grid(s, num_steps)
    sampler = _wrapped(preset, preset.make(num_steps, model, **options), s)
    if not gridded or s["grid"] != CALIBRATED_GRID:
        return sampler
    if model is None:
        raise ValueError("grid 'calibrated' is found for a model: build the sampler with model=")
    cache = s["calibration_cache"] or None
    return calibrated(sampler, model, num_samples=s["calibration_samples"], cache=cache)


def _value(preset: Preset, name: str, value: Any, model: ScoreModel | None) -> Any:
    if name == "moments":
        return None if model is None else MOMENTS[value](model)
    if name in OBJECTS:
        return OBJECTS[name][value]
    default = preset.options[name].default
    return default if value == _plain(name, default) else value


def _grid(s: Mapping[str, Any], num_steps: int) -> Grid:
    if s["grid"] != EXPLICIT_GRID:
        return GRIDS[s["grid"]]
    if len(s["times"]) != num_steps + 1:
        raise ValueError(
            f"config.sampling.times must have num_steps + 1 = {num_steps + 1} times, got {len(s['times'])}"
        )
    return grids.Explicit(s["times"])


def _wrapped(preset: Preset, sampler: Sampler, s: Mapping[str, Any]) -> Sampler:
    if s["start"] != OWN_START:
        sampler = replace(sampler, start=s["start"])
    if s["guidance_scale"] != 1:
        low, high = s["guidance_min"], s["guidance_max"]
        interval = None if low == 0 and high >= _LARGE else (low, high)
        sampler = guidance.guided(
            sampler, s["guidance_scale"], interval=interval, rescale=s["guidance_rescale"]
        )
    threshold = THRESHOLDS[s["threshold"]](s)
    if threshold is not None:
        sampler = guidance.thresholded(sampler, threshold)
    if preset.kind != "fixed":
        return sampler
    if s["restart_min"]:
        restart = (s["restart_min"], s["restart_max"], s["restart_num_steps"], s["restart_repeats"])
        sampler = samplers.restarting(sampler, samplers.Restart(*restart))
    corrector = CORRECTORS[s["corrector"]]
    if corrector is not None:
        made = corrector(s["corrector_snr"], s["corrector_num_steps"])
        sampler = samplers.predictor_corrector(sampler, made, s["corrector_first"])
    return sampler if s["last_draw"] else samplers.without_last_draw(sampler)


def describe_sampler(name: str) -> str:
    """What a sampler is, its own fields with their defaults and meanings, and the fields of all samplers that
    have an effect on it.

    Raises:
        ValueError: the name is unknown.
    """
    preset = find_preset(parse_entry(name)[0])
    lines = [f"{preset.name}: {preset.summary}".replace("``", "")]
    names = choices(preset)
    for field, default in own_fields(preset).items():
        valid = f" ({', '.join(names[field])})" if field in names else ""
        lines.append(f"  {field}={default}{valid}  {preset.options[field].meaning}".replace("``", ""))
    common = [field for field in effective_fields(preset) if field in COMMON]
    return "\n".join([*lines, f"  and {', '.join(sorted(common))}"])


def effective_fields(preset: Preset, s: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Fields that have an effect on a sampler: with the values ``s``, or, without them, with some values."""
    found: list[str] = [name for name in ("t_min", "denoise", "rtol", "atol") if name in preset.parameters]
    found.append("start")
    found += own_fields(preset)
    if preset.kind != "adaptive":
        found.append("num_steps")
    if preset.kind == "fixed":
        found += _STEPS[1:]
        found += _CORRECTOR if s is None or s["corrector"] != "none" else ()
        found += _RESTART if s is None or s["restart_min"] else ()
    if "grid" in preset.parameters:
        needed = {"times": EXPLICIT_GRID, "calibration_samples": CALIBRATED_GRID}
        needed["calibration_cache"] = CALIBRATED_GRID
        found += [name for name in _GRID if s is None or s["grid"] == needed.get(name, s["grid"])]
    found += _GUIDANCE if s is None or s["guidance_scale"] != 1 else _GUIDANCE[:1]
    found += _THRESHOLD if s is None or s["threshold"] != "none" else _THRESHOLD[:1]
    return tuple(found)
