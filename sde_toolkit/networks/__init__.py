"""Networks: a residual MLP for vectors, a U-Net for images, and their time embeddings."""

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
]
