"""The README's table of samplers, made from the catalogue.

    python -m benchmarks.sampler_table           # print the table
    python -m benchmarks.sampler_table --write   # put it into README.md

One row per preset: its name and options, the first sentence of its docstring, and the orders and network
evaluations that it declares with its default options.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.samplers import PRESETS, Preset
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import atomic_write

README = Path(__file__).parents[1] / "README.md"
HEAD = ("| sampler | what it is | order | NFE per step |", "|---|---|---|---|")
COLLECTED = {
    "scipy_": "SciPy's methods on the probability-flow ODE",
    "torchsde_": "torchsde's methods on the reverse SDE, with equal steps on our Brownian tree",
}
"""Beginnings of names that share a row, and what the row says of them."""
NUM_STEPS = 10
MODEL = ExactModel(Gaussian([0.0], 1.0), VPSDE())


def order_of(preset: Preset) -> str:
    """The declared orders: of the deterministic error, or weak and strong."""
    sampler = preset.make(NUM_STEPS, MODEL)
    if sampler.order is None:
        return "theirs"
    if sampler.weak_order is None:
        return str(sampler.order)
    strong = "" if sampler.strong_order is None else f", strong {sampler.strong_order:g}"
    return f"weak {sampler.weak_order:g}{strong}"


def nfe_of(preset: Preset) -> str:
    """The declared network evaluations per step, and those of the whole run beside."""
    if preset.kind == "adaptive":
        return "adaptive"
    sampler = preset.make(NUM_STEPS, MODEL)
    if sampler.nfe is None:
        return "theirs"
    per_step, more = divmod(sampler.nfe - sampler.denoise, NUM_STEPS)
    return f"{per_step}, and {more} more" if more else str(per_step)


def rows() -> list[str]:
    """The rows of the table, by name."""
    found = []
    for name in sorted(PRESETS):
        preset = PRESETS[name]
        start = next((start for start in COLLECTED if name.startswith(start)), None)
        if start is None:
            options = ", ".join(option for option in preset.options if option != "lower_final")
            first = "model, " if preset.kind == "model" else ""
            call = f"{name}({first}{options})".replace(", )", ")").replace("()", "")
            what, order = preset.summary.replace("``", ""), order_of(preset)
        else:
            call, what, order = f"{start}*", COLLECTED[start], "theirs"
        row = f"| `{call}` | {what} | {order} | {nfe_of(preset)} |"
        if row not in found:
            found.append(row)
    return found


def table() -> str:
    """The whole table."""
    return "\n".join([*HEAD, *rows()]) + "\n"


def complaints(text: str) -> list[str]:
    """Rows that a README with this text lacks, and rows of its table that are not ours."""
    made, written = rows(), table_in(text).splitlines()[2:]
    missing = [f"README lacks the row {row}" for row in made if row not in written]
    return missing + [f"README has the row {row}" for row in written if row not in made]


def table_in(text: str) -> str:
    """The table as it stands in a text."""
    return text[text.index(HEAD[0]) :].partition("\n\n")[0] + "\n"


def main() -> None:
    """Print the table, or write it to the README."""
    if "--write" in sys.argv[1:]:
        text = README.read_text(encoding="utf-8")
        atomic_write(README, text.replace(table_in(text), table()).encode())
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
