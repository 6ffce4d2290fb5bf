"""Places to write to, checked before the work whose result they are to hold.

A result that cannot be written costs its work.  So the place is looked at first: a file is a new name or an
ordinary file, in a directory that takes new files; a directory is one, or can be made.  Nothing is left
behind by the look.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def check_output_file(path: Path | str, name: str = "output") -> Path:
    """Refuse a path at which no file can or should be written, and return it with ``~`` replaced.

    Args:
        path: of the file.
        name: of the argument, for the sentence.

    Raises:
        ValueError: it names a directory, a device, a pipe or a symbolic link, or its directory takes no
            files.
    """
    place = Path(path).expanduser()
    try:
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} must be a path to write to, got {str(path)!r} ({_reason(error)})") from None
    if str(path) == "" or (mode is not None and not stat.S_ISREG(mode)):
        what = "" if mode is None else f", {_kind(mode)}"
        raise ValueError(f"{name} must be a new or an ordinary file, got {str(path)!r}{what}; name another")
    check_output_directory(place.parent, name)
    return place


def check_output_directory(path: Path | str, name: str = "output") -> Path:
    """Refuse a directory that is none, cannot be made, or takes no files; return it with ``~`` replaced.

    Raises:
        ValueError: see above.
    """
    place = Path(path).expanduser()
    existing = place
    try:
        while not os.path.lexists(existing) and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is no directory")
        os.lstat(place.parent if existing == place else existing)
        _try_name(existing, place)
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} must lie in a directory that takes files, got {str(path)!r} ({_reason(error)}); "
            "name another"
        ) from None
    return place


def _try_name(existing: Path, place: Path) -> None:
    """Raise an OSError for parts of the path that the system takes as no name: too long ones."""
    for part in place.relative_to(existing).parts:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(existing / part)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a directory", stat.S_ISLNK: "a symbolic link", stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket",
    }  # fmt: skip
    return next((word for test, word in kinds.items() if test(mode)), "no ordinary file")


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
