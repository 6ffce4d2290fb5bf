"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse

from sde_toolkit import runs


def export(options: argparse.Namespace) -> None:
    """Write the averaged weights of a run, its data's moments and its configuration to one file."""
    run = runs.open_run(options.workdir, options.overrides)
    size = runs.export_run(run, options.output)
    print(f"exported step {run.step} to {options.output} ({size / 2**20:.2f} MiB)")
