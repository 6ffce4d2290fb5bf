"""``sde-toolkit inpaint``: the hidden part of images, drawn by a model of such images.

The output is an .npz file with the draws, their mean and the ends of the intervals, in raw units, and for
images a picture beside it: observed, draws and mean, an example in each row.
"""

from __future__ import annotations

import argparse
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

EXAMPLES = """examples:
  sde-toolkit inpaint --config=mnist --held_out=4 --box=8,8,12,12 --output=out.npz
  sde-toolkit inpaint --input=digits.npy --box=2,2,4,4 --output=out.npz
  sde-toolkit inpaint --workdir=runs/d --input=images.npy --mask=known.npy --std=5 --draws=39 --output=out.npz

a mask is true (or 1) where a pixel is known; what the images hold elsewhere is not looked at, nan included"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "inpaint", inpaint, "draw the hidden part of images", EXAMPLES)
    add_task(
        parser,
        "images (n, C, H, W) or (n, H, W), or rows (n, D), in raw units: .npy or .npz",
        OUTPUT,
        "in place of --input: N examples that the run has held out; what is drawn is compared",
    )
    hidden = parser.add_mutually_exclusive_group(required=True)
    hidden.add_argument(
        "--mask",
        metavar="PATH",
        help="an .npy file, true or 1 where a pixel is known: (H, W), (C, H, W), (D,)",
    )
    hidden.add_argument(
        "--box", metavar="TOP,LEFT,HEIGHT,WIDTH", help="of the pixels that are hidden, in all channels"
    )


OUTPUT = "an .npz file; a .png of images is written beside it"


def inpaint(options: argparse.Namespace) -> None:
    """Draw what is hidden; write the draws and a picture."""
    import torch

    from sde_toolkit import guidance

    output, beside = output_files(options)
    task = open_task(options)
    shape = tuple(task.model.event_shape)
    mask = _boxed(options.box, shape) if options.mask is None else _read_mask(options.mask)
    images = clean_or_given(options, task)
    check_calibrate(options, task, None if options.held_out is None else images)
    with bar_for(len(images) * options.draws) as bar:
        found = guidance.inpaint(
            task.model, images, mask, std=options.std, progress=bar.update, **task_arguments(options, task)
        )
    known = mask.expand(images.shape[1:])
    say(f"{len(images)} examples by {options.draws} draws, {int(known.sum())} of {known.numel()} "
        f"features known, {found.nfe:.4g} evaluations each, {found.seconds:.1f} s; "
        f"intervals of level {found.level:.3g}"
        )  # fmt: skip
    observed = torch.where(known, images, torch.nan)
    arrays, columns = {"observed": observed.numpy(), "mask": mask.numpy()}, {"observed": observed}
    if options.input is None:
        hidden = None if bool(known.all()) else ~known
        tell(found, task, images, options.level, hidden)
        if options.calibrate:
            arrays |= {name: x.numpy() for name, x in tell_ranks(found, task, images, hidden).items()}
        arrays["clean"], columns = images.numpy(), {"clean": images, **columns}
    write_arrays(output, found, task, arrays)
    write_picture(beside, found, task, columns)
    say(f"output     {output}")


def _boxed(text: str, shape: tuple[int, ...]) -> Tensor:
    """The mask with shape (H, W) that is False in a box."""
    import torch

    if len(shape) != 3:
        raise ValueError(f"box is of images, got a model of data with shape {shape}; give --mask")
    try:
        top, left, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"box must be TOP,LEFT,HEIGHT,WIDTH in pixels, as in 2,2,4,4, got {text!r}"
        ) from None
    H, W = shape[-2:]
    if min(top, left) < 0 or min(height, width) < 1 or top + height > H or left + width > W:
        raise ValueError(f"box must lie in the image of {H} x {W} pixels, got {text!r}")
    mask = torch.ones(H, W, dtype=torch.bool)
    mask[top : top + height, left : left + width] = False
    if not bool(mask.any()):
        raise ValueError(f"box must leave a pixel of the {H} x {W} that is known, got {text!r}")
    return mask


def _read_mask(path: str) -> Tensor:
    """The mask in a file of bools, or of zeros and ones."""
    from sde_toolkit.data import open_rows

    table, _ = open_rows(path)
    table = table.squeeze(1) if table.ndim == 4 else table
    if not bool(((table == 0) | (table == 1)).all()):
        raise ValueError(
            f"mask must hold true where a pixel is known and false elsewhere, or 1 and 0, got others in "
            f"{path}"
        )
    if not bool((table == 1).any()):
        raise ValueError(f"mask must be true somewhere, where a pixel is known, got {path} without")
    return table == 1
