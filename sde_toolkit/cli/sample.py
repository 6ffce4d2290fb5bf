"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sde_toolkit import runs
from sde_toolkit.cli.common import _given, _output, note, open_model
from sde_toolkit.config import (
    build_dataset,
    build_sampler,
    sampler_options,
)
from sde_toolkit.lab import experiment
from sde_toolkit.runs import comparison as results
from sde_toolkit.utils import atomic_write


def sample(options: argparse.Namespace) -> None:
    """Draw samples with one sampler; write them and a picture of them."""
    overrides = _given(options, "sampling", ("sampler", "num_steps", "num_samples", "seed"))
    run = open_model(options, overrides)
    settings = run.config.sampling
    _warn_without_effect(settings, overrides)
    sampler = build_sampler(run.config, model=run.model)
    samples = sampler.sample(
        run.model, settings.num_samples, seed=settings.seed, batch_size=settings.batch_size
    )
    label = experiment.Candidate.of(settings.sampler, sampler).label
    stem = _output(options) / "samples" / f"{label}-seed{settings.seed}"
    runs.save_samples(stem.with_name(stem.name + ".npz"), samples, run.config, run.fingerprint)
    picture = results.picture_of_samples(samples, build_dataset(run.config), label)
    atomic_write(stem.with_name(stem.name + ".png"), picture)
    print(
        f"{len(samples.x)} samples by {label}: {samples.nfe:.4g} network evaluations each, "
        f"{samples.seconds:.1f} s, seed {samples.seed}"
    )
    print(f"samples  {stem}.npz")
    print(f"picture  {stem}.png")


def _warn_without_effect(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    name = settings["sampler"]
    allowed = {*sampler_options(name, settings), "sampler", "num_samples", "seed", "batch_size"}
    for path in overrides:
        section, _, field = path.partition(".")
        if section == "sampling" and field not in allowed:
            note(f"sde-toolkit: warning: {field} has no effect on the sampler {name}")
