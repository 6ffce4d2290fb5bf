"""diffusers: its directories and pipelines as score models, and ours as its own."""

from sde_toolkit.interop.pipelines.export import to_diffusers
from sde_toolkit.interop.pipelines.latent import LatentDiffusion, open_latent
from sde_toolkit.interop.pipelines.matching import matching_sampler
from sde_toolkit.interop.pipelines.opening import from_diffusers
from sde_toolkit.interop.pipelines.scheduler import PipelineScheduler, toolkit_scheduler

__all__ = [
    "LatentDiffusion",
    "PipelineScheduler",
    "from_diffusers",
    "matching_sampler",
    "open_latent",
    "to_diffusers",
    "toolkit_scheduler",
]
