"""Observed orders of all methods of ``solvers`` on exact problems.

    python -m benchmarks.convergence

The errors are those of ``benchmarks.orders``: nothing is sampled, so a method of order p draws a straight
line of slope -p over drift evaluations on log axes, until rounding stops it.  Written to benchmarks/results/:

    convergence.png     a panel for each kind of error (deterministic, strong, weak) and each declared order;
                        names with the observed order, in grey the declared slope
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
COLUMNS = 3
LEFT_OUT = "logistic"
"""The scalar problem is in the table and the JSON; its lines would run beside those of the other."""


def table(measurements: Sequence[Measurement]) -> str:
    """One line per case: declared and observed order, smallest error, what contradicts the declaration."""
    lines = [f"{'method, problem':<42}{'kind':<15}{'declared':>9}{'observed':>10}{'N':>7}{'error':>11}"]
    for m in measurements:
        numbers = f"{m.case.declared:>9g}{m.slope:>10.3f}{m.num_steps[-1]:>7}{m.errors[-1]:>11.2e}"
        lines.append(f"{m.case.label:<42}{m.case.kind:<15}{numbers}{'  WRONG' if m.complaints() else ''}")
    return "\n".join(lines)


def figure(measurements: Sequence[Measurement]) -> Figure:
    """Error against drift evaluations: a panel for each kind of error and declared order."""
    shown = [m for m in measurements if m.case.problem != LEFT_OUT]
    panels = [
        (kind, order)
        for kind in PANELS
        for order in sorted({m.case.declared for m in shown if m.case.kind == kind})
    ]
    height = -(-len(panels) // COLUMNS)
    fig = Figure(figsize=(6.4 * COLUMNS, 5.6 * height), layout="constrained")
    parts = fig.subfigures(height, COLUMNS, squeeze=False).flatten()
    for part, (kind, order) in zip(parts, panels, strict=False):
        axes = part.subplots()
        _draw(axes, [m for m in shown if m.case.kind == kind and m.case.declared == order])
        axes.set_title(f"{PANELS[kind]}, order {order:g}", fontsize=12, loc="left")
        part.legend(
            loc="outside lower center",
            fontsize=6.5,
            frameon=False,
            ncols=3,
            columnspacing=0.8,
            handlelength=1.6,
        )
    return fig


def _draw(axes: Axes, measurements: Sequence[Measurement]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="drift evaluations", ylabel="error at the end time")
    for k, m in enumerate(measurements):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[(k + k // len(COLOURS)) % len(MARKERS)]
        nfe, errors = np.array(m.nfe), np.array(m.errors)
        declared = errors[-1] * (nfe / nfe[-1]) ** -m.case.declared
        axes.plot(nfe, declared, color="#c8c8c8", linewidth=4, zorder=1, solid_capstyle="butt")
        axes.plot(nfe, errors, color=colour, marker=marker, markersize=4.5, linewidth=1.3, label=_name(m))
    every = [n for m in measurements for n in m.nfe]
    ticks = [c * 10.0**k for k in range(7) for c in (1, 2, 5) if min(every) <= c * 10.0**k <= max(every)]
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) < 7 else ticks[::2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(10, numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _name(m: Measurement) -> str:
    plain = m.case.problem == "replicator"
    problem = "" if plain else f", {m.case.problem.replace(' noise', '')}"
    return f"{m.case.method.name}{problem}  {m.slope:.2f}"


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
    figure(measurements).savefig(RESULTS / "convergence.png", dpi=100)
    complaints = [line for m in measurements for line in m.complaints()]
    if complaints:
        raise SystemExit("\n".join(complaints))


if __name__ == "__main__":
    main()
