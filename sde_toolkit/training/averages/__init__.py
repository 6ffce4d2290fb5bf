"""Moving averages of weights: their rules, power-function profiles, and combinations of stored ones."""

from sde_toolkit.training.averages.ema import (
    EMA_PROFILES,
    EmaProfile,
    averaged_copy,
    is_narrow,
    update_average,
    warmed_decay,
)
from sde_toolkit.training.averages.power import (
    LONGEST,
    SHORTEST,
    Combination,
    PowerProfile,
    combine,
    gamma_of,
    length_of,
    need_length,
    power_decay,
)

__all__ = [
    "EMA_PROFILES",
    "LONGEST",
    "SHORTEST",
    "Combination",
    "EmaProfile",
    "PowerProfile",
    "averaged_copy",
    "combine",
    "gamma_of",
    "is_narrow",
    "length_of",
    "need_length",
    "power_decay",
    "update_average",
    "warmed_decay",
]
