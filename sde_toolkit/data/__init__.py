"""Data sets, their scaling to the model's units, and batches that are functions of (seed, step)."""

from sde_toolkit.data.batches import (
    batch_indices,
)
from sde_toolkit.data.dataset import (
    BIN_VARIANCE,
    Dataset,
    Training,
    from_array,
)
from sde_toolkit.data.scaling import (
    Scaling,
    scaling_from_tensors,
)
from sde_toolkit.data.toy import (
    checkerboard,
    digits,
    gaussian_mixture,
    moons,
    ring,
    ring_components,
    swissroll,
)

__all__ = [
    "BIN_VARIANCE",
    "Dataset",
    "Scaling",
    "Training",
    "batch_indices",
    "checkerboard",
    "digits",
    "from_array",
    "gaussian_mixture",
    "moons",
    "ring",
    "ring_components",
    "scaling_from_tensors",
    "swissroll",
]
