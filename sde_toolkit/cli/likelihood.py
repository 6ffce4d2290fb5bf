"""``sde-toolkit likelihood``: log-likelihoods of a split of the data, by the probability flow."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sde_toolkit.cli.common import (
    add_evaluation,
    add_label,
    add_shards,
    add_verb,
    given,
    keeping,
    note,
    open_model,
    output_directory,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from sde_toolkit.likelihood import LikelihoodCost

EXAMPLES = """examples:
  sde-toolkit likelihood --workdir=runs/d --split=test
  sde-toolkit likelihood --config=digits --num_examples=64 --config.likelihood.divergence=exact
  sde-toolkit likelihood --config=digits_classes --label=3      # of the threes, given their class"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    parser = add_verb(verbs, "likelihood", likelihood, "log-likelihoods by the probability flow", EXAMPLES)
    add_evaluation(parser)
    add_label(parser, "the examples of class K, given this class")
    add_shards(parser)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[LikelihoodCost], Callable[[float], None]]]:
    """Prints the cost, then a bar with samples per second."""
    with contextlib.ExitStack() as stack:

        def watch(cost: LikelihoodCost) -> Callable[[float], None]:
            note(f"cost: {cost.sentence}")
            bar = stack.enter_context(progress_bar(cost.num_samples, 0, " samples"))

            def advance(done: float) -> None:
                bar.update(max(0, min(int(done), cost.num_samples) - bar.n))
                if bar.n == cost.num_samples:
                    bar.close()  # the rate is that of the values; the budget and the bounds follow

            return advance

        yield watch


def likelihood(options: argparse.Namespace) -> None:
    """Compute the log-likelihoods; write and print them."""
    from sde_toolkit import runs
    from sde_toolkit.lab import plus_minus
    from sde_toolkit.utils import leading

    overrides = given(options, "likelihood", ("split", "num_examples"))
    run = open_model(options, overrides)
    directory = output_directory(options)
    if leading():
        note(f"likelihood: {run.config.likelihood.split} data, probability flow under {run.config.sde.name}")
    split = run.config.likelihood.split
    parts = runs.parts_path(runs.evaluation_path(directory, split, options.label))
    try:
        with keeping(parts), _progress() as watch:
            found, reused = runs.evaluate_likelihood(
                run, directory, options.label, watch if leading() else None, options.shard, options.merge
            )
    except runs.ShardFinishedError:
        note(f"shard {options.shard.index} of {options.shard.count} is in {parts}; --merge joins the shards")
        return
    if not leading():
        return
    say(("reused: " if reused else "") + found.sentence)
    if found.budget:
        count = min(run.config.likelihood.num_diagnostic_samples, len(found.bits_per_dim))
        say(f"errors of a value: mean correction and size, over {count} examples")
        say("\n".join(f"  {line}" for line in found.budget))
    for name, mean, error in found.bounds:
        say(f"  {name:<18}{plus_minus(mean, error)} bits/dim, of the stochastic model")
    say(f"per example  {runs.evaluation_path(directory, found.split, options.label)}")
