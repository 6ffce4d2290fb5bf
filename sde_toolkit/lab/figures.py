"""Figures: quality against network evaluations, grids of samples, the training loss, likelihoods.

Every function returns a ``matplotlib.figure.Figure``, built through the object interface: no global state
of the plotting library is read or written.  Colours are those of Okabe and Ito, which readers with any
common colour vision tell apart; curves also differ by marker, stay legible in grey, and are named in the
order in which they end, worst on top.

Reference: Okabe and Ito, "Color Universal Design" (2002).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sde_toolkit.lab.records import Record, Reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
GREY = "#666666"
CELL_SIDE = 5
"""Images on a side of one cell of the sample grid."""

Images = Mapping[tuple[str, str], np.ndarray]


def render(figure: Figure, suffix: str = "png", dpi: int = 160) -> bytes:
    """The figure as the bytes of a PNG (or of another format that matplotlib knows: "pdf", "svg")."""
    stream = io.BytesIO()
    figure.savefig(stream, format=suffix, dpi=dpi, facecolor="white")
    return stream.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    return NewFigure(figsize=(width, height), layout="constrained")


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def quality_figure(
    records: Sequence[Record], metric: str, title: str, reference: Reference | None = None
) -> Figure:
    """Network evaluations against one metric on log axes, a curve per sampler, bars of one standard error.

    Samplers with one record (adaptive ones) are single points.  Values that are not positive (unbiased
    estimates may be) are drawn hollow at the lower edge.  ``reference`` is a horizontal line and band: what
    real data score.

    Raises:
        ValueError: there is no record of this metric.
    """
    chosen = [record for record in records if record.metric == metric]
    if not chosen:
        raise ValueError(f"metric must be one of {sorted({r.metric for r in records})}, got {metric!r}")
    figure = _figure(8.4, 5.0)
    axes = figure.subplots()
    shown = [r.value for r in chosen] + ([reference.value] if reference else [])
    lowest = 0.6 * min((value for value in shown if value > 0), default=1.0)
    handles: list[tuple[float, Any]] = []
    for index, name in enumerate(dict.fromkeys(record.sampler for record in chosen)):
        curve = sorted((r for r in chosen if r.sampler == name), key=lambda r: r.nfe)
        x, y = [r.nfe for r in curve], [max(r.value, lowest) for r in curve]
        below = [min(r.standard_error, 0.999 * (v - lowest * 0.5)) for r, v in zip(curve, y, strict=True)]
        colour = COLOURS[index % len(COLOURS)]
        handle = axes.errorbar(
            x, y, yerr=[below, [r.standard_error for r in curve]], color=colour, capsize=2, linewidth=1.6,
            elinewidth=0.9, marker=MARKERS[index % len(MARKERS)], markersize=5.5 if len(curve) > 1 else 8.0,
            linestyle="-" if index < len(COLOURS) else "--", label=name.rpartition("/")[2].replace("_", " "),
        )  # fmt: skip
        hollow = [(u, v) for u, v, r in zip(x, y, curve, strict=True) if r.value <= 0]
        if hollow:
            axes.plot(*zip(*hollow, strict=True), "o", color="white", markeredgecolor=colour, zorder=3)
        handles.append((y[-1], handle))
    axes.set(xscale="log", yscale="log", title=title, ylabel=f"{metric} (lower is better)")
    axes.set_xlabel("network evaluations per sample")
    _style(axes)
    _plain_ticks(axes.xaxis, [r.nfe for r in chosen])
    _plain_ticks(axes.yaxis, [max(r.value, lowest) for r in chosen])
    if reference is not None:
        _draw_reference(axes, reference, lowest)
    ordered = [handle for _, handle in sorted(handles, key=lambda pair: -pair[0])]
    axes.legend(handles=ordered, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _draw_reference(axes: Axes, reference: Reference, lowest: float) -> None:
    low, high = reference.value - reference.standard_error, reference.value + reference.standard_error
    axes.axhspan(max(low, lowest), max(high, lowest), color=GREY, alpha=0.18, linewidth=0)
    level = max(reference.value, lowest)
    axes.axhline(level, color=GREY, linewidth=1.1, linestyle=":")
    axes.annotate(
        reference.label, (0.01, level), xycoords=("axes fraction", "data"), color="#444444",
        fontsize=8.5, xytext=(0, 3), textcoords="offset points", va="bottom",
    )  # fmt: skip


def _plain_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Ticks of a log axis at 1, 2, 5, 10, ... inside the range of the values, written as plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values), max(values)
    steps = (1, 2, 5) if high < 300 * low else (1,)
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    decades = [m * 10.0**k for k in exponents for m in steps if 0.7 * low <= m * 10.0**k <= 1.3 * high]
    axis.set_major_locator(FixedLocator(decades))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def samples_figure(cells: Images, real: np.ndarray, title: str) -> Figure:
    """Samples of each sampler (rows) at each step count (columns), real data in the first row.

    Args:
        cells: (sampler, caption of the cell) -> samples with shape (N, C, H, W), in [0, 1], or (N, D).
        real: real data of the same kind.
        title: of the figure.
    """
    rows: dict[str, list[tuple[str, np.ndarray]]] = {"real data": [("", real)]}
    for (sampler, caption), x in cells.items():
        rows.setdefault(sampler, []).append((caption, x))
    columns = max(len(row) for row in rows.values())
    figure = _figure(1.75 * columns + 1.5, 1.85 * len(rows) + 0.4)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    extent = _extent(real)
    for axes_row, (sampler, row) in zip(grid, rows.items(), strict=True):
        for column, axes in enumerate(axes_row):
            axes.set(xticks=[], yticks=[])
            if column >= len(row):
                axes.set_axis_off()
                continue
            caption, x = row[column]
            _draw_cell(axes, x, extent)
            axes.set_title(caption, fontsize=8, pad=2)
        axes_row[0].set_ylabel(sampler.replace("_", " "), fontsize=9, rotation=0, ha="right", va="center")
    return figure


def _extent(real: np.ndarray) -> tuple[float, float] | None:
    if real.ndim > 2:
        return None
    bound = 1.25 * float(np.abs(real[:, :2]).max())
    return -bound, bound


def _draw_cell(axes: Axes, x: np.ndarray, extent: tuple[float, float] | None) -> None:
    if extent is None:
        axes.imshow(tile(x, CELL_SIDE), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        return
    axes.plot(x[:, 0], x[:, min(1, x.shape[1] - 1)], ".", color=COLOURS[0], markersize=1.2, alpha=0.5)
    axes.set(xlim=extent, ylim=extent, aspect="equal")


def tile(x: np.ndarray, side: int) -> np.ndarray:
    """The first side^2 images of x with shape (N, C, H, W) as one picture in [0, 1], 0 where N is smaller.

    One channel gives shape (side (H + 1) + 1, side (W + 1) + 1), three channels a last axis of 3.
    """
    count, channels, height, width = x.shape
    picture = np.zeros((side * (height + 1) + 1, side * (width + 1) + 1, channels), dtype=np.float32)
    for i in range(min(count, side * side)):
        top, left = 1 + (i // side) * (height + 1), 1 + (i % side) * (width + 1)
        picture[top : top + height, left : left + width] = np.clip(x[i], 0, 1).transpose(1, 2, 0)
    return picture[..., 0] if channels == 1 else picture


def grid_figure(x: np.ndarray, title: str) -> Figure:
    """All samples in one square grid; x with shape (N, C, H, W) in [0, 1], or (N, D) as a scatter plot."""
    figure = _figure(5.2, 5.5)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    if x.ndim == 4:
        side = math.ceil(math.sqrt(len(x)))
        axes.imshow(tile(x, side), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
    else:
        _draw_cell(axes, x, _extent(x))
        _style(axes)
    return figure


def loss_figure(steps: Sequence[int], loss: Sequence[float], title: str) -> Figure:
    """Training loss against step: every value faint, a running mean of a fiftieth of the run in front."""
    figure = _figure(7.2, 3.4)
    axes = figure.subplots()
    axes.plot(steps, loss, color=COLOURS[5], linewidth=0.7, alpha=0.6, label="per log interval")
    window = max(1, len(loss) // 50)
    mean = np.convolve(loss, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], mean, color=COLOURS[0], linewidth=1.8, label=f"mean of {window}")
    axes.set(xlabel="training step", ylabel="loss", title=title, yscale="log")
    _plain_ticks(axes.yaxis, loss)
    if window > 1:
        axes.legend(frameon=False)
    _style(axes)
    return figure


def likelihood_figure(
    bits_per_dim: np.ndarray, standard_error: float, uniform: float | None, title: str
) -> Figure:
    """Histogram of bits per dimension, their mean with its standard error, the uniform code if given."""
    figure = _figure(7.2, 3.4)
    axes = figure.subplots()
    mean = float(np.mean(bits_per_dim))
    axes.hist(bits_per_dim, bins=min(40, max(8, len(bits_per_dim) // 8)), color=COLOURS[5], alpha=0.8)
    axes.axvspan(mean - standard_error, mean + standard_error, color=COLOURS[0], alpha=0.25, linewidth=0)
    axes.axvline(mean, color=COLOURS[0], linewidth=1.8, label=f"mean {mean:.3f} ± {standard_error:.3f}")
    if uniform is not None:
        axes.axvline(uniform, color=COLOURS[1], linestyle="--", label=f"uniform levels: {uniform:.3f}")
    axes.set(xlabel="bits per dimension (lower is better)", ylabel="examples", title=title)
    axes.legend(frameon=False)
    _style(axes)
    return figure
