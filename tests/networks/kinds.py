"""Every network of the library, tiny, and batches for them."""

import torch

from sde_toolkit.networks import MLP, DiT, NCSNpp, UNet, UNet1D

IMAGE = (1, 8, 8)

MADE = {
    "mlp": (MLP, (3,), {"width": 16, "depth": 2}),
    "unet": (UNet, IMAGE, {"channels": (8, 16)}),
    "dit": (DiT, IMAGE, {"width": 16, "depth": 2, "num_heads": 2}),
    "ncsnpp": (NCSNpp, IMAGE, {"channels": (8, 16), "layers_per_block": 1}),
    "unet1d": (UNet1D, (2, 8), {"channels": (8, 16)}),
}
"""Name in a configuration -> class, event shape, sizes."""

KINDS = list(MADE)


def build(kind, **options):
    make, event_shape, sizes = MADE[kind]
    return make(event_shape, **sizes, **options)


def awake(network, seed=1):
    """The network with a last layer that is not zero, so that its output depends on everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network


def batch(kind, size=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    event_shape = MADE[kind][1]
    return (
        torch.randn(size, *event_shape, generator=generator, dtype=dtype),
        1000 * torch.rand(size, generator=generator, dtype=dtype),
    )
