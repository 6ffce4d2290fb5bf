"""Distances between two sets of samples, their error bars, and the features that some of them need."""

from sde_toolkit.metrics.distances import (
    MMD,
    Distance,
    EnergyDistance,
    FrechetDistance,
    OnFeatures,
    SlicedWasserstein,
    energy_distance,
    frechet_distance,
    gaussian_w2,
    mmd,
    sliced_wasserstein,
)
from sde_toolkit.metrics.estimates import (
    Estimate,
    bootstrap,
    difference,
    over_seeds,
    pooled,
)
from sde_toolkit.metrics.features import (
    FeatureExtractor,
    digit_features,
)

__all__ = [
    "MMD",
    "Distance",
    "EnergyDistance",
    "Estimate",
    "FeatureExtractor",
    "FrechetDistance",
    "OnFeatures",
    "SlicedWasserstein",
    "bootstrap",
    "difference",
    "digit_features",
    "energy_distance",
    "frechet_distance",
    "gaussian_w2",
    "mmd",
    "over_seeds",
    "pooled",
    "sliced_wasserstein",
]
