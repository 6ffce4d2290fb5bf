"""Restored digits: how near means of draws are to held-out images, and how often intervals hold their pixels.

    python -m benchmarks restoration
    python -m benchmarks.restoration [DATA ...] [--images=N]

The networks are the shipped checkpoints ``digits`` and ``mnist``, and ``colour``, a small U-Net that is
trained here for about five minutes of one core and kept in runs/restoration-colour.  The images are the first
of those held out from the networks' training (297 of the digits, 500 of MNIST); nothing was chosen on them.

Colour digits are synthetic: b + v (f - b) for the ink v in [0, 1] of a digit, with colours f of the ink and b
of the ground uniform on [0, 1]^3 and drawn again until their grey values, the means of the channels, are .3
or more apart; rounded to 256 levels.  Each of the 1500 training digits has four such pairs, each of the
297 held out one.  What colour a grey digit had cannot be known: the mean of the exact posterior is pale, and
draws differ in colour.

box              the middle quarter is hidden, the rest is known without noise
random           60% of the pixels are hidden, the others known with noise
superresolution  means of blocks of 2 x 2 (MNIST: 4 x 4) pixels, with noise
colourise        the mean of the channels, with noise

The noise has a standard deviation of 1/32 of the range.  Every method has 20 steps of DPM-Solver++ and 19
draws, so that intervals from the least to the largest draw hold the truth of an exact posterior with
probability .9 (or more, as grey levels tie).  PSNR is that of the mean of the draws; coverage is that of the
pixels that are not known without noise.  Standard errors are over images.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import RESULTS, digits, write_result
from sde_toolkit import data, guidance, samplers
from sde_toolkit.cli.tasks.shared import picture
from sde_toolkit.metrics import coverage, mean_psnr
from sde_toolkit.models import ScoreModel
from sde_toolkit.runs import Run, open_run, open_shipped, saved_step, train_run
from sde_toolkit.utils import atomic_write

IMAGES = {"colour": 64, "digits": 64, "mnist": 32}
DRAWS, STEPS, SEED, NOISE, KNOWN = 19, 20, 17, 1 / 32, 0.4
SHOWN, SHOWN_DRAWS = 6, 4
SAMPLER = samplers.dpm_solver_pp(STEPS)
SETTINGS = {
    "draws": DRAWS,
    "sampler": "dpm_solver_pp",
    "steps": STEPS,
    "seed": SEED,
    "noise": NOISE,
    "known": KNOWN,
    "level": 0.9,
}
IN_PICTURES = "GaussianInformed"
COLOURS_EACH, CONTRAST, UPDATES, BATCH = 4, 0.3, 1000, 128
WORKDIR = Path("runs/restoration-colour")
DOCS = RESULTS.parent.parent / "docs"


def coloured(ink: np.ndarray, seed: int) -> np.ndarray:
    """Images with shape (n, 3, H, W), uint8, for ink in [0, 1] with shape (n, 1, H, W)."""
    rng = np.random.default_rng(seed)
    pairs = rng.random((8 * len(ink) + 64, 2, 3, 1, 1))
    apart = np.abs(np.diff(pairs.mean(2)[:, :, 0, 0], axis=1)[:, 0]) >= CONTRAST
    ground, front = pairs[apart][: len(ink)].swapaxes(0, 1)
    return np.uint8(np.round(255 * (ground + ink * (front - ground))))


def colour_run(workdir: Path = WORKDIR, updates: int = UPDATES) -> Run:
    """The network of colour digits, trained where it is not there."""
    if saved_step(workdir) < updates:
        workdir.mkdir(parents=True, exist_ok=True)
        grey = data.digits()
        parts = np.repeat(grey.train.numpy() / 16, COLOURS_EACH, 0), grey.test.numpy() / 16
        paths = workdir.absolute() / "train.npy", workdir.absolute() / "test.npy"
        for seed, (path, ink) in enumerate(zip(paths, parts, strict=True)):
            stream = io.BytesIO()
            np.save(stream, coloured(ink, seed))
            atomic_write(path, stream.getvalue())
        overrides = {
            "data.source": str(paths[0]), "data.held_out": str(paths[1]), "data.layout": "NCHW",
            "data.levels": 256, "model.channels": (16, 32), "training.num_steps": updates,
            "optimization.decay_steps": updates, "optimization.learning_rate": 6e-3,
            "training.batch_size": BATCH, "training.checkpoint_every": 250,
        }  # fmt: skip
        train_run(workdir, "images", overrides)
    return open_run(workdir)


def opened(name: str) -> Run:
    """The run of this name."""
    return colour_run() if name == "colour" else open_shipped(name)


class Task(NamedTuple):
    """What is observed, and which pixels are not known."""

    observation: guidance.LinearObservation
    hidden: Tensor


def tasks(name: str, shape: tuple[int, ...], span: float) -> dict[str, Task]:
    """The tasks of the module's head for images with shape (C, H, W)."""
    side, std = shape[-1], NOISE * span
    box, everything = torch.ones(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    box[:, side // 4 : side - side // 4, side // 4 : side - side // 4] = False
    dots = torch.rand(shape, generator=torch.Generator().manual_seed(SEED)) < KNOWN
    if name == "colour":
        return {
            "colourise": Task(guidance.LinearObservation(guidance.colour_mixing(shape), std), everything),
        }
    coarse = guidance.downsampling(shape, 2 if side < 16 else 4)
    return {
        "box": Task(guidance.LinearObservation(box, 0.0), ~box),
        "random": Task(guidance.LinearObservation(dots, std), everything),
        "superresolution": Task(guidance.LinearObservation(coarse, std), everything),
    }


METHODS: dict[str, guidance.Method] = {
    "GaussianInformed": guidance.GaussianInformed(), "MMPS": guidance.MMPS(),
    "PiGDM": guidance.PiGDM(), "DiffPIR": guidance.DiffPIR(), "DPS": guidance.DPS(1.0, STEPS),
}  # fmt: skip


def measured(
    model: ScoreModel, task: Task, method: guidance.Method, images: Tensor, span: float
) -> tuple[dict[str, Any], Tensor, guidance.Restored]:
    """One row of the table, the observations and the draws."""
    y = task.observation.draw(images, SEED)
    found = guidance.restore(
        model, task.observation, y, num_draws=DRAWS, method=method, sampler=SAMPLER, seed=SEED
    )
    ratio = mean_psnr(found.mean, images, span)
    held = coverage(found.draws.to(images), images, 0.9, task.hidden)
    row = {
        "PSNR": digits(ratio.value), "PSNR error": digits(ratio.standard_error),
        "coverage": digits(held.value), "coverage error": digits(held.standard_error),
        "seconds": digits(found.seconds),
    }  # fmt: skip
    return row, y, found


def sheet(images: Tensor, y: Tensor, found: guidance.Restored, span: float) -> bytes:
    """A picture of truth, observation, mean and draws, an image in each row."""
    seen = y if y.ndim == 4 else images
    columns = {"truth": images, "observed": seen, "mean": found.mean}
    columns |= {f"draw {k + 1}": x for k, x in enumerate(found.draws[:SHOWN_DRAWS])}
    shown = {title: (x.double() / span).clamp(0, 1) for title, x in columns.items()}
    if y.shape == images.shape:
        shown["observed"] = torch.where(y.isnan(), torch.nan, shown["observed"])
    if images.shape[1] == 1:
        shown = {title: 1 - x for title, x in shown.items()}
    return picture([[x[i] for x in shown.values()] for i in range(SHOWN)], list(shown))


def main(arguments: Sequence[str] = ()) -> None:
    """Measure every method on every task, print and write restoration.json and the pictures in docs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restoration")
    parser.add_argument("data", nargs="*", metavar="DATA", help=", ".join(IMAGES))
    parser.add_argument(
        "--images", type=int, metavar="N", help="of each, instead of those of the result file"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.data) - set(IMAGES))
    if unknown:
        parser.error(f"unknown data {', '.join(unknown)}; choose from {', '.join(IMAGES)}")
    torch.set_num_threads(1)
    kept = _kept() if not options.images else {}
    for name in options.data or IMAGES:
        kept[name] = table(name, options.images or IMAGES[name], DOCS if not options.images else None)
        if not options.images:
            write_result("restoration", SETTINGS, {key: kept[key] for key in IMAGES if key in kept})


def table(name: str, count: int, pictures: Path | None) -> list[dict[str, Any]]:
    """The rows of one data set, of which the shown method's draws are drawn as pictures."""
    run, rows = opened(name), []
    dataset = run.dataset()
    images, span = dataset.test[:count].double(), float(dataset.scaling.levels - 1)
    for seen, task in tasks(name, tuple(images.shape[1:]), span).items():
        for label, method in METHODS.items():
            row, y, found = measured(run.model, task, method, images, span)
            rows.append({"task": seen, "method": label, "images": count, **row})
            print("   " + "  ".join(str(value) for value in (name, *rows[-1].values())), flush=True)
            if label == IN_PICTURES and pictures is not None:
                path = pictures / f"restoration-{name}-{seen}.png"
                atomic_write(path, sheet(images, y, found, span))
    return rows


def _kept() -> dict[str, list[dict[str, Any]]]:
    """The rows that were measured before with the same settings."""
    path = RESULTS / "restoration.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.get("settings") != SETTINGS:
        return {}
    return {
        name: [row for row in rows if row["method"] in METHODS] for name, rows in record["results"].items()
    }


if __name__ == "__main__":
    main(sys.argv[1:])
