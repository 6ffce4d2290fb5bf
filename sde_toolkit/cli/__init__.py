"""The command line, one file per verb; progress bars and printing live here and nowhere else."""

from sde_toolkit.cli.command_line import build_parser, main, split_overrides

__all__ = ["build_parser", "main", "split_overrides"]
