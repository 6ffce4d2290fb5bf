"""The command as a process: signals that ask it to stop, and output streams that may be closed.

    SIGINT            KeyboardInterrupt, as Python has it
    SIGTERM, SIGHUP   Terminated, which is one, where nobody else handles them

While modules are imported, either ends the process at once: an interrupted import has nothing to save.  A
standard error that cannot be written to is dropped; the work goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a process to stop."""


class Terminated(KeyboardInterrupt):
    """The system asked the process to stop."""


@contextlib.contextmanager
def handled(numbers: tuple[int, ...], handler: Callable[..., Any]) -> Iterator[None]:
    """Handle these signals inside the ``with``, those that the process ignores (nohup, ``&``) excepted.

    Without effect outside the main thread, where Python lets nobody change handlers.
    """
    main = threading.current_thread() is threading.main_thread()
    usual = {number: signal.getsignal(number) for number in numbers if main}
    mine = {number: old for number, old in usual.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in mine:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in mine.items():
            signal.signal(number, old)


def _terminate(*_: object) -> None:
    raise Terminated


def _end(*_: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"sde-toolkit: interrupted\n")
    os._exit(130)


def stoppable() -> contextlib.AbstractContextManager[None]:
    """Turn the system's requests to stop into ``Terminated`` inside the ``with``."""
    return handled(STOPS[1:], _terminate)


def ends_at_once() -> contextlib.AbstractContextManager[None]:
    """Let every request to stop end the process inside the ``with``, with a sentence."""
    return handled(STOPS, _end)


class _Surviving:
    """A text stream whose failures to write are no failures of the program."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if the stream can still be written to."""
        if self._stream is not None:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                return self._stream.write(text.encode("ascii", "backslashreplace").decode())
            except (OSError, ValueError):
                self._drop()
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream can still be written to."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._drop()

    def close(self) -> None:
        """Leave it open: the stream inside is the process's."""

    def _drop(self) -> None:
        _silence(self._stream)
        self._stream = None

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            if name == "isatty":
                return lambda: False
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def surviving_streams() -> Iterator[None]:
    """Inside the ``with``, a standard error that is closed or fails is survived."""
    usual = sys.stderr
    sys.stderr = _Surviving(usual)
    try:
        yield
    finally:
        sys.stderr = usual


def flushed(stream: TextIO | None) -> str | None:
    """Flush a stream; what went wrong, None if nothing.  A reader that has gone is no problem."""
    if stream is None:
        return None
    try:
        stream.flush()
    except BrokenPipeError:
        _silence(stream)
    except (OSError, ValueError) as error:
        _silence(stream)
        return str(error)
    return None


def _silence(stream: TextIO | None) -> None:
    """Lead a failed stream to nowhere, so that the interpreter's last flush succeeds."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
