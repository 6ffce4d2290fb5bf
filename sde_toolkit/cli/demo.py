"""``sde-toolkit demo``: train, sample with every sampler, compute likelihoods, compare, report."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import add_verb, note, path_argument, say
from sde_toolkit.cli.compare import compare_with_bar
from sde_toolkit.cli.train import train_with_bar

if TYPE_CHECKING:
    from sde_toolkit import runs
    from sde_toolkit.lab import Record, Reference

EXAMPLES = """examples:
  sde-toolkit demo --workdir=runs/demo
  sde-toolkit demo --workdir=runs/ring --config=ring

Trains, samples with every sampler, computes likelihoods of test data, and writes a report. A second call
reuses it all."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "demo", demo, "the whole path on the digits in some minutes", EXAMPLES)
    parser.add_argument(
        "--workdir", type=path_argument, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo"
    )
    parser.add_argument("--config", default="digits", metavar="NAME", help="default: digits")


def demo(options: argparse.Namespace) -> None:
    """Run every stage in ``--workdir``; what is there already is reused."""
    from sde_toolkit import runs
    from sde_toolkit.lab import format_table

    begin = time.perf_counter()
    workdir = options.workdir
    run = train_with_bar(workdir, options.config, options.overrides)
    note(f"likelihood of {run.config.likelihood.split} data ...")
    evaluation, reused = runs.evaluate_likelihood(run, workdir)
    note(("reused: " if reused else "") + evaluation.sentence)
    entries = len(runs.comparison_candidates(run))
    note(f"comparison: {entries} samplers and step counts, {_draws(run)}")
    found = compare_with_bar(run.config, runs.open_problems(run.config, run), workdir)
    again = ["sde-toolkit", "demo", f"--workdir={workdir}", f"--config={options.config}"]
    changes = [f"--config.{name}={value}" for name, value in options.overrides.items()]
    note("as many samples as there are real examples ...")
    main, halves = runs.headline(run, workdir)
    lines = [shlex.join([*again, *changes]), *_single_steps(run)]
    paths = runs.write_report(run, workdir, found, evaluation, lines, (main, halves))
    say(format_table(found.records, found.references))
    say()
    for line in headlines(main, halves, evaluation):
        say(line)
    say()
    say(f"report       {paths[-1]}")
    say(f"figures      {workdir / 'figures'}")
    say(f"samples      {workdir / 'samples'}")
    say(f"records      {runs.records_path(workdir)}")
    say(f"checkpoint   {run.checkpoint.path}")
    say(f"total time   {time.perf_counter() - begin:.0f} s")


def _draws(run: runs.Run) -> str:
    seeds = run.config.comparison.seeds
    more = f", seeds {seeds}" if len(seeds) > 1 else ""
    return f"{run.config.comparison.num_samples} samples each{more}"


def _single_steps(run: runs.Run) -> list[str]:
    """The same, verb by verb."""
    from sde_toolkit.config import is_adaptive

    workdir, name = run.workdir, run.config.sampling.sampler
    steps = [] if is_adaptive(name) else [f"--num_steps={run.config.sampling.num_steps}"]
    verbs = (["likelihood"], ["compare"], ["sample", f"--sampler={name}", *steps])
    return [shlex.join(["sde-toolkit", verb, f"--workdir={workdir}", *more]) for verb, *more in verbs]


def headlines(main: Record, reference: Reference, evaluation: runs.Evaluation) -> list[str]:
    """What the demo shows, in a few lines: quality against real data, and likelihood."""
    from sde_toolkit.lab import plus_minus

    steps = f"{main.num_steps} steps" if main.num_steps else "adaptive steps"
    value = plus_minus(main.value, main.standard_error)
    real = plus_minus(reference.value, reference.standard_error)
    return [
        f"{main.metric} to the real data, {main.num_samples} samples of {main.sampler} in {steps}: {value}",
        f"{main.metric} of two halves of the real data: {real}",
        evaluation.sentence,
    ]
