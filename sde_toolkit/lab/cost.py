"""What a run costs: wall time, the share of the model in it, peak memory, and on what it ran.

    seconds = time in the model + time in the solver

The model's share is measured around its calls, those of wrappers inside it included.  On a CUDA device the
queue is waited for before and after each call, which costs the overlap of host and device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, Wrapper

_PACKAGES = ("torch", "numpy", "scipy", "sde-toolkit")


class Timed(Wrapper):
    """A model whose calls are timed.

    Attributes:
        seconds: spent in the model.
    """

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model)
        self.seconds = 0.0

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction of the model inside."""
        with self._timing(x_t):
            return self.model.raw(x_t, t, condition)

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction and the fraction of the model inside."""
        with self._timing(x_t):
            return self.model.raw_and_fraction(x_t, t, condition)

    @contextlib.contextmanager
    def _timing(self, x: Tensor) -> Iterator[None]:
        """Count the time inside, until the device of x has done its work."""
        _wait(x)
        begin = time.perf_counter()
        yield
        _wait(x)
        self.seconds += time.perf_counter() - begin


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


class PeakMemory:
    """The peak memory since it was made, in bytes: of tensors on a CUDA device, else of the whole process.

    Args:
        device: where the model computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._known = False

    def read(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if self._known:
            with contextlib.suppress(OSError, ValueError, IndexError):
                for line in Path("/proc/self/status").read_text().splitlines():
                    if line.startswith("VmHWM"):
                        return 1024 * int(line.split()[1])
        return None


@functools.cache
def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions and hardware that figures depend on, as JSON holds them.

    Args:
        device: where the model computes.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cuda = device.startswith("cuda")
    hardware = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else device,
    }
    return {"versions": versions, "hardware": hardware, "system": platform.system()}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
