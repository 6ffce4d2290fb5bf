"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sde_toolkit import runs
from sde_toolkit.runs import Run

FALLBACK_CONFIG = "digits"
FALLBACK_OUTPUT = Path("sde-toolkit-output")


def note(text: str) -> None:
    """Print a line about the progress of the work to standard error."""
    print(text, file=sys.stderr, flush=True)


def progress_bar(total: int, initial: int, unit: str) -> Any:
    """A progress bar on standard error, sparing with lines where that is not a terminal."""
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, initial=initial, unit=unit, mininterval=interval, maxinterval=2 * interval,
                dynamic_ncols=True, smoothing=0.05)  # fmt: skip


def open_model(options: argparse.Namespace, overrides: Mapping[str, Any]) -> Run:
    """The run that ``--workdir`` names, else the package's checkpoint for ``--config``.

    Raises:
        ValueError: both are given, or there is no such checkpoint.
    """
    if options.workdir is not None and options.config is not None:
        raise ValueError(
            "give --workdir (its checkpoint knows its config) or --config (the package's checkpoint), not "
            "both; single fields are set by --config.SECTION.FIELD=VALUE"
        )
    if options.workdir is not None:
        return runs.open_run(options.workdir, overrides)
    return runs.open_shipped(options.config or FALLBACK_CONFIG, overrides)


def _output(options: argparse.Namespace) -> Path:
    directory = options.output or options.workdir or FALLBACK_OUTPUT
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _given(options: argparse.Namespace, section: str, names: Sequence[str]) -> dict[str, Any]:
    """Overrides of the configuration: those of ``--config.*``, then those of the verb's own flags."""
    flags = {f"{section}.{name}": getattr(options, name) for name in names}
    return {**options.overrides, **{name: value for name, value in flags.items() if value is not None}}
