"""What changes a model's prediction while sampling: thresholds, classifier-free guidance, observations."""

from sde_toolkit.guidance.classifier_free import ClassifierFree, ClassifierFreeGuidance, guided
from sde_toolkit.guidance.inverse.gains import GaussianInformed
from sde_toolkit.guidance.inverse.likelihoods import DPS, MMPS, TMPD, PiGDM
from sde_toolkit.guidance.inverse.maps import (
    LinearMap,
    blur,
    colour_mixing,
    downsampling,
    entries,
    fourier_mask,
    gaussian_blur,
    projection,
)
from sde_toolkit.guidance.inverse.observations import LinearObservation, NonlinearObservation, Observation
from sde_toolkit.guidance.inverse.observed import Observed, default_method
from sde_toolkit.guidance.inverse.posterior import Method, PosteriorModel, Query
from sde_toolkit.guidance.inverse.projections import DDNM, DiffPIR, ScoreALD
from sde_toolkit.guidance.thresholds import (
    DynamicThreshold,
    StaticThreshold,
    Threshold,
    Thresholded,
    Thresholding,
    thresholded,
)

__all__ = [
    "DDNM",
    "DPS",
    "MMPS",
    "TMPD",
    "ClassifierFree",
    "ClassifierFreeGuidance",
    "DiffPIR",
    "DynamicThreshold",
    "GaussianInformed",
    "LinearMap",
    "LinearObservation",
    "Method",
    "NonlinearObservation",
    "Observation",
    "Observed",
    "PiGDM",
    "PosteriorModel",
    "Query",
    "ScoreALD",
    "StaticThreshold",
    "Threshold",
    "Thresholded",
    "Thresholding",
    "blur",
    "colour_mixing",
    "default_method",
    "downsampling",
    "entries",
    "fourier_mask",
    "gaussian_blur",
    "guided",
    "projection",
    "thresholded",
]
