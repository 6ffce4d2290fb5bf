"""What recipes are made of: a small valid call, and small objects to call it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import sde_toolkit as sde
from sde_toolkit import data

VP = sde.VPSDE()
NORMAL = sde.Gaussian(torch.zeros(2), torch.eye(2))
MIXTURE = sde.GaussianMixture([0.5, 0.5], torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), [0.1, 0.2])
MODEL, CLASSES = sde.ExactModel(NORMAL, VP), sde.ExactModel(MIXTURE, VP)
CHAIN = VP.discretize(10)
X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
LEVELS, LABELS = torch.arange(12).reshape(6, 2) % 8, torch.tensor([0, 1, 0, 1, 0, 1])
EYE, HALF = torch.eye(2, dtype=torch.float64), torch.tensor(0.5)
GREY = data.Scaling.grey(8)
POINTS = sde.from_array(torch.arange(80.0).reshape(40, 2).sin(), dtype=torch.float64)
SOLVER = sde.FlowSolver(rtol=1e-2, atol=1e-2)
DRAWS = sde.BoundDraws(num_draws=2)

Maker = Callable[[], dict[str, Any]]


class Recipe(NamedTuple):
    """A call that works: what is called, and its arguments by name, made afresh for every call."""

    call: Callable[..., Any]
    arguments: Maker


def network_model() -> sde.NetworkModel:
    """A small network for vectors, in float64."""
    network = sde.MLP((2,), width=4, depth=1, num_frequencies=2).double()
    return sde.NetworkModel(network, VP, "noise", (2,))


def the(**arguments: Any) -> Maker:
    return lambda: dict(arguments)


def with_snapshots(folder: Path) -> Path:
    """A run with two snapshots."""
    state = sde.TrainState(network_model(), sde.Optimization(ema_traces=(0.05, 0.1)))
    sde.fit(state, POINTS, sde.DenoisingLoss(), 2, 4, folder, snapshot_every=1)
    return folder
