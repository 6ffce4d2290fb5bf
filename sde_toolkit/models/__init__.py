"""Score models: networks and exact distributions as one type, their predictions, and the data's moments."""

from sde_toolkit.models.exact import (
    ExactData,
    ExactModel,
    Gaussian,
    GaussianMixture,
)
from sde_toolkit.models.indexed import (
    IndexedModel,
)
from sde_toolkit.models.moments import (
    MAX_FULL,
    Moments,
    Rotation,
    class_moments_from_tensors,
    class_tensors,
    isotropic,
    moments_from_tensors,
)
from sde_toolkit.models.network import (
    NetworkModel,
)
from sde_toolkit.models.products import ROW_BLOCK, padded_rows, row_product
from sde_toolkit.models.score import (
    PREDICTIONS,
    TIME_SCALE,
    Prediction,
    ScoreModel,
    check_states,
    conversion,
    known_moments,
)

__all__ = [
    "MAX_FULL",
    "PREDICTIONS",
    "ROW_BLOCK",
    "TIME_SCALE",
    "ExactData",
    "ExactModel",
    "Gaussian",
    "GaussianMixture",
    "IndexedModel",
    "Moments",
    "NetworkModel",
    "Prediction",
    "Rotation",
    "ScoreModel",
    "check_states",
    "class_moments_from_tensors",
    "class_tensors",
    "conversion",
    "isotropic",
    "known_moments",
    "moments_from_tensors",
    "padded_rows",
    "row_product",
]
