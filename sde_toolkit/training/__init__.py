"""Denoising score matching: losses, the training loop, moving averages, checkpoints."""

from sde_toolkit.training.averages import (
    EMA_PROFILES,
    Combination,
    PowerProfile,
    combine,
    gamma_of,
    length_of,
)
from sde_toolkit.training.checkpoint import (
    COMPARED_SECTIONS,
    Checkpoint,
    check_ema,
    config_differences,
    export_checkpoint,
    latest_checkpoint,
    load_ema,
    read_checkpoint,
    refuse_checkpoint,
    restore,
    save_checkpoint,
)
from sde_toolkit.training.description import (
    describe_model,
    described_model,
)
from sde_toolkit.training.held_out import (
    HeldOutLoss,
    held_out_loss,
)
from sde_toolkit.training.loop import (
    UpdateInfo,
    fit,
    train_step,
)
from sde_toolkit.training.model_file import (
    load_model,
    save_model,
)
from sde_toolkit.training.objective import (
    P2,
    TIME_SAMPLINGS,
    TIMES_WITH_OPTIONS,
    WEIGHTINGS,
    WEIGHTS_WITH_OPTIONS,
    ChainLoss,
    DenoisingLoss,
    EDMWeight,
    LogitNormalWeight,
    LogNormal,
    MinSNR,
    SigmoidWeight,
    SoftMinSNR,
    logit_normal,
)
from sde_toolkit.training.snapshots import (
    Reconstruction,
    export_average,
    reconstruct,
    snapshot_bytes,
)
from sde_toolkit.training.state import (
    NonFiniteError,
    Optimization,
    TrainState,
)
from sde_toolkit.training.tensor_file import (
    as_bytes,
    read_tensors,
    write_tensors,
)

__all__ = [
    "COMPARED_SECTIONS",
    "EMA_PROFILES",
    "P2",
    "TIMES_WITH_OPTIONS",
    "TIME_SAMPLINGS",
    "WEIGHTINGS",
    "WEIGHTS_WITH_OPTIONS",
    "ChainLoss",
    "Checkpoint",
    "Combination",
    "DenoisingLoss",
    "EDMWeight",
    "HeldOutLoss",
    "LogNormal",
    "LogitNormalWeight",
    "MinSNR",
    "NonFiniteError",
    "Optimization",
    "PowerProfile",
    "Reconstruction",
    "SigmoidWeight",
    "SoftMinSNR",
    "TrainState",
    "UpdateInfo",
    "as_bytes",
    "check_ema",
    "combine",
    "config_differences",
    "describe_model",
    "described_model",
    "export_average",
    "export_checkpoint",
    "fit",
    "gamma_of",
    "held_out_loss",
    "latest_checkpoint",
    "length_of",
    "load_ema",
    "load_model",
    "logit_normal",
    "read_checkpoint",
    "read_tensors",
    "reconstruct",
    "refuse_checkpoint",
    "restore",
    "save_checkpoint",
    "save_model",
    "snapshot_bytes",
    "train_step",
    "write_tensors",
]
