"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sde_toolkit.cli.common import _given, _output, note, open_model, progress_bar
from sde_toolkit.lab import experiment, format_table, plus_minus
from sde_toolkit.runs import Run
from sde_toolkit.runs import comparison as results
from sde_toolkit.runs import evaluation as held_out


def compare(options: argparse.Namespace) -> None:
    """Compare samplers at several step counts; write records, figures and a page; print the table."""
    overrides = _given(options, "comparison", ("samplers", "num_steps", "num_samples", "seeds", "metrics"))
    run = open_model(options, overrides)
    directory = _output(options)
    found = compare_with_bar(run, directory)
    print(format_table(found.records, found.references))
    command = " ".join(["sde-toolkit", *sys.argv[1:]]) if options.run is compare else ""
    for path in results.write_report(
        run, directory, found, held_out.load_likelihood(run, directory), [command]
    ):
        print(f"wrote  {path}")


def compare_with_bar(run: Run, directory: Path) -> results.Comparison:
    """The comparison of the run's configuration with a progress bar; records appear as they are made."""
    candidates = results.candidates(run)
    reused = 0
    with progress_bar(len(candidates), 0, "sampler") as bar:

        def on_records(candidate: experiment.Candidate, rows: list[experiment.Record], old: bool) -> None:
            nonlocal reused
            reused += old
            headline = f"{rows[0].metric} {plus_minus(rows[0].value, rows[0].standard_error)}"
            bar.set_postfix_str(f"{candidate.label}: {headline}", refresh=False)
            bar.update()

        try:
            found = results.run_comparison(run, directory, candidates, on_records)
        except KeyboardInterrupt:
            bar.close()
            note(f"measured so far: {results.records_path(directory)}; the same command goes on from there")
            raise
    if reused:
        note(f"comparison: reused {reused} of {len(candidates)} entries of {results.records_path(directory)}")
    return found
