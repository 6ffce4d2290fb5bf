"""Models of other libraries, in and out: what a directory, a pipeline or a function of theirs is here.

Nothing that a file holds is run, and nothing is downloaded; the pickles of score_sde are read as
weights alone.
"""

from sde_toolkit.interop.card import check_card_place, push_to_hub, write_card
from sde_toolkit.interop.denoisers import ForeignModel, State, Time, TimeName
from sde_toolkit.interop.distributions import (
    ScoreDistribution,
    ScorePosterior,
    as_distribution,
    as_posterior,
)
from sde_toolkit.interop.doors import EDM_RANGE, from_denoiser, from_edm, from_epsilon
from sde_toolkit.interop.estimator import ScoreEstimator, as_estimator
from sde_toolkit.interop.exporting import FORMATS, Exported, Part, export_program
from sde_toolkit.interop.guests import (
    AzulaDenoiser,
    KDenoiser,
    PosteriorMean,
    VectorField,
    as_azula_denoiser,
    as_k_denoiser,
    as_vector_field,
)
from sde_toolkit.interop.pipelines import (
    LatentDiffusion,
    PipelineScheduler,
    from_diffusers,
    matching_sampler,
    open_latent,
    to_diffusers,
    toolkit_scheduler,
)
from sde_toolkit.interop.score_sde import (
    ScoreSDEConfig,
    ScoreSDENetwork,
    from_score_sde,
    read_score_sde_config,
)

__all__ = [
    "EDM_RANGE",
    "FORMATS",
    "AzulaDenoiser",
    "Exported",
    "ForeignModel",
    "KDenoiser",
    "LatentDiffusion",
    "Part",
    "PipelineScheduler",
    "PosteriorMean",
    "ScoreDistribution",
    "ScoreEstimator",
    "ScorePosterior",
    "ScoreSDEConfig",
    "ScoreSDENetwork",
    "State",
    "Time",
    "TimeName",
    "VectorField",
    "as_azula_denoiser",
    "as_distribution",
    "as_estimator",
    "as_k_denoiser",
    "as_posterior",
    "as_vector_field",
    "check_card_place",
    "export_program",
    "from_denoiser",
    "from_diffusers",
    "from_edm",
    "from_epsilon",
    "from_score_sde",
    "matching_sampler",
    "open_latent",
    "push_to_hub",
    "read_score_sde_config",
    "to_diffusers",
    "toolkit_scheduler",
    "write_card",
]
