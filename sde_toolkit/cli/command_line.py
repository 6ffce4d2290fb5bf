"""The command line: ``sde-toolkit VERB ...``, the same as ``python -m sde_toolkit VERB ...``.

Fields of the configuration are set by ``--config.SECTION.FIELD=VALUE`` on every verb.  Results go to
standard output, progress and errors to standard error.  Exit codes: 0 done, 2 a mistake in the call, the
data or the machine, told in one sentence (``--debug`` or SDE_TOOLKIT_DEBUG=1 adds the traceback), 130
interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from sde_toolkit.cli import classify, compare, configs, demo, export, likelihood, sample, train
from sde_toolkit.training import NonFiniteError
from solvers import SolverError

MISTAKES = (ValueError, TypeError, ImportError, OSError, MemoryError, NonFiniteError, SolverError)
VERBS = (train, sample, likelihood, classify, compare, demo, export, configs)
"""In the order of the help."""


class _Parser(argparse.ArgumentParser):
    """A parser that refuses abbreviations and reports a mistake in one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="sde-toolkit",
        description="Train, sample, evaluate and compare score-based generative models.",
        epilog="Fields of the configuration are set by --config.SECTION.FIELD=VALUE, for instance "
        "--config.training.batch_size=64;\n`sde-toolkit configs digits` lists them.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate ``--config.SECTION.FIELD=VALUE`` (or the value as the next word) from the other arguments.

    In the names of the others, dashes become underscores: ``--num-steps`` is ``--num_steps``.

    Raises:
        ValueError: an override without a value.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--config."):
            if not equals:
                value = next(words, "--")
                if value.startswith("--"):
                    raise ValueError(f"{name} needs a value, as in {name}=VALUE")
            overrides[name.removeprefix("--config.")] = value
        elif name.startswith("--"):
            rest.append("--" + name[2:].replace("-", "_") + equals + value)
        else:
            rest.append(word)
    return rest, overrides


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    rest, overrides = split_overrides(arguments)
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        word = unknown[0].partition("=")[0]
        known = [f"--{name}" for name in vars(options) if name not in ("run", "verb")]
        close = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"valid: {', '.join(sorted(known))}"
        parser.error(f"unknown argument {word}; {hint}")
    options.overrides = overrides
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the words after the program's name; those of the process if not given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("SDE_TOOLKIT_DEBUG"))
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            options = _parse(words)
            options.run(options)
            sys.stdout.flush()
            return 0
        except KeyboardInterrupt:
            print("sde-toolkit: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output has gone, as in `sde-toolkit configs | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except MISTAKES as error:
            if debug:
                raise
            print(f"sde-toolkit: error: {_sentence(error)}", file=sys.stderr)
            return 2


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sde-toolkit: warning: {message}", file=sys.stderr)
