"""Small valid calls for models of score_sde, in the form of ``recipes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import score_sde_files as files

from sde_toolkit import interop

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
    }  # fmt: skip
