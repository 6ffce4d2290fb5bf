"""Trajectories as moving pictures, forward and reverse side by side, and as a strip of frames.

Vectors are scatters of their first two coordinates, numbers are densities (histograms), images a grid.  Axes
stand still, unless states shrink so far that data would be a point: then they follow, and tell their width.
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
_ZOOM = 10.0

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
    count, (widths, follow) = len(next(iter(frames.values()))[0]), _half_widths(frames)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"animation{suffix}"
        with writer.saving(figure, str(place), 100):
            for k in [*range(count), *[count - 1] * (FRAMES_PER_SECOND // 2)]:  # rests on the last
                for axes, (title, (times, x)) in zip(grid, frames.items(), strict=True):
                    axes.clear()
                    _draw(axes, x[k], widths[title][k])
                    above = _title(times[k], ".3f", widths[title][k], follow)
                    axes.set_title(f"{title}, {above}", fontsize=9)
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
    grid = figure.subplots(len(frames), len(shown), squeeze=False)
    widths, follow = _half_widths(frames)
    for row, (title, (times, x)) in zip(grid, frames.items(), strict=True):
        for axes, k in zip(row, shown, strict=True):
            _draw(axes, x[k], widths[title][k])
            axes.set_title(_title(times[k], ".3g", widths[title][k], follow), fontsize=8, pad=2)
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


def _half_widths(frames: Frames) -> tuple[dict[str, np.ndarray], bool]:
    """Title -> half width of the axes of every frame, with shape (F,), outliers left out; and whether they
    follow the states.

    One width for all frames where they fit it; where states shrink by more than ``_ZOOM``, as those of a
    process whose noise explodes, every frame has its own.
    """
    bounds = {
        title: 1.1 * np.quantile(np.abs(x.reshape(len(x), -1)), 0.998, axis=1)
        for title, (_, x) in frames.items()
    }
    all_bounds = np.concatenate(list(bounds.values()))
    widest = float(all_bounds.max()) or 1.0
    images = any(x.ndim == 5 for _, x in frames.values())
    if images or widest <= _ZOOM * float(all_bounds.min(initial=widest, where=all_bounds > 0)):
        return {title: np.full_like(bound, widest) for title, bound in bounds.items()}, False
    return {title: np.where(bound > 0, bound, widest) for title, bound in bounds.items()}, True


def _title(time: float, digits: str, width: float, follows: bool) -> str:
    """What stands above a frame: its time, and the half width of axes that follow the states."""
    return f"t = {time:{digits}}" + (f", axes ±{width:.3g}" if follows else "")


def _draw(axes: Axes, x: np.ndarray, width: float) -> None:
    limits = (-width, width)
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
