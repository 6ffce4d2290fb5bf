"""A small valid call of what objectives by configuration and long runs need, in the form of ``recipes``."""

from __future__ import annotations

from typing import Any

from recipe_parts import POINTS, X

from sde_toolkit import data, networks, sdes, training

CONDITIONED = data.Dataset("c", POINTS.train, POINTS.test, conditions_train=POINTS.train)
TERMS = sdes.VariationalTerms(sdes.Chain.cosine(5))
BINS = {"x0": X, "x0_hat": X, "v": X, "levels": 4}
BATCH = {"step": 0, "batch_size": 2, "seed": 0}


def more_objectives() -> dict[str, tuple[Any, Any]]:
    """Name -> what is called, and what makes its arguments."""
    return {
        "Circles.of_text": (data.Circles.of_text, lambda: {"text": "a=0:360", "columns": ("a",)}),
        "Dataset.batch_conditions": (CONDITIONED.batch_conditions, lambda: dict(BATCH)),
        "checkpoint_blocks": (networks.checkpoint_blocks, lambda: {"network": networks.MLP((2,), width=4)}),
        "VariationalTerms.decoder_bins": (TERMS.decoder_bins, lambda: dict(BINS)),
        "ScoreWeight": (training.ScoreWeight, dict),
    }
