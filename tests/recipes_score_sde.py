"""Small valid calls for models of score_sde, in the form of ``recipes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import score_sde_files as files
import torch

from sde_toolkit import VPSDE, interop

SMALL = files.FIELDS["DDPM"]


def score_sde(folder: Path) -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Calls, and the makers of their arguments, by name."""
    path = folder / "DDPM.pth"
    if not path.exists():
        files.write(folder, "DDPM")
    settings = interop.read_score_sde_config(SMALL)
    fields = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    return {
        "interop.from_score_sde": (interop.from_score_sde, lambda: {"path": path, "config": SMALL}),
        "interop.read_score_sde_config": (interop.read_score_sde_config, lambda: {"config": SMALL}),
        "interop.ScoreSDEConfig": (interop.ScoreSDEConfig, lambda: dict(fields)),
        "interop.ScoreSDENetwork": (interop.ScoreSDENetwork, lambda: {"config": settings}),
        "interop.ScoreSDEModel": (
            interop.ScoreSDEModel,
            lambda: {
                "network": lambda x, c: x, "sde": VPSDE(), "predicts": "noise", "event_shape": (3, 8, 8),
                "dtype": torch.float32,
            },
        ),
    }  # fmt: skip
