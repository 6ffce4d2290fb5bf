"""What changes a model's prediction while sampling: thresholds of the clean prediction."""

from sde_toolkit.guidance.thresholds import (
    DynamicThreshold,
    StaticThreshold,
    Threshold,
    Thresholded,
    Thresholding,
    thresholded,
)

__all__ = ["DynamicThreshold", "StaticThreshold", "Threshold", "Thresholded", "Thresholding", "thresholded"]
