"""Annotations: which values fit them, and their words for a sentence.

    int                  integers below 2^63, seeds below 2^64, those of numpy included, but no truth values
    float                real numbers, not nan
    Tensor               tensors; arrays and lists are refused with how to convert them
    np.ndarray           arrays, and lists of numbers, which become arrays
    tuple[A, ...]        tuples and lists, with every part compared with A; they become tuples
    Sequence[A]          sequences and arrays of one dimension, with every part compared with A
    bool                 truth values
    Literal["a", "b"]    strings; which ones, the function says
    a class              its instances
    a function's type    anything that can be called with so many arguments
    A | B                either

Numbers of numpy become Python's own.  Objects of strangers may fail in any way where they are looked at.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import numbers
import operator
import types
import typing
from typing import Any, Literal, TypeVar

import numpy as np

_SHOWN = 80
_NONE = object()
KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
"""Words for plain values."""


def shown(value: object) -> str:
    """A value as messages show it: what it is, and no more than a line of it."""
    if isinstance(value, numbers.Real) and too_large("seed", value):
        return "an integer of more than 64 bits"
    try:
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return f"a {type(value).__name__} of {value.dtype} with shape {tuple(value.shape)}"
        text = repr(value)
    except Exception:  # a repr is the caller's own code
        return f"a {type(value).__name__}"
    if len(text) > _SHOWN or "\n" in text or " object at 0x" in text:
        return f"a {type(value).__name__}"
    return text


def has_method(value: object, name: str) -> bool:
    """Whether something can be called by this name on a value."""
    return callable(look_up(value, name))


def look_up(value: Any, name: str, default: Any = None) -> Any:
    """``getattr`` for objects whose attributes may fail in any way."""
    try:
        return getattr(value, name, default)
    except Exception:  # whatever a stranger's attribute does
        return default


def fit_to(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether the value fits the annotation, and the value to go on with."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return fit_to(value, typing.get_args(hint)[0])
    if hint is Any or isinstance(hint, TypeVar):
        return True, value
    if hint is None or hint is type(None):
        return value is None, value
    if is_union(hint):
        if any(isinstance(part, type) and type(value) is part for part in typing.get_args(hint)):
            return fit_to(value, type(value))
        for part in typing.get_args(hint):
            fits, fitted = fit_to(value, part)
            if fits:
                return True, fitted
        return False, value
    if origin is Literal:
        return any(isinstance(value, type(choice)) for choice in typing.get_args(hint)), value
    if hint in (int, float, bool):
        return _fit_number(value, hint)
    if hint is collections.abc.Callable or origin is collections.abc.Callable or is_call_protocol(hint):
        return callable(value) and not isinstance(value, type) and _takes_as_many(value, hint), value
    if getattr(hint, "_is_protocol", False):
        return all(_has(value, name, part) for name, part in vars(hint).items() if name[0] != "_"), value
    if hint is np.ndarray and isinstance(value, (list, tuple)):
        return _as_array(value)
    if origin in (tuple, collections.abc.Sequence):
        return _fit_parts(value, hint)
    if isinstance(origin or hint, type):
        text = isinstance(value, (str, bytes)) and (origin or hint) is not str
        return isinstance(value, origin or hint) and not text, value
    return True, value


def _takes_as_many(function: Any, hint: Any) -> bool:
    """Whether a function can be called with as many arguments as the annotation says; True if unknown."""
    count = arity(hint)
    if count is None:
        return True
    return _binds(function, count, None if is_call_protocol(hint) else ())


def arity(hint: Any) -> int | None:
    """With how many arguments a function of this annotation is called; None where that is not said."""
    if typing.get_origin(hint) is collections.abc.Callable:
        listed = typing.get_args(hint)[0]
        return len(listed) if isinstance(listed, list) else None
    if is_call_protocol(hint):
        parameters = list(inspect.signature(hint.__call__).parameters.values())[1:]
        return sum(p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD for p in parameters)
    return None


def check_called(
    name: str, function: Any, count: int, named: typing.Sequence[str] = (), more: int = 0
) -> None:
    """Refuse, with TypeError, a function that cannot be called with ``count`` arguments, up to ``more``
    beside them, and those named."""
    if not any(_binds(function, k, named) for k in range(count, count + more + 1)):
        rest = f" and {', '.join(named)} by name" if named else ""
        raise TypeError(f"{name} must be a function of {count} arguments{rest}, got {shown(function)}")


def _binds(function: Any, count: int, named: typing.Sequence[str] | None) -> bool:
    """Whether a call fits the function's parameters, with more by name if ``named`` is None; True where they
    are not known."""
    try:  # a module passes on whatever it is called with
        signature = inspect.signature(look_up(function, "forward", function))
    except Exception:  # of builtins, and of a stranger's object
        return True
    try:
        bind = signature.bind_partial if named is None else signature.bind
        bind(*range(count), **dict.fromkeys(named or ()))
    except TypeError:
        return False
    return True


def _has(value: Any, name: str, part: Any) -> bool:
    """Whether a value has this part of a protocol, a method or an attribute."""
    found = look_up(value, name, _NONE)
    return found is not _NONE and (callable(found) or not callable(part))


def _fit_part(part: Any, kind: Any) -> tuple[bool, Any]:
    """``fit_to``, with nan for the function to judge."""
    return (True, part) if kind is float and isinstance(part, float) else fit_to(part, kind)


def _as_array(value: Any) -> tuple[bool, Any]:
    """Whether lists hold numbers, and their array; a tuple of tables is not one."""
    if isinstance(value, tuple) and any(len(look_up(part, "shape", ())) > 1 for part in value):
        return False, value
    try:
        array = np.asarray(value)
    except ValueError:  # of unequal lengths
        return False, value
    return array.dtype.kind in "iufb", array


def _fit_parts(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a sequence fits tuple[A, ...], tuple[A, B] or Sequence[A], and what to go on with."""
    wanted, fixed = typing.get_args(hint), typing.get_origin(hint) is tuple
    one_axis = len(look_up(value, "shape", ())) == 1 and callable(look_up(value, "tolist"))
    if not (one_axis or isinstance(value, (tuple, list) if fixed else collections.abc.Sequence)):
        return False, value
    if isinstance(value, (str, bytes)):
        return False, value
    if isinstance(value, range) and not fixed and wanted[0] is int:
        return True, value
    parts = value.tolist() if one_axis else value
    if fixed and Ellipsis not in wanted and len(parts) != len(wanted):
        return False, value
    each = wanted if fixed and Ellipsis not in wanted else [wanted[0]] * len(parts)
    found = [_fit_part(part, kind) for part, kind in zip(parts, each, strict=True)]
    whole = tuple(part for _, part in found)
    return all(fits for fits, _ in found), whole if fixed or one_axis else value


def _fit_number(value: Any, hint: type) -> tuple[bool, Any]:
    truth = isinstance(value, (bool, np.bool_))
    if hint is bool or truth:
        return hint is bool and truth, bool(value) if truth else value
    if hint is int:
        try:
            whole = operator.index(value)
        except TypeError:
            return False, value
        return not look_up(value, "shape", ()), whole
    if not isinstance(value, numbers.Real):
        return False, value
    try:
        number = float(value)
    except OverflowError:
        return False, value
    return not math.isnan(number), value if type(value) in (int, float) else number


def most_bits(name: str) -> int:
    """How many bits the integers of this argument may have."""
    return 64 if "seed" in name else 63


def too_large(name: str, value: Any) -> bool:
    """Whether an integer has more bits than the argument of this name may have."""
    bits = most_bits(name)
    return isinstance(value, numbers.Integral) and int(value) >= 1 << bits


def is_call_protocol(hint: Any) -> bool:
    """Whether the annotation is a protocol of things that are called."""
    return bool(getattr(hint, "_is_protocol", False)) and "__call__" in vars(hint)


def wanted_words(hint: Any) -> str:
    """The annotation in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return wanted_words(parts[0])
    if is_union(hint):
        return " or ".join(dict.fromkeys(wanted_words(part) for part in parts))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if hint in KINDS:
        return KINDS[hint]
    if hint is None or hint is type(None):
        return "None"
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Sequence or (origin is tuple and Ellipsis in parts):
        return f"a sequence of which each is {wanted_words(parts[0])}"
    if origin is tuple:
        return f"a tuple of {len(parts)}, " + " and ".join(wanted_words(part) for part in parts)
    name = getattr(origin or hint, "__name__", str(hint))
    name = "torch.Tensor" if name == "Tensor" else name
    return f"a{'n' if name[0] in 'AEIOU' else ''} {name}"


def is_union(hint: Any) -> bool:
    """Whether the annotation is A | B."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
