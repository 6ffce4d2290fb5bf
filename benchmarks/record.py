"""One JSON file per benchmark: what was measured, with which settings, by which versions, on what machine."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import sde_toolkit
from sde_toolkit.utils import atomic_write

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "torchsde", "diffusers", "matplotlib")


def environment() -> dict[str, Any]:
    """Versions and machine that a figure depends on."""
    versions = {"python": platform.python_version(), "sde-toolkit": sde_toolkit.__version__}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    machine = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return {"versions": versions, "machine": machine}


def digits(value: float) -> float | None:
    """Four digits of a number for JSON, null where it is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"results must be JSON, records or arrays, got {type(value).__name__}")


def write_result(name: str, settings: Mapping[str, Any], results: Any, directory: Path = RESULTS) -> Path:
    """Write ``results/<name>.json`` whole or not at all, and return its path.

    Args:
        name: of the benchmark.
        settings: everything that was chosen: sizes, seeds, tolerances.
        results: JSON values, dataclasses, arrays or tensors, nested in lists and dicts.
        directory: where to write.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, **environment(), "settings": settings, "results": results}
    path = directory / f"{name}.json"
    atomic_write(path, (json.dumps(record, indent=1, default=_plain) + "\n").encode())
    return path
