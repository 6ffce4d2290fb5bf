"""What the verbs of inverse problems share: their flags, the model, the method, and the files they write."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sde_toolkit.cli.common import (
    SAMPLERS_HELP,
    Source,
    add_label,
    add_model,
    add_problem,
    given,
    open_source,
    path_argument,
    progress_bar,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sde_toolkit.guidance import Method, Restored
    from sde_toolkit.models import ScoreModel
    from sde_toolkit.samplers import Sampler

METHODS_HELP = (
    "gaussian_informed, mmps, tmpd, pigdm, dps, ddnm, diffpir, score_ald; with options: 'dps(zeta=0.5)'"
)


class Task(NamedTuple):
    """The model that restores, and how.

    Attributes:
        source: of the model.
        sampler, method: of the draws.
    """

    source: Source
    sampler: Sampler
    method: Method

    @property
    def model(self) -> ScoreModel:
        """The model."""
        return self.source.model


def add_task(parser: argparse.ArgumentParser, inputs: str, outputs: str) -> None:
    """Add the flags that all inverse problems have."""
    add_model(parser)
    add_problem(parser)
    parser.add_argument("--input", required=True, metavar="PATH", help=inputs)
    parser.add_argument("--output", required=True, type=path_argument, metavar="PATH", help=outputs)
    parser.add_argument("--method", default="mmps", metavar="NAME", help=METHODS_HELP)
    parser.add_argument("--sampler", metavar="NAME", help=f"{SAMPLERS_HELP}; else ddim")
    parser.add_argument("--num_steps", type=int, metavar="N", help="of the sampler; else 50")
    parser.add_argument("--draws", type=int, default=19, metavar="K", help="of each example; else 19")
    parser.add_argument(
        "--std", type=float, default=0.0, metavar="S", help="of the noise of what was observed, in raw units"
    )
    parser.add_argument("--level", type=float, default=0.9, metavar="P", help="of the intervals; else 0.9")
    parser.add_argument(
        "--seed", type=int, metavar="S", help="draw k of example i of a seed is always the same"
    )
    add_label(parser, "the class of all examples")


def open_task(options: argparse.Namespace) -> Task:
    """The model, the sampler and the method that the flags name.

    Raises:
        ValueError: what cannot be opened or built, or fewer than 2 draws.
    """
    from sde_toolkit.config import build_method, build_sampler
    from sde_toolkit.runs import need_classes

    if options.draws < 2:
        raise ValueError(f"draws must be at least 2, for intervals, got {options.draws}")
    method = build_method(options.method)
    overrides = {"sampling.sampler": "ddim", "sampling.num_steps": 50}
    overrides |= given(options, "sampling", ("sampler", "num_steps", "seed"))
    source = open_source(options, overrides)
    if options.label is not None:
        need_classes(source.model)
    return Task(source, build_sampler(source.config, model=source.model), method)


def task_arguments(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """The arguments of ``sde_toolkit.guidance.restore`` that the flags give."""
    return {
        "num_draws": options.draws, "method": task.method, "sampler": task.sampler, "level": options.level,
        "condition": options.label, "seed": task.source.config.sampling.seed,
        "batch_size": task.source.config.sampling.batch_size,
    }  # fmt: skip


@contextlib.contextmanager
def bar_for(total: int) -> Iterator[Any]:
    """A progress bar of draws."""
    bar = progress_bar(total, 0, "draw")
    try:
        yield bar
    finally:
        bar.close()


def write_arrays(path: Path, found: Restored, task: Task, more: Mapping[str, np.ndarray]) -> None:
    """An npz file with draws (K, n, *D), mean, low and high in raw units, and how they were made."""
    import numpy as np

    from sde_toolkit.utils import atomic_write

    note = {
        "level": found.level, "nfe": found.nfe, "model": task.source.fingerprint,
        "settings": json.loads(json.dumps(dict(found.settings), default=repr)),
    }  # fmt: skip
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"note": np.array(json.dumps(note)), **more}
    for name in ("draws", "mean", "low", "high"):
        arrays[name] = getattr(found, name).cpu().numpy()
    np.savez_compressed(stream, **arrays)
    atomic_write(path, stream.getvalue())


def picture(rows: list[list[Tensor]], titles: list[str], zoom_to: int = 56) -> bytes:
    """A PNG of images in [0, 1] with shape (C, H, W), row by row, under titles; nan is shown in blue."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = rows[0][0].shape[-2:]
    zoom = max(1, zoom_to // max(height, width))
    across, down, head = zoom * width + 4, zoom * height + 4, 14
    sheet = Image.new("RGB", (across * len(titles) + 4, down * len(rows) + head + 4), "white")
    pen = ImageDraw.Draw(sheet)
    for j, title in enumerate(titles):
        pen.text((4 + j * across, 1), title, fill="black")
        for i, row in enumerate(rows):
            x = row[j].detach().cpu().double().numpy()
            x = np.repeat(x, 3, 0) if len(x) == 1 else x
            hidden = np.isnan(x).any(0)
            x = np.where(hidden, np.array([0.35, 0.5, 0.75])[:, None, None], x)
            pixels = Image.fromarray(np.uint8(np.round(255 * np.clip(x, 0, 1))).transpose(1, 2, 0))
            pixels = pixels.resize((zoom * x.shape[2], zoom * x.shape[1]), Image.Resampling.NEAREST)
            pixels = pixels.resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
            sheet.paste(pixels, (4 + j * across, head + i * down))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
