"""Figures: quality against network evaluations, grids of samples, the training loss, likelihoods.

Every function returns a ``matplotlib.figure.Figure``, built through the object interface.  One style,
``STYLE``, holds for all: it is set while a figure is built and written, and the user's own is put back.
Colours are those of Okabe and Ito, which readers with any common colour vision tell apart; curves also differ
by marker, stay legible in grey, and are named in the order in which they end, worst on top.  PDF and SVG
embed their fonts, and equal figures are equal files.

Reference: Okabe and Ito, "Color Universal Design" (2002).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sde_toolkit.lab.drawing.pictures import CELL_SIDE, extent_of, tile
from sde_toolkit.lab.drawing.symlog import LINSCALE, linear_threshold, ticks
from sde_toolkit.lab.records import Record, Reference, better_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
GREY = "#666666"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10.0, "axes.titlesize": 11.0, "axes.labelsize": 10.0,
    "legend.fontsize": 9.0, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": False, "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "figure.facecolor": "white", "savefig.facecolor": "white",
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "sde-toolkit",
}  # fmt: skip
"""matplotlib's parameters for all figures: DejaVu Sans, which it ships; TrueType in PDF, outlines in SVG."""

Images = Mapping[tuple[str, str], np.ndarray]
_F = TypeVar("_F", bound=Callable[..., Any])


def styled(draw: _F) -> _F:
    """The function under ``STYLE``; the parameters of matplotlib are put back."""

    @wraps(draw)
    def inside(*given: Any, **named: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*given, **named)

    return inside  # type: ignore[return-value]


@styled
def render(figure: Figure, suffix: str = "png", dpi: int = 160) -> bytes:
    """The figure as the bytes of a PNG (or of another format that matplotlib knows: "pdf", "svg")."""
    stream = io.BytesIO()
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    figure.savefig(stream, format=suffix, dpi=dpi, facecolor="white", metadata=dates.get(suffix))
    return stream.getvalue()


def new_figure(width: float, height: float, fixed: bool = False) -> Figure:
    """An empty figure of so many inches; ``fixed`` leaves its layout to the caller."""
    from matplotlib.figure import Figure as NewFigure

    return NewFigure(figsize=(width, height), layout=None if fixed else "constrained")


def _style(axes: Axes) -> None:
    axes.grid(True, which="major")


@styled
def quality_figure(
    records: Sequence[Record],
    metric: str,
    title: str,
    reference: Reference | None = None,
    against: str = "nfe",
) -> Figure:
    """Cost against one metric, a curve per sampler, bars of one standard error, on log axes.

    Samplers with one record (adaptive ones) are single points.  Where unbiased estimates lie at or below
    zero, or their error bars do, the axis is linear below a threshold (``drawing.symlog``), drawn as dotted
    lines.  ``reference`` is a horizontal line and band: what real data score.

    Args:
        records: of any metrics.
        metric: the one to be drawn.
        title: of the figure.
        reference: what real data score.
        against: "nfe", network evaluations, or "seconds".

    Raises:
        ValueError: there is no record of this metric, or ``against`` is neither.
    """
    chosen = [record for record in records if record.metric == metric]
    if not chosen:
        raise ValueError(f"metric must be one of {sorted({r.metric for r in records})}, got {metric!r}")
    if against not in _COSTS:
        raise ValueError(f"against must be one of {sorted(_COSTS)}, got {against!r}")
    figure = new_figure(8.4, 5.0)
    axes = figure.subplots()
    handles: list[tuple[float, Any]] = []
    for index, name in enumerate(dict.fromkeys(record.sampler for record in chosen)):
        curve = sorted((r for r in chosen if r.sampler == name), key=lambda r: getattr(r, against))
        handle = axes.errorbar(
            [getattr(r, against) for r in curve], [r.value for r in curve],
            yerr=[r.standard_error for r in curve], color=COLOURS[index % len(COLOURS)], capsize=2,
            linewidth=1.6, elinewidth=0.9, marker=MARKERS[index % len(MARKERS)],
            markersize=5.5 if len(curve) > 1 else 8.0, linestyle="-" if index < len(COLOURS) else "--",
            label=name.rpartition("/")[2].replace("_", " "),
        )  # fmt: skip
        handles.append((curve[-1].value, handle))
    better = better_of(chosen[0])
    goal = "closer to real data is better" if better == "closer" else f"{better} is better"
    axes.set(xscale="log", title=title, ylabel=f"{metric} ({goal})", xlabel=_COSTS[against])
    _quality_axis(axes, [*chosen, *([reference] if reference else [])])
    _style(axes)
    _plain_ticks(axes.xaxis, [getattr(r, against) for r in chosen])
    if reference is not None:
        _draw_reference(axes, reference)
    ordered = [handle for _, handle in sorted(handles, key=lambda pair: -pair[0])]
    axes.legend(handles=ordered, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


_COSTS = {"nfe": "network evaluations per sample", "seconds": "seconds for all samples"}


def _quality_axis(axes: Axes, shown: Sequence[Record | Reference]) -> None:
    """A log axis for values that lie above their errors; else one that is linear around zero."""
    values, errors = [r.value for r in shown], [r.standard_error for r in shown]
    threshold = linear_threshold(values, errors)
    if threshold is None:
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, values)
        return
    axes.set_yscale("symlog", linthresh=threshold, linscale=LINSCALE)
    ends = [r.value + sign * r.standard_error for r in shown for sign in (-1, 1)]
    _plain_ticks(axes.yaxis, ends, threshold)
    for level in (-threshold, threshold):
        axes.axhline(level, color=GREY, linewidth=0.6, linestyle=(0, (1, 3)), zorder=0)
    axes.annotate(
        f"linear below {threshold:g}", (0.99, threshold), xycoords=("axes fraction", "data"), color="#444444",
        fontsize=7.5, xytext=(0, -2), textcoords="offset points", va="top", ha="right",
    )  # fmt: skip


def _draw_reference(axes: Axes, reference: Reference) -> None:
    low, high = reference.value - reference.standard_error, reference.value + reference.standard_error
    axes.axhspan(low, high, color=GREY, alpha=0.18, linewidth=0)
    axes.axhline(reference.value, color=GREY, linewidth=1.1, linestyle=":")
    axes.annotate(
        reference.label, (0.01, reference.value), xycoords=("axes fraction", "data"), color="#444444",
        fontsize=8.5, xytext=(0, 3), textcoords="offset points", va="bottom",
    )  # fmt: skip


def _plain_ticks(axis: Axis, values: Sequence[float], threshold: float | None = None) -> None:
    """Ticks at 1, 2, 5, 10, ... inside the range of the values, written as plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(ticks(min(values), max(values), threshold)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@styled
def samples_figure(cells: Images, real: np.ndarray | None, title: str) -> Figure:
    """Samples of each sampler (rows) at each step count (columns), real data in the first row if given.

    Args:
        cells: (sampler, caption of the cell) -> samples with shape (N, C, H, W), in [0, 1], or (N, D).
        real: real data of the same kind.
        title: of the figure.
    """
    rows: dict[str, list[tuple[str, np.ndarray]]] = {} if real is None else {"real data": [("", real)]}
    for (sampler, caption), x in cells.items():
        rows.setdefault(sampler, []).append((caption, x))
    columns = max(len(row) for row in rows.values())
    figure = new_figure(1.75 * columns + 1.5, 1.85 * len(rows) + 0.4)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    extent = _extent(real if real is not None else next(iter(cells.values())))
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
    bound = extent_of(real)
    return -bound, bound


def _draw_cell(axes: Axes, x: np.ndarray, extent: tuple[float, float] | None) -> None:
    if extent is None:
        axes.imshow(tile(x, CELL_SIDE), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.spines[:].set_visible(False)
        return
    axes.plot(x[:, 0], x[:, min(1, x.shape[1] - 1)], ".", color=COLOURS[0], markersize=1.2, alpha=0.5)
    axes.set(xlim=extent, ylim=extent, aspect="equal")


@styled
def grid_figure(x: np.ndarray, title: str) -> Figure:
    """All samples in one square grid; x with shape (N, C, H, W) in [0, 1], or (N, D) as a scatter plot."""
    figure = new_figure(5.2, 5.5)
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


@styled
def loss_figure(
    steps: Sequence[int],
    loss: Sequence[float],
    title: str,
    held_out: Sequence[tuple[int, float]] = (),
) -> Figure:
    """Training loss against step: every value faint, a running mean of a fiftieth of the run in front, and
    held-out losses, (step, loss), where there are some."""
    figure = new_figure(7.2, 3.4)
    axes = figure.subplots()
    axes.plot(steps, loss, color=COLOURS[5], linewidth=0.7, alpha=0.6, label="per log interval")
    window = max(1, len(loss) // 50)
    mean = np.convolve(loss, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], mean, color=COLOURS[0], linewidth=1.8, label=f"mean of {window}")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color=COLOURS[1], marker="o", markersize=3, label="held out")
    axes.set(xlabel="training step", ylabel="loss", title=title, yscale="log")
    _plain_ticks(axes.yaxis, [*loss, *(value for _, value in held_out)])
    if window > 1 or held_out:
        axes.legend(frameon=False)
    _style(axes)
    return figure


@styled
def level_figure(
    levels: Sequence[float],
    losses: Mapping[str, Sequence[float]],
    minimum: Sequence[float] | None,
    title: str,
) -> Figure:
    """Error of the noise by log-SNR, a line for each entry, and the known minimum where there is one.

    Args:
        levels: log-SNRs.
        losses: name of a line -> |z_hat - z|^2 / D at the levels.
        minimum: that of the exact model at the levels.
        title: of the figure.
    """
    figure = new_figure(7.2, 3.4)
    axes = figure.subplots()
    for colour, (name, values) in zip((COLOURS[5], COLOURS[0]), losses.items(), strict=False):
        axes.plot(levels, values, color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
    if minimum is not None:
        axes.plot(levels, minimum, color=COLOURS[1], linestyle="--", label="exact model, the minimum")
    axes.set(xlabel="log-SNR, data on the right", ylabel="error of the noise", title=title, yscale="log")
    _plain_ticks(axes.yaxis, [value for values in losses.values() for value in values])
    axes.legend(frameon=False)
    _style(axes)
    return figure


@styled
def likelihood_figure(
    bits_per_dim: np.ndarray, standard_error: float, uniform: float | None, title: str
) -> Figure:
    """Histogram of bits per dimension, their mean with its standard error, the uniform code if given."""
    figure = new_figure(7.2, 3.4)
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
