"""Small valid calls of the doors to other libraries: the form is that of ``recipes``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import sde_toolkit as sde
from sde_toolkit import interop


class EDMLike(nn.Module):
    """A network with the attributes of EDM's."""

    def __init__(self) -> None:
        super().__init__()
        self.img_channels, self.img_resolution, self.label_dim, self.sigma_data = 1, 2, 3, 0.5
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: Any = None) -> torch.Tensor:
        return self.weight * x


def interops() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Calls, and the makers of their arguments, by name."""
    return {
        "interop.from_denoiser": (
            interop.from_denoiser, lambda: {"denoiser": lambda x, c: x, "event_shape": (2,)},
        ),
        "interop.from_edm": (interop.from_edm, lambda: {"network": EDMLike()}),
        "interop.from_epsilon": (
            interop.from_epsilon,
            lambda: {"network": lambda x, c: x, "sde": sde.VPSDE(), "event_shape": (2,)},
        ),
        "interop.ForeignModel": (
            interop.ForeignModel,
            lambda: {
                "network": lambda x, c: x, "sde": sde.VPSDE(), "predicts": "noise", "event_shape": (2,),
            },
        ),
    }  # fmt: skip
