"""Score models: networks and exact distributions as one type, their predictions, and the data's moments."""

from sde_toolkit.models.exact import (
    ExactData,
    ExactModel,
    Gaussian,
    GaussianMixture,
)
from sde_toolkit.models.modes import (
    EvaluatedModel,
    evaluated,
    evaluating,
    ordinary,
    outside_inference_mode,
    recording,
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
    IndexedModel,
    ModuleModel,
    NetworkModel,
    NoiseLevel,
)
from sde_toolkit.models.plain import inner_network, plain_parameters, plain_tensors
from sde_toolkit.models.products import ROW_BLOCK, padded_rows, row_product
from sde_toolkit.models.score import (
    PREDICTION_ALIASES,
    PREDICTIONS,
    TIME_SCALE,
    Condition,
    DataScale,
    Prediction,
    ScoreModel,
    check_states,
    class_labels,
    conversion,
    known_moments,
    prediction_name,
)
from sde_toolkit.models.whitening import Whitening
from sde_toolkit.models.wrappers import GivenModel, Wrapper

__all__ = [
    "MAX_FULL",
    "PREDICTIONS",
    "PREDICTION_ALIASES",
    "ROW_BLOCK",
    "TIME_SCALE",
    "Condition",
    "DataScale",
    "EvaluatedModel",
    "ExactData",
    "ExactModel",
    "Gaussian",
    "GaussianMixture",
    "GivenModel",
    "IndexedModel",
    "ModuleModel",
    "Moments",
    "NetworkModel",
    "NoiseLevel",
    "Prediction",
    "Rotation",
    "ScoreModel",
    "Whitening",
    "Wrapper",
    "check_states",
    "class_labels",
    "class_moments_from_tensors",
    "class_tensors",
    "conversion",
    "evaluated",
    "evaluating",
    "inner_network",
    "isotropic",
    "known_moments",
    "moments_from_tensors",
    "ordinary",
    "outside_inference_mode",
    "padded_rows",
    "plain_parameters",
    "plain_tensors",
    "prediction_name",
    "recording",
    "row_product",
]
