"""Typed configurations: reading, overriding, checking, and the way to JSON and back.

A configuration is a tree of sections and fields, held in an ``ml_collections.ConfigDict``.  Its schema is a
tree of defaults: the type of a field is the type of its default.  A section that has a field ``name`` comes
in variants, one for each valid name, and the other fields of the section belong to the variant: choosing
another name brings in the fields of that variant.

    schema      {section: {field: default}}                  a plain section
                {section: Variants({name: {field: default}})}   a section in variants

Values arrive from Python files, from JSON and from the command line (as strings), and are held to the same
rules: an int may stand for a float and a list for a tuple, nothing else is converted; unknown names are
refused with the nearest valid one.  The elements of a tuple have the type of the default's first one,
integers if the default is empty.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sde_toolkit.config.trees import Config, ConfigDict

Fields = Mapping[str, Any]

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_WANTED = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}


@dataclass(frozen=True)
class Variants:
    """The fields of a section that depend on its ``name``: a mapping from each valid name to defaults."""

    fields: Mapping[str, Fields]


Schema = Mapping[str, "Fields | Variants | int"]


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a wrong name: the nearest valid one where there is one, and the list of all."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"


def need(what: str, name: str, valid: Iterable[str]) -> None:
    """Refuse a name that is not among the valid ones: raises ValueError with the nearest of them."""
    if name not in valid:
        raise ValueError(f"{what} {name!r} is unknown; {nearest(name, valid)}")


def coerce(path: str, value: Any, default: Any) -> Any:
    """The value in the type of the default; strings are parsed.

    Raises:
        ValueError: the value is not of the default's type, or not a finite number.
    """
    if isinstance(default, tuple):
        return _coerce_tuple(path, value, default)
    kind = type(default)
    parsed = value
    if isinstance(value, str) and kind is not str:
        parsed = _parse(value.strip(), kind)
    if kind is float and type(parsed) is int:
        parsed = float(parsed)
    if type(parsed) is not kind or (kind is float and not math.isfinite(parsed)):
        raise ValueError(f"{path} must be {_WANTED[kind]} (default {default!r}), got {value!r}")
    return parsed


def _coerce_tuple(path: str, value: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part for part in value.strip().strip("()[]").split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        value = [value]
    if not value and default:
        raise ValueError(f"{path} must be a list like {','.join(map(str, default))}, got an empty one")
    element = default[0] if default else 0
    return tuple(coerce(path, part.strip() if isinstance(part, str) else part, element) for part in value)


def _parse(text: str, kind: type) -> Any:
    if kind is bool:
        return _WORDS.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def defaults(schema: Schema, names: Mapping[str, str]) -> ConfigDict:
    """The configuration with every default; ``names`` gives the variant of each section in variants.

    Raises:
        ValueError: a name is unknown.
    """
    sections = {}
    for section, fields in schema.items():
        if isinstance(fields, Variants):
            name = names[section]
            if name not in fields.fields:
                raise ValueError(f"config.{section}.name {name!r} is unknown; {nearest(name, fields.fields)}")
            fields = {"name": name, **fields.fields[name]}
        sections[section] = dict(fields) if isinstance(fields, Mapping) else fields
    return ConfigDict(sections, convert_dict=True)


def complete(values: Mapping[str, Any], schema: Schema, names: Mapping[str, str]) -> ConfigDict:
    """A full configuration from a part of one: missing fields get their defaults, wrong ones are refused.

    Args:
        values: a tree of sections and fields, from a file.
        schema: what is allowed.
        names: variants of the sections whose ``name`` is not in ``values``.

    Raises:
        ValueError: an unknown section, field or name, or a value of the wrong type.
    """
    flat: list[tuple[str, Any]] = []
    for section, fields in values.items():
        if isinstance(fields, Mapping):
            flat.extend((f"{section}.{name}", value) for name, value in fields.items())
        else:
            flat.append((section, fields))
    return override(defaults(schema, names), flat, schema)


def override(config: ConfigDict, changes: Iterable[tuple[str, Any]], schema: Schema) -> ConfigDict:
    """A copy of the configuration with fields replaced; changes are pairs such as ``("sde.name", "ve")``.

    Names of variants are set first, whatever the order, so that the fields of the chosen variant may follow
    or precede.

    Raises:
        ValueError: an unknown section, field or name, or a value of the wrong type.
    """
    tree = config.to_dict()
    for path, value in sorted(changes, key=lambda change: not change[0].endswith(".name")):
        section, _, field = path.partition(".")
        if section not in tree:
            raise ValueError(f"config has no section {section!r}; {nearest(section, tree)}")
        if not isinstance(tree[section], dict):
            _refuse_parts(section, field)
            tree[section] = coerce(f"config.{section}", value, tree[section])
            continue
        if not field:
            raise ValueError(
                f"config.{section} is a section, give one of its fields: {', '.join(sorted(tree[section]))}"
            )
        if field not in tree[section]:
            raise ValueError(f"config.{section} has no field {field!r}{_variant(tree[section])}; "
                             f"{nearest(field, tree[section])}")  # fmt: skip
        new = coerce(f"config.{path}", value, tree[section][field])
        variants = schema[section]
        if field == "name" and isinstance(variants, Variants) and new != tree[section]["name"]:
            tree[section] = defaults({section: variants}, {section: new}).to_dict()[section]
        tree[section][field] = new
    return ConfigDict(tree, convert_dict=True)


def _refuse_parts(section: str, field: str) -> None:
    if field:
        raise ValueError(f"config.{section} is a single value and has no field {field!r}")


def _variant(fields: Fields) -> str:
    return f" when its name is {fields['name']!r}" if "name" in fields else ""


def to_json(config: ConfigDict | Config) -> str:
    """The configuration as JSON with sorted keys; the same configuration gives the same text."""
    return json.dumps(config.to_dict(), sort_keys=True, indent=1, allow_nan=False)


def read_json(text: str, where: str) -> dict[str, Any]:
    """The mapping written in a JSON text; ``where`` names its source in errors.

    Raises:
        ValueError: the text is not JSON, or not an object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object of sections, got a {type(values).__name__}")
    return values
