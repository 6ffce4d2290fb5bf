"""``sde-toolkit ema``: averages of other lengths of a run that has stored snapshots."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import add_data, add_device, add_verb, given, note, path_argument, say

if TYPE_CHECKING:
    from sde_toolkit.training import HeldOutLoss

FAR = 0.05
"""Share of a profile that may be missing before it is said that the average is another one."""

EXAMPLES = """examples:
  sde-toolkit ema --workdir=runs/d --sigma_rel=.05,.1,.15
  sde-toolkit ema --workdir=runs/d --sigma_rel=.07 --step=1500 --output=runs/averages

A length is the standard deviation of the average's weights in time, as a share of the run.  The run is one of
`sde-toolkit train --config.training.snapshot_every=50 ...`.  What is written for a length is a directory like
that of a run: every verb's --workdir takes it, and load_model its file."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "ema", ema, "make averages of other lengths of a run's weights", EXAMPLES)
    parser.add_argument("--workdir", type=path_argument, required=True, metavar="DIR", help="of the run")
    parser.add_argument(
        "--sigma_rel",
        type=_lengths,
        default=(0.05, 0.1, 0.15),
        metavar="L,L,...",
        help="lengths, as shares of the run; .05,.1,.15 if not given",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="updates after which they end; all of them if not given"
    )
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="where to write; else <workdir>/averages"
    )
    add_data(parser, "where the run's own data lie now; needed where a function makes them")
    add_device(parser)


def _lengths(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found:
        raise argparse.ArgumentTypeError(f"must be lengths as in .05,.1,.15, got {text!r}")
    return found


def ema(options: argparse.Namespace) -> None:
    """Write the averages, and print how well each is represented and its held-out loss."""
    from sde_toolkit import runs

    run = runs.open_run(options.workdir, given(options))
    made = runs.write_averages(run, options.sigma_rel, options.step, options.output)
    if not run.has_config:
        note("held-out losses are left out: data of a run that was trained from Python are not known here")
    say(f"{'sigma_rel':<12}{'missing':<10}{'held-out loss':<22}{'difference from the first':<27}directory")
    for average in made:
        length = "run's own" if average.sigma_rel is None else f"{average.sigma_rel:g}"
        loss, gap = _plus_minus(average.loss), _plus_minus(average.gap)
        say(f"{length:<12}{average.residual:<10.1e}{loss:<22}{gap:<27}{average.workdir}")
    for average in made:
        if average.residual > FAR:
            note(
                f"sigma_rel={average.sigma_rel:g} at step {average.step} is far from what the snapshots can "
                f"give: {100 * average.residual:.0f}% of its profile is missing; take a length near those of "
                "config.training.snapshot_lengths, and the step of a snapshot, the nearest of which is "
                f"{average.nearest}"
            )
    measured = [(average.loss.mean, str(average.workdir)) for average in made if average.loss is not None]
    if measured:
        say(f"next        {shlex.join(['sde-toolkit', 'sample', f'--workdir={min(measured)[1]}'])}")


def _plus_minus(loss: HeldOutLoss | None) -> str:
    from sde_toolkit.lab import plus_minus

    return "-" if loss is None else plus_minus(loss.mean, loss.standard_error)
