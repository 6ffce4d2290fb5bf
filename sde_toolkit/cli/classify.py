"""The verbs of the command line: each takes the parsed options, works through the library, and prints.

What a verb makes goes next to the run (``sde_toolkit.runs`` says where), or to ``--output``; every file is
told.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json

import torch

from sde_toolkit import likelihood
from sde_toolkit.cli.common import _given, _output, note, open_model
from sde_toolkit.config import (
    build_dataset,
    likelihood_options,
)
from sde_toolkit.config import held_out as model_scale_examples
from sde_toolkit.lab import plus_minus
from sde_toolkit.utils import atomic_write


def classify(options: argparse.Namespace) -> None:
    """Classify held-out data by Bayes' rule; write the probabilities, print how good they are."""
    overrides = _given(options, "likelihood", ("split", "num_examples"))
    run = open_model(options, overrides)
    dataset, directory, split = build_dataset(run.config), _output(options), run.config.likelihood.split
    if run.model.num_classes == 0 or dataset.labels_train is None or dataset.labels_test is None:
        raise ValueError(
            "classification needs a network with classes and labelled data, got a run without; "
            "train one with --config=digits_classes, or set --config.model.num_classes"
        )
    note(f"classify: {split} data, {run.model.num_classes} classes, probability flow")
    x = model_scale_examples(run.config, dataset)
    parts = {"train": [dataset.labels_train], "test": [dataset.labels_test]}
    labels = torch.cat(parts.get(split, parts["train"] + parts["test"]))[: len(x)]
    flow = likelihood_options(run.config) | {"num_diagnostic_samples": 0}
    flow["endpoint"] = dataclasses.replace(flow["endpoint"], moments=run.model.moments)
    found = likelihood.classify(
        run.model, x, log_likelihood=functools.partial(likelihood.log_likelihood, **flow)
    )
    judged = likelihood.judge(found, labels)
    for name in ("accuracy", "negative_log_likelihood", "brier", "calibration_error"):
        estimate = getattr(judged, name)
        print(f"{name:<24}{plus_minus(estimate.value, estimate.standard_error)}")
    print(f"{'calibrated_would_have':<24}{judged.floor:.4f}  (calibration error of perfect probabilities)")
    written = {**dataclasses.asdict(judged), "probabilities": found.probabilities.tolist()}
    written |= {"labels": labels.tolist(), "seconds": found.seconds, "model": run.fingerprint}
    path = directory / f"classification-{split}.json"
    atomic_write(path, json.dumps(written | {"config": run.config.to_dict()}).encode())
    print(f"per example  {path}")
