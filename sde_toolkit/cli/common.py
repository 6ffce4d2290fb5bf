"""What the verbs share: flags with one meaning everywhere, the run they work on, and progress reports.

A verb writes next to the run that it works on (``sde_toolkit.runs`` says where), or to ``--output``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sde_toolkit.config import Config
    from sde_toolkit.lab import Problem
    from sde_toolkit.models import ScoreModel
    from sde_toolkit.runs import Run, Shard

FALLBACK_CONFIG = "digits"
FALLBACK_OUTPUT = Path("sde-toolkit-output")

CONFIG_HELP = (
    "a name that `sde-toolkit configs` lists, or the path of a .json file or of a .py file, which is executed"
)
SAMPLERS_HELP = "ddim, heun, default, ...; `sde-toolkit configs --describe sampling` lists all"


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a verb to the program.

    Args:
        verbs: what ``add_subparsers`` returned.
        name: of the verb.
        run: called with the parsed options.
        summary: one line for the help.
        examples: the end of the verb's own help.
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=summary, epilog=examples
    )
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device", metavar="NAME", help="auto (an accelerator if there is one), cpu, cuda or mps"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a trained model: ``--workdir``, ``--config``, ``--data``, ``--device``."""
    parser.add_argument("--workdir", type=path_argument, metavar="DIR", help="of a training run")
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="without --workdir: use the checkpoint of the package for this name (digits)",
    )
    add_data(parser, "where the run's own data lie now; needed where a function makes them")
    add_device(parser)


def add_problem(parser: argparse.ArgumentParser) -> None:
    """Add ``--problem``, which samples a model that is no run."""
    parser.add_argument(
        "--problem",
        metavar="NAME",
        help="in place of a run: an exact problem such as ring or mixture8, or mine.py:problem",
    )


def add_data(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--data`` for data of the user's own, with its meaning for this verb."""
    parser.add_argument("--data", metavar="SOURCE", help=meaning)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a trained model and the examples that it is evaluated on."""
    add_model(parser)
    parser.add_argument("--split", metavar="NAME", help="test, train or all")
    parser.add_argument("--num_examples", type=int, metavar="N", help="the first N only; 0 for all")
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="where to write; else the workdir"
    )


def add_label(parser: argparse._ActionsContainer, meaning: str) -> None:
    """Add ``--label`` for networks with classes, with its meaning for this verb."""
    parser.add_argument("--label", type=int, metavar="K", help=f"of a network with classes: {meaning}")


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add ``--shard`` and ``--merge``, for work that is split without communication."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="make part I of N alone and keep it, as in 3/16",
    )
    group.add_argument("--merge", action="store_true", help="join the shards; refuse to make what is missing")


def _shard(text: str) -> Shard:
    from sde_toolkit.runs import Shard

    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, as in 3/16, got {text!r}")
    return Shard(int(match[1]), int(match[2]))


def given(options: argparse.Namespace, section: str = "", names: Sequence[str] = ()) -> dict[str, Any]:
    """Overrides of the configuration: those of ``--config.*``, then those of the verb's own flags.

    Args:
        options: as parsed.
        section: of the configuration that the flags set.
        names: of the flags, which are those of the fields; ``--device`` is always among them.
    """
    flags = {f"{section}.{name}": getattr(options, name) for name in names}
    flags["device"] = getattr(options, "device", None)
    overrides = dict(options.overrides)
    if getattr(options, "data", None) is not None or "data.held_out" in overrides:
        from sde_toolkit.data import absolute_places, absolute_source

        overrides = absolute_places(overrides)
        if getattr(options, "data", None) is not None:
            flags |= {"data.name": "files", "data.source": absolute_source(options.data)}
    return {**overrides, **{name: value for name, value in flags.items() if value is not None}}


def open_model(options: argparse.Namespace, overrides: Mapping[str, Any]) -> Run:
    """The run that ``--workdir`` names, else the package's checkpoint for ``--config``.

    Raises:
        ValueError: both are given, or there is no such checkpoint.
    """
    from sde_toolkit.runs import open_run, open_shipped

    if options.workdir is not None and options.config is not None:
        raise ValueError(
            "give --workdir (its checkpoint knows its config) or --config (the package's checkpoint), not "
            "both; single fields are set by --config.SECTION.FIELD=VALUE"
        )
    if options.workdir is not None:
        return open_run(options.workdir, overrides)
    return open_shipped(options.config or FALLBACK_CONFIG, overrides)


class Source(NamedTuple):
    """What is sampled: a run, or a problem in its place.

    Attributes:
        config: says how.
        model: the model.
        fingerprint: identifies its weights.
        prefix: of the names of files.
        run: None for a problem.
        problem: None for a run.
    """

    config: Config
    model: ScoreModel
    fingerprint: str
    prefix: str = ""
    run: Run | None = None
    problem: Problem | None = None

    def as_problem(self) -> Problem:
        """The model with its data; a run's data are read now.

        Raises:
            ValueError: a run whose data are not known.
        """
        from sde_toolkit.runs import run_problem

        if self.problem is not None:
            return self.problem
        assert self.run is not None
        return run_problem(self.run)


def open_source(options: argparse.Namespace, overrides: Mapping[str, Any]) -> Source:
    """The problem that ``--problem`` names, else the run of ``open_model``.

    Raises:
        ValueError: a problem and a workdir, an unknown problem, and what ``open_model`` refuses.
    """
    from sde_toolkit.config import load_config, override_config, parse_config
    from sde_toolkit.runs import open_problems

    if options.problem is None:
        run = open_model(options, overrides)
        return Source(run.config, run.model, run.fingerprint, run=run)
    if options.workdir is not None:
        raise ValueError("give --workdir or --problem, not both")
    if options.config is None:
        config = override_config(parse_config({}), overrides)
    else:
        config = load_config(options.config, overrides)
    (problem,) = open_problems(override_config(config, {"comparison.problems": options.problem}), None)
    return Source(config, problem.model, problem.fingerprint, f"{problem.folder}-", problem=problem)


def output_place(options: argparse.Namespace) -> Path:
    """Where a verb writes: ``--output``, else the workdir, else a directory here."""
    place: Path = options.output or options.workdir or FALLBACK_OUTPUT
    return place.expanduser()


def output_directory(options: argparse.Namespace) -> Path:
    """The directory of ``output_place``, made if need be; refused before the work if it takes no files."""
    from sde_toolkit.utils import check_output_directory

    directory = check_output_directory(output_place(options))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def keeping(parts: Path) -> Iterator[None]:
    """Say, where the work inside is asked to stop, that its finished batches are kept in ``parts``."""
    try:
        yield
    except KeyboardInterrupt:
        if parts.exists():
            note(f"sde-toolkit: the finished batches are kept in {parts}; the same command goes on with them")
        raise


def need_memory(num_samples: int, event_shape: tuple[int, ...]) -> None:
    """Refuse more samples than this machine's memory holds."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    needed = 4 * num_samples * math.prod(event_shape)
    if needed > memory:
        raise ValueError(
            f"num_samples must fit this machine's memory of {memory / 2**30:.0f} GiB, got {num_samples}, "
            f"which take {needed / 2**30:,.0f} GiB; draw fewer"
        )


def printable(text: str) -> str:
    """The text without characters that a terminal would obey: they appear as in Python's strings."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def say(text: str = "") -> None:
    """Print a line of results to standard output."""
    print(printable(text))


def note(text: str) -> None:
    """Print a line about the progress of the work to standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def path_argument(text: str) -> Path:
    """The path that an argument names, ``~`` resolved."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}: {error}") from None


def progress_bar(total: int, initial: int, unit: str) -> Any:
    """A progress bar on standard error; it prints few lines where that is not a terminal."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, initial=initial, unit=unit, mininterval=interval, maxinterval=2 * interval,
                dynamic_ncols=True, smoothing=0.05)  # fmt: skip
