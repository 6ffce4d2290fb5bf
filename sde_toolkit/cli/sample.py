"""``sde-toolkit sample``: draw samples with one sampler; an npz file, and a picture of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sde_toolkit import runs
from sde_toolkit.cli.common import add_label, add_model, add_verb, given, note, open_model, output_directory
from sde_toolkit.config import SAMPLERS, build_dataset, build_sampler, sampler_options
from sde_toolkit.lab import Candidate
from sde_toolkit.models import Condition
from sde_toolkit.utils import atomic_write

EXAMPLES = """examples:
  sde-toolkit sample --sampler=ddim --num_steps=20        # the digits that ship with the package
  sde-toolkit sample --workdir=runs/d --sampler=heun --num_steps=10 --num_samples=100 --seed=1
  sde-toolkit sample --workdir=runs/d --sampler=ddim --config.sampling.eta=0.5 --config.sampling.grid=karras
  sde-toolkit sample --config=digits_classes --labels=0,1,2,3,4,5,6,7,8,9 --num_samples=100"""

NAMED_LABELS = 10
"""At most this many labels are part of a file's name."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "sample", sample, "draw samples: an npz file and a picture", EXAMPLES)
    add_model(parser)
    parser.add_argument("--sampler", metavar="NAME", help=", ".join(SAMPLERS))
    parser.add_argument("--num_steps", type=int, metavar="N", help="not for adaptive samplers")
    parser.add_argument("--num_samples", type=int, metavar="N")
    parser.add_argument("--seed", type=int, metavar="S", help="sample i of a seed is always the same")
    classes = parser.add_mutually_exclusive_group()
    add_label(classes, "the class of all samples")
    classes.add_argument(
        "--labels", type=_labels, metavar="K,L,...", help="their classes in turn, again from the first"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write; else DIR/samples of the workdir"
    )


def _labels(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers with commas between them, got {text!r}") from None


def sample(options: argparse.Namespace) -> None:
    """Draw samples with one sampler; write them and a picture of them."""
    overrides = given(options, "sampling", ("sampler", "num_steps", "num_samples", "seed"))
    run = open_model(options, overrides)
    settings = run.config.sampling
    _warn_without_effect(settings, overrides)
    condition = _condition(options, settings.num_samples)
    if condition is not None:
        runs.need_classes(run.model)
    sampler = build_sampler(run.config, model=run.model)
    samples = sampler.sample(
        run.model,
        settings.num_samples,
        condition=condition,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    label = Candidate.of(settings.sampler, sampler).label
    stem = output_directory(options) / "samples" / f"{label}{_suffix(options)}-seed{settings.seed}"
    runs.save_samples(
        stem.with_name(stem.name + ".npz"), samples, run.config, run.fingerprint, condition=condition
    )
    picture = runs.picture_of_samples(samples, build_dataset(run.config), label)
    atomic_write(stem.with_name(stem.name + ".png"), picture)
    print(
        f"{len(samples.x)} samples by {label}: {samples.nfe:.4g} network evaluations each, "
        f"{samples.seconds:.1f} s, seed {samples.seed}"
    )
    print(f"samples  {stem}.npz")
    print(f"picture  {stem}.png")


def _condition(options: argparse.Namespace, num_samples: int) -> Condition | None:
    """One class for all samples, or int64 labels with shape (num_samples,)."""
    if options.labels is None:
        label: int | None = options.label
        return label
    labels = [options.labels[i % len(options.labels)] for i in range(num_samples)]
    return torch.tensor(labels, dtype=torch.int64)


def _suffix(options: argparse.Namespace) -> str:
    if options.labels is None:
        return runs.class_suffix(options.label)
    more = "-more" if len(options.labels) > NAMED_LABELS else ""
    return "-classes" + "-".join(map(str, options.labels[:NAMED_LABELS])) + more


def _warn_without_effect(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    name = settings["sampler"]
    allowed = {*sampler_options(name, settings), "sampler", "num_samples", "seed", "batch_size"}
    for path in overrides:
        section, _, field = path.partition(".")
        if section == "sampling" and field not in allowed:
            note(f"sde-toolkit: warning: {field} has no effect on the sampler {name}")
