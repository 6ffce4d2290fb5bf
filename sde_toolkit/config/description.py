"""Fields of a configuration as a reader wants them: meaning, type, default and choices side by side.

Nothing is stated here.  Types and defaults are those of ``base.SCHEMA``, meanings those of ``meanings``,
choices those of the names that the builders know; the own fields of a sampler are read from its preset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sde_toolkit.config import likelihood_fields, sampler_fields
from sde_toolkit.config.base import SCHEMA, base_config
from sde_toolkit.config.loading import config_names, load_config
from sde_toolkit.config.meanings import ABOUT
from sde_toolkit.config.metric_fields import LAWS
from sde_toolkit.config.names import (
    AUTOCAST,
    DATA_NAMES,
    DTYPES,
    GRIDS,
    INDEX_SAMPLINGS,
    OWN_GRID,
    OWN_MODEL,
    REAL,
)
from sde_toolkit.config.schema import Variants, nearest
from sde_toolkit.config.trees import Config
from sde_toolkit.lab import EXACT_PROBLEMS
from sde_toolkit.metrics import CATALOGUE
from sde_toolkit.models import PREDICTIONS
from sde_toolkit.networks import TIME_EMBEDDINGS
from sde_toolkit.samplers import PRESETS, find_preset
from sde_toolkit.training import EMA_PROFILES, SCHEDULES, TIME_SAMPLINGS, WEIGHTINGS


@dataclass(frozen=True)
class Field:
    """A field of a configuration, explained.

    Attributes:
        path: as in "training.batch_size".
        default: its default.
        meaning: in some words.
        choices: the values that it may have; empty if any of its type.
        owners: the variants of the section that have it; empty if all have it.
    """

    path: str
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """The type of its values, in words."""
        names = {bool: "true or false", int: "integer", float: "number", str: "string"}
        if not isinstance(self.default, tuple):
            return names[type(self.default)]
        return f"list of {names[type(self.default[0]) if self.default else int]}s".replace("falses", "false")

    def __str__(self) -> str:
        default = ",".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        shown = repr(default) if default == "" else default
        owners = f"; of {', '.join(self.owners)}" if self.owners else ""
        lines = [f"{self.path} = {shown}  ({self.type}{owners})", f"    {self.meaning}"]
        return "\n".join([*lines, f"    one of: {', '.join(self.choices)}"] if self.choices else lines)


def list_fields(name: str | None = None) -> list[Field]:
    """All fields, those of every variant included, or those of one section or field, or of one sampler.

    Raises:
        ValueError: the name is none of these; the nearest is named.
    """
    if name is None:
        return [field for section in SCHEMA for field in _of_section(section)]
    section, _, one = name.removeprefix("config.").partition(".")
    if section in SCHEMA:
        found = [field for field in _of_section(section) if not one or field.path == f"{section}.{one}"]
        if not found and section == "sampling":
            found = [f for n in PRESETS for f in _of_sampler(n) if f.path == f"{section}.{one}"]
        if found:
            return found
        known = [field.path for field in _of_section(section)]
        raise ValueError(f"config.{section} has no field {one!r}; {nearest(name, known)}")
    if name in PRESETS or "." in name or "(" in name:
        return _of_sampler(name)
    raise ValueError(
        f"there is no section, sampler or configuration {name!r}; "
        f"{nearest(name, [*SCHEMA, *PRESETS, *config_names()])}"
    )


def describe_fields(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> str:
    """Meaning, type, default and choices of fields, in lines of text.

    Args:
        name: of a section, a field, a sampler, or a configuration, whose own values are then shown in the
            place of the defaults; None for all fields.
        overrides: of that configuration.

    Raises:
        ValueError: see ``list_fields`` and ``load_config``.
    """
    if name is not None and name in PRESETS:
        return sampler_fields.describe_sampler(name)
    if name in config_names() or (name is not None and name.endswith((".py", ".json"))):
        return "\n".join(map(str, _of_config(load_config(name, overrides))))
    return "\n".join(map(str, list_fields(name)))


def _of_config(config: Config) -> Iterator[Field]:
    own = {f.path: f for f in _of_sampler(config.sampling.sampler)}
    known = {(f.path, owner): f for f in list_fields() for owner in (f.owners or ("",))}
    for section, values in config.to_dict().items():
        if not isinstance(values, dict):
            yield _replaced(known[section, ""], values)
            continue
        variants = SCHEMA[section]
        owner = values[variants.key] if isinstance(variants, Variants) else ""
        for name, value in values.items():
            path = f"{section}.{name}"
            yield _replaced(known.get((path, "")) or known.get((path, owner)) or own[path], value)


def _replaced(field: Field, value: Any) -> Field:
    return Field(field.path, value, field.meaning, field.choices, field.owners)


def _of_section(section: str) -> Iterator[Field]:
    content = SCHEMA[section]
    if not isinstance(content, (Mapping, Variants)):
        yield _field(section, content)
        return
    if isinstance(content, Mapping):
        yield from (_field(f"{section}.{name}", default) for name, default in content.items())
        return
    variants = tuple(content.fields)
    chosen = base_config()[section][content.key]
    path = f"{section}.{content.key}"
    yield Field(path, chosen, ABOUT[path].meaning, variants)
    yield from (_field(f"{section}.{name}", default) for name, default in content.common.items())
    if section == "sampling":  # the own fields of samplers are shown with each of them
        return
    owners: dict[tuple[str, Any], list[str]] = {}
    for variant in variants:
        for name, default in content.fields[variant].items():
            owners.setdefault((name, default), []).append(variant)
    for (name, default), names in owners.items():
        yield _field(f"{section}.{name}", default, () if len(names) == len(variants) else tuple(names))


def _of_sampler(name: str) -> list[Field]:
    preset = find_preset(sampler_fields.parse_entry(name)[0])
    valid = sampler_fields.choices(preset)
    return [
        Field(
            f"sampling.{field}", default, preset.options[field].meaning, valid.get(field, ()), (preset.name,)
        )
        for field, default in sampler_fields.own_fields(preset).items()
    ]


def _field(path: str, default: Any, owners: tuple[str, ...] = ()) -> Field:
    return Field(path, default, ABOUT[path].meaning, CHOICES.get(path, ()), owners)


CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": tuple(DTYPES),
    **{f"data.{name}": tuple(names) for name, names in DATA_NAMES.items()},
    "model.predicts": tuple(PREDICTIONS),
    "model.time_embedding": TIME_EMBEDDINGS,
    "loss.weighting": (*WEIGHTINGS, "learned"),
    "loss.time_sampling": (*TIME_SAMPLINGS, "adaptive"),
    "loss.index_sampling": INDEX_SAMPLINGS,
    "optimization.ema_profile": EMA_PROFILES,
    "optimization.schedule": SCHEDULES,
    "training.autocast": tuple(AUTOCAST),
    **{f"sampling.{name}": names for name, names in sampler_fields.NAMES.items()},
    **{f"likelihood.{name}": names for name, names in likelihood_fields.NAMES.items()},
    "likelihood.split": tuple(REAL),
    "comparison.problems": (OWN_MODEL, *EXACT_PROBLEMS),
    "comparison.grids": (OWN_GRID, *GRIDS),
    "comparison.metrics": (*CATALOGUE, *LAWS),
    "comparison.real": tuple(REAL),
}
"""The fields that hold names, and the names."""
