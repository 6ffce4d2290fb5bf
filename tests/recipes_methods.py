"""A small valid call of the methods of public classes, in the form of ``recipes``."""

from __future__ import annotations

from pathlib import Path

import torch
from recipe_parts import (
    CHAIN,
    CLASSES,
    GREY,
    HALF,
    LABELS,
    LEVELS,
    MIXTURE,
    MODEL,
    NORMAL,
    POINTS,
    SOLVER,
    VP,
    Recipe,
    X,
    network_model,
    the,
    with_snapshots,
)

import sde_toolkit as sde
from sde_toolkit import data, lab, likelihood, metrics, samplers, training


def methods(folder: Path) -> dict[str, Recipe]:
    """Methods of the public classes."""
    labelled = sde.from_array(X, labels=LABELS)
    found = likelihood.values_only(MODEL, X, solver=SOLVER, divergence=2)
    moments, chain, loss = MODEL.moments, {"i": 3, "z": X}, sde.DenoisingLoss()
    model, generator = network_model(), torch.Generator()
    line = {"sde": VP, "num_steps": 3, "t_min": 0.01}
    return {
        "Chain.ancestral_step": Recipe(CHAIN.ancestral_step, the(x0_hat=X, x_i=X, **chain)),
        "Chain.q_marginal": Recipe(CHAIN.q_marginal, the(x0=X, i=3)),
        "Chain.q_posterior": Recipe(CHAIN.q_posterior, the(x0=X, x_i=X, i=3)),
        "Dataset.batch": Recipe(labelled.batch, the(step=0, batch_size=2, seed=0)),
        "Dataset.batch_labels": Recipe(labelled.batch_labels, the(step=0, batch_size=2, seed=0)),
        "Dataset.scaled_test": Recipe(labelled.scaled_test, the(seed=0)),
        "ExactModel.flow": Recipe(MODEL.flow, the(x_t=X, t=HALF, s=torch.tensor(0.25))),
        "ExactModel.given": Recipe(CLASSES.given, the(label=0)),
        "Gaussian.flow": Recipe(NORMAL.flow, the(y=X, nsr_t=HALF, nsr_s=HALF)),
        "GaussianMixture.component": Recipe(MIXTURE.component, the(label=0)),
        "LogLikelihood.interval": Recipe(found.interval, dict),
        "Moments.embed": Recipe(moments.embed, the(r=X)),
        "Moments.low_rank": Recipe(moments.low_rank, the(rank=1)),
        "Moments.marginal_sample": Recipe(
            moments.marginal_sample, the(z=X, alpha_t=HALF, sigma_t=torch.tensor(0.5))
        ),
        "Moments.project": Recipe(moments.project, the(y=X)),
        "NetworkModel.given": Recipe(
            sde.NetworkModel(sde.MLP((2,), width=4, depth=1, num_classes=2), VP, "noise", (2,)).given,
            the(condition=1),
        ),
        "NetworkModel.set_moments": Recipe(model.set_moments, the(moments=None)),
        "NetworkModel.with_network": Recipe(model.with_network, the(network=model.network)),
        "Support": Recipe(data.Support, the(low=0.0)),
        "Support.of_text": Recipe(data.Support.of_text, the(text="0:1")),
        "Support.to_line": Recipe(data.Support().to_line, the(w=X)),
        "Support.from_line": Recipe(data.Support().from_line, the(y=X)),
        "Support.inside": Recipe(data.Support().inside, the(w=X)),
        "Support.log_slope": Recipe(data.Support().log_slope, the(y=X)),
        "Scaling.log_det": Recipe(GREY.log_det, the(x=X)),
        "Scaling.dequantize": Recipe(GREY.dequantize, the(v=LEVELS, u=torch.full((6, 2), 0.5))),
        "Scaling.from_model": Recipe(GREY.from_model, the(x=X)),
        "Scaling.standard": Recipe(data.Scaling.standard, the(w=X)),
        "Scaling.to_data": Recipe(GREY.to_data, the(x=X)),
        "Scaling.to_levels": Recipe(GREY.to_levels, the(x=X)),
        "Scaling.to_model": Recipe(GREY.to_model, the(w=X)),
        "compare": Recipe(
            lab.compare,
            lambda: {"model": MODEL, "candidates": [lab.Candidate.of("ddim", samplers.ddim(2))],
                     "metrics": [lab.Metric("energy", metrics.EnergyDistance(), X.repeat(4, 1))],
                     "num_samples": 20},
        ),
        "grids.cosine": Recipe(samplers.grids.cosine, the(**line)),
        "grids.karras": Recipe(samplers.grids.karras, the(**line)),
        "grids.log_snr": Recipe(samplers.grids.log_snr, the(**line)),
        "grids.trailing": Recipe(samplers.grids.trailing, the(**line)),
        "grids.uniform": Recipe(samplers.grids.uniform, the(**line)),
        "loss": Recipe(loss, the(model=model, x0=X, generator=generator)),
        "training.held_out_loss": Recipe(
            training.held_out_loss, lambda: {"model": network_model(), "dataset": POINTS, "loss": loss}
        ),
        "training.Evaluation": Recipe(
            training.Evaluation,
            lambda: {"state": sde.TrainState(network_model()), "dataset": POINTS, "loss": loss, "every": 2},
        ),
        "training.loss_by_level": Recipe(
            training.loss_by_level, lambda: {"model": network_model(), "dataset": POINTS, "num_bins": 2}
        ),
        "training.reconstruct": Recipe(
            training.reconstruct, the(workdir=with_snapshots(folder / "snapshots"), sigma_rel=(0.05, 0.1))
        ),
        "training.latest_checkpoint": Recipe(training.latest_checkpoint, the(workdir=folder)),
        "training.train_step": Recipe(
            training.train_step, lambda: {"state": sde.TrainState(network_model()), "x0": X, "loss": loss}
        ),
    }  # fmt: skip
