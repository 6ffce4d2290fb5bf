"""``sde-toolkit compare``: step count against quality, sampler by sampler; records, figures and a page."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import (
    SAMPLERS_HELP,
    add_label,
    add_model,
    add_shards,
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
    from sde_toolkit.config import Config
    from sde_toolkit.lab import Cell, Experiment, Problem, Record

EXAMPLES = """examples:
  sde-toolkit compare --config=digits --samplers=ddim,heun --num_steps=5,10,20      # the shipped checkpoint
  sde-toolkit compare --problems=ring,mixture8 --samplers=ddim,unipc --grids=own,karras --seeds=0,1,2
  sde-toolkit compare --workdir=runs/d --samplers=ddim,euler_maruyama --num_steps=5,10,20,50 --dry_run
  sde-toolkit compare --workdir=runs/d --samplers=dopri5 --config.sampling.rtol=1e-4 --time_budget=10m
  sde-toolkit compare --config=digits_classes --labels=3,5 --samplers=ddim --config.comparison.num_samples=150
  sde-toolkit compare --problems=my.py:problem --samplers=ddim,my.py:sampler --metrics=energy,my.py:metric
  sde-toolkit compare --problems=my.py:problem --conditions=my.py:conditions --samplers=ddim,heun
  sde-toolkit compare --problems=diffusers:sd --prompts="a cat|a dog, oil" --config.sampling.guidance_scale=5
  sde-toolkit compare --plan=plan.json --output=runs/plan

A plan is a configuration as JSON: {"comparison": {"problems": ["ring"], "samplers": ["ddim"], ...}}.
Results that exist already are reused; samples and records of an interrupted comparison are kept."""

METRICS_HELP = (
    "energy, sliced_wasserstein, precision, flow_error, exact_w2, mine.py:metric, ...; `sde-toolkit configs "
    "--describe comparison` lists all"
)

FIELDS = (
    "problems", "samplers", "grids", "num_steps", "num_samples", "seeds", "metrics", "labels", "conditions",
    "prompts", "max_nfe",
    "time_budget",
)  # fmt: skip
"""Flags that are fields of ``config.comparison``."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "compare", compare, "step count against quality, sampler by sampler", EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--plan", type=path_argument, metavar="FILE", help="a configuration that says the whole experiment"
    )
    parser.add_argument(
        "--problems",
        metavar="A,B,...",
        help="exact problems, workdirs, checkpoints of the package, functions of yours; else the model of "
        "--workdir or --config. `sde-toolkit configs --describe comparison` lists the exact ones",
    )
    parser.add_argument("--samplers", metavar="A,B,...", help=SAMPLERS_HELP)
    parser.add_argument("--grids", metavar="A,B,...", help="time grids, for the samplers that take one")
    parser.add_argument("--num_steps", metavar="N,M,...", help="step counts; adaptive samplers run once")
    parser.add_argument("--num_samples", type=int, metavar="N", help="for each sampler, step count and seed")
    parser.add_argument("--seeds", metavar="S,T,...")
    parser.add_argument("--metrics", metavar="A,B,...", help=METRICS_HELP)
    parser.add_argument("--labels", metavar="K,L,...", help="classes, each compared for itself")
    parser.add_argument(
        "--conditions",
        metavar="PATH",
        help="other conditions, each compared for itself: an array (K, *) or a dict of arrays, as in "
        "mine.py:conditions",
    )
    parser.add_argument(
        "--prompts",
        metavar="TEXT|TEXT",
        help="texts for --problems=diffusers:DIRECTORY with a text encoder, each compared for itself",
    )
    add_label(parser, "the class of all samples, compared with the real data of this class")
    parser.add_argument("--max_nfe", type=int, metavar="N", help="leave out more network evaluations")
    parser.add_argument(
        "--time_budget", type=duration, metavar="TIME", help="begin nothing that does not fit, as in 10m"
    )
    add_shards(parser)
    parser.add_argument("--dry_run", action="store_true", help="print what would be measured, with its time")
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="where to write; else the workdir"
    )


def duration(text: str) -> float:
    """Seconds from "90", "90s", "10m" or "2h"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smh]?)\s*", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a time, as in 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def compare(options: argparse.Namespace) -> None:
    """Compare samplers at several step counts; write records, figures and a page; print the table."""
    from sde_toolkit import runs
    from sde_toolkit.lab import format_table
    from sde_toolkit.utils import leading

    overrides = given(options, "comparison", FIELDS)
    run, config = opened(options, overrides)
    directory = output_directory(options)
    problems = runs.open_problems(config, run)
    largest = max((problem.model.event_shape for problem in problems), key=math.prod)
    need_memory(config.comparison.num_samples, largest)
    if options.dry_run:
        plan = runs.plan_comparison(config, problems, runs.comparison_conditions(config, options.label))
        say_plan(plan, directory)
        return
    if options.merge:
        need_all(config, problems, directory, options.label)
    try:
        found = compare_with_bar(config, problems, directory, options.label, options.shard)
    except runs.ShardFinishedError:
        place = runs.shard_path(directory, options.shard)
        note(f"the shard is in {place}; the same command with --merge joins the shards")
        return
    if not found.records or not leading():
        return
    say(format_table(found.records, found.references))
    command = shlex.join(["sde-toolkit", *sys.argv[1:]])
    if run is None:
        paths = runs.write_experiment_page(config, directory, found, [command])
    else:
        evaluation = runs.load_evaluation(run, directory, options.label)
        paths = runs.write_report(run, directory, found, evaluation, [command])
    for path in paths:
        say(f"wrote  {path}")


def opened(options: argparse.Namespace, overrides: Mapping[str, Any]) -> tuple[runs.Run | None, Config]:
    """The run that the options name, None if no problem is its model, and the configuration."""
    from sde_toolkit.config import OWN_MODEL, load_config, override_config, parse_config, split_list

    if options.plan is not None:
        if options.config is not None or options.workdir is not None:
            raise ValueError("give --plan (it says all problems), or --workdir or --config, not both")
        config = load_config(str(options.plan), overrides)
        if OWN_MODEL in config.comparison.problems:
            raise ValueError(
                'the plan must name its problems, as in {"comparison": {"problems": ["ring", "runs/d"]}}; '
                "model stands for that of --workdir or --config"
            )
        return None, config
    if options.problems is not None and OWN_MODEL not in split_list(options.problems):
        if options.workdir is not None:
            raise ValueError(
                f"--workdir is of no use to --problems={options.problems}; name model or the workdir there"
            )
        if options.config is None:
            return None, override_config(parse_config({}), overrides)
        return None, load_config(options.config, overrides)
    run = open_model(options, overrides)
    return run, run.config


def need_all(config: Config, problems: Sequence[Problem], directory: Path, label: int | None) -> None:
    """Take in the stores of shards, and refuse to go on, with a ValueError, where a cell is missing."""
    from sde_toolkit import runs

    store = runs.open_records(directory, problems[0].name)
    plan = runs.plan_comparison(config, problems, runs.comparison_conditions(config, label))
    missing = [cell for cell in plan.cells(store) if cell.missing]
    if missing:
        first = f"{missing[0].group.problem.name} {missing[0].candidate.label}"
        raise ValueError(
            f"{len(missing)} cells are missing in {store.path}, the first is {first}; run their shards "
            "again, or leave --merge out to measure them here"
        )


def say_plan(plan: Experiment, directory: Path) -> None:
    """Print every cell, its evaluations, the seeds that are missing and the estimated time."""
    from sde_toolkit import runs
    from sde_toolkit.lab import Store

    cells = plan.cells(Store(runs.records_path(directory)))
    width = max((len(cell.candidate.label) for cell in cells), default=0)
    for cell in cells:
        given = cell.group.condition
        label = "" if given is None else f" class {given}" if isinstance(given, int) else f" {given}"
        nfe = "adaptive" if cell.nfe is None else f"NFE {cell.nfe}"
        seeds = f"seeds {', '.join(map(str, cell.missing))}" if cell.missing else "measured already"
        cost = f"{cell.seconds:8.2f} s" if cell.missing else " " * 10
        say(f"{cell.group.problem.name}{label}  {cell.candidate.label:{width}s}  {nfe:9s} {cost}  {seeds}")
    total = sum(cell.seconds for cell in cells)
    say(f"{len(cells)} cells, about {total:.0f} s in the networks; nothing was measured")


def compare_with_bar(
    config: Config,
    problems: Sequence[Problem],
    directory: Path,
    label: int | None = None,
    shard: runs.Shard | None = None,
) -> runs.Comparison:
    """The comparison of a configuration with a progress bar; records appear as they are made."""
    from sde_toolkit import runs
    from sde_toolkit.lab import plus_minus

    plan = runs.plan_comparison(config, problems, runs.comparison_conditions(config, label))
    total = sum(len(plan.candidates(group)) for group in plan.groups)
    workers = shard.count if shard is not None else int(os.environ.get("WORLD_SIZE", "1"))
    reused = 0
    with progress_bar(-(-total // workers), 0, "sampler") as bar:

        def on_records(cell: Cell, rows: list[Record], old: bool) -> None:
            nonlocal reused
            reused += old
            headline = f"{rows[0].metric} {plus_minus(rows[0].value, rows[0].standard_error)}"
            bar.set_postfix_str(f"{cell.candidate.label}: {headline}", refresh=False)
            bar.update()

        try:
            found = runs.run_comparison(config, problems, directory, on_records, label, shard)
        except KeyboardInterrupt:
            bar.close()
            note(f"measured so far: {runs.records_path(directory)}; the same command goes on from there")
            raise
    if reused:
        note(f"comparison: reused {reused} of {total} entries of {runs.records_path(directory)}")
    if found.left_out:
        left = ", ".join(cell.candidate.label for cell in found.left_out)
        note(f"left out, over the time budget: {left}; the same command goes on with them")
    return found
