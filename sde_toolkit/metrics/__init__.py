"""Metrics of samples, their error bars, and the features that some of them need."""

from sde_toolkit.metrics.catalogue import (
    CATALOGUE,
    Entry,
    metric,
)
from sde_toolkit.metrics.distances import (
    MMD,
    EnergyDistance,
    FrechetDistance,
    KernelInceptionDistance,
    OnFeatures,
    SlicedWasserstein,
    energy_distance,
    frechet_distance,
    gaussian_w2,
    mmd,
    sliced_wasserstein,
)
from sde_toolkit.metrics.diversity import (
    RelativeDiversity,
    VendiScore,
)
from sde_toolkit.metrics.errors import (
    Estimate,
    RankTest,
    bootstrap,
    difference,
    over_seeds,
    pooled,
    rank_test,
    tarp_ranks,
    truth_ranks,
)
from sde_toolkit.metrics.exact import (
    FlowError,
    ModeCoverage,
    NegativeLogLikelihood,
)
from sde_toolkit.metrics.extractors import (
    INCEPTION_WEIGHTS,
    InceptionFeatures,
    ModuleFeatures,
    feature_extractor,
)
from sde_toolkit.metrics.features import (
    FeatureExtractor,
    digit_features,
)
from sde_toolkit.metrics.neighbours import (
    NeighbourMetric,
)
from sde_toolkit.metrics.protocol import (
    Distance,
    Facts,
    Statistic,
)
from sde_toolkit.metrics.restoration import (
    Interval,
    coverage,
    interval,
    mean_psnr,
    over_examples,
    psnr,
)
from sde_toolkit.metrics.transport import (
    Wasserstein,
)
from sde_toolkit.metrics.two_sample import (
    ClassifierTest,
)

__all__ = [
    "CATALOGUE",
    "INCEPTION_WEIGHTS",
    "MMD",
    "ClassifierTest",
    "Distance",
    "EnergyDistance",
    "Entry",
    "Estimate",
    "Facts",
    "FeatureExtractor",
    "FlowError",
    "FrechetDistance",
    "InceptionFeatures",
    "Interval",
    "KernelInceptionDistance",
    "ModeCoverage",
    "ModuleFeatures",
    "NegativeLogLikelihood",
    "NeighbourMetric",
    "OnFeatures",
    "RankTest",
    "RelativeDiversity",
    "SlicedWasserstein",
    "Statistic",
    "VendiScore",
    "Wasserstein",
    "bootstrap",
    "coverage",
    "difference",
    "digit_features",
    "energy_distance",
    "feature_extractor",
    "frechet_distance",
    "gaussian_w2",
    "interval",
    "mean_psnr",
    "metric",
    "mmd",
    "over_examples",
    "over_seeds",
    "pooled",
    "psnr",
    "rank_test",
    "sliced_wasserstein",
    "tarp_ranks",
    "truth_ranks",
]
