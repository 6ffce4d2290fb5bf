"""Typed configurations: reading, overriding, checking, and the way to JSON and back.

A configuration is a tree of sections and fields, held in an ``ml_collections.ConfigDict``.  Its schema is a
tree of defaults: the type of a field is the type of its default.  A section in variants has one field that
holds a name, and fields that belong to that name: choosing another name brings in the fields of its variant,
with their defaults.  Fields that are common to all variants keep their values.

    schema      {section: {field: default}}                        a plain section
                {section: Variants({name: {field: default}})}      a section in variants

Values arrive from Python files, from JSON and from the command line (as strings), and are held to the same
rules: an int may stand for a float and a list for a tuple, nothing else is converted; unknown names are
refused with the nearest valid one.  The elements of a tuple have the type of the default's first one,
integers if the default is empty.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sde_toolkit.config.trees import Config, ConfigDict

Fields = Mapping[str, Any]

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_HUGE = 10**300
_WANTED = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}


@dataclass(frozen=True)
class Variants:
    """A section whose fields depend on a name.

    Args:
        fields: each valid name -> the fields that belong to it, with their defaults.
        key: the field that holds the name.
        common: fields of every variant, with their defaults.
    """

    fields: Mapping[str, Fields]
    key: str = "name"
    common: Fields = field(default_factory=dict)

    def section(self, where: str, name: str) -> dict[str, Any]:
        """The whole section for this name, with its defaults; ``where`` is its path for the error.

        Raises:
            ValueError: the name is unknown.
        """
        try:
            own = self.fields[name]
        except KeyError:
            raise ValueError(
                f"{where}.{self.key} {name!r} is unknown; {nearest(name, self.fields)}"
            ) from None
        return {self.key: name, **self.common, **own}

    def owners(self, field: str) -> list[str]:
        """The names whose variants have this field."""
        return [name for name in self.fields if field in self.fields[name]]


Schema = Mapping[str, "Fields | Variants | int | str"]
Change = tuple[str, Any]
"""Path of a field and its new value, as in ("sde.name", "ve")."""


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
        parsed = float(parsed) if abs(parsed) < _HUGE else math.inf
    if type(parsed) is not kind or (kind is float and not math.isfinite(parsed)):
        raise ValueError(f"{path} must be {_WANTED[kind]} (default {default!r}), got {shortened(value)}")
    return parsed


def _coerce_tuple(path: str, value: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = split_list(value)
    if not isinstance(value, (list, tuple)):
        value = [value]
    if not value and default:
        raise ValueError(f"{path} must be a list like {','.join(map(str, default))}, got an empty one")
    element = default[0] if default else 0
    return tuple(coerce(path, part.strip() if isinstance(part, str) else part, element) for part in value)


def split_list(text: str) -> list[str]:
    """The parts between the commas, those inside brackets excepted; brackets around the whole are dropped."""
    text = text.strip()
    if text[:1] in ("(", "["):
        text = text[1:].removesuffix(")" if text[0] == "(" else "]")
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def shortened(value: object, length: int = 80) -> str:
    """The value as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, or nested too deeply
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


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
    tree: dict[str, Any] = {}
    for section, fields in schema.items():
        if isinstance(fields, Variants):
            tree[section] = fields.section(f"config.{section}", names[section])
        else:
            tree[section] = dict(fields) if isinstance(fields, Mapping) else fields
    return ConfigDict(tree, convert_dict=True)


def flatten(values: Mapping[str, Any]) -> Iterator[Change]:
    """The fields of a tree of sections, as changes."""
    for section, fields in values.items():
        if isinstance(fields, Mapping):
            yield from ((f"{section}.{name}", value) for name, value in fields.items())
        else:
            yield section, fields


def override(config: ConfigDict, changes: Iterable[Change], schema: Schema) -> ConfigDict:
    """A copy of the configuration with fields replaced; changes are pairs such as ``("sde.name", "ve")``.

    Names of variants are set first, whatever the order, so that the fields of the chosen variant may follow
    or precede.

    Raises:
        ValueError: an unknown section, field or name, or a value of the wrong type.
    """
    tree = config.to_dict()
    keys = {f"{name}.{fields.key}" for name, fields in schema.items() if isinstance(fields, Variants)}
    for path, value in sorted(changes, key=lambda change: change[0] not in keys):
        section, _, field = path.partition(".")
        if section not in tree:
            raise ValueError(f"config has no section {section!r}; {nearest(section, tree)}")
        if not isinstance(tree[section], dict):
            _refuse_parts(section, field)
            tree[section] = coerce(f"config.{section}", value, tree[section])
            continue
        fields, variants = tree[section], schema[section]
        _refuse_unknown(section, field, fields, variants)
        new = coerce(f"config.{path}", value, fields[field])
        if path in keys and isinstance(variants, Variants) and new != fields[field]:
            kept = {name: fields[name] for name in variants.common}
            tree[section] = variants.section(f"config.{section}", new) | kept
        else:
            fields[field] = new
    return ConfigDict(tree, convert_dict=True)


def _refuse_parts(section: str, field: str) -> None:
    if field:
        raise ValueError(f"config.{section} is a single value and has no field {field!r}")


def _refuse_unknown(section: str, field: str, fields: Fields, variants: object) -> None:
    if field in fields:
        return
    if not field:
        raise ValueError(
            f"config.{section} is a section, give one of its fields: {', '.join(sorted(fields))}"
        )
    what, hint = f"config.{section} has no field {field!r}", nearest(field, fields)
    if isinstance(variants, Variants):
        what += f" when its {variants.key} is {fields[variants.key]!r}"
        owners = variants.owners(field)
        if owners:
            hint = f"it is a field of {', '.join(owners)}; valid here: {', '.join(sorted(fields))}"
    raise ValueError(f"{what}; {hint}")


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
    except ValueError as error:  # also a number of too many digits
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON: its brackets are nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object of sections, got a {type(values).__name__}")
    return values
