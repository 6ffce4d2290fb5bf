"""``sde-toolkit report``: the page, figures and tables of a comparison that was made; it measures nothing."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from sde_toolkit.cli.common import add_verb, note, path_argument, say

EXAMPLES = """examples:
  sde-toolkit report --workdir=runs/d
  sde-toolkit report --workdir=runs/d --output=paper/figures --format=pdf,latex

Reads the records and the samples that `sde-toolkit compare` left in the directory."""

FORMATS = ("html", "pdf", "svg", "csv", "latex", "parquet", "json")


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(
        verbs, "report", report, "page, figures and tables of a comparison that was made", EXAMPLES
    )
    parser.add_argument(
        "--workdir", type=path_argument, required=True, metavar="DIR", help="where compare wrote its records"
    )
    parser.add_argument(
        "--format",
        type=_formats,
        default=("html",),
        metavar="F,F,...",
        help="html (the page), pdf, svg (figures), csv, latex, parquet, json; else html",
    )
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="where to write; else DIR/report of the workdir"
    )


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(FORMATS) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be one or more of {', '.join(FORMATS)}, got {text!r}")
    return names


def report(options: argparse.Namespace) -> None:
    """Write what is asked of the records and samples that are there."""
    from sde_toolkit import runs
    from sde_toolkit.lab import problem_of, write_papers
    from sde_toolkit.utils import check_output_directory

    if options.overrides:
        raise ValueError(
            f"report has no configuration, got --config.{next(iter(options.overrides))}; it shows what "
            "compare measured"
        )
    workdir = options.workdir.expanduser()
    output = check_output_directory(Path(options.output or workdir / "report").expanduser())
    records, references = runs.read_records(workdir)
    samples = runs.stored_samples(workdir, records)
    groups: dict[str, runs.Cells] = {}
    for record, x in samples:
        groups.setdefault(problem_of(record), []).append((record, x))
    drawn = {problem: runs.paper_cells(cells) for problem, cells in groups.items()}
    note(f"{len(records)} records, samples of {len(samples)} candidates")
    output.mkdir(parents=True, exist_ok=True)
    paths = write_papers(output, records, references, [f for f in options.format if f != "html"], drawn)
    if "html" in options.format:
        command = shlex.join(["sde-toolkit", *sys.argv[1:]])
        paths.append(runs.write_stored_page(output, records, references, samples, workdir, [command]))
    for path in paths:
        say(f"wrote  {path}")
