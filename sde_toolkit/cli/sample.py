"""``sde-toolkit sample``: draw samples with one sampler; an npz file, and pictures of them.

npz     the samples in model scale and on the scale of the data, with how they were made
grid    one picture of all
png     a folder with one picture for each, as tools that compare sets of images read it
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import (
    SAMPLERS_HELP,
    Source,
    add_model,
    add_problem,
    add_shards,
    add_verb,
    given,
    keeping,
    need_memory,
    note,
    open_source,
    output_directory,
    output_place,
    path_argument,
    say,
)
from sde_toolkit.cli.conditions import Given, add_conditions, given_condition

if TYPE_CHECKING:
    from sde_toolkit.models import ScoreModel
    from sde_toolkit.runs import StartStates
    from sde_toolkit.samplers import Sampler, Samples

EXAMPLES = """examples:
  sde-toolkit sample --sampler=ddim --num_steps=20        # the digits that ship with the package
  sde-toolkit sample --workdir=runs/d --sampler=heun --num_steps=10 --num_samples=100 --seed=1
  sde-toolkit sample --workdir=runs/d --sampler=ddim --config.sampling.eta=0.5 --config.sampling.grid=karras
  sde-toolkit sample --sampler=ddim --num_samples=1000 --format=png   # a folder of pictures
  sde-toolkit sample --problem=ring --sampler=heun --num_samples=1000000 --shard=3/16   # then --merge
  sde-toolkit sample --config=digits_classes --labels=0,1,2,3,4,5,6,7,8,9 --num_samples=100
  sde-toolkit sample --config=digits_classes --label=3 --guidance_scale=2  # classifier-free guidance
  sde-toolkit sample --config=digits_classes --compose=3:1.5,8:-.5    # like 3 and unlike 8
  sde-toolkit sample --x_start=strokes.png --t_start=.5    # image to image: from a picture with noise"""

FORMATS = ("npz", "grid", "png")


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "sample", sample, "draw samples: an npz file and a picture", EXAMPLES)
    add_model(parser)
    add_problem(parser)
    parser.add_argument("--sampler", metavar="NAME", help=SAMPLERS_HELP)
    parser.add_argument("--num_steps", type=int, metavar="N", help="not for adaptive samplers")
    parser.add_argument("--num_samples", type=int, metavar="N")
    parser.add_argument("--seed", type=int, metavar="S", help="sample i of a seed is always the same")
    add_conditions(parser)
    parser.add_argument(
        "--guidance_scale",
        type=float,
        metavar="W",
        help="of classifier-free guidance, with a class or condition; 1 is none",
    )
    parser.add_argument(
        "--compose",
        type=_terms,
        metavar="K:W,L:W,...",
        help="classes together, with weights below 0 for a negation; a weight that is left out is 1",
    )
    parser.add_argument(
        "--format",
        type=_formats,
        default=("npz", "grid"),
        metavar="F,F,...",
        help="npz (arrays), grid (one picture), png (a folder with a picture of each); else npz,grid",
    )
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="where to write; else DIR/samples of the workdir"
    )
    _add_start(parser)
    add_shards(parser)


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--x_start",
        metavar="PATH",
        help="data that the runs start from, in turn, with the noise of --t_start: raw, as .npy, .npz, a "
        "picture or a folder of them",
    )
    parser.add_argument(
        "--t_start", type=float, metavar="T", help="where runs from --x_start begin: more keeps less of them"
    )
    parser.add_argument(
        "--noised", action="store_true", help="--x_start holds states at --t_start already, in model scale"
    )


def _terms(text: str) -> list[tuple[int, float]]:
    words = [word.partition(":") for word in text.split(",")]
    try:
        return [(int(label), float(weight) if colon else 1.0) for label, colon, weight in words]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be classes with weights, as in 3:1.5,8:-.5, got {text!r}"
        ) from None


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(FORMATS) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be one or more of {', '.join(FORMATS)}, got {text!r}")
    return names


def sample(options: argparse.Namespace) -> None:
    """Draw samples with one sampler; write them and a picture of them."""
    from sde_toolkit import runs
    from sde_toolkit.config import build_sampler
    from sde_toolkit.lab import Candidate
    from sde_toolkit.utils import launched

    overrides = given(options, "sampling", ("sampler", "num_steps", "num_samples", "seed", "guidance_scale"))
    source = open_source(options, overrides)
    settings = source.config.sampling
    _warn_without_effect(settings, overrides)
    condition = given_condition(options, source.model, settings.num_samples)
    if settings.guidance_scale != 1 and condition.rows is None:
        note("sde-toolkit: warning: guidance_scale has no effect without --label, --labels or --conditions")
    need_memory(settings.num_samples, source.model.event_shape)
    start = _start(options, source.model)
    sampler = build_sampler(source.config, model=source.model)
    candidate = Candidate.of(settings.sampler, sampler)
    suffix = condition.suffix + ("" if start is None else start.suffix)
    if options.compose is not None:
        sampler, suffix = (
            _composed(options, source, sampler, condition),
            suffix + _named(options.compose),
        )
    name = source.prefix + runs.samples_stem(candidate, source.config, suffix, settings.seed)
    places = _places(options, source, name)
    npz = output_place(options) / "samples" / f"{name}.npz"
    with keeping(runs.parts_path(npz)), launched() as processes:
        try:
            samples = runs.draw_samples(
                source.model, source.fingerprint, sampler, npz, settings.num_samples,
                condition=condition.rows, seed=settings.seed, batch_size=settings.batch_size,
                processes=processes, shard=options.shard, merging=options.merge, told=condition.told,
                start=start,
            )  # fmt: skip
        except runs.ShardFinishedError:
            part = f"shard {options.shard.index} of {options.shard.count}"
            note(f"{part} is in {runs.parts_path(npz)}; the same command with --merge joins the shards")
            return
    if processes.rank == 0:
        _write(options, source, samples, places, candidate.label, condition.told)
        runs.forget_parts(npz)


def _composed(options: argparse.Namespace, source: Source, sampler: Sampler, condition: Given) -> Sampler:
    """The sampler on the composition that ``--compose`` names."""
    from sde_toolkit import guidance, runs

    model = source.model
    runs.need_classes(model)
    if condition.rows is not None or source.config.sampling.guidance_scale != 1:
        raise ValueError(
            "give --compose alone, without --label, --labels, --conditions and --guidance_scale: its terms "
            "are the conditions, its weights the scales"
        )
    terms, weights = zip(*options.compose, strict=True)
    guidance.Composed(model, terms, weights)  # refuses what is no class, before the work
    return guidance.composed(sampler, terms, weights)


def _named(terms: list[tuple[int, float]]) -> str:
    """What the names of files say of a composition."""
    from sde_toolkit import runs

    text = "".join(f"-{label}x{weight:g}" for label, weight in terms)
    return f"-composed{text}" if len(text) <= 40 else f"-composed-{runs.digest_of(text)}"


def _write(
    options: argparse.Namespace,
    source: Source,
    samples: Samples,
    places: Mapping[str, Path],
    label: str,
    told: Any,
) -> None:
    """Write the samples in every format that is asked for, and say so."""
    from sde_toolkit import runs
    from sde_toolkit.utils import atomic_write

    say(
        f"{len(samples.x)} samples by {label}: {samples.nfe:.4g} network evaluations each, "
        f"{samples.seconds:.1f} s, seed {samples.seed}"
    )
    output_directory(options)
    if "npz" in places:
        _tell_replaced(places["npz"], source.fingerprint, len(samples.x))
        runs.save_samples(places["npz"], samples, source.config, source.fingerprint, condition=told)
        say(f"samples  {places['npz']}")
    if "grid" in places:
        places["grid"].parent.mkdir(parents=True, exist_ok=True)
        atomic_write(places["grid"], runs.picture_of_samples(samples, label))
        say(f"picture  {places['grid']}")
    if "png" in places:
        runs.write_pictures(samples, places["png"])
        say(f"pictures {places['png']} ({len(samples.x)} files)")


def _places(options: argparse.Namespace, source: Source, name: str) -> dict[str, Path]:
    """Format -> where it is written; refused before the work where it cannot be."""
    from sde_toolkit import runs
    from sde_toolkit.utils import check_output_directory, check_output_file

    directory = check_output_directory(output_place(options)) / "samples"
    places = {"npz": directory / f"{name}.npz", "grid": directory / f"{name}.png", "png": directory / name}
    chosen = {form: places[form] for form in options.format}
    for form, place in chosen.items():
        if form == "png":
            runs.check_picture_shape(source.model.event_shape, source.model.scaling)
            check_output_directory(place.parent)
            runs.check_picture_folder(place)
        else:
            check_output_file(place)
    return chosen


def _tell_replaced(path: Path, fingerprint: str, count: int) -> None:
    """Say on standard error that a file with other samples goes."""
    from sde_toolkit import runs

    if not path.exists():
        return
    try:
        x, known = runs.load_samples(path)
    except ValueError:
        note(f"sde-toolkit: warning: {path}, which is no file of samples, is replaced")
        return
    if known["model"] != fingerprint or len(x) != count:
        note(f"sde-toolkit: warning: {path} with {len(x)} samples of weights {known['model']} is replaced")


def _start(options: argparse.Namespace, model: ScoreModel) -> StartStates | None:
    """The states that ``--x_start`` names.

    Raises:
        ValueError: one of ``--x_start`` and ``--t_start`` without the other, or what cannot be read.
    """
    from sde_toolkit import runs

    if (options.x_start is None) != (options.t_start is None) or (options.noised and options.x_start is None):
        raise ValueError(
            "give --x_start and --t_start together: data, and the time whose noise they get, as in "
            f"--x_start=strokes.png --t_start={model.sde.T / 2:g}"
        )
    if options.x_start is None:
        return None
    x = runs.open_states(options.x_start, model, raw=not options.noised)
    return runs.StartStates(x, options.t_start, options.noised)


def _warn_without_effect(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    from sde_toolkit.config import sampler_options

    name = settings["sampler"]
    allowed = {*sampler_options(name, settings), "sampler", "num_samples", "seed", "batch_size"}
    for path in overrides:
        section, _, field = path.partition(".")
        if section == "sampling" and field not in allowed:
            note(f"sde-toolkit: warning: {field} has no effect on the sampler {name}")
