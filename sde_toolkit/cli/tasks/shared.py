"""What the verbs of inverse problems share: their flags, the model, the method, and the files they write."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
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
    say,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sde_toolkit.guidance import Method, Restored, SplitGibbs, TwistedSMC
    from sde_toolkit.metrics import Estimate
    from sde_toolkit.models import ScoreModel
    from sde_toolkit.samplers import Sampler

METHODS_HELP = (
    "gaussian_informed, mmps, tmpd, pigdm, dps, ddnm, diffpir, score_ald; or smc (particles), gibbs; with "
    "options: 'dps(zeta=0.5)', 'smc(particles=32)'"
)

MOST_DRAWS, MOST_EXAMPLES = 5, 12
"""Draws and examples that a picture shows."""


class Task(NamedTuple):
    """The model that restores, and how.

    Attributes:
        source: of the model.
        sampler, method: of the draws; no method for a sampler that is made for observations, or where the
            library chooses.
    """

    source: Source
    sampler: Sampler | TwistedSMC | SplitGibbs
    method: Method | None

    @property
    def model(self) -> ScoreModel:
        """The model."""
        return self.source.model


def add_task(parser: argparse.ArgumentParser, inputs: str, outputs: str, held_out: str = "") -> None:
    """Add the flags that all inverse problems have; ``held_out`` says what the run's own examples are for."""
    add_model(parser)
    add_problem(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", metavar="PATH", help=inputs)
    if held_out:
        given.add_argument("--held_out", type=int, metavar="N", help=held_out)
        parser.add_argument(
            "--calibrate",
            action="store_true",
            help="test the ranks of clean examples among draws: uniform if exact (SBC, TARP); 40 or more",
        )
    parser.add_argument("--output", required=True, type=path_argument, metavar="PATH", help=outputs)
    parser.add_argument(
        "--method",
        metavar="NAME",
        help=f"{METHODS_HELP}; when left out smc for vectors of at most 64 features, else gaussian_informed",
    )
    parser.add_argument("--sampler", metavar="NAME", help=f"{SAMPLERS_HELP}; else dpm_solver_pp")
    parser.add_argument(
        "--num_steps", type=int, metavar="N", help="of the sampler, or iterations of gibbs; else 50"
    )
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
    from sde_toolkit.guidance import Method, TwistedSMC, default_sampler
    from sde_toolkit.runs import need_classes

    if options.draws < 2:
        raise ValueError(f"draws must be at least 2, for intervals, got {options.draws}")
    steps = 50 if options.num_steps is None else options.num_steps
    named = None if options.method is None else build_method(options.method, steps)
    asked = given(options, "sampling", ("sampler", "num_steps", "seed"))
    source = open_source(options, {"sampling.sampler": "dpm_solver_pp", "sampling.num_steps": 50} | asked)
    if options.label is not None:
        need_classes(source.model)
    if named is not None and not isinstance(named, Method):
        if options.sampler is not None:
            raise ValueError(
                f"sampler must be left out with method {options.method}, which is one, got {options.sampler}"
            )
        return Task(source, named, None)
    if named is None and "sampling.sampler" not in asked:
        chosen = default_sampler(source.model, source.config.sampling.num_steps)
        if isinstance(chosen, TwistedSMC):
            return Task(source, chosen, None)
    return Task(source, build_sampler(source.config, model=source.model), named)


def task_arguments(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """The arguments of ``sde_toolkit.guidance.restore`` that the flags give."""
    return {
        "num_draws": options.draws, "method": task.method, "sampler": task.sampler, "level": options.level,
        "condition": options.label, "seed": task.source.config.sampling.seed,
        "batch_size": task.source.config.sampling.batch_size,
    }  # fmt: skip


def output_files(options: argparse.Namespace) -> tuple[Path, Path]:
    """The .npz file that ``--output`` names, and the picture beside it, both refused before the work.

    Raises:
        ValueError: another ending, or a place that takes no files.
    """
    from sde_toolkit.utils import check_output_file

    output = check_output_file(options.output)
    if output.suffix.lower() != ".npz":
        raise ValueError(f"output must end in .npz, got {str(options.output)!r}")
    return output, check_output_file(output.with_suffix(".png"))


def read_examples(path: str) -> Tensor:
    """The examples or observations in a file, float64 with shape (n, ...).

    Raises:
        ValueError: no such file, one that is damaged, or one without an example.
    """
    from sde_toolkit.data import open_rows

    rows, _ = open_rows(path, missing=True)
    if rows.ndim < 2 or not rows.numel():
        raise ValueError(
            f"input must hold examples with shape (n, C, H, W), (n, H, W) or (n, D), got {tuple(rows.shape)}"
            f" in {path}"
        )
    return rows.double()


def clean_or_given(options: argparse.Namespace, task: Task) -> Tensor:
    """What ``--input`` holds, or the first examples that the run's training has held out, float64.

    Raises:
        ValueError: a problem without data, or a count out of range; what ``read_examples`` refuses.
    """
    if options.input is not None:
        return read_examples(options.input)
    count = options.held_out
    if task.source.run is None:
        raise ValueError("held_out must be left out for a problem, which has no data; give --input")
    test = task.source.run.dataset().test
    if not 1 <= count <= len(test):
        raise ValueError(f"held_out must be from 1 to {len(test)}, the examples held out, got {count}")
    return test[:count].double()


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
    note = {
        "level": found.level, "nfe": found.nfe, "model": task.source.fingerprint,
        "settings": json.loads(json.dumps(dict(found.settings), default=repr)),
    }  # fmt: skip
    arrays = {name: getattr(found, name) for name in ("draws", "mean", "low", "high")}
    savez(path, {**more, **arrays}, note)


def savez(path: Path, arrays: Mapping[str, np.ndarray | Tensor], note: Mapping[str, Any]) -> None:
    """An npz file with arrays and a note in JSON, whole or not at all."""
    import numpy as np

    from sde_toolkit.utils import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    held: dict[str, Any] = {"note": np.array(json.dumps(note))}
    for name, array in arrays.items():
        held[name] = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
    np.savez_compressed(stream, **held)
    atomic_write(path, stream.getvalue())


def span(task: Task, x: Tensor) -> tuple[float, float]:
    """The least and the largest raw value: of grey levels as they are known, else of x where it is finite."""
    levels = getattr(task.model.scaling, "levels", None)
    if levels is not None:
        return 0.0, levels - 1.0
    finite = x[x.isfinite()]
    return float(finite.min()), float(finite.max())


def write_picture(path: Path, found: Restored, task: Task, before: Mapping[str, Tensor]) -> None:
    """A picture of what comes before, draws and mean of the first examples; none of data that are no images.

    Args:
        path: of the .png.
        found: what was drawn.
        task: that drew it.
        before: columns of images in raw units with shape (n, C, H, W), by their titles.
    """
    from sde_toolkit.utils import atomic_write

    if found.mean.ndim != 4 or found.mean.shape[1] not in (1, 3):
        return
    low, high = span(task, found.draws.double())
    columns = dict(before)
    columns |= {f"draw {k + 1}": x for k, x in enumerate(found.draws[:MOST_DRAWS].cpu())}
    columns["mean"] = found.mean.cpu()
    shown = [(x.double() - low) / max(high - low, 1e-300) for x in columns.values()]
    rows = [[x[i] for x in shown] for i in range(min(len(found.mean), MOST_EXAMPLES))]
    atomic_write(path, picture(rows, list(columns)))
    say(f"picture    {path}")


def picture(rows: list[list[Tensor]], titles: list[str], zoom_to: int = 56) -> bytes:
    """A PNG of images in [0, 1] with shape (C, H, W), row by row, under titles; nan is shown in blue.

    The last of a row has the size of all; a coarser one is stretched to it.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = rows[0][-1].shape[-2:]
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
            pixels = pixels.resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
            sheet.paste(pixels, (4 + j * across, head + i * down))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def tell(found: Restored, task: Task, clean: Tensor, level: float, where: Tensor | None = None) -> None:
    """Print the error of the mean and the coverage of the intervals, of the features where they count."""
    from sde_toolkit.metrics import coverage, mean_psnr

    low, high = span(task, clean)
    if high > low:
        ratio = mean_psnr(found.mean.cpu(), clean, high - low)
        say(f"PSNR       {_with_error(ratio, '.2f')} dB of the mean, for a range of {high - low:.4g}")
    held = coverage(found.draws.cpu().to(clean), clean, level, where)
    grey = getattr(task.model.scaling, "levels", None) is not None
    say(f"coverage   {_with_error(held, '.3f')} of the intervals; that of an exact posterior is "
        f"{found.level:.3g}" + (", or more, as grey levels tie" if grey else ""))  # fmt: skip


def check_calibrate(options: argparse.Namespace, task: Task, clean: Tensor | None) -> None:
    """Refuse, before the work, a calibration without enough clean examples or independent draws.

    Args:
        options: the flags.
        task: that is asked for.
        clean: the examples that are known, with shape (n, *D); None where there are none.

    Raises:
        ValueError: either.
    """
    from sde_toolkit.guidance import LEAST_PAIRS, TwistedSMC

    if not options.calibrate:
        return
    if clean is None:
        raise ValueError("calibrate needs clean examples to compare with; give --held_out or --degrade")
    if len(clean) < LEAST_PAIRS:
        raise ValueError(f"calibrate needs {LEAST_PAIRS} examples or more, got {len(clean)}")
    if isinstance(task.sampler, TwistedSMC):
        raise ValueError(
            "calibrate needs independent draws, and those of one group of particles are not; give another "
            "--method, such as gaussian_informed, or call sde_toolkit.guidance.calibrate, which draws each "
            "from a group of its own"
        )


def tell_ranks(found: Restored, task: Task, clean: Tensor, where: Tensor | None = None) -> dict[str, Tensor]:
    """Print whether the ranks of clean examples among their draws are uniform, and return them.

    Grey levels tie: each is taken at a random place in its bin, which orders equal ones at random.

    Args:
        found: what was drawn.
        task: that drew it.
        clean: the examples with shape (n, *D).
        where: bool with shape D, the features that were not known; all when None.
    """
    import torch

    from sde_toolkit.metrics import rank_test, tarp_ranks, truth_ranks

    draws, truths = found.draws.cpu().double(), clean.cpu().double()
    if getattr(task.model.scaling, "levels", None) is not None:
        generator = torch.Generator().manual_seed(task.source.config.sampling.seed)
        draws, truths = (x + torch.rand(x.shape, generator=generator).double() for x in (draws, truths))
    if where is not None:
        at = where.expand(truths.shape[1:]).flatten()
        draws, truths = draws.flatten(2)[..., at], truths.flatten(1)[:, at]
    ranks, distances = truth_ranks(truths, draws), tarp_ranks(truths, draws)
    K = len(draws)
    say(f"ranks      uniform in every feature with p-value {rank_test(ranks, K).p_value:.3g} (SBC), in "
        f"distance with {rank_test(distances, K).p_value:.3g} (TARP); {len(truths)} examples by {K} draws"
        )  # fmt: skip
    return {"ranks": ranks, "distance_ranks": distances}


def _with_error(estimate: Estimate, form: str) -> str:
    bar = estimate.standard_error
    return f"{estimate.value:{form}} " + (f"+- {bar:{form}}" if math.isfinite(bar) else "(no error bar)")
