"""Trajectories as moving pictures, forward and reverse side by side, and as a strip of frames.

Vectors are scatters of their first two coordinates, numbers are densities (histograms), images a grid.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sde_toolkit.lab.drawing.figures import COLOURS, new_figure, styled
from sde_toolkit.lab.drawing.pictures import CELL_SIDE, tile
from sde_toolkit.utils import atomic_write, checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAMES_PER_SECOND = 12
_STRIP = 6
_BINS = 60

Frames = Mapping[str, tuple[tuple[float, ...], np.ndarray]]
"""Title -> times and states with shape (F, n, *): vectors, or images in [0, 1]."""


def has_ffmpeg() -> bool:
    """Whether MP4 can be written on this machine."""
    from matplotlib.animation import FFMpegWriter

    return bool(FFMpegWriter.isAvailable())


@checked
def write_animation(path: Path | str, frames: Frames) -> None:
    """Write a moving picture, .gif or .mp4, atomically.

    Args:
        path: ends in .gif, or in .mp4 where ffmpeg is installed.
        frames: what stands side by side, each with as many frames.

    Raises:
        ValueError: another ending, no frames, or different numbers of them.
        OSError: .mp4 without ffmpeg, or a path that cannot be written to.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"path must end in .gif or .mp4, got {path.name!r}")
    _check(frames)
    if path.suffix == ".mp4" and not has_ffmpeg():
        raise OSError(
            f"{path.name} needs ffmpeg, which is not installed; install it (apt-get install ffmpeg), "
            "or write .gif"
        )
    atomic_write(path, _encoded(frames, path.suffix))


@styled
def _encoded(frames: Frames, suffix: str) -> bytes:
    from matplotlib.animation import FFMpegWriter, PillowWriter

    figure = new_figure(3.2 * len(frames), 3.5, fixed=True)
    grid = figure.subplots(1, len(frames), squeeze=False)[0]
    figure.subplots_adjust(left=0.04, right=0.96, bottom=0.04, top=0.88, wspace=0.08)
    writer = (PillowWriter if suffix == ".gif" else FFMpegWriter)(fps=FRAMES_PER_SECOND)
    count, limits = len(next(iter(frames.values()))[0]), _limits(frames)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"animation{suffix}"
        with writer.saving(figure, str(place), 100):
            for k in [*range(count), *[count - 1] * (FRAMES_PER_SECOND // 2)]:  # rests on the last
                for axes, (title, (times, x)) in zip(grid, frames.items(), strict=True):
                    axes.clear()
                    _draw(axes, x[k], limits)
                    axes.set_title(f"{title}, t = {times[k]:.3f}", fontsize=9)
                writer.grab_frame()
        return place.read_bytes()


@styled
def strip_figure(frames: Frames) -> Figure:
    """A strip of frames for each trajectory, one below the other, as a still picture.

    Args:
        frames: as for ``write_animation``.

    Raises:
        ValueError: no frames, or different numbers of them.
    """
    _check(frames)
    count = len(next(iter(frames.values()))[0])
    shown = np.unique(np.linspace(0, count - 1, min(_STRIP, count)).round().astype(int))
    figure = new_figure(1.6 * len(shown) + 0.8, 1.8 * len(frames) + 0.2)
    grid, limits = figure.subplots(len(frames), len(shown), squeeze=False), _limits(frames)
    for row, (title, (times, x)) in zip(grid, frames.items(), strict=True):
        for axes, k in zip(row, shown, strict=True):
            _draw(axes, x[k], limits)
            axes.set_title(f"t = {times[k]:.3g}", fontsize=8, pad=2)
        row[0].set_ylabel(title, fontsize=9)
    return figure


def _check(frames: Frames) -> None:
    for title, entry in frames.items():
        pair = isinstance(entry, tuple) and len(entry) == 2
        if not pair or not isinstance(entry[1], np.ndarray) or len(entry[0]) != len(entry[1]):
            raise ValueError(f"frames must hold (times, array of as many states), got another for {title!r}")
    counts = {len(times) for times, _ in frames.values()}
    if len(counts) != 1 or min(counts) < 1:
        raise ValueError(f"frames must hold trajectories with equally many frames, got {sorted(counts)}")


def _limits(frames: Frames) -> tuple[float, float]:
    """The ends of the axes: those of all frames of a trajectory, outliers left out; the same for all."""
    x = np.concatenate([states.reshape(len(states), -1) for _, states in frames.values()], axis=1)
    bound = 1.1 * float(np.quantile(np.abs(x), 0.998)) or 1.0
    return -bound, bound


def _draw(axes: Axes, x: np.ndarray, limits: tuple[float, float]) -> None:
    axes.set(xticks=[], yticks=[])
    if x.ndim == 4:
        axes.imshow(tile(x, CELL_SIDE), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        return
    points = x.reshape(len(x), -1)
    if points.shape[1] == 1:
        edges = np.linspace(*limits, _BINS + 1)
        axes.hist(points[:, 0], bins=list(edges), density=True, color=COLOURS[0])
        axes.set(xlim=limits, ylim=(0, None))
        return
    axes.plot(points[:, 0], points[:, 1], ".", color=COLOURS[0], markersize=2, alpha=0.5)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.spines[["top", "right"]].set_visible(True)
