"""``sde-toolkit configs``: the shipped configurations, one as JSON, or what fields mean."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from sde_toolkit.cli.common import add_verb, say

EXAMPLES = """examples:
  sde-toolkit configs                    # the names
  sde-toolkit configs digits             # every field of one, as JSON
  sde-toolkit configs digits > mine.json && sde-toolkit train --config=mine.json --workdir=runs/mine
  sde-toolkit configs --describe         # meaning, type, default and choices of every field
  sde-toolkit configs --describe sampling
  sde-toolkit configs --describe ddim    # of a sampler's own fields; also a field, or a configuration

A configuration in a .py file is executed, with everything that this allows; one in a .json file is not."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "configs", configs, "list, show or explain the configurations", EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument(
        "--describe",
        action="store_true",
        help="explain every field; or those of NAME: a section, field, sampler or configuration",
    )


def configs(options: argparse.Namespace) -> None:
    """List the configurations with the first lines of their files, print one as JSON, or explain fields."""
    from sde_toolkit.config import config_json, config_names, describe_fields, load_config
    from sde_toolkit.config import configs as shipped_configs

    if options.describe:
        say(describe_fields(options.name, options.overrides))
        return
    if options.name is not None:
        say(config_json(load_config(options.name, options.overrides)))
        return
    width = max(map(len, config_names()))
    for name in config_names():
        module = importlib.import_module(f"{shipped_configs.__name__}.{name}")
        say(f"{name.ljust(width)}  {(module.__doc__ or '').splitlines()[0]}")
