"""MNIST from end to end: samples of every class, likelihoods, Bayes' rule, samplers on the shipped network.

    python -m benchmarks mnist
    python -m benchmarks.mnist [PART ...] [--workdir=PATH]

The network is the checkpoint ``mnist`` of the package (``sde_toolkit/config/configs/mnist.py``), or the run
in ``--workdir``.  The 500 held-out images chose nothing: what was chosen was judged on 450 of the others, by
networks that had not seen them.

samples      docs/mnist-samples.png: ten images of every class, 20 evaluations of the default sampler
frechet      distance of 500 samples, the classes as often as held out, from the held-out images on the 48
             features of a small classifier that is trained on the same 4500 images, like that of the digits,
             and the share of the samples that it gives their own class; beside 500 of the training images
flow         error of the probability flow against the network's own at equal evaluations, without a class:
             the Gaussian-residual sampler, and the best of our other presets and of diffusers' schedulers
             under every grid, chosen on 6 starts and judged on 16 fresh ones (``benchmarks.of_networks``)
likelihood   log p of 32 held-out images given their class, with the error budget
bayes        accuracy of Bayes' rule on 100 held-out images: log p by the flow, 16 steps of order 4, one probe
             and coordinates that all classes share

Bits per dimension are those of 8-bit levels under uniform dequantisation.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.of_networks import (
    FINALISTS,
    FIRST,
    SECOND_ROUND,
    competitors,
    flow,
    keep,
    kept,
    likelihood,
)
from benchmarks.peers.flow import EVALUATIONS
from benchmarks.record import RESULTS, digits, write_result
from sde_toolkit.data import Dataset
from sde_toolkit.lab.drawing.pictures import tile
from sde_toolkit.likelihood import Endpoint, FlowSolver, classify, judge, log_likelihood
from sde_toolkit.metrics import FrechetDistance, OnFeatures, bootstrap
from sde_toolkit.metrics.features import RECIPE, FeatureExtractor, train
from sde_toolkit.models import NetworkModel
from sde_toolkit.runs import Run, open_run, open_shipped
from sde_toolkit.samplers import default
from sde_toolkit.utils import atomic_write
from solvers import AB4

FIGURE = RESULTS.parent.parent / "docs" / "mnist-samples.png"
POINTS, SEED, SCREEN_POINTS, SCREEN_SEED = 16, 71, 6, 70
PER_CLASS, SAMPLE_SEED, SAMPLE_STEPS, ZOOM = 10, 72, 20, 2
TOLERANCES = (1e-6, 1e-5)
NUM_LIKELIHOOD, NUM_BAYES, LIKELIHOOD_STEPS, BAYES_STEPS = 32, 100, 24, 16


def features(dataset: Dataset) -> FeatureExtractor:
    """A classifier like that of the digits, trained on the training images."""
    size, height, width = dataset.event_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPE.seed)
        network = nn.Sequential(
            nn.Conv2d(size, 16, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * math.ceil(height / 4) * math.ceil(width / 4), RECIPE.num_features),
            nn.GELU(),
            nn.Linear(RECIPE.num_features, 10),
        )
    train(network, dataset, RECIPE)
    return FeatureExtractor(network[:-1], network[-1], dataset.scaling, dataset.event_shape)


def sample_grid(run: Run, path: Path = FIGURE) -> dict[str, Any]:
    """The picture of samples, a row for every class."""
    labels = torch.arange(10).repeat_interleave(PER_CLASS)
    found = default(run.model, SAMPLE_STEPS).sample(
        run.model, len(labels), seed=SAMPLE_SEED, condition=labels
    )
    ink = tile((0.5 * found.x.float() + 0.5).numpy(), PER_CLASS)
    stream = io.BytesIO()
    picture = Image.fromarray(np.uint8(np.round(255 * (1 - ink))))
    picture = picture.resize([ZOOM * side for side in picture.size], Image.Resampling.NEAREST)
    picture.save(stream, format="PNG", optimize=True)
    atomic_write(path, stream.getvalue())
    return {"samples": len(labels), "evaluations": found.nfe, "seconds": digits(found.seconds)}


def frechet(run: Run, batch: int = 100) -> dict[str, Any]:
    """Distances on the classifier's features, and what it calls the samples."""
    dataset, model = run.dataset(), run.model
    labels = dataset.labels_test
    assert labels is not None
    phi, real = features(dataset), dataset.scaled_test()
    sampler, parts = default(model, SAMPLE_STEPS), []
    for first in range(0, len(real), batch):
        part = labels[first : first + batch]
        found = sampler.sample(model, len(part), seed=SAMPLE_SEED, condition=part, first_sample=first)
        parts.append(found.x)
    x, distance = torch.cat(parts), OnFeatures(phi, FrechetDistance())
    rows = {"samples": x, "training images": dataset.scaled_train()[: len(real)]}
    result: dict[str, Any] = {}
    for name, rival in rows.items():
        found = bootstrap(distance, rival, real)
        result[name] = {"value": digits(found.value), "standard error": digits(found.standard_error)}
        print(f"   Frechet distance of {len(rival)} {name}: {found.value:.3f} +- {found.standard_error:.3f}")
    result["accuracy of the classifier"] = digits(float((phi.predict(real) == labels).double().mean()))
    result["samples of their own class"] = digits(float((phi.predict(x) == labels).double().mean()))
    print(f"   {result}", flush=True)
    return result


def flow_errors(run: Run) -> dict[str, Any]:
    """Errors of the Gaussian-residual sampler and of the best others, and their ratios."""
    model = run.model
    assert isinstance(model, NetworkModel)
    assert model.moments is not None
    table = {"gaussian_residual": model.moments, "variances alone": model.moments.diagonal()}
    found = flow(
        "mnist", model, table, competitors(), POINTS, SCREEN_POINTS, SEED, SCREEN_SEED, rtol=TOLERANCES
    )
    best = [min(row["error"] for row in column) for column in zip(*found["best"].values(), strict=True)]
    ratios = [own / other for own, other in zip(found["errors"]["gaussian_residual"], best, strict=True)]
    print("   over the best of the others: " + ", ".join(f"{ratio:.3g}" for ratio in ratios), flush=True)
    return found | {"ratio": [digits(ratio) for ratio in ratios]}


def likelihoods(run: Run) -> dict[str, Any]:
    """Bits per dimension of held-out images given their class."""
    dataset, model = run.dataset(), run.model
    labels = dataset.labels_test
    assert labels is not None
    assert model.moments is not None
    row = likelihood(
        model, dataset.scaled_test()[:NUM_LIKELIHOOD], dataset.scaling.log_det_per_dim, model.moments,
        condition=labels[:NUM_LIKELIHOOD], solver=FlowSolver(AB4, num_steps=LIKELIHOOD_STEPS),
    )  # fmt: skip
    print(f"   {row['bits/dim']} +- {row['standard error of the mean']} bits/dim, {row['seconds']} s")
    for line in row["budget"]:
        print(f"      {line}", flush=True)
    return row


def bayes(run: Run) -> dict[str, Any]:
    """Accuracy and calibration of Bayes' rule."""
    dataset, model = run.dataset(), run.model
    assert dataset.labels_test is not None
    density = functools.partial(
        log_likelihood, endpoint=Endpoint(moments=model.moments), divergence=1,
        solver=FlowSolver(AB4, num_steps=BAYES_STEPS), num_diagnostic_samples=0,
    )  # fmt: skip
    found = classify(model, dataset.scaled_test()[:NUM_BAYES], log_likelihood=density)
    judged = judge(found, dataset.labels_test[:NUM_BAYES])
    value, error = judged.accuracy.value, judged.accuracy.standard_error
    print(f"   accuracy {value:.3f} +- {error:.3f} on {NUM_BAYES}", flush=True)
    return {"images": NUM_BAYES, "seconds": digits(found.seconds), **dataclasses.asdict(judged)}


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "samples": sample_grid,
    "frechet": frechet,
    "flow": flow_errors,
    "likelihood": likelihoods,
    "bayes": bayes,
}


def main(arguments: Sequence[str] = ()) -> None:
    """Measure the parts that are named, all by default, print and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--workdir", type=Path, help="of another run than the shipped checkpoint")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)
    run = open_shipped("mnist") if options.workdir is None else open_run(options.workdir)
    path = (options.workdir or Path("runs/mnist-benchmark")) / "mnist.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = kept(path, run.fingerprint)
    settings = {
        "parameters": sum(p.numel() for p in run.model.parameters()), "updates": run.step,
        "config": run.config.to_dict(), "evaluations": EVALUATIONS, "points": POINTS, "seed": SEED,
        "screen": SCREEN_POINTS, "seed of the screen": SCREEN_SEED, "first round": FIRST,
        "second round": SECOND_ROUND, "finalists": FINALISTS, "rtol": TOLERANCES,
        "steps of samples": SAMPLE_STEPS,
        "seed of samples": SAMPLE_SEED, "steps of likelihoods": LIKELIHOOD_STEPS,
        "steps of Bayes' rule": BAYES_STEPS,
    }  # fmt: skip
    for name in options.parts or [name for name in PARTS if name not in done]:
        print(f"   {name}", flush=True)
        done[name] = PARTS[name](run)
        keep(path, run.fingerprint, done)
        write_result("mnist", settings, {name: done[name] for name in PARTS if name in done})


if __name__ == "__main__":
    main(sys.argv[1:])
