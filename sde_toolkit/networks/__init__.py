"""Networks for vectors, signals and images, with embeddings of times and conditions.

    MLP       vectors, and any shape taken flat        residual blocks
    UNet1D    signals (C, L)                           convolutions on levels of falling resolution
    UNet      images (C, H, W)                         the same, by diffusers
    NCSNpp    images                                   the same, as in 2011.13456
    DiT       images                                   a transformer on patches, as in 2212.09748
    Doubled   any of them for 2 C channels, where learned variances or self-conditioning need so many

network(x, c[, condition]) -> prediction shaped like x;   x with shape (B, *), c with shape (B,), and
condition labels with shape (B,) or rows with shape (B, d) or (B, L, d)
"""

from sde_toolkit.networks.blocks import (
    AttentionBlock,
    Resample,
    ResidualBlock,
    Shape,
    checkpoint_blocks,
)
from sde_toolkit.networks.description import (
    describe_network,
    described_network,
    on_meta,
)
from sde_toolkit.networks.dit import (
    DiT,
)
from sde_toolkit.networks.doubled import (
    Doubled,
    SelfConditioned,
)
from sde_toolkit.networks.embeddings import (
    MAX_ANGLE,
)
from sde_toolkit.networks.mlp import (
    MLP,
    ClassifierMLP,
)
from sde_toolkit.networks.ncsnpp import (
    TIME_EMBEDDINGS,
    NCSNpp,
)
from sde_toolkit.networks.unet import (
    UNet,
)
from sde_toolkit.networks.unet1d import (
    UNet1D,
)

__all__ = [
    "MAX_ANGLE",
    "MLP",
    "TIME_EMBEDDINGS",
    "AttentionBlock",
    "ClassifierMLP",
    "DiT",
    "Doubled",
    "NCSNpp",
    "Resample",
    "ResidualBlock",
    "SelfConditioned",
    "Shape",
    "UNet",
    "UNet1D",
    "checkpoint_blocks",
    "describe_network",
    "described_network",
    "on_meta",
]
