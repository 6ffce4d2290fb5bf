"""Bayes' rule on the held-out digits: accuracy and calibration of a class-conditional score model.

    python -m benchmarks.classification

A network is trained with the shipped configuration ``digits_classes`` (in runs/digits-classes, reused if it
is there), then every held-out digit is classified by log p(x | k), k = 0 .. 9, with equal priors:

    flow    log p by the probability flow, 16 steps of order 4, one probe; the reference
    bound   the continuous-time variational bound, with the same times and noises in every class; without the
            Gaussian control variate, which is that of each class and so would make their noise differ

"tempered" divides the logarithms by a temperature that is fitted on one half of the examples and judged on
the other, both ways.  The calibration error is to be read against its floor, which it would have on average
if every probability were right.  For comparison: a discriminative classifier of the same training digits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import digits, write_result
from sde_toolkit.config import build_dataset
from sde_toolkit.data import Dataset
from sde_toolkit.likelihood import (
    BoundDraws,
    ClassDensity,
    Classification,
    Endpoint,
    FlowSolver,
    classify,
    continuous_bound,
    fit_temperature,
    judge,
    log_likelihood,
)
from sde_toolkit.metrics import Estimate, digit_features
from sde_toolkit.models import Moments
from sde_toolkit.runs import train_run
from solvers import AB4

WORKDIR = Path("runs/digits-classes")
CONFIG = "digits_classes"
SHARED = {"t_min": 1e-5, "batch_size": 297, "seed": 0}
FLOW = {"divergence": 1, "solver": FlowSolver(AB4, num_steps=16), "num_diagnostic_samples": 0, **SHARED}
BOUND = {"draws": BoundDraws(num_draws=64, control=False), **SHARED}


def densities(moments: Moments | None) -> dict[str, ClassDensity]:
    """Name -> log p(x | k); the flow in coordinates and with a control variate that all classes share."""
    return {
        "bound": functools.partial(continuous_bound, **BOUND),
        "flow": functools.partial(log_likelihood, endpoint=Endpoint(moments=moments), **FLOW),
    }


def cross_tempered(found: Classification, labels: Tensor) -> tuple[Classification, list[float]]:
    """Each half of the examples at the temperature of the other half, and the two temperatures."""
    half = len(labels) // 2
    parts = Classification(found.log_joint[:half]), Classification(found.log_joint[half:])
    fitted = [fit_temperature(parts[1], labels[half:]), fit_temperature(parts[0], labels[:half])]
    scaled = [part.log_joint / value for part, value in zip(parts, fitted, strict=True)]
    return Classification(torch.cat(scaled)), fitted


def bits_per_dim(nats: Tensor, dataset: Dataset) -> Estimate:
    """The mean of -log2 P per dimension with its standard error, under uniform dequantisation."""
    dims = math.prod(dataset.event_shape)
    bits = -(nats / dims + dataset.scaling.log_det_per_dim) / math.log(2)
    return Estimate(float(bits.mean()), float(bits.std()) / math.sqrt(len(bits)), "over examples")


def row(found: Classification, dataset: Dataset) -> dict[str, Any]:
    """All figures of one classification of the held-out examples."""
    labels = dataset.labels_test
    assert labels is not None
    count = found.log_joint.shape[1]
    own = found.log_joint.gather(1, labels[:, None])[:, 0] + math.log(count)
    calibrated, temperatures = cross_tempered(found, labels)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    confusion.index_put_((labels, found.prediction), torch.ones_like(labels), accumulate=True)
    return {
        "judgement": dataclasses.asdict(judge(found, labels)),
        "tempered": dataclasses.asdict(judge(calibrated, labels)),
        "temperatures": temperatures,
        "bits_per_dim_given_class": dataclasses.asdict(bits_per_dim(own, dataset)),
        "bits_per_dim": dataclasses.asdict(bits_per_dim(found.log_joint.logsumexp(1), dataset)),
        "confusion": confusion.tolist(),
        "seconds": digits(found.seconds),
    }


def line(name: str, part: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [
        f"{part[key]['value']:.4f} +- {part[key]['standard_error']:.4f}"
        for key in ("accuracy", "negative_log_likelihood", "brier", "calibration_error")
    ]
    return f"{name:<18}" + "".join(f"{cell:>20}" for cell in cells) + f"{part['floor']:>9.4f}"


def main() -> None:
    """Train or reuse, classify, print, write JSON."""
    torch.set_num_threads(1)
    run = train_run(WORKDIR, CONFIG, {})
    dataset = build_dataset(run.config)
    x, labels = dataset.scaled_test(), dataset.labels_test
    assert labels is not None
    print(f"{len(x)} held-out digits, {run.step} training steps")
    print(f"{'':<18}{'accuracy':>20}{'-log p(y|x), nats':>20}{'Brier':>20}{'calib. error':>20}{'floor':>9}")
    rows: dict[str, Any] = {}
    for name, density in densities(run.model.moments).items():
        rows[name] = row(classify(run.model, x, log_likelihood=density), dataset)
        print(line(name, rows[name]["judgement"]))
        print(line(name + ", tempered", rows[name]["tempered"]), flush=True)
    for name, made in rows.items():
        own, marginal = made["bits_per_dim_given_class"], made["bits_per_dim"]
        print(
            f"{name}: temperatures {', '.join(f'{value:.3g}' for value in made['temperatures'])}; bits/dim "
            f"{own['value']:.4f} +- {own['standard_error']:.4f} given the class, {marginal['value']:.4f} "
            f"without; {made['seconds']:.0f} s"
        )
    rival = judge(Classification(digit_features().logits(x).double()), labels)
    print(line("discriminative", dataclasses.asdict(rival)))
    flow = {**FLOW, "solver": FLOW["solver"].settings}
    settings = {"config": run.config.to_dict(), "steps": run.step, "flow": flow, "bound": BOUND}
    write_result("classification", settings, {**rows, "discriminative": rival})


if __name__ == "__main__":
    main()
