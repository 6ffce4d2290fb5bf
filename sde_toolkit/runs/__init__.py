"""Runs: a working directory with a training run and everything that is made from it."""

from sde_toolkit.runs.samples import (
    displayable,
    load_samples,
    save_samples,
)
from sde_toolkit.runs.store import (
    Run,
    export_run,
    open_run,
    open_shipped,
    saved_step,
    shipped_path,
)
from sde_toolkit.runs.training import (
    Start,
    read_history,
    train_run,
)

__all__ = [
    "Run",
    "Start",
    "displayable",
    "export_run",
    "load_samples",
    "open_run",
    "open_shipped",
    "read_history",
    "save_samples",
    "saved_step",
    "shipped_path",
    "train_run",
]
