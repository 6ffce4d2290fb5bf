"""Networks: a residual MLP for vectors and a U-Net for images, with embeddings of times and labels.

network(x, c, labels) -> prediction shaped like x;   x with shape (B, *), c and labels with shape (B,)
"""

from sde_toolkit.networks.description import (
    describe_network,
    described_network,
    on_meta,
)
from sde_toolkit.networks.embeddings import (
    MAX_ANGLE,
)
from sde_toolkit.networks.mlp import (
    MLP,
)
from sde_toolkit.networks.unet import (
    UNet,
)

__all__ = [
    "MAX_ANGLE",
    "MLP",
    "UNet",
    "describe_network",
    "described_network",
    "on_meta",
]
