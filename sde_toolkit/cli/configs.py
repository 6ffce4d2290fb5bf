"""``sde-toolkit configs``: the configurations that ship with the package, or every field of one as JSON."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from sde_toolkit.cli.common import add_verb
from sde_toolkit.config import config_json, config_names, load_config
from sde_toolkit.config import configs as shipped_configs

EXAMPLES = """examples:
  sde-toolkit configs                    # the names
  sde-toolkit configs digits             # every field of one, as JSON
  sde-toolkit configs digits > mine.json && sde-toolkit train --config=mine.json --workdir=runs/mine"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "configs", configs, "list the configurations, or show one", EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME")


def configs(options: argparse.Namespace) -> None:
    """List the configurations with the first lines of their files, or print one as JSON."""
    if options.name is not None:
        print(config_json(load_config(options.name, options.overrides)))
        return
    width = max(map(len, config_names()))
    for name in config_names():
        module = importlib.import_module(f"{shipped_configs.__name__}.{name}")
        print(f"{name.ljust(width)}  {(module.__doc__ or '').splitlines()[0]}")
