"""What changes a model's prediction while sampling: thresholds and classifier-free guidance."""

from sde_toolkit.guidance.classifier_free import ClassifierFree, ClassifierFreeGuidance, guided
from sde_toolkit.guidance.thresholds import (
    DynamicThreshold,
    StaticThreshold,
    Threshold,
    Thresholded,
    Thresholding,
    thresholded,
)

__all__ = [
    "ClassifierFree",
    "ClassifierFreeGuidance",
    "DynamicThreshold",
    "StaticThreshold",
    "Threshold",
    "Thresholded",
    "Thresholding",
    "guided",
    "thresholded",
]
