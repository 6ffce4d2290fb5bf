"""Small valid calls of what reads and writes pipelines of diffusers, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pipeline_parts
from recipe_parts import the

from sde_toolkit import interop


def pipelines() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Name -> the call and its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, made = pipeline_parts.unet(), pipeline_parts.scheduler("DDPM")
    return {
        "interop.from_diffusers": (interop.from_diffusers, the(source=network, scheduler=made)),
        "interop.matching_sampler": (interop.matching_sampler, the(scheduler=made, num_steps=3)),
        "interop.to_diffusers": (
            interop.to_diffusers, the(model=interop.from_diffusers(network, made), directory="written"),
        ),
        "interop.toolkit_scheduler": (interop.toolkit_scheduler, the(scheduler=made)),
    }  # fmt: skip
