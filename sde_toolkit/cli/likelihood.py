"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse

from sde_toolkit.cli.common import _given, _output, note, open_model
from sde_toolkit.lab import plus_minus
from sde_toolkit.runs import evaluation as held_out
from sde_toolkit.utils import leading


def likelihood(options: argparse.Namespace) -> None:
    """Compute log-likelihoods of held-out data; write and print them."""
    overrides = _given(options, "likelihood", ("split", "num_examples"))
    run = open_model(options, overrides)
    directory = _output(options)
    if leading():
        note(f"likelihood: {run.config.likelihood.split} data, probability flow under {run.config.sde.name}")
    found, reused = held_out.likelihood(run, directory)
    if not leading():
        return
    print(("reused: " if reused else "") + found.sentence)
    if found.budget:
        print(f"a value may be off by (mean correction, size; {run.config.likelihood.num_diagnostic_samples} examples)")
        print("\n".join(f"  {line}" for line in found.budget))
    for name, mean, error in found.bounds:
        print(f"  {name:<18}{plus_minus(mean, error)} bits/dim, of the stochastic model")
    print(f"per example  {held_out.likelihood_path(directory, found.split)}")
