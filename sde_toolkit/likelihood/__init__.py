"""Log-likelihoods by the probability flow, variational bounds, dequantisation, latents, Bayes' rule."""

from sde_toolkit.likelihood.bayes import (
    ClassDensity,
    Classification,
    Judgement,
    ObservedLogLikelihood,
    classify,
    fit_temperature,
    judge,
    observed_log_likelihood,
    tempered,
)
from sde_toolkit.likelihood.bins import (
    Dequantizer,
    PlaceFlow,
    TruncatedNormalDequantizer,
    UniformDequantizer,
    VariationalDequantizer,
)
from sde_toolkit.likelihood.bounds import (
    DEFAULT_DRAWS,
    Bound,
    BoundDraws,
    continuous_bound,
    discrete_bound,
)
from sde_toolkit.likelihood.budget import (
    Budget,
    Entry,
    LikelihoodCost,
)
from sde_toolkit.likelihood.density import (
    CORRECTIONS,
    PRIORS,
)
from sde_toolkit.likelihood.dequantize import (
    DiscreteLogLikelihood,
    HasNats,
    discrete_log_likelihood,
    train_dequantizer,
)
from sde_toolkit.likelihood.divergence import (
    DEFAULT_PROBES,
    EXACT_UP_TO,
    PROBE_KINDS,
    Divergence,
    ExactDivergence,
    Hutchinson,
    HutchPlusPlus,
    chosen_divergence,
)
from sde_toolkit.likelihood.flow import (
    DEFAULT_SOLVER,
    TARGET_SE,
    Endpoint,
    FlowSolver,
    LogLikelihood,
    differentiable_log_likelihood,
    likelihood_cost,
    log_likelihood,
    values_only,
)
from sde_toolkit.likelihood.latent import (
    Latents,
    decode,
    encode,
    interpolate,
)
from sde_toolkit.likelihood.whitened import LIKELIHOOD_T_MIN

__all__ = [
    "CORRECTIONS",
    "DEFAULT_DRAWS",
    "DEFAULT_PROBES",
    "DEFAULT_SOLVER",
    "EXACT_UP_TO",
    "LIKELIHOOD_T_MIN",
    "PRIORS",
    "PROBE_KINDS",
    "TARGET_SE",
    "Bound",
    "BoundDraws",
    "Budget",
    "ClassDensity",
    "Classification",
    "Dequantizer",
    "DiscreteLogLikelihood",
    "Divergence",
    "Endpoint",
    "Entry",
    "ExactDivergence",
    "FlowSolver",
    "HasNats",
    "HutchPlusPlus",
    "Hutchinson",
    "Judgement",
    "Latents",
    "LikelihoodCost",
    "LogLikelihood",
    "ObservedLogLikelihood",
    "PlaceFlow",
    "TruncatedNormalDequantizer",
    "UniformDequantizer",
    "VariationalDequantizer",
    "chosen_divergence",
    "classify",
    "continuous_bound",
    "decode",
    "differentiable_log_likelihood",
    "discrete_bound",
    "discrete_log_likelihood",
    "encode",
    "fit_temperature",
    "interpolate",
    "judge",
    "likelihood_cost",
    "log_likelihood",
    "observed_log_likelihood",
    "tempered",
    "train_dequantizer",
    "values_only",
]
