"""Watching a run: held-out losses, rules that look at every update, and trackers."""

from sde_toolkit.training.watching.held_out import HeldOutLoss, LevelLoss, held_out_loss, loss_by_level
from sde_toolkit.training.watching.rules import Evaluation, Spikes, together
from sde_toolkit.training.watching.trackers import Tracker, open_trackers

__all__ = [
    "Evaluation",
    "HeldOutLoss",
    "LevelLoss",
    "Spikes",
    "Tracker",
    "held_out_loss",
    "loss_by_level",
    "open_trackers",
    "together",
]
