"""What a score network is trained on: weights and laws of the times, denoising score matching, chains."""

from sde_toolkit.training.objective.adaptive import AdaptiveTimes, ImportanceIndices, LearnedWeight
from sde_toolkit.training.objective.chain import ChainLoss
from sde_toolkit.training.objective.denoising import (
    TIME_SAMPLINGS,
    WEIGHTINGS,
    DenoisingLoss,
    Loss,
)
from sde_toolkit.training.objective.hybrid import HybridLoss
from sde_toolkit.training.objective.incomplete import IncompleteLoss, check_missing_entries
from sde_toolkit.training.objective.learned import LearnedPart, observing
from sde_toolkit.training.objective.levels import noise_given_levels
from sde_toolkit.training.objective.sliced import ScoreWeight, Simulated, SlicedScoreLoss
from sde_toolkit.training.objective.times import TIMES_WITH_OPTIONS, LogNormal, TimeLaw, logit_normal
from sde_toolkit.training.objective.weightings import (
    P2,
    WEIGHTS_WITH_OPTIONS,
    EDMWeight,
    LogitNormalWeight,
    MinSNR,
    SigmoidWeight,
    SoftMinSNR,
    Weight,
)

__all__ = [
    "P2",
    "TIMES_WITH_OPTIONS",
    "TIME_SAMPLINGS",
    "WEIGHTINGS",
    "WEIGHTS_WITH_OPTIONS",
    "AdaptiveTimes",
    "ChainLoss",
    "DenoisingLoss",
    "EDMWeight",
    "HybridLoss",
    "ImportanceIndices",
    "IncompleteLoss",
    "LearnedPart",
    "LearnedWeight",
    "LogNormal",
    "LogitNormalWeight",
    "Loss",
    "MinSNR",
    "ScoreWeight",
    "SigmoidWeight",
    "Simulated",
    "SlicedScoreLoss",
    "SoftMinSNR",
    "TimeLaw",
    "Weight",
    "check_missing_entries",
    "logit_normal",
    "noise_given_levels",
    "observing",
]
