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
from pathlib import Path
from typing import Any, NoReturn

from sde_toolkit.cli import classify as classify_verb
from sde_toolkit.cli import compare as compare_verb
from sde_toolkit.cli import configs as configs_verb
from sde_toolkit.cli import demo as demo_verb
from sde_toolkit.cli import export as export_verb
from sde_toolkit.cli import likelihood as likelihood_verb
from sde_toolkit.cli import sample as sample_verb
from sde_toolkit.cli import train as train_verb
from sde_toolkit.config import SAMPLERS, config_names
from sde_toolkit.training import NonFiniteError
from solvers import SolverError

MISTAKES = (ValueError, TypeError, OSError, MemoryError, NonFiniteError, SolverError)

_TRAIN = """examples:
  sde-toolkit train --config=digits --workdir=runs/d
  sde-toolkit train --config=digits --workdir=runs/ve --config.sde.name=ve --config.model.predicts=edm
  sde-toolkit train --workdir=runs/d --config.training.num_steps=4000     # go on with a finished run

A run that was stopped, or killed, goes on from its last checkpoint when the same command is given again."""

_SAMPLE = """examples:
  sde-toolkit sample --sampler=ddim --num_steps=20                        # the digits that ship with the
  package sde-toolkit sample --workdir=runs/d --sampler=heun --num_steps=10 --num_samples=100 --seed=1 sde-
  toolkit sample --workdir=runs/d --sampler=ddim --config.sampling.eta=0.5 --config.sampling.grid=karras"""

_LIKELIHOOD = """examples:
  sde-toolkit likelihood --workdir=runs/d --split=test
  sde-toolkit likelihood --config=digits --num_examples=64 --config.likelihood.divergence=exact"""

_CLASSIFY = """examples:
  sde-toolkit classify --config=digits_classes --num_examples=50          # the shipped checkpoint
  sde-toolkit classify --workdir=runs/classes --config.likelihood.rtol=0.1 --config.likelihood.atol=0.1"""

_COMPARE = """examples:
  sde-toolkit compare --config=digits --samplers=ddim,heun --num_steps=5,10,20      # the shipped checkpoint
  sde-toolkit compare --workdir=runs/d --samplers=ddim,euler_maruyama --num_steps=5,10,20,50 --seeds=0,1,2
  sde-toolkit compare --workdir=runs/d --samplers=dopri5 --config.sampling.rtol=1e-4

Results that exist already are reused; samples and records of an interrupted comparison are kept."""

_DEMO = """examples:
  sde-toolkit demo --workdir=runs/demo
  sde-toolkit demo --workdir=runs/ring --config=ring

Trains, samples with every sampler, computes held-out likelihoods, and writes a report. A second call reuses
it all."""

_EXPORT = """example:
  sde-toolkit export --workdir=runs/d --output=digits.safetensors"""

_CONFIGS = """examples:
  sde-toolkit configs                    # the names
  sde-toolkit configs digits             # every field of one, as JSON
  sde-toolkit configs digits > mine.json && sde-toolkit train --config=mine.json --workdir=runs/mine"""


class _Parser(argparse.ArgumentParser):
    """A parser that refuses abbreviations and speaks in one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _verb(verbs: Any, name: str, run: Any, summary: str, examples: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary, epilog=examples)
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="of a training run")
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="without --workdir: use the checkpoint of the package for this name (digits)",
    )


def _add_held_out(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--split", metavar="NAME", help="test, train or all")
    parser.add_argument("--num_examples", type=int, metavar="N", help="the first N only; 0 for all")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write; else the workdir")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="sde-toolkit",
        description="Train, sample, evaluate and compare score-based generative models.",
        epilog="Fields of the configuration are set by --config.SECTION.FIELD=VALUE, for instance "
        "--config.training.batch_size=64;\n`sde-toolkit configs digits` lists them.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    train = _verb(verbs, "train", train_verb.train, "train a score network; resumes by itself", _TRAIN)
    names = ", ".join(config_names())
    train.add_argument("--config", metavar="NAME", help=f"{names}, or the path of a .py or .json file")
    train.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="made if it does not exist")

    sample = _verb(verbs, "sample", sample_verb.sample, "draw samples: an npz file and a picture", _SAMPLE)
    _add_model(sample)
    sample.add_argument("--sampler", metavar="NAME", help=", ".join(SAMPLERS))
    sample.add_argument("--num_steps", type=int, metavar="N", help="not for adaptive samplers")
    sample.add_argument("--num_samples", type=int, metavar="N")
    sample.add_argument("--seed", type=int, metavar="S", help="sample i of a seed is always the same")
    sample.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write; else DIR/samples of the workdir"
    )

    likelihood = _verb(
        verbs,
        "likelihood",
        likelihood_verb.likelihood,
        "log-likelihoods by the probability flow",
        _LIKELIHOOD,
    )
    _add_held_out(likelihood)

    classify = _verb(
        verbs, "classify", classify_verb.classify, "Bayes' rule on labelled held-out data", _CLASSIFY
    )
    _add_held_out(classify)

    compare = _verb(
        verbs, "compare", compare_verb.compare, "step count against quality, sampler by sampler", _COMPARE
    )
    _add_model(compare)
    compare.add_argument("--samplers", metavar="A,B,...", help=", ".join(SAMPLERS))
    compare.add_argument("--num_steps", metavar="N,M,...", help="step counts; adaptive samplers run once")
    compare.add_argument("--num_samples", type=int, metavar="N", help="for each sampler, step count and seed")
    compare.add_argument("--seeds", metavar="S,T,...")
    compare.add_argument("--metrics", metavar="A,B,...", help="frechet, sliced_wasserstein, energy, mmd")
    compare.add_argument("--output", type=Path, metavar="DIR", help="where to write; else the workdir")

    show = _verb(verbs, "demo", demo_verb.demo, "the whole path on the digits in some minutes", _DEMO)
    show.add_argument(
        "--workdir", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo"
    )
    show.add_argument("--config", default="digits", metavar="NAME", help="default: digits")

    export = _verb(
        verbs, "export", export_verb.export, "write the averaged weights and their config to a file", _EXPORT
    )
    export.add_argument("--workdir", type=Path, required=True, metavar="DIR")
    export.add_argument("--output", type=Path, required=True, metavar="FILE")

    listing = _verb(verbs, "configs", configs_verb.configs, "list the configurations, or show one", _CONFIGS)
    listing.add_argument("name", nargs="?", metavar="NAME")
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
