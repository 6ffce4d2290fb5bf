"""Another library, imported where it is used, or a sentence."""

from __future__ import annotations

import importlib
from typing import Any


def other_library(name: str, use: str, extra: str) -> Any:
    """The module of another library.

    Args:
        name: of the module, as in "diffusers".
        use: what it is needed for, the start of the sentence.
        extra: of this package that installs it.

    Raises:
        ImportError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise ImportError(_broken(name, use, error), name=name) from error
        raise ImportError(
            f"{use} needs {name}, which is not installed; run pip install 'sde-toolkit[{extra}]'", name=name
        ) from None
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ImportError(_broken(name, use, error), name=name) from error


def _broken(name: str, use: str, error: BaseException) -> str:
    while error.__cause__ is not None:  # lazy imports of others wrap the reason
        error = error.__cause__
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return f"{use} needs {name}, which is installed but fails to import: {reason[0]}"


def part_of(thing: object, name: str) -> Any:
    """An attribute of another library's object; None where it has none, or fails to give it."""
    try:
        return getattr(thing, name, None)
    except Exception:  # whatever a property of others raises
        return None
