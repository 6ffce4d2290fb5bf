"""Small valid calls of the doors to other libraries: the form is that of ``recipes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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


LAW = sde.ExactModel(sde.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2]), sde.VPSDE())
QUICK = sde.FlowSolver(rtol=1e-2, atol=1e-2)


def posterior() -> interop.ScorePosterior:
    """p(theta | x) of a network that leaves x aside."""
    model = interop.from_epsilon(
        lambda theta, t, x: theta, sde.VPSDE(), (2,), condition_shape=(3,), dtype=torch.float64
    )
    return interop.as_posterior(model, sde.ddim(2), solver=QUICK)


def network_model() -> sde.NetworkModel:
    """A small network."""
    return sde.NetworkModel(sde.MLP((2,), width=2, depth=1, num_frequencies=2), sde.VPSDE(), "noise", (2,))


def card() -> Path:
    """A directory with a model and its card, made once."""
    place = Path("sent")
    return place if place.is_dir() else interop.write_card(network_model(), place)


def unreachable(
    directory: Path | str, repo_id: str, *, private: bool = True, token: str | None = None
) -> Any:
    """``push_to_hub`` to an address where no hub is."""
    try:
        return interop.push_to_hub(
            directory, repo_id, private=private, token=token, endpoint="http://127.0.0.1:9"
        )
    except OSError as error:
        if "could not send" not in str(error):
            raise


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
        "interop.export_program": (
            interop.export_program,
            lambda: {"model": network_model(), "path": Path("network.pt2"), "part": "network"},
        ),
        "interop.write_card": (
            interop.write_card, lambda: {"model": network_model(), "directory": Path("a card")},
        ),
        "interop.push_to_hub": (
            unreachable, lambda: {"directory": card(), "repo_id": "owner/name", "token": "none"},
        ),
        "interop.as_vector_field": (interop.as_vector_field, lambda: {"model": LAW}),
        "interop.as_k_denoiser": (interop.as_k_denoiser, lambda: {"model": LAW}),
        "interop.as_azula_denoiser": (interop.as_azula_denoiser, lambda: {"model": LAW}),
        "interop.as_distribution": (interop.as_distribution, lambda: {"model": LAW}),
        "interop.as_estimator": (interop.as_estimator, lambda: {"model": LAW}),
        "interop.as_posterior": (interop.as_posterior, lambda: {"model": LAW}),
        "interop.ScorePosterior.sample": (
            posterior().sample, lambda: {"sample_shape": (2,), "x": torch.zeros(3)},
        ),
        "interop.ScorePosterior.log_prob": (
            posterior().log_prob,
            lambda: {"theta": torch.zeros(2, 2, dtype=torch.float64), "x": torch.zeros(3)},
        ),
        "interop.ScorePosterior.set_default_x": (posterior().set_default_x, lambda: {"x": torch.zeros(3)}),
    }  # fmt: skip
