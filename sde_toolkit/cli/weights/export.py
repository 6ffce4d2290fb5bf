"""``sde-toolkit export``: a run's averaged weights as a file, as a program, or as a directory with a card.

--output=digits.safetensors    weights, moments and configuration, which ``load_model`` reads
--output=digits.onnx, .pt2     a program without Python, compared with the model (``interop.export_program``)
--output=digits                a directory with the model, its configuration, figures and a card
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from sde_toolkit.cli.common import add_verb, path_argument, say

EXAMPLES = """examples:
  sde-toolkit export --workdir=runs/d --output=digits.safetensors
  sde-toolkit export --workdir=runs/d --output=digits.onnx --part=denoise    # needs the extra onnx
  sde-toolkit export --workdir=runs/d --output=cards/digits                  # a directory with a model card
  sde-toolkit export --workdir=runs/d --output=cards/digits --push=OWNER/NAME"""
WEIGHTS = ".safetensors"
FIGURES = (".png", ".svg")
_MOST_FIGURES = 6


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(
        verbs, "export", export, "write the averaged weights as a file, a program or a card", EXAMPLES
    )
    parser.add_argument("--workdir", type=path_argument, required=True, metavar="DIR")
    parser.add_argument(
        "--output", type=path_argument, required=True, metavar="PATH",
        help="a file .safetensors, .onnx or .pt2; or a directory for the model with its card",
    )  # fmt: skip
    parser.add_argument(
        "--part", default="denoise", metavar="PART",
        help="of a program: denoise (default), noise, score, velocity or network",
    )  # fmt: skip
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="send the directory to the Hugging Face hub, privately"
    )


def export(options: argparse.Namespace) -> None:
    """Write what the ending of the output asks for, and print its size."""
    from sde_toolkit import interop, runs
    from sde_toolkit.training import refuse_checkpoint
    from sde_toolkit.utils import check_output_file

    card = not options.output.suffix
    if options.push and not card:
        raise ValueError(
            f"--push sends a directory with a card, got --output={options.output}; leave the ending out"
        )
    if not card and options.output.suffix not in (WEIGHTS, *interop.FORMATS):
        raise ValueError(
            f"output must end in {', '.join((WEIGHTS, *interop.FORMATS))}, or in nothing for a directory, "
            f"got {str(options.output)!r}"
        )
    output = (interop.check_card_place if card else check_output_file)(options.output, "output")
    refuse_checkpoint(output)
    run = runs.open_run(options.workdir, options.overrides)
    if card:
        interop.write_card(
            run.model, output, config=run.config.to_dict(), results=_results(run, options.workdir),
            figures=_figures(options.workdir),
        )  # fmt: skip
        say(f"exported step {run.step} to {output}/ with its card {output / 'README.md'}")
        if options.push:
            say(f"sent to {interop.push_to_hub(output, options.push)}")
    elif output.suffix in interop.FORMATS:
        output.parent.mkdir(parents=True, exist_ok=True)
        done = interop.export_program(run.model, output, options.part)
        size = output.stat().st_size / 2**20
        say(
            f"exported step {run.step} to {output} ({size:.2f} MiB): {done.part}({', '.join(done.inputs)}), "
            f"off the model by {done.difference:.1g} of the largest value"
        )
    else:
        size = runs.export_run(run, output)
        say(f"exported step {run.step} to {options.output} ({size / 2**20:.2f} MiB)")


def _results(run: Any, workdir: Path) -> dict[str, str]:
    """Figures for the card: the step, and bits per dimension where the run has been evaluated."""
    found = {"training": f"{run.step} updates"}
    for path in sorted(workdir.glob("likelihood-*.json")):
        values = json.loads(path.read_text(encoding="utf-8")).get("bits_per_dim")
        if not values:
            continue
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        error = math.sqrt(variance / len(values))
        split = path.stem.removeprefix("likelihood-")
        found[f"bits/dim, {split} data"] = f"{mean:.3f} +- {error:.3f} ({len(values)} examples)"
    return found


def _figures(workdir: Path) -> list[Path]:
    """The first pictures of the run's directory."""
    return [path for path in sorted(workdir.iterdir()) if path.suffix in FIGURES][:_MOST_FIGURES]
