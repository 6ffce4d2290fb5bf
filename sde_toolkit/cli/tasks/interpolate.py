"""``sde-toolkit interpolate``: data between examples, through the latents of the probability flow.

Each example and the next one make a pair; its points lie on the great circle between the latents of both.
With --given all points share what was observed, the ends too: they are decoded by the model given it.
The output is an .npz file with the points of every pair in raw units, ends included, and for images a picture
beside it, a pair in each row.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import (
    add_label,
    add_model,
    add_problem,
    add_verb,
    given,
    open_source,
    path_argument,
    say,
)
from sde_toolkit.cli.tasks.shared import METHODS_HELP, MOST_EXAMPLES, output_files, picture, savez

if TYPE_CHECKING:
    from torch import Tensor

    from sde_toolkit.models import ScoreModel

EXAMPLES = """examples:
  sde-toolkit interpolate --input=digits.npy --output=path.npz
  sde-toolkit interpolate --workdir=runs/d --input=pictures --points=11 --t_end=.6 --output=path.npz
  sde-toolkit interpolate --config=digits_classes --input=threes.npy --label=3 --output=path.npz
  sde-toolkit interpolate --input=digits.npy --given=top.npy --std=.5 --output=path.npz

top.npy is one example with nan where a value is not known"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "interpolate", interpolate, "data between examples", EXAMPLES)
    add_model(parser)
    add_problem(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="two examples or more, in raw units: .npy, .npz, a table or a folder of pictures",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="PATH",
        help="an .npz file; a .png of images is written beside it",
    )
    parser.add_argument("--points", type=int, default=9, metavar="N", help="of a pair, ends included; else 9")
    parser.add_argument(
        "--t_end", type=float, metavar="T", help="where the flow turns back; at the process' end if not given"
    )
    parser.add_argument(
        "--guidance_scale", type=float, metavar="W", help="of classifier-free guidance, with --label"
    )
    parser.add_argument(
        "--given", metavar="PATH", help="one example in raw units, nan where it is not known: for all points"
    )
    parser.add_argument("--std", type=float, default=0.0, metavar="S", help="of its noise, in raw units")
    parser.add_argument("--method", metavar="NAME", help=f"how it guides, {METHODS_HELP}")
    add_label(parser, "the class of all examples")


def interpolate(options: argparse.Namespace) -> None:
    """Encode the examples, and decode what lies between; write the points and a picture."""
    import torch

    from sde_toolkit import likelihood, runs
    from sde_toolkit.config import likelihood_options

    output, beside = output_files(options)
    if options.points < 2:
        raise ValueError(f"points must be at least 2, the ends, got {options.points}")
    if options.given is None and (options.method is not None or options.std != 0):
        raise ValueError("method and std are of an observation; give --given")
    source = open_source(options, given(options))
    model, how = source.model, likelihood_options(source.config)
    guided = _guided(options, model)
    decoder = _observing(options, guided)
    x = runs.open_states(options.input, model)
    if len(x) < 2:
        raise ValueError(f"input must hold two examples or more, got {len(x)} in {options.input}")
    weights = torch.linspace(0, 1, options.points, dtype=torch.float64)
    points = likelihood.interpolate_data(
        guided, x[:-1], x[1:], weights, condition=options.label, t_end=options.t_end, t_min=how["t_min"],
        solver=how["solver"], batch_size=how["batch_size"], decoder=decoder,
    )  # fmt: skip
    made = points.transpose(0, 1)  # pair, point
    raw = made if model.scaling is None else model.scaling.to_data(made.flatten(0, 1)).unflatten(
        0, made.shape[:2]
    )  # fmt: skip
    note = {"model": source.fingerprint, "t_end": options.t_end, "label": options.label,
            "guidance_scale": options.guidance_scale, "given": options.given, "std": options.std,
            "method": options.method}  # fmt: skip
    savez(output, {"x": made, "data": raw, "weights": weights}, note)
    say(f"{len(made)} pairs by {options.points} points")
    _write_picture(beside, raw)
    say(f"output     {output}")


def _guided(options: argparse.Namespace, model: ScoreModel) -> ScoreModel:
    from sde_toolkit.guidance import ClassifierFree
    from sde_toolkit.runs import need_classes

    if options.label is not None:
        need_classes(model)
    if options.guidance_scale is None:
        return model
    if options.label is None:
        raise ValueError("guidance_scale needs a class; give --label")
    return ClassifierFree(model, options.guidance_scale)


def _observing(options: argparse.Namespace, model: ScoreModel) -> ScoreModel:
    """The model given what ``--given`` holds."""
    from sde_toolkit.config import build_method
    from sde_toolkit.data import open_rows
    from sde_toolkit.guidance import LinearObservation, Method, Observed, in_model_scale

    if options.given is None:
        return model
    method = None if options.method is None else build_method(options.method, 50)
    if method is not None and (not isinstance(method, Method) or method.after_step() is not None):
        raise ValueError(
            f"method must guide the flow by its prediction alone to interpolate, got {options.method}; take "
            "gaussian_informed or mmps"
        )
    rows, _ = open_rows(options.given, missing=True)
    if len(rows) != 1 and rows.ndim == len(model.event_shape):
        rows = rows[None]
    if len(rows) != 1:
        raise ValueError(
            f"given must hold one example, with shape (1, ...), got {tuple(rows.shape)} in {options.given}"
        )
    known = ~rows[0].isnan()
    if not bool(known.any()):
        raise ValueError(f"given must hold a value that is known, got nan alone in {options.given}")
    posed, y = in_model_scale(LinearObservation(known, options.std), rows, model.scaling)
    return Observed(posed, y[0], method).model(model)


def _write_picture(path: Any, raw: Tensor) -> None:
    from sde_toolkit.utils import atomic_write

    if raw.ndim != 5 or raw.shape[2] not in (1, 3):
        return
    x = raw[:MOST_EXAMPLES].double()
    low, high = float(x.min()), float(x.max())
    shown = (x - low) / max(high - low, 1e-300)
    titles = [f"{k / (len(raw[0]) - 1):.2g}" for k in range(len(raw[0]))]
    atomic_write(path, picture([list(row) for row in shown], titles))
    say(f"picture    {path}")
