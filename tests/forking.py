"""Commands in processes of their own that cost their work alone.

A helper process imports the library and what is slow to load once, and forks a child for every command.  The
child runs ``sde_toolkit.cli.main`` and can be killed at any moment, as one that the system starts; only the
imports are done.
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
import json, os, sys
import torch
torch.set_num_threads(1)
import jinja2, matplotlib.pyplot, plotly, scipy.stats, sklearn.neighbors, torch._dynamo
from sde_toolkit import cli, runs

for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.environ.update(asked["environment"])
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os._exit(cli.main(asked["words"]))
    print(pid, flush=True)
"""


class Forks:
    """The helper; end it by ``close``."""

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

    def start(self, words: Sequence[str], log: Path | str = os.devnull, **environment: str) -> int:
        """Begin a command, and return its process; what it prints is added to ``log``."""
        return self._ask(words=list(words), log=str(log), environment=environment)

    def wait(self, process: int) -> int:
        """The exit code, negative for a signal."""
        return self._ask(wait=process)

    def run(self, words: Sequence[str], log: Path | str = os.devnull, count: int = 1) -> list[int]:
        """The exit codes of a command in ``count`` processes, which know of each other as under torchrun."""
        if count == 1:
            return [self.wait(self.start(words, log))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = [{"RANK": str(k), "LOCAL_RANK": str(k), "WORLD_SIZE": str(count)} for k in range(count)]
        return [self.wait(pid) for pid in [self.start(words, log, **known, **rank) for rank in ranks]]

    def kill(self, process: int, number: int = signal.SIGKILL) -> int:
        """Send a signal, and return the exit code."""
        os.kill(process, number)
        return self.wait(process)

    def close(self) -> None:
        """End the helper."""
        self._helper.communicate()
