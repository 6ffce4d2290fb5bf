"""Observed orders of all methods of ``solvers`` on exact problems.

    python -m benchmarks.convergence

The errors are those of ``benchmarks.orders``: nothing is sampled, so a method of order p draws a straight
line of slope -p over drift evaluations on log axes, until rounding stops it.  Written to benchmarks/results/:

    convergence.png     three panels (deterministic, strong, weak), each line with its observed and declared
                        order; behind it, in grey, the declared slope through its last point
    convergence.json    step counts, evaluations, errors and slopes of every case
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.orders import HALVINGS, TOLERANCE, Measurement, cases, measure
from benchmarks.record import RESULTS, write_result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B07A00", "#332288", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANELS = {"deterministic": "deterministic error", "strong": "strong error", "weak": "weak error"}
LEFT_OUT = "logistic"
"""The scalar problem is in the table and the JSON; its lines would run beside those of the other."""


def table(measurements: Sequence[Measurement]) -> str:
    """One line per case: declared and observed order, smallest error, what contradicts the declaration."""
    lines = [f"{'method, problem':<32}{'kind':<15}{'declared':>9}{'observed':>10}{'N':>7}{'error':>11}"]
    for m in measurements:
        numbers = f"{m.case.declared:>9g}{m.slope:>10.3f}{m.num_steps[-1]:>7}{m.errors[-1]:>11.2e}"
        lines.append(f"{m.case.label:<32}{m.case.kind:<15}{numbers}{'  WRONG' if m.complaints() else ''}")
    return "\n".join(lines)


def figure(measurements: Sequence[Measurement]) -> Figure:
    """Error against drift evaluations, a panel for each kind of error."""
    shown = [m for m in measurements if m.case.problem != LEFT_OUT]
    labels = dict.fromkeys(m.case.label for m in sorted(shown, key=lambda m: list(PANELS).index(m.case.kind)))
    styles = {label: (COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]) for k, label in enumerate(labels)}
    fig = Figure(figsize=(12, 4.8), layout="constrained")
    panels = fig.subplots(1, len(PANELS), width_ratios=(1.2, 1, 1))
    panels[2].sharey(panels[1])
    for axes, (kind, title) in zip(panels, PANELS.items(), strict=True):
        here = [m for m in shown if m.case.kind == kind]
        _draw(axes, here, styles)
        axes.set_title(title, fontsize=11, loc="left")
    for axes, kind in zip(panels, PANELS, strict=True):
        _label_ends(axes, [m for m in shown if m.case.kind == kind], styles)
    panels[0].set_ylabel("error at the end time")
    fig.suptitle(
        "Observed orders (in brackets and in grey: the declared ones)", fontsize=12, x=0.008, ha="left"
    )
    return fig


def _draw(axes: Axes, measurements: Sequence[Measurement], styles: dict[str, tuple[str, str]]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="drift evaluations")
    for m in measurements:
        colour, marker = styles[m.case.label]
        nfe, errors = np.array(m.nfe), np.array(m.errors)
        declared = errors[-1] * (nfe / nfe[-1]) ** -m.case.declared
        axes.plot(nfe, declared, color="#c8c8c8", linewidth=4, zorder=1, solid_capstyle="butt")
        axes.plot(nfe, errors, color=colour, marker=marker, markersize=4.5, linewidth=1.3)
    every = [n for m in measurements for n in m.nfe]
    ticks = [c * 10.0**k for k in range(7) for c in (1, 2, 5) if min(every) <= c * 10.0**k <= max(every)]
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) < 7 else ticks[::2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(10, numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _label_ends(axes: Axes, measurements: Sequence[Measurement], styles: dict[str, tuple[str, str]]) -> None:
    """Names and slopes in a column right of the axes, at the height of the lines' ends or a little apart."""
    low, high = np.log(axes.get_ylim())
    place = -1.0
    for m in sorted(measurements, key=lambda m: m.errors[-1]):
        place = max(float((np.log(m.errors[-1]) - low) / (high - low)), place + 0.1)
        name = m.case.method.name if m.case.problem == "replicator" else m.case.problem
        text = f"{name.replace('additive noise', 'additive').replace('diagonal noise', 'diagonal')}"
        prefix = f"{m.case.method.name}\n" if m.case.kind != "deterministic" else ""
        axes.annotate(
            f"{prefix}{text}  {m.slope:.2f} ({m.case.declared:g})",
            (m.nfe[-1], m.errors[-1]),
            xytext=(1.04, place),
            textcoords="axes fraction",
            color=styles[m.case.label][0],
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.7, "shrinkB": 4},
        )


def main() -> None:
    """Measure, print the table, write JSON and figure; fail if an order or a cost is not as declared."""
    torch.set_num_threads(1)
    measurements = [measure(case) for case in cases()]
    print(table(measurements))
    rows = [
        {
            "method": m.case.method.name,
            "problem": m.case.problem,
            "kind": m.case.kind,
            "declared": m.case.declared,
            "observed": m.slope,
            "num_steps": m.num_steps,
            "nfe": m.nfe,
            "errors": m.errors,
        }
        for m in measurements
    ]
    write_result("convergence", {"halvings": HALVINGS, "tolerance": TOLERANCE, "dtype": "float64"}, rows)
    figure(measurements).savefig(RESULTS / "convergence.png", dpi=150)
    complaints = [line for m in measurements for line in m.complaints()]
    if complaints:
        raise SystemExit("\n".join(complaints))


if __name__ == "__main__":
    main()
