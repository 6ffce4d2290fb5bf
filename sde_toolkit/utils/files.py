"""Files that are never half written, and directories with one writer.

A file is written under a temporary name in its own directory, flushed to the disk (fsync), and renamed
onto its final name in one step; then, where the system can do that, the directory is flushed too, so that
the new name survives a power cut.  A reader, and a run that was killed, sees the whole old file or the whole
new one.

Two processes may replace each other's files; ``WorkdirLock`` keeps a directory to one of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import BaseFileLock, FileLock, Timeout

_OLD_SECONDS = 3600.0
"""Age of a temporary file of another machine, or of a process number in use again, that is left over."""

_mine: set[Path] = set()
_swept: set[tuple[int, Path]] = set()


def atomic_write(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a failure or a kill at any moment leaves the earlier file whole.

    The first write to a directory removes the temporary files that killed processes have left there.

    Raises:
        OSError: the disk is full, or the directory is missing or not writable; nothing has changed then.
    """
    with atomic_file(path, len(data)) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path | str, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write what is too large to be held as bytes; it takes the place of ``path`` at the end of the
    ``with``, whole or not at all, as for ``atomic_write``.

    Args:
        path: of the file.
        size: in bytes, for the error, where it is known.

    Raises:
        OSError: as for ``atomic_write``.
    """
    path = Path(path)
    if (os.getpid(), path.parent) not in _swept:
        remove_leftovers(path.parent)
        _swept.add((os.getpid(), path.parent))
    temporary: Path | None = None
    try:
        temporary, descriptor = _new_temporary(path.parent)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else str(error)
            how_much = "" if size is None else f" ({size} bytes)"
            message = (
                f"could not write {path}{how_much}: {reason}; what was there before is untouched, "
                "so make room or choose another directory and run again"
            )
            raise OSError(error.errno, message) from error
        raise
    finally:
        if temporary is not None:
            _mine.discard(temporary)
    _flush_directory(path.parent)


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _new_temporary(directory: Path) -> tuple[Path, int]:
    """A new file under a name that nobody can foresee, open for writing; never one that was there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        temporary = directory / f".{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
        _mine.add(temporary)
        try:
            return temporary, os.open(temporary, flags, 0o666)
        except FileExistsError:
            _mine.discard(temporary)
        except BaseException:
            _mine.discard(temporary)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A new folder to fill; when the block ends it takes the place of ``path``, and an earlier one goes.

    A failure or a kill while it is filled leaves the earlier folder as it was.  Between the two renames at
    the end there is, for a moment, none of this name.

    Raises:
        OSError: the disk is full, or the directory is missing or not writable.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    new, old = (path.parent / f".{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp" for _ in range(2))
    _mine.update((new, old))
    try:
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        for temporary in (new, old):
            _remove(temporary)
            _mine.discard(temporary)
    _flush_directory(path.parent)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write ``text`` in UTF-8 to ``path``, see ``atomic_write``."""
    atomic_write(path, text.encode("utf-8"))


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files in ``directory`` whose writers have died; those of live ones stay."""
    try:
        found = [(name, _NAME.fullmatch(name)) for name in os.listdir(directory)]
    except OSError:
        return
    for name, match in found:
        if match is not None and _left_over(directory / name, match[1], int(match[2])):
            _remove(directory / name)


def _remove(leftover: Path) -> None:
    """Delete a temporary file, or a temporary folder with what is in it, as far as the system lets us."""
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        leftover.unlink()


_NAME = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")


def _left_over(temporary: Path, machine: str, process: int) -> bool:
    if machine == _machine():
        if process == os.getpid():
            return temporary not in _mine
        if not _alive(process):
            return True
    try:
        return time.time() - temporary.stat().st_mtime > _OLD_SECONDS
    except OSError:
        return False


def _alive(process: int) -> bool:
    """Whether a process of this number runs; where the system has no harmless way to ask, yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def reading(path: Path | str, what: str, remedy: str = "") -> Iterator[None]:
    """Say of whatever goes wrong while a file is read and taken apart which file it was.

    Args:
        path: of the file.
        what: it should be, as in "a file of records".
        remedy: what to do about it.

    Raises:
        ValueError: in the place of every other error but a missing file and the like, which stay ``OSError``;
            a ValueError that names the file already stays as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own complaint about the content
            raise ValueError(_not(path, what, error, remedy)) from error
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(_not(path, what, error, remedy)) from error


def read_document(path: Path) -> object:
    """What the JSON of an ordinary file holds; a pipe or a device is not waited for.

    Raises:
        ValueError: the file is not ordinary, no text in UTF-8, or no JSON (nan and infinity are none).
        RecursionError: its brackets are nested too deeply.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError("there is no ordinary file of this name")
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"numbers must be finite, got {word}")


def _not(path: Path | str, what: str, error: Exception, remedy: str) -> str:
    reasons = {
        KeyError: "it lacks",
        RecursionError: "it is nested too deeply:",
        UnicodeDecodeError: "no text:",
    }
    reason = f"{reasons.get(type(error), '')} {error or type(error).__name__}".strip()
    return f"{path} is not {what} ({reason})" + (f"; {remedy}" if remedy else "")


@contextlib.contextmanager
def turns(path: Path, timeout: float = 60.0) -> Iterator[None]:
    """Let one process at a time read and replace ``path``; the others wait.

    Raises:
        ValueError: another process has held it for ``timeout`` seconds.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{path} must be free to be written, but a live process holds its lock") from error
    try:
        yield
    finally:
        lock.release()


class WorkdirLock:
    """The exclusive right to write in ``workdir``, held while the context is open.

    The directory is made if need be.  The lock is that of ``filelock`` on <workdir>/.lock, which the system
    releases when the process ends, however it ends; <workdir>/.holder names the process.  Not promised: locks
    between machines, on a network file system that does not pass them on.

    Raises (on entering):
        ValueError: another live process holds it; the sentence names its process id.
    """

    def __init__(self, workdir: Path | str) -> None:
        self.path = Path(workdir)
        self._lock: BaseFileLock | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock now."""
        return self._lock is not None

    @property
    def _holder(self) -> Path:
        # Not in the lock's own file: Windows lets no other process read that, and filelock may empty it.
        return self.path / ".holder"

    def __enter__(self) -> WorkdirLock:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            try:
                holder = self._holder.read_text(encoding="utf-8").strip()
            except OSError:
                holder = ""
            raise ValueError(
                f"workdir must not be in use, got {self.path}, which a live run holds (process "
                f"{holder or 'unknown'}); wait for it, stop it, or use another workdir"
            ) from error
        self._lock = lock
        try:
            self._holder.write_text(str(os.getpid()), encoding="utf-8")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._holder.unlink()
            self._lock.release()
            self._lock = None


def _flush_directory(directory: Path) -> None:
    """Flush the directory's entries to the disk, where the system can open a directory (Windows cannot)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
