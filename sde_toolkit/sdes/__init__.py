"""Forward processes: how data turn into noise, in continuous time and on the indices of a discrete chain."""

from sde_toolkit.sdes.beta import (
    Beta,
    CosineBeta,
    LinearBeta,
)
from sde_toolkit.sdes.chain import (
    VARIANCES,
    Chain,
    Variance,
    ancestral_coefficients,
)
from sde_toolkit.sdes.chain_sde import (
    ChainSDE,
)
from sde_toolkit.sdes.description import (
    describe_process,
    described_process,
)
from sde_toolkit.sdes.rectified import (
    RectifiedFlow,
)
from sde_toolkit.sdes.sde import (
    VESDE,
    VPSDE,
    CustomSDE,
    ForwardSDE,
    SubVPSDE,
)
from sde_toolkit.sdes.variational import (
    VariationalTerms,
    log_normal_mass,
)

__all__ = [
    "VARIANCES",
    "VESDE",
    "VPSDE",
    "Beta",
    "Chain",
    "ChainSDE",
    "CosineBeta",
    "CustomSDE",
    "ForwardSDE",
    "LinearBeta",
    "RectifiedFlow",
    "SubVPSDE",
    "Variance",
    "VariationalTerms",
    "ancestral_coefficients",
    "describe_process",
    "described_process",
    "log_normal_mass",
]
