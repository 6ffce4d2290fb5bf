"""Data sets, their scaling to the model's units, and batches that are functions of (seed, step)."""

from sde_toolkit.data.batches import (
    batch_indices,
)
from sde_toolkit.data.circle import Circles
from sde_toolkit.data.dataset import (
    BIN_VARIANCE,
    FLIPS,
    Dataset,
    Flip,
    Training,
    estimate_moments,
    from_array,
)
from sde_toolkit.data.missing import (
    MISSING,
    Missing,
)
from sde_toolkit.data.scaling import (
    Scaling,
    scaling_from_tensors,
)
from sde_toolkit.data.sources import (
    ALPHA,
    COLOURS,
    LAYOUTS,
    ON_ERROR,
    SCALINGS,
    ImageOptions,
    TrainingData,
    absolute_places,
    absolute_source,
    batch_size_of,
    is_function,
    is_share,
    open_data,
    open_rows,
    training_data,
)
from sde_toolkit.data.support import (
    Support,
)
from sde_toolkit.data.toy import (
    checkerboard,
    digits,
    gaussian_mixture,
    mnist,
    moons,
    ring,
    ring_components,
    swissroll,
)

__all__ = [
    "ALPHA",
    "BIN_VARIANCE",
    "COLOURS",
    "FLIPS",
    "LAYOUTS",
    "MISSING",
    "ON_ERROR",
    "SCALINGS",
    "Circles",
    "Dataset",
    "Flip",
    "ImageOptions",
    "Missing",
    "Scaling",
    "Support",
    "Training",
    "TrainingData",
    "absolute_places",
    "absolute_source",
    "batch_indices",
    "batch_size_of",
    "checkerboard",
    "digits",
    "estimate_moments",
    "from_array",
    "gaussian_mixture",
    "is_function",
    "is_share",
    "mnist",
    "moons",
    "open_data",
    "open_rows",
    "ring",
    "ring_components",
    "scaling_from_tensors",
    "swissroll",
    "training_data",
]
