"""What changes a model's prediction while sampling: thresholds, classifier-free guidance, observations, and
the inverse problems that these solve."""

from sde_toolkit.guidance.calibration import LEAST_PAIRS, Calibration, calibrate
from sde_toolkit.guidance.classifier import (
    Classifier,
    ClassifierGuidance,
    ClassifierGuided,
    EnergyGuidance,
    EnergyGuided,
    ExactClassifier,
    NetworkClassifier,
    classifier_guided,
    energy_guided,
    fit_classifier,
)
from sde_toolkit.guidance.classifier_free import (
    AutoGuidance,
    AutoGuided,
    ClassifierFree,
    ClassifierFreeGuidance,
    guided,
)
from sde_toolkit.guidance.compositions import Composed, Composition, composed
from sde_toolkit.guidance.draws import NUM_DRAWS, default_sampler
from sde_toolkit.guidance.evidence import Conditional, Evidence, conditional_log_prob, log_evidence
from sde_toolkit.guidance.inverse.gains import GaussianInformed
from sde_toolkit.guidance.inverse.gibbs import SplitGibbs
from sde_toolkit.guidance.inverse.instruments import (
    blur,
    colour_mixing,
    downsampling,
    entries,
    fourier_mask,
    gaussian_blur,
    projection,
)
from sde_toolkit.guidance.inverse.likelihoods import DPS, MMPS, TMPD, PiGDM
from sde_toolkit.guidance.inverse.maps import LinearMap
from sde_toolkit.guidance.inverse.observations import LinearObservation, NonlinearObservation, Observation
from sde_toolkit.guidance.inverse.observed import Observed, default_method
from sde_toolkit.guidance.inverse.particles import Particles, TwistedSMC
from sde_toolkit.guidance.inverse.posterior import Method, PosteriorModel, Query
from sde_toolkit.guidance.inverse.projections import DDNM, DiffPIR, ScoreALD
from sde_toolkit.guidance.inverse.replacement import DDRM, RePaint, Replacement
from sde_toolkit.guidance.products import GridLaw, product_law, product_on_grid
from sde_toolkit.guidance.raw_units import in_model_scale
from sde_toolkit.guidance.tasks import Restored, impute, inpaint, restore
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
    "DDRM",
    "DPS",
    "LEAST_PAIRS",
    "MMPS",
    "NUM_DRAWS",
    "TMPD",
    "AutoGuidance",
    "AutoGuided",
    "Calibration",
    "Classifier",
    "ClassifierFree",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "ClassifierGuided",
    "Composed",
    "Composition",
    "Conditional",
    "DiffPIR",
    "DynamicThreshold",
    "EnergyGuidance",
    "EnergyGuided",
    "Evidence",
    "ExactClassifier",
    "GaussianInformed",
    "GridLaw",
    "LinearMap",
    "LinearObservation",
    "Method",
    "NetworkClassifier",
    "NonlinearObservation",
    "Observation",
    "Observed",
    "Particles",
    "PiGDM",
    "PosteriorModel",
    "Query",
    "RePaint",
    "Replacement",
    "Restored",
    "ScoreALD",
    "SplitGibbs",
    "StaticThreshold",
    "Threshold",
    "Thresholded",
    "Thresholding",
    "TwistedSMC",
    "blur",
    "calibrate",
    "classifier_guided",
    "colour_mixing",
    "composed",
    "conditional_log_prob",
    "default_method",
    "default_sampler",
    "downsampling",
    "energy_guided",
    "entries",
    "fit_classifier",
    "fourier_mask",
    "gaussian_blur",
    "guided",
    "impute",
    "in_model_scale",
    "inpaint",
    "log_evidence",
    "product_law",
    "product_on_grid",
    "projection",
    "restore",
    "thresholded",
]
