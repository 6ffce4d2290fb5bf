"""The command line: ``sde-toolkit VERB ...``, the same as ``python -m sde_toolkit VERB ...``.

Fields of the configuration are set by ``--config.SECTION.FIELD=VALUE`` on every verb.  Results go to
standard output, progress and errors to standard error.  Exit codes: 0 done, 2 a mistake in the call, the
data or the machine, told in one sentence (``--debug`` or SDE_TOOLKIT_DEBUG=1 adds the traceback), 130
interrupted, by Ctrl-C or by the system (SIGTERM, SIGHUP).

The parser loads nothing but the standard library, so that ``--help`` is quick; a verb imports what it needs
when it runs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from sde_toolkit.cli import classify, compare, configs, demo, likelihood, sample, train
from sde_toolkit.cli.common import printable
from sde_toolkit.cli.process import Terminated, ends_at_once, flushed, stoppable, surviving_streams
from sde_toolkit.cli.showing import animate, report
from sde_toolkit.cli.tasks import impute, inpaint, interpolate, restore
from sde_toolkit.cli.weights import ema, export

VERBS = (
    train, sample, inpaint, restore, impute, interpolate, likelihood, classify, compare, report, animate,
    demo, ema, export, configs,
)  # fmt: skip
"""In the order of the help."""

SHELLS = ("bash", "zsh", "tcsh")


class _Parser(argparse.ArgumentParser):
    """A parser that refuses abbreviations and reports a mistake in one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {printable(message)}; see {self.prog} --help\n")


class _Completion(argparse.Action):
    """Print the script that completes the command in a shell."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        """Print it and leave."""
        try:
            shtab = importlib.import_module("shtab")
        except ImportError:
            parser.error("--completion needs the package shtab: pip install 'sde-toolkit[completion]'")
        sys.stdout.write(shtab.complete(build_parser(), shell=given[1]) + "\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    version = importlib.import_module("sde_toolkit").__version__
    parser = _Parser(
        prog="sde-toolkit",
        description="Train, sample, evaluate and compare score-based generative models.",
        epilog="Fields of the configuration are set by --config.SECTION.FIELD=VALUE, for instance "
        "--config.training.batch_size=64;\n`sde-toolkit configs --describe` explains them all.  "
        "A configuration in a .py file is executed.",
    )
    parser.add_argument("--version", action="version", version=f"sde-toolkit {version}")
    parser.add_argument(
        "--completion",
        action=_Completion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print a script that completes commands in this shell: {', '.join(SHELLS)}",
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
    with surviving_streams(), stoppable(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = _run(words)
        except Terminated:
            code = _said("stopped by the system", 130)
        except KeyboardInterrupt:
            code = _said("interrupted", 130)
        problem = flushed(sys.stdout)
        return code if problem is None else _said(f"error: the output could not be written: {problem}", 2)


def _run(words: Sequence[str]) -> int:
    try:
        options = _parse(words)
        with ends_at_once():  # an import that a signal cuts short is no use to anyone
            importlib.import_module("sde_toolkit.runs")
        try:
            options.run(options)
        except SystemExit as stop:
            raise RuntimeError(f"a module that was loaded asked to exit ({stop.code})") from stop
    except BrokenPipeError:  # the reader of our output has gone, as in `sde-toolkit configs | head -1`
        return 0
    except Exception as error:
        if "--debug" in words or os.environ.get("SDE_TOOLKIT_DEBUG"):
            raise
        return _said(f"error: {_sentence(error)}", 2)
    return 0


def _said(text: str, code: int) -> int:
    print(f"sde-toolkit: {printable(text)}", file=sys.stderr)
    return code


_MEANT = (ValueError, TypeError, ImportError, FloatingPointError, MemoryError)
"""Errors whose own words are a sentence for the user."""
_MEANT_TOO = ("SolverError", "LostProcessError")
"""Others, which are RuntimeErrors."""

_NO_MEMORY = (
    "allocate",
    "out of memory",
    "not enough memory",
    "overflow",
    "maximum size",
    "invalid dimension",
)
"""Words by which torch and numpy say that memory is lacking, whatever the type of the error."""


def _sentence(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in text.lower() for word in _NO_MEMORY)
    ):
        return (
            "there is not enough memory for what was asked; ask for less: fewer samples, a smaller "
            f"batch_size or a smaller network ({text.partition(' Exception raised')[0][:300] or name})"
        )
    if isinstance(error, RecursionError):
        return f"something is nested too deeply to be read ({text})"
    if isinstance(error, OverflowError):
        return f"a number is too large: {text}; give a smaller one"
    if isinstance(error, _MEANT) or name in _MEANT_TOO:
        return text or name
    return f"{name}: {text or 'no message'}; run again with --debug to see where, and report it as a defect"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sde-toolkit: warning: {printable(str(message))}", file=sys.stderr)
