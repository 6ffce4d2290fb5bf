"""Arguments checked by their annotations, before any work starts.

``checked`` wraps a function, ``check_fields`` serves the ``__post_init__`` of a dataclass.  Both read the
annotations once, and compare every argument with its own, as ``solvers.annotations`` says.

What does not fit raises TypeError (nan, and integers of too many bits: ValueError) with the argument's name,
what was wanted, what came, and what to write instead where that is known: an object for its name, a part for
the whole that holds it.  Ranges stay with the function.  Where memory runs out, large counts are named.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import numbers
import re
import sys
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from solvers.annotations import (
    KINDS,
    arity,
    fit_to,
    is_union,
    look_up,
    most_bits,
    shown,
    too_large,
    wanted_words,
)

P = ParamSpec("P")
R = TypeVar("R")

_MANY = 1 << 16
"""Counts above are named where memory runs out."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with its arguments compared with their annotations at every call."""
    signature = inspect.signature(function)
    method = function.__name__ == "__init__"

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            owner = type(args[0]) if method else function
            raise TypeError(f"{owner.__name__}() takes {_takes(signature)}, but: {error}") from None
        owner = type(args[0]) if method else function
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if name not in hints or parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_fitted(name, v, hints[name], None, owner) for v in value)
            else:
                bound.arguments[name] = _fitted(name, value, hints[name], parameter.default, owner)
        try:
            return function(*bound.args, **bound.kwargs)
        except (RuntimeError, MemoryError) as error:
            _explain_memory(owner, bound.arguments, error)
            raise

    return call


def _explain_memory(owner: Any, arguments: collections.abc.Mapping[str, Any], error: Exception) -> None:
    """Raise the sentence for memory that ran out under large counts; nothing where that is not the cause."""
    text = str(error).lower()
    out = (
        isinstance(error, MemoryError)
        or "allocate" in text
        or "out of memory" in text
        or "storage size" in text
    )
    many = [f"{k} = {v}" for k, v in arguments.items() if type(v) is int and v > _MANY and "seed" not in k]
    if out and many:
        raise ValueError(
            f"{owner.__name__} needs more memory than there is; lower {' or '.join(many)}"
        ) from error


def check_fields(record: Any) -> None:
    """Compare every field of a dataclass with its annotation; for the first line of ``__post_init__``.

    Raises:
        TypeError, ValueError: see the module's text.
    """
    kind: Any = type(record)
    hints = _hints(kind)
    for name, entry in kind.__dataclass_fields__.items():
        value = getattr(record, name)
        fitted = _fitted(name, value, hints.get(name, Any), entry.default, kind)
        if fitted is not value:
            object.__setattr__(record, name, fitted)


def require(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that does not fit the annotation ``kind``; raises TypeError."""
    _fitted(name, value, kind, inspect.Parameter.empty, None)


def returned(name: str, value: R, part: str) -> R:
    """What a given function returned, which must have the attribute ``part``; raises TypeError otherwise."""
    if look_up(value, part) is None:
        raise TypeError(f"{name} must return an object with .{part}, got {shown(value)}")
    return value


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers see
        return {}


def _takes(signature: inspect.Signature) -> str:
    return ", ".join(name for name in signature.parameters if name != "self") or "no arguments"


def _fitted(name: str, value: Any, hint: Any, default: Any, owner: Any) -> Any:
    """The value, numbers of numpy as Python's own."""
    if value is default and default is not inspect.Parameter.empty:
        return value
    fits, fitted = fit_to(value, hint)
    if fits and isinstance(fitted, int) and too_large(name, fitted):
        fits = False
    if fits and look_up(value, "is_meta") is True:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device; give one with data")
    if fits:
        return fitted
    wanted = wanted_words(hint)
    out_of_range = isinstance(value, numbers.Real) and (value != value or too_large(name, value))
    kind = ValueError if out_of_range else TypeError
    raise kind(f"{name} must be {wanted}, got {shown(value)}{_mend(name, value, hint, default, owner)}")


def _mend(name: str, value: Any, hint: Any, default: Any, owner: Any) -> str:
    """What to write instead, as far as it can be read from the value, the default and the docstring."""
    if isinstance(value, numbers.Real) and value != value:
        return "; give a finite number"
    if isinstance(value, numbers.Real) and too_large(name, value):
        return f"; it stays below 2^{most_bits(name)}"
    if any(kind.__name__ == "Tensor" for kind in _kinds(hint)) and isinstance(
        value, (np.ndarray, np.generic, list, tuple, int, float)
    ):
        return f"; convert it with torch.as_tensor({name})"
    if hint is int and isinstance(value, float) and value.is_integer():
        return f"; give {int(value)}"
    if isinstance(value, str):
        near = _named_near(value, default) or _named_in_package(value, hint)
        if near:
            return f"; give the object and not its name, as in {name}={near}"
        if hint in (int, float, bool):
            return f"; leave out the quotes, as in {name}={value.strip() or 1}" if _number(value) else ""
    arities = [arity(part) for part in (typing.get_args(hint) if is_union(hint) else (hint,))]
    counts = [str(count) for count in arities if count is not None]
    if counts and callable(value) and not isinstance(value, type):
        return f"; it is called with {' or '.join(counts)} argument(s)"
    kinds = _kinds(hint)
    try:
        inside = {} if isinstance(value, type) else dict(vars(value))
    except Exception:  # no attributes, or a stranger's
        inside = {}
    held = [
        f"its .{part}"
        for part, inner in inside.items()
        if any(isinstance(inner, kind) for kind in kinds) and part[0] != "_"
    ]
    if held:
        return f"; give {' or '.join(held)}"
    if isinstance(value, type) and any(issubclass(value, kind) for kind in kinds):
        return f"; make one, as in {value.__name__}(...)"
    meaning = _meaning(inspect.getdoc(owner) or "", name)
    return f"; {name} is {meaning}" if meaning else ""


def _kinds(hint: Any) -> list[type]:
    """The classes of the annotation, beside those of plain values."""
    return [
        kind
        for kind in (typing.get_args(hint) if is_union(hint) else (typing.get_origin(hint) or hint,))
        if isinstance(kind, type)
        and kind not in KINDS
        and kind is not type(None)
        and not getattr(kind, "_is_protocol", False)
    ]


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _named_near(text: str, default: Any) -> str | None:
    """The object with the name ``text``, or nearly so, beside the default."""
    home = getattr(default, "__module__", None) or type(default).__module__
    module = sys.modules.get(home)
    if module is None or home == "builtins":
        return None
    like = callable(default)
    names = [
        n for n, v in vars(module).items()
        if n[0] != "_" and (callable(v) if like else isinstance(v, type(default))) and not inspect.isclass(v)
    ]  # fmt: skip
    near = difflib.get_close_matches(text.lower(), [n.lower() for n in names], n=1)
    found = next((n for n in names if near and n.lower() == near[0]), None)
    return f"{home.rpartition('.')[2]}.{found}" if found else None


def _named_in_package(text: str, hint: Any) -> str | None:
    """The object with the name ``text`` in the package of the class that is wanted."""
    for kind in _kinds(hint):
        package = sys.modules.get(kind.__module__.partition(".")[0])
        found = {n.lower(): n for n, v in vars(package).items() if isinstance(v, kind)} if package else {}
        near = difflib.get_close_matches(text.lower(), found, n=1)
        if package and near:
            return f"{package.__name__}.{found[near[0]]}"
    return None


def _meaning(text: str, name: str) -> str | None:
    """What the part "Args:" of a docstring says of an argument."""
    entry = re.search(rf"^ {{4}}(?:\w+, )*\*?{name}(?:, \w+)*: (.*(?:\n {{8}}.*)*)", text, re.MULTILINE)
    return " ".join(entry[1].split()).rstrip(".").replace("``", "") if entry else None
