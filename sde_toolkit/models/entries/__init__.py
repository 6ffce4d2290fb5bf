"""Missing entries of vectors: their law given the others, of a Gaussian and of a network."""

from sde_toolkit.models.entries.gaussian import GivenEntries, gaussian_moments
from sde_toolkit.models.entries.network import (
    DRAW_STEPS,
    check_entries,
    draw_missing,
    missing_log_density,
    predict_turn,
    turn_angles,
)

__all__ = [
    "DRAW_STEPS",
    "GivenEntries",
    "check_entries",
    "draw_missing",
    "gaussian_moments",
    "missing_log_density",
    "predict_turn",
    "turn_angles",
]
