"""Patches of photographs, and a network that is trained on them for a given time.

Five colour photographs come with scikit-image.  Each is divided into cells of 64 x 64 pixels; every fifth
cell, in diagonals, is held out.  Training patches are cut at every eighth pixel and touch no cell that is
held out; test patches lie inside those cells and do not overlap.  So no pixel is in both, though
neighbouring cells of one photograph show the same things.  Patches are grey levels 0 to 255 as they are in
the file, without any resizing; training mirrors them at random.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit.config import base_config
from sde_toolkit.runs import Run, open_run, read_history, saved_step, train_run
from sde_toolkit.training import UpdateInfo
from sde_toolkit.utils import atomic_write

SIDE, CELL, STRIDE, PERIOD = 32, 64, 8, 5
CHECKPOINT_EVERY = 20
_MOST_UPDATES = 1_000_000

Photographs = dict[str, np.ndarray]


def photographs() -> Photographs:
    """Name -> pixels with shape (H, W, 3), uint8.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "the photographs come with scikit-image, which cannot be imported; run pip install scikit-image"
        ) from error
    found = {name: getattr(data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}
    return found | {"motorcycle": data.stereo_motorcycle()[0]}


def is_held_out(i: int, j: int) -> bool:
    """Whether cell (i, j) is held out."""
    return (i + 2 * j) % PERIOD == 0


def _training_corners(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of the patches that touch no cell that is held out."""
    for i in range(0, height - SIDE + 1, STRIDE):
        for j in range(0, width - SIDE + 1, STRIDE):
            rows, columns = ({k // CELL, (k + SIDE - 1) // CELL} for k in (i, j))
            if not any(is_held_out(a, b) for a in rows for b in columns):
                yield i, j


def _test_corners(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of the patches inside cells that are held out, side by side."""
    for i in range(0, height - SIDE + 1, SIDE):
        for j in range(0, width - SIDE + 1, SIDE):
            if is_held_out(i // CELL, j // CELL):
                yield i, j


def cut(photos: Photographs, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Training and test patches with shape (N, 3, 32, 32), uint8, each in an order drawn by the seed."""
    rng, found = np.random.default_rng(seed), []
    for corners in (_training_corners, _test_corners):
        patches = [
            photo[i : i + SIDE, j : j + SIDE].transpose(2, 0, 1)
            for photo in photos.values()
            for i, j in corners(*photo.shape[:2])
        ]
        found.append(np.stack(patches)[rng.permutation(len(patches))])
    return found[0], found[1]


def overrides(train: Path, test: Path, network: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of the configuration ``images`` for these files: what ``base_config`` predicts and minimises,
    which is for densities, in the place of what is for pictures."""
    defaults = base_config()
    chosen = {
        "data.source": str(train),
        "data.held_out": str(test),
        "data.layout": "NCHW",
        "data.levels": 256,
        "data.flip": "horizontal",
        "model.predicts": defaults.model.predicts,
        "training.batch_size": 32,
        "training.num_steps": _MOST_UPDATES,
        "training.checkpoint_every": CHECKPOINT_EVERY,
    }
    chosen |= {f"loss.{name}": defaults.loss[name] for name in ("weighting", "time_sampling")}
    return {**chosen, **network}


class _TimeIsUp(Exception):
    """The training has had its time."""


def seconds_trained(workdir: Path) -> float:
    """Wall time of all updates of the run."""
    rows = read_history(workdir)
    before = [0.0, *(row["step"] for row in rows)]
    return sum(row["seconds"] * (row["step"] - last) for row, last in zip(rows, before, strict=False))


def trained(
    workdir: Path,
    minutes: float,
    network: Mapping[str, Any],
    make: Callable[[], Photographs] = photographs,
) -> Run:
    """The run in ``workdir``, trained until its updates have taken so many minutes of wall time, or as it is
    where they have.

    Args:
        workdir: made if it does not exist; the patches are written there too.
        minutes: of wall time.
        network: changes of the configuration ``images``.
        make: the photographs.
    """
    source, options = None, {}
    if not saved_step(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        paths = workdir.absolute() / "train.npy", workdir.absolute() / "test.npy"
        for path, patches in zip(paths, cut(make()), strict=True):
            buffer = io.BytesIO()
            np.save(buffer, patches)
            atomic_write(path, buffer.getvalue())
        source, options = "images", overrides(*paths, network)
    left = 60 * minutes - seconds_trained(workdir)
    if left > 0:

        def stop(info: UpdateInfo) -> None:
            nonlocal left
            left -= info.seconds
            if left <= 0 and info.step % CHECKPOINT_EVERY == 0:
                raise _TimeIsUp

        with contextlib.suppress(_TimeIsUp):
            train_run(workdir, source, options, on_step=stop)
    return open_run(workdir)
