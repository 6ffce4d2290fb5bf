"""The command line, one file per verb; progress bars and printing live here and nowhere else.

A verb's file holds its parser, the examples of its help and the function that runs it; ``command_line`` joins
the verbs to one program and turns errors into sentences.
"""

from sde_toolkit.cli.command_line import build_parser, main, split_overrides

__all__ = ["build_parser", "main", "split_overrides"]
