"""The conditions of samples that a command asks for: a class, classes in turn, or others from a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from sde_toolkit.cli.common import add_label

if TYPE_CHECKING:
    from sde_toolkit.models import Condition, ScoreModel

NAMED_LABELS = 10
"""At most this many labels are part of a file's name."""


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """Add ``--label``, ``--labels`` and ``--conditions``, one of which may be given."""
    group = parser.add_mutually_exclusive_group()
    add_label(group, "the class of all samples")
    group.add_argument(
        "--labels", type=_labels, metavar="K,L,...", help="their classes in turn, again from the first"
    )
    group.add_argument(
        "--conditions",
        metavar="PATH",
        help="other conditions in turn: an array (K, *) or a dict of arrays, as in mine.py:conditions",
    )


def _labels(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers with commas between them, got {text!r}") from None


class Given(NamedTuple):
    """The condition of samples.

    Attributes:
        rows: for the model: a class for all, one row per sample, or None.
        told: what files say of it.
        suffix: what their names say of it.
    """

    rows: Condition | None
    told: Any
    suffix: str


def given_condition(options: argparse.Namespace, model: ScoreModel, num_samples: int) -> Given:
    """What ``--label``, ``--labels`` or ``--conditions`` ask for.

    Raises:
        ValueError: classes or conditions that the model does not take, or a path that names none.
    """
    import torch

    from sde_toolkit import runs

    if options.conditions is not None:
        return _conditions_in_turn(options.conditions, model, num_samples)
    if options.labels is None:
        if options.label is not None:
            runs.need_classes(model)
        return Given(options.label, options.label, runs.condition_suffix(options.label))
    runs.need_classes(model)
    labels = [options.labels[i % len(options.labels)] for i in range(num_samples)]
    many = len(options.labels) > NAMED_LABELS
    more = f"-more{runs.digest_of(str(options.labels))}" if many else ""
    suffix = "-classes" + "-".join(map(str, options.labels[:NAMED_LABELS])) + more
    return Given(torch.tensor(labels, dtype=torch.int64), labels, suffix)


def _conditions_in_turn(path: str, model: ScoreModel, num_samples: int) -> Given:
    import torch

    from sde_toolkit import runs

    conditions = runs.open_conditions(path)
    model.conditions(conditions[0].rows(1), 1)
    if len(conditions) == 1:
        only = conditions[0]
        return Given(only.rows(num_samples), str(only), runs.condition_suffix(only))
    rows = torch.stack([condition.value for condition in conditions])
    told = list(map(str, conditions))
    suffix = f"-{len(told)}conditions-{runs.digest_of(str(told))}"
    return Given(rows[torch.arange(num_samples) % len(rows)], told, suffix)
