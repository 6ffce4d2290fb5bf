"""Log-likelihoods by the probability flow, variational bounds, dequantisation, latents, Bayes' rule."""

from sde_toolkit.likelihood.bayes import (
    Classification,
    Judgement,
    classify,
    fit_temperature,
    judge,
    tempered,
)
from sde_toolkit.likelihood.bounds import (
    Bound,
    continuous_bound,
    discrete_bound,
)
from sde_toolkit.likelihood.budget import (
    Budget,
    Entry,
)
from sde_toolkit.likelihood.density import (
    DATA_ENDS,
    PRIORS,
)
from sde_toolkit.likelihood.dequantize import (
    Dequantizer,
    DiscreteLogLikelihood,
    PlaceFlow,
    TruncatedNormalDequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    discrete_log_likelihood,
    train_dequantizer,
)
from sde_toolkit.likelihood.divergence import (
    PROBE_KINDS,
    Divergence,
    ExactDivergence,
    Hutchinson,
    HutchPlusPlus,
)
from sde_toolkit.likelihood.flow import (
    LogLikelihood,
    differentiable_log_likelihood,
    log_likelihood,
)
from sde_toolkit.likelihood.latent import (
    Latents,
    decode,
    encode,
    interpolate,
)

__all__ = [
    "DATA_ENDS",
    "PRIORS",
    "PROBE_KINDS",
    "Bound",
    "Budget",
    "Classification",
    "Dequantizer",
    "DiscreteLogLikelihood",
    "Divergence",
    "Entry",
    "ExactDivergence",
    "HutchPlusPlus",
    "Hutchinson",
    "Judgement",
    "Latents",
    "LogLikelihood",
    "PlaceFlow",
    "TruncatedNormalDequantizer",
    "UniformDequantizer",
    "VariationalDequantizer",
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
    "log_likelihood",
    "tempered",
    "train_dequantizer",
]
