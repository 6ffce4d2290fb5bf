"""Objects of the user's by name: package.module:name, package.module.name, or file.py:name.

The module is imported, or the file is run, with everything that this allows.  A file's module has a name of
its own, made of its path, so that two files of the same name stay apart.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType


def named_object(path: str, what: str) -> object:
    """What a path names.

    Args:
        path: as in the module's head.
        what: the path is for, as in "metric"; for the errors.

    Raises:
        ValueError: no such file, module or name, or it failed to load.
    """
    where, colon, name = path.rpartition(":")
    if not colon:
        where, _, name = path.rpartition(".")
    is_file = where.endswith(".py")
    if not name.isidentifier() or not where or not (is_file or re.fullmatch(r"\w+(\.\w+)*", where)):
        raise ValueError(f"{what} {path!r} is no path of a function, as in mypackage.mine or mine.py:mine")
    module = _from_file(where, path, what) if is_file else _from_module(where, path, what)
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, [n for n in vars(module) if n[0] != "_"], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        kind = "file" if is_file else "module"
        raise ValueError(f"{what} {path!r}: {kind} {where!r} has no function {name!r}{hint}")
    found: object = getattr(module, name)
    return found


def _from_file(where: str, path: str, what: str) -> ModuleType:
    file = Path(where).expanduser().resolve()
    if not file.is_file():
        raise ValueError(f"{what} {path!r}: there is no file {where!r}")
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None  # a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file raises
        del sys.modules[name]
        raise ValueError(f"{what} {path!r}: {where} failed: {type(error).__name__}: {error}") from error
    return module


def _from_module(where: str, path: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except Exception as error:  # whatever the module raises
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{where}.".startswith(f"{missing}."):
            raise ValueError(
                f"{what} {path!r}: there is no module {missing!r}; put the directory that holds it on the "
                f"Python path, as in PYTHONPATH=. sde-toolkit ..., or name the file, as in {missing}.py:..."
            ) from None
        raise ValueError(
            f"{what} {path!r}: module {where!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
