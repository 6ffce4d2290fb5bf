"""``sde-toolkit compare``: step count against quality, sampler by sampler; records, figures and a page."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import (
    SAMPLERS_HELP,
    add_label,
    add_model,
    add_verb,
    given,
    need_memory,
    note,
    open_model,
    output_directory,
    path_argument,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from sde_toolkit import runs
    from sde_toolkit.lab import Candidate, Record

EXAMPLES = """examples:
  sde-toolkit compare --config=digits --samplers=ddim,heun --num_steps=5,10,20      # the shipped checkpoint
  sde-toolkit compare --workdir=runs/d --samplers=ddim,euler_maruyama --num_steps=5,10,20,50 --seeds=0,1,2
  sde-toolkit compare --workdir=runs/d --samplers=dopri5 --config.sampling.rtol=1e-4
  sde-toolkit compare --config=digits_classes --label=3 --samplers=ddim --config.comparison.num_samples=150

Results that exist already are reused; samples and records of an interrupted comparison are kept."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "compare", compare, "step count against quality, sampler by sampler", EXAMPLES)
    add_model(parser)
    parser.add_argument("--samplers", metavar="A,B,...", help=SAMPLERS_HELP)
    parser.add_argument("--num_steps", metavar="N,M,...", help="step counts; adaptive samplers run once")
    parser.add_argument("--num_samples", type=int, metavar="N", help="for each sampler, step count and seed")
    parser.add_argument("--seeds", metavar="S,T,...")
    parser.add_argument("--metrics", metavar="A,B,...", help="frechet, sliced_wasserstein, energy, mmd")
    add_label(parser, "the class of all samples, compared with the real data of this class")
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="where to write; else the workdir"
    )


def compare(options: argparse.Namespace) -> None:
    """Compare samplers at several step counts; write records, figures and a page; print the table."""
    from sde_toolkit import runs
    from sde_toolkit.lab import format_table

    overrides = given(options, "comparison", ("samplers", "num_steps", "num_samples", "seeds", "metrics"))
    run = open_model(options, overrides)
    directory = output_directory(options)
    need_memory(run.config.comparison.num_samples, run.model.event_shape)
    evaluation = runs.load_evaluation(run, directory, options.label)
    found = compare_with_bar(run, directory, options.label)
    say(format_table(found.records, found.references))
    command = shlex.join(["sde-toolkit", *sys.argv[1:]])
    for path in runs.write_report(run, directory, found, evaluation, [command]):
        say(f"wrote  {path}")


def compare_with_bar(run: runs.Run, directory: Path, label: int | None = None) -> runs.Comparison:
    """The comparison of the run's configuration with a progress bar; records appear as they are made."""
    from sde_toolkit import runs
    from sde_toolkit.lab import plus_minus

    candidates = runs.comparison_candidates(run)
    reused = 0
    with progress_bar(len(candidates), 0, "sampler") as bar:

        def on_records(candidate: Candidate, rows: list[Record], old: bool) -> None:
            nonlocal reused
            reused += old
            headline = f"{rows[0].metric} {plus_minus(rows[0].value, rows[0].standard_error)}"
            bar.set_postfix_str(f"{candidate.label}: {headline}", refresh=False)
            bar.update()

        try:
            found = runs.run_comparison(run, directory, candidates, on_records, label)
        except KeyboardInterrupt:
            bar.close()
            note(f"measured so far: {runs.records_path(directory)}; the same command goes on from there")
            raise
    if reused:
        note(f"comparison: reused {reused} of {len(candidates)} entries of {runs.records_path(directory)}")
    return found
