"""Models of score_sde (2011.13456): checkpoints and configurations, read as data, and their networks."""

from sde_toolkit.interop.score_sde.model import (
    from_score_sde,
)
from sde_toolkit.interop.score_sde.network import (
    ScoreSDENetwork,
)
from sde_toolkit.interop.score_sde.settings import (
    ScoreSDEConfig,
    read_score_sde_config,
)

__all__ = [
    "ScoreSDEConfig",
    "ScoreSDENetwork",
    "from_score_sde",
    "read_score_sde_config",
]
