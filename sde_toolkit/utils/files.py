"""Files that are never half written, and directories with one writer.

A file is written under a temporary name in its own directory, flushed to the disk (fsync), and renamed
onto its final name in one step; then, where the system can do that, the directory is flushed too, so that
the new name survives a power cut.  A reader, and a run that was killed, sees the whole old file or the whole
new one.

Two processes may replace each other's files; ``WorkdirLock`` keeps a directory to one of them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

_TEMPORARY = ".{name}.{pid}.tmp"


def atomic_write(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a failure or a kill at any moment leaves the earlier file whole.

    Raises:
        OSError: the disk is full, or the directory is missing or not writable; nothing has changed then.
    """
    path = Path(path)
    temporary = path.with_name(_TEMPORARY.format(name=path.name, pid=os.getpid()))
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else str(error)
            message = (
                f"could not write {path} ({len(data)} bytes): {reason}; what was there before is untouched, "
                "so make room or choose another directory and run again"
            )
            raise OSError(error.errno, message) from error
        raise
    _flush_directory(path.parent)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write ``text`` in UTF-8 to ``path``, see ``atomic_write``."""
    atomic_write(path, text.encode("utf-8"))


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files that killed writers left in ``directory``; the caller is its only writer."""
    for leftover in directory.glob(_TEMPORARY.format(name="*", pid="*")):
        leftover.unlink(missing_ok=True)


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
