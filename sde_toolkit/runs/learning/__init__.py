"""The training of a run, and what is made of its weights alone."""

from sde_toolkit.runs.learning.averages import Average, write_averages
from sde_toolkit.runs.learning.changes import ALLOWED
from sde_toolkit.runs.learning.curves import HeldOutCurves, least_by_level, read_held_out
from sde_toolkit.runs.learning.history import read_history
from sde_toolkit.runs.learning.train import Start, train_run

__all__ = [
    "ALLOWED",
    "Average",
    "HeldOutCurves",
    "Start",
    "least_by_level",
    "read_held_out",
    "read_history",
    "train_run",
    "write_averages",
]
