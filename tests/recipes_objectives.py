"""A small valid call of what objectives by configuration and long runs need, in the form of ``recipes``."""

from __future__ import annotations

from typing import Any

from sde_toolkit import data, training


def more_objectives() -> dict[str, tuple[Any, Any]]:
    """Name -> what is called, and what makes its arguments."""
    return {
        "Circles.of_text": (data.Circles.of_text, lambda: {"text": "a=0:360", "columns": ("a",)}),
        "ScoreWeight": (training.ScoreWeight, dict),
    }
