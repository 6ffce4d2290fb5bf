"""Arguments checked by their annotations, before any work starts.

``checked`` wraps a function, ``check_fields`` serves the ``__post_init__`` of a dataclass.  Both read the
annotations once, and compare every argument with its own:

    int                  integers, those of numpy included, but no truth values
    float                real numbers, not nan
    bool                 truth values
    Literal["a", "b"]    strings; which ones, the function says
    a class              its instances
    a function's type    anything that can be called
    A | B                either

Numbers of numpy become Python's own.  What does not fit raises TypeError (nan: ValueError) with the
argument's name, what was wanted, what came, and what to write instead where that is known: an object for
its name, a part for the whole that holds it.  Ranges stay with the function.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import math
import numbers
import operator
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

_SHOWN = 80
_KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with its arguments compared with their annotations at every call."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() takes {_takes(signature)}, but: {error}") from None
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if name not in hints or parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_fitted(name, v, hints[name], None, function) for v in value)
            else:
                bound.arguments[name] = _fitted(name, value, hints[name], parameter.default, function)
        return function(*bound.args, **bound.kwargs)

    return call


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


def shown(value: object) -> str:
    """A value as messages show it: what it is, and no more than a line of it."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of {value.dtype} with shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except Exception:  # a repr is the caller's own code
        return f"a {type(value).__name__}"
    if len(text) > _SHOWN or "\n" in text or " object at 0x" in text:
        return f"a {type(value).__name__}"
    return text


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers see
        return {}


def _takes(signature: inspect.Signature) -> str:
    return ", ".join(signature.parameters) or "no arguments"


def _fitted(name: str, value: Any, hint: Any, default: Any, owner: Any) -> Any:
    """The value, numbers of numpy as Python's own."""
    if value is default and default is not inspect.Parameter.empty:
        return value
    fits, fitted = _fit(value, hint)
    if fits:
        return fitted
    wanted = _wanted(hint)
    kind = ValueError if isinstance(value, numbers.Real) and value != value else TypeError
    raise kind(f"{name} must be {wanted}, got {shown(value)}{_mend(name, value, hint, default, owner)}")


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether the value fits the annotation, and the value to go on with."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _fit(value, typing.get_args(hint)[0])
    if hint is Any or isinstance(hint, TypeVar):
        return True, value
    if hint is None or hint is type(None):
        return value is None, value
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            fits, fitted = _fit(value, part)
            if fits:
                return True, fitted
        return False, value
    if origin is Literal:
        return any(isinstance(value, type(choice)) for choice in typing.get_args(hint)), value
    if hint in (int, float, bool):
        return _fit_number(value, hint)
    if hint is collections.abc.Callable or origin is collections.abc.Callable or _called(hint):
        return callable(value) and not isinstance(value, type), value
    if getattr(hint, "_is_protocol", False):
        return all(callable(getattr(value, part, None)) for part in vars(hint) if part[0] != "_"), value
    if isinstance(origin or hint, type):
        text = isinstance(value, (str, bytes)) and (origin or hint) is not str
        return isinstance(value, origin or hint) and not text, value
    return True, value


def _fit_number(value: Any, hint: type) -> tuple[bool, Any]:
    truth = isinstance(value, (bool, np.bool_))
    if hint is bool or truth:
        return hint is bool and truth, bool(value) if truth else value
    if hint is int:
        try:
            return not hasattr(value, "shape") or not value.shape, operator.index(value)
        except TypeError:
            return False, value
    if not isinstance(value, numbers.Real):
        return False, value
    try:
        number = float(value)
    except OverflowError:
        return False, value
    return not math.isnan(number), value if type(value) in (int, float) else number


def _called(hint: Any) -> bool:
    """Whether the annotation is a protocol of things that are called."""
    return bool(getattr(hint, "_is_protocol", False)) and "__call__" in vars(hint)


def _wanted(hint: Any) -> str:
    """The annotation in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _wanted(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_wanted(part) for part in parts))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if hint in _KINDS:
        return _KINDS[hint]
    if hint is None or hint is type(None):
        return "None"
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return "a function"
    name = getattr(origin or hint, "__name__", str(hint))
    return f"a{'n' if name[0] in 'AEIOU' else ''} {name}"


def _mend(name: str, value: Any, hint: Any, default: Any, owner: Any) -> str:
    """What to write instead, as far as it can be read from the value, the default and the docstring."""
    if isinstance(value, numbers.Real) and value != value:
        return "; give a finite number"
    if hint is int and isinstance(value, float) and value.is_integer():
        return f"; give {int(value)}"
    if isinstance(value, str):
        near = _named_near(value, default) or _named_in_package(value, hint)
        if near:
            return f"; give the object and not its name, as in {name}={near}"
        if hint in (int, float, bool):
            return f"; leave out the quotes, as in {name}={value.strip() or 1}" if _number(value) else ""
    kinds = _kinds(hint)
    held = [
        f"its .{part}"
        for part, inner in vars(value).items()
        if any(isinstance(inner, kind) for kind in kinds) and part[0] != "_"
    ] if hasattr(value, "__dict__") and not isinstance(value, type) else []  # fmt: skip
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
        for kind in typing.get_args(hint) or (hint,)
        if isinstance(kind, type) and kind not in _KINDS and kind is not type(None) and not _called(kind)
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
