"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse
import importlib

from sde_toolkit.config import (
    config_json,
    config_names,
    load_config,
)
from sde_toolkit.config import configs as shipped_configs


def configs(options: argparse.Namespace) -> None:
    """List the configurations with their first lines, or print one as JSON."""
    if options.name is not None:
        print(config_json(load_config(options.name, options.overrides)))
        return
    width = max(map(len, config_names()))
    for name in config_names():
        module = importlib.import_module(f"{shipped_configs.__name__}.{name}")
        print(f"{name.ljust(width)}  {(module.__doc__ or '').splitlines()[0]}")
