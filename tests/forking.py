"""Programs and commands in processes of their own that cost their work alone.

A helper process imports what is slow to load once, and forks a child for every program.  The child can be
killed at any moment, as one that the system starts; only the imports are done: of torch alone in ``Fresh``,
of all that commands need in ``Forks``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

HELPER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)

def run(code, words):
    sys.argv = ["-c", *words]
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush(), sys.stderr.flush()

for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
    elif asked["here"]:
        print(run(asked["code"], []), flush=True)
    else:
        pid = os.fork()
        if pid == 0:
            os.environ.update(asked["environment"])
            for number, path in ((1, asked["output"]), (2, asked["log"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            os._exit(run(asked["code"], asked["words"]))
        print(pid, flush=True)
"""
LOADED = "import jinja2, matplotlib.pyplot, plotly, scipy.stats, sklearn.neighbors, torch._dynamo\n"
LOADED += "from sde_toolkit import cli, runs"
COMMAND = "import sys; from sde_toolkit import cli; sys.exit(cli.main(sys.argv[1:]))"


class Fresh:
    """A helper that has imported torch and nothing of ours; end it by ``close``."""

    def __init__(self) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, "-c", HELPER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def _ask(self, **asked: Any) -> int:
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write(json.dumps(asked) + "\n")
        self._helper.stdin.flush()
        return int(self._helper.stdout.readline())

    def begin(self, code: str, *words: str, output: Path | str, log: Path | str, **environment: str) -> int:
        """Begin a program, and return its process; what it prints is added to ``output`` and ``log``."""
        where = {"output": str(output), "log": str(log), "environment": environment}
        return self._ask(here=False, code=code, words=words, **where)

    def __call__(self, folder: Path, code: str, *words: str) -> tuple[int, str, str]:
        """Run a program: its exit code and what it prints, by way of files in ``folder``."""
        output, log = folder / "printed.txt", folder / "told.txt"
        ended = self.wait(self.begin(code, *words, output=output, log=log))
        return ended, output.read_text(), log.read_text()

    def wait(self, process: int) -> int:
        """The exit code, negative for a signal."""
        return self._ask(wait=process)

    def kill(self, process: int, number: int = signal.SIGKILL) -> int:
        """Send a signal, and return the exit code."""
        os.kill(process, number)
        return self.wait(process)

    def close(self) -> None:
        """End the helper."""
        self._helper.communicate()


class Forks(Fresh):
    """A helper that has imported what commands need."""

    def __init__(self) -> None:
        super().__init__()
        assert self._ask(here=True, code=LOADED) == 0

    def start(self, words: Sequence[str], log: Path | str = os.devnull, **environment: str) -> int:
        """Begin a command, and return its process; what it prints is added to ``log``."""
        return self.begin(COMMAND, *words, output=log, log=log, **environment)

    def run(self, words: Sequence[str], log: Path | str = os.devnull, count: int = 1) -> list[int]:
        """The exit codes of a command in ``count`` processes, which know of each other as under torchrun."""
        if count == 1:
            return [self.wait(self.start(words, log))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = [{"RANK": str(k), "LOCAL_RANK": str(k), "WORLD_SIZE": str(count)} for k in range(count)]
        return [self.wait(pid) for pid in [self.start(words, log, **known, **rank) for rank in ranks]]
