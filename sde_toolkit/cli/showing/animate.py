"""``sde-toolkit animate``: samples from noise to data as a moving picture, beside the forward process."""

from __future__ import annotations

import argparse
from typing import Any

from sde_toolkit.cli.common import (
    SAMPLERS_HELP,
    add_model,
    add_problem,
    add_verb,
    given,
    open_source,
    output_place,
    path_argument,
    say,
)
from sde_toolkit.cli.conditions import add_conditions, given_condition

EXAMPLES = """examples:
  sde-toolkit animate --sampler=ddim --num_steps=50              # the digits that ship with the package
  sde-toolkit animate --workdir=runs/d --sampler=euler_maruyama --num_steps=200 --format=gif,mp4
  sde-toolkit animate --problem=ring --sampler=heun --num_steps=40

Left the data as the forward process adds noise, right the sampler that takes it away; vectors as points,
numbers as densities, images as a grid.  A strip of frames (.png) goes with it, which `report` shows."""

FORMATS = ("gif", "mp4")


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "animate", animate, "samples from noise to data, as a moving picture", EXAMPLES)
    add_model(parser)
    add_problem(parser)
    parser.add_argument("--sampler", metavar="NAME", help=SAMPLERS_HELP)
    parser.add_argument("--num_steps", type=int, metavar="N", help="of the sampler, which must take steps")
    parser.add_argument("--num_samples", type=int, metavar="N", help="500 points or 25 images if not given")
    parser.add_argument("--seed", type=int, metavar="S", help="sample i of a seed is always the same")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="at most; default: 40")
    add_conditions(parser)
    parser.add_argument(
        "--format", type=_formats, default=("gif",), metavar="F,F", help="gif, mp4 (needs ffmpeg); else gif"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="DIR",
        help="where to write; else DIR/animations of the workdir",
    )


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(FORMATS) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be one or more of {', '.join(FORMATS)}, got {text!r}")
    return names


def animate(options: argparse.Namespace) -> None:
    """Draw samples, keep their states, and write them as a moving picture."""
    from sde_toolkit import runs
    from sde_toolkit.config import build_sampler
    from sde_toolkit.lab import Candidate, figures, has_ffmpeg, strip_figure, write_animation
    from sde_toolkit.utils import atomic_write, check_output_directory

    if options.frames < 2:
        raise ValueError(f"frames must be at least 2, got {options.frames}")
    if "mp4" in options.format and not has_ffmpeg():
        raise ValueError(
            "--format=mp4 needs ffmpeg, which is not installed; install it (apt-get install ffmpeg), "
            "or ask for gif"
        )
    source = open_source(options, given(options, "sampling", ("sampler", "num_steps", "seed")))
    config, problem = source.config, source.as_problem()
    directory = check_output_directory(output_place(options)) / "animations"
    count = _count(options.num_samples, source.model.event_shape)
    sampler = build_sampler(config, model=source.model)
    candidate = Candidate.of(config.sampling.sampler, sampler)
    condition = given_condition(options, source.model, count)
    frames, samples = runs.animation_frames(
        problem, sampler, config, count, options.frames, options.label, condition.rows
    )
    name = source.prefix + runs.samples_stem(candidate, config, condition.suffix, config.sampling.seed)
    directory.mkdir(parents=True, exist_ok=True)
    for form in options.format:
        write_animation(directory / f"{name}.{form}", frames)
        say(f"animation  {directory / f'{name}.{form}'}")
    atomic_write(directory / f"{name}.png", figures.render(strip_figure(frames)))
    say(f"strip      {directory / f'{name}.png'}")
    say(f"{count} samples by {candidate.label}: {samples.nfe:.4g} network evaluations each")


def _count(asked: int | None, event_shape: tuple[int, ...]) -> int:
    """How many samples are drawn.

    Raises:
        ValueError: fewer than one.
    """
    if asked is None:
        return 25 if len(event_shape) == 3 else 500
    if asked < 1:
        raise ValueError(f"num_samples must be at least 1, got {asked}")
    return asked
