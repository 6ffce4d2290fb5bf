"""``python -m sde_toolkit``: the same as the command ``sde-toolkit``.

A request to stop that comes while the command line is being loaded ends the process at once, with a sentence.
"""

import os
import signal
import sys


def _end(*_: object) -> None:
    os.write(2, b"sde-toolkit: interrupted\n")
    os._exit(130)


def program() -> int:
    """Load the command line, run the process's command and return its exit code."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    early = [number for number, handler in usual.items() if handler is not signal.SIG_IGN]
    for number in early:
        signal.signal(number, _end)
    from sde_toolkit.cli import main

    for number in early:
        signal.signal(number, usual[number])
    return main()


if __name__ == "__main__":
    sys.exit(program())
