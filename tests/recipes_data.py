"""A small valid call of what came to the data, in the form of ``recipes``."""

from __future__ import annotations

from typing import Any

import torch

from sde_toolkit import data, models


def data_sets() -> dict[str, tuple[Any, Any]]:
    """Name -> what is called, and what makes its arguments."""
    return {
        "mnist": (data.mnist, dict),
        "Factors": (models.Factors, lambda: {"loadings": [[1.0], [0.5]], "specific": torch.ones(2)}),
    }
