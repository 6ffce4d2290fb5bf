"""Denoising score matching: losses, the training loop, moving averages, checkpoints."""

from sde_toolkit.training.checkpoint import (
    COMPARED_SECTIONS,
    Checkpoint,
    config_differences,
    export_checkpoint,
    latest_checkpoint,
    load_ema,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from sde_toolkit.training.loop import (
    NonFiniteError,
    UpdateInfo,
    fit,
    train_step,
)
from sde_toolkit.training.loss import (
    ChainLoss,
    DenoisingLoss,
)
from sde_toolkit.training.state import (
    Optimization,
    TrainState,
)

__all__ = [
    "COMPARED_SECTIONS",
    "ChainLoss",
    "Checkpoint",
    "DenoisingLoss",
    "NonFiniteError",
    "Optimization",
    "TrainState",
    "UpdateInfo",
    "config_differences",
    "export_checkpoint",
    "fit",
    "latest_checkpoint",
    "load_ema",
    "read_checkpoint",
    "restore",
    "save_checkpoint",
    "train_step",
]
