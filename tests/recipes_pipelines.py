"""Small valid calls of what reads and writes pipelines of diffusers, by name."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import pipeline_parts
from recipe_parts import the

from sde_toolkit import interop


@functools.cache
def latent_folder() -> str:
    """A directory of DiT's layout."""
    folder = tempfile.mkdtemp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline_parts.dit(pipeline_parts.scheduler("DDIM"), classes=3).save_pretrained(folder)
    return folder


def pipelines() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Name -> the call and its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, made = pipeline_parts.unet(), pipeline_parts.scheduler("DDPM")
    return {
        "interop.from_diffusers": (interop.from_diffusers, the(source=network, scheduler=made)),
        "interop.matching_sampler": (interop.matching_sampler, the(scheduler=made, num_steps=3)),
        "interop.open_latent": (interop.open_latent, lambda: {"directory": latent_folder()}),
        "interop.to_diffusers": (
            interop.to_diffusers, the(model=interop.from_diffusers(network, made), directory="written"),
        ),
        "interop.toolkit_scheduler": (interop.toolkit_scheduler, the(scheduler=made)),
    }  # fmt: skip
