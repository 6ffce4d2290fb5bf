"""``sde-toolkit restore``: data from linear observations of them, y = A x + std z, by a model of such data.

    superresolution   means over blocks of --factor pixels
    deblur            a Gaussian blur of standard deviation --width, in pixels
    colourise         the mean of the channels
    sense             --count random projections, compressed sensing; those of ``guidance.projection``
    fourier           each --factor-th line of Fourier coefficients, as in accelerated magnetic resonance
    denoise           everything, with noise

With --degrade the input are clean examples, which are observed here, and the error of the mean and the
coverage of the intervals are told; with --calibrate also whether the examples' ranks among the draws are
uniform.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import add_verb, say
from sde_toolkit.cli.tasks.shared import (
    add_task,
    bar_for,
    check_calibrate,
    clean_or_given,
    open_task,
    output_files,
    task_arguments,
    tell,
    tell_ranks,
    write_arrays,
    write_picture,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sde_toolkit.guidance import LinearObservation

TASKS: dict[str, dict[str, float]] = {
    "superresolution": {"factor": 2}, "deblur": {"width": 1.0}, "colourise": {}, "sense": {"count": 0},
    "fourier": {"factor": 2}, "denoise": {},
}  # fmt: skip
"""What is observed, with the defaults of its numbers; a count of 0 is a quarter of the features."""

EXAMPLES = """examples:
  sde-toolkit restore --config=mnist --task=superresolution --factor=4 --std=8 --held_out=4 --output=out.npz
  sde-toolkit restore --task=superresolution --input=coarse.npy --factor=2 --std=1 --output=out.npz
  sde-toolkit restore --workdir=runs/d --task=deblur --std=.5 --input=clean.npy --degrade --output=out.npz
  sde-toolkit restore --task=denoise --std=4 --held_out=200 --calibrate --output=out.npz
  sde-toolkit restore --task=sense --count=32 --std=.5 --input=clean.npy --degrade --output=out.npz

observations are in raw units, with the shape that the task gives one example; a wrong one is told"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(
        verbs, "restore", restore, "undo blur, noise, coarse pixels, lost colours, ...", EXAMPLES
    )
    parser.add_argument("--task", required=True, metavar="NAME", help=", ".join(TASKS))
    add_task(
        parser,
        "observations, or clean examples with --degrade: .npy or .npz",
        "an .npz file; a .png of images is written beside it",
        "in place of --input: N clean examples that the run has held out, with --degrade",
    )
    parser.add_argument("--degrade", action="store_true", help="the input is clean: observe it, and compare")
    parser.add_argument(
        "--factor",
        type=int,
        metavar="N",
        help="of superresolution: the side of a block; of fourier: 1/N of lines",
    )
    parser.add_argument("--width", type=float, metavar="W", help="of deblur, in pixels; else 1")
    parser.add_argument("--count", type=int, metavar="M", help="of sense; else a quarter of the features")


def restore(options: argparse.Namespace) -> None:
    """Draw the data; write the draws and a picture."""
    from sde_toolkit import guidance

    output, beside = output_files(options)
    numbers = _numbers(options)
    task = open_task(options)
    observation = _observation(options, numbers, tuple(task.model.event_shape))
    degrade = options.degrade or options.held_out is not None
    given = clean_or_given(options, task)
    check_calibrate(options, task, given if degrade else None)
    if degrade:
        _check_clean(given, observation.event_shape)
        y = observation.draw(given, task.source.config.sampling.seed)
    else:
        y = observation.rows(given)
    with bar_for(len(y) * options.draws) as bar:
        found = guidance.restore(
            task.model, observation, y, progress=bar.update, **task_arguments(options, task)
        )
    say(f"{len(y)} examples by {options.draws} draws, {observation.A.count} numbers observed of each, "
        f"{found.nfe:.4g} evaluations, {found.seconds:.1f} s; level {found.level:.3g}")  # fmt: skip
    arrays, columns = {"observed": y.numpy()}, _seen(options.task, observation, y)
    if degrade:
        tell(found, task, given, options.level)
        if options.calibrate:
            arrays |= {name: x.numpy() for name, x in tell_ranks(found, task, given).items()}
        arrays["clean"], columns = given.numpy(), {"clean": given, **columns}
    write_arrays(output, found, task, arrays)
    write_picture(beside, found, task, columns)
    say(f"output     {output}")


def _numbers(options: argparse.Namespace) -> dict[str, float]:
    """The numbers of the task, as given or by default."""
    if options.task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {options.task!r}")
    own = TASKS[options.task]
    for name in ("factor", "width", "count"):
        value = getattr(options, name)
        if value is not None and name not in own:
            owners = " and ".join(task for task, taken in TASKS.items() if name in taken)
            raise ValueError(f"{name} is of the task {owners}, got {value} for {options.task}; leave it out")
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    if options.task == "denoise" and not options.std > 0:
        raise ValueError(f"std must be positive to denoise, got {options.std}")
    return {name: default if getattr(options, name) is None else getattr(options, name)
            for name, default in own.items()}  # fmt: skip


def _observation(
    options: argparse.Namespace, numbers: dict[str, float], shape: tuple[int, ...]
) -> LinearObservation:
    """The law of the observations of examples with this shape."""
    import torch

    from sde_toolkit import guidance

    name = options.task
    if name == "colourise" and (len(shape) != 3 or shape[0] < 2):
        raise ValueError(
            f"colourise needs a model of images of several channels, got one of data with shape {shape}"
        )
    A: Any
    if name == "superresolution":
        A = guidance.downsampling(shape, int(numbers["factor"]))
    elif name == "deblur":
        A = guidance.gaussian_blur(shape, numbers["width"])
    elif name == "colourise":
        A = guidance.colour_mixing(shape)
    elif name == "sense":
        A = guidance.projection(shape, int(numbers["count"]) or max(1, math.prod(shape) // 4))
    elif name == "fourier":
        A = guidance.fourier_mask(shape, _lines(shape, int(numbers["factor"])))
    else:
        A = torch.ones(shape, dtype=torch.bool)
    return guidance.LinearObservation(A, options.std)


def _lines(shape: tuple[int, ...], factor: int) -> Tensor:
    """The Fourier coefficients that are measured: the lines 0, factor, 2 factor, ... and all of the lowest
    sixteenth of the frequencies."""
    import torch

    sides = shape[-2:] if len(shape) == 3 else shape
    k = torch.arange(sides[0])
    kept = (k % factor == 0) | (torch.minimum(k, sides[0] - k) <= sides[0] // 32)
    return kept.reshape(-1, *(1 for _ in sides[1:])).expand(sides)


def _check_clean(given: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(given.shape[1:]) != shape:
        raise ValueError(
            f"input must hold clean examples with shape (n, {', '.join(map(str, shape))}), the model's, got "
            f"{tuple(given.shape)}"
        )
    if not bool(given.isfinite().all()):
        raise ValueError("input must be finite, got clean examples with nan or inf")


def _seen(name: str, observation: LinearObservation, y: Tensor) -> dict[str, Tensor]:
    """The observations as images, where they are: Fourier coefficients with zeros for those not measured."""
    if name == "fourier":
        return {"zero-fill": observation.A.backward(observation.A.pick(y))}
    return {"observed": y} if y.ndim == 4 and y.shape[1] in (1, 3) else {}
