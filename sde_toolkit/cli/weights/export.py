"""``sde-toolkit export``: the averaged weights, the data's moments and the configuration in one file."""

from __future__ import annotations

import argparse
from typing import Any

from sde_toolkit.cli.common import add_verb, path_argument, say

EXAMPLES = """example:
  sde-toolkit export --workdir=runs/d --output=digits.safetensors"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(
        verbs, "export", export, "write the averaged weights and their config to a file", EXAMPLES
    )
    parser.add_argument("--workdir", type=path_argument, required=True, metavar="DIR")
    parser.add_argument("--output", type=path_argument, required=True, metavar="FILE")


def export(options: argparse.Namespace) -> None:
    """Write the file and print its size."""
    from sde_toolkit import runs
    from sde_toolkit.training import refuse_checkpoint
    from sde_toolkit.utils import check_output_file

    output = check_output_file(options.output)
    refuse_checkpoint(output)
    run = runs.open_run(options.workdir, options.overrides)
    size = runs.export_run(run, output)
    say(f"exported step {run.step} to {options.output} ({size / 2**20:.2f} MiB)")
