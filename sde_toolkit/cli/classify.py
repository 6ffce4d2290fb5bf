"""``sde-toolkit classify``: Bayes' rule with the densities of every class, on labelled data."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from typing import Any

from sde_toolkit.cli.common import add_evaluation, add_verb, given, note, open_model, output_directory, say

EXAMPLES = """examples:
  sde-toolkit classify --config=digits_classes --num_examples=50          # the shipped checkpoint
  sde-toolkit classify --workdir=runs/classes --config.likelihood.rtol=0.1 --config.likelihood.atol=0.1"""


def add_parser(verbs: Any) -> None:
    """Add the verb to the program."""
    add_evaluation(add_verb(verbs, "classify", classify, "Bayes' rule on labelled data", EXAMPLES))


def classify(options: argparse.Namespace) -> None:
    """Classify examples by Bayes' rule; write the probabilities, print how good they are."""
    import torch

    from sde_toolkit import runs
    from sde_toolkit.config import held_out, likelihood_options
    from sde_toolkit.lab import plus_minus
    from sde_toolkit.likelihood import classify as classify_by_density
    from sde_toolkit.likelihood import judge, log_likelihood
    from sde_toolkit.utils import atomic_write

    overrides = given(options, "likelihood", ("split", "num_examples"))
    run = open_model(options, overrides)
    dataset, split = run.dataset(), run.config.likelihood.split
    directory = output_directory(options)
    runs.need_classes(run.model)
    if dataset.labels_train is None or dataset.labels_test is None:
        raise ValueError(f"classification needs labelled data, got {dataset.name!r} without labels")
    note(f"classify: {split} data, {run.model.num_classes} classes, probability flow")
    x = held_out(run.config, dataset)
    parts = {"train": [dataset.labels_train], "test": [dataset.labels_test]}
    labels = torch.cat(parts.get(split, parts["train"] + parts["test"]))[: len(x)]
    options_of_flow = likelihood_options(run.config) | {"num_diagnostic_samples": 0}
    if "target_se" in options_of_flow:  # the same probes for every class
        options_of_flow["target_se"] = float("inf")
    endpoint = dataclasses.replace(options_of_flow.pop("endpoint"), moments=run.model.moments)
    density = functools.partial(log_likelihood, endpoint=endpoint, **options_of_flow)
    found = classify_by_density(run.model, x.to(run.model.device, run.model.dtype), log_likelihood=density)
    judged = judge(found, labels)
    for name in ("accuracy", "negative_log_likelihood", "brier", "calibration_error"):
        estimate = getattr(judged, name)
        say(f"{name:<24}{plus_minus(estimate.value, estimate.standard_error)}")
    say(f"{'calibrated_would_have':<24}{judged.floor:.4f}  (calibration error of perfect probabilities)")
    written = {**dataclasses.asdict(judged), "probabilities": found.probabilities.tolist()}
    written |= {"labels": labels.tolist(), "seconds": found.seconds, "model": run.fingerprint}
    path = directory / f"classification-{split}.json"
    atomic_write(path, json.dumps(written | {"config": run.config.to_dict()}).encode())
    say(f"per example  {path}")
