"""A small valid call of every public function and class: where tests of all arguments start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import recipes_guidance
import recipes_interop
import recipes_particles
import recipes_pipelines
import recipes_posteriors
import recipes_score_sde
import recipes_tables
import recipes_tasks
import torch
from recipe_parts import (
    CHAIN,
    CLASSES,
    DRAWS,
    EYE,
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
)
from recipes_data import data_sets
from recipes_methods import methods
from recipes_objectives import more_objectives
from recipes_solvers import solving
from recipes_training import objectives

import sde_toolkit as sde
from sde_toolkit import data, lab, likelihood, metrics, samplers, training


def dequantizer() -> sde.VariationalDequantizer:
    """A small one."""
    return sde.VariationalDequantizer(likelihood.PlaceFlow((2,), width=4), GREY, VP)


def _quick(*args: Any, **options: Any) -> Any:
    return likelihood.values_only(*args, **{"solver": SOLVER, **options})


def _presets() -> dict[str, Recipe]:
    first = {"fixed": the(num_steps=3), "model": the(model=MODEL, num_steps=3), "adaptive": dict}
    return {
        name: Recipe(preset.function, first[preset.kind]) for name, preset in samplers.PRESETS.items()
    } | {
        "adaptive": Recipe(sde.adaptive, the(method=samplers.dopri5().method)),
        "gaussian_residual": Recipe(
            samplers.gaussian_residual, the(model=MODEL, num_steps=3, moments=sde.Moments([0.0, 0.0], EYE))
        ),
        "without_last_draw": Recipe(sde.without_last_draw, the(sampler=samplers.euler_maruyama(3))),
        "predictor_corrector": Recipe(sde.predictor_corrector, the(predictor=samplers.euler_maruyama(3))),
        "guided": Recipe(sde.guided, the(sampler=samplers.ddim(3), scale=1.0)),
        "thresholded": Recipe(
            sde.thresholded, the(sampler=samplers.ddim(3), threshold=sde.StaticThreshold())
        ),
        "Sampler": Recipe(
            sde.Sampler,
            lambda: {f: getattr(samplers.ddim(3), f) for f in ("name", "equation", "method", "num_steps")},
        ),
        "calibrate": Recipe(samplers.calibrate, _calibration),
        "calibrated": Recipe(samplers.calibrated, _calibration),
        "sampled_moments": Recipe(samplers.sampled_moments, the(model=MODEL, num_samples=8, num_steps=2)),
        "Sampler.sample": Recipe(samplers.ddim(2).sample, the(model=MODEL, num_samples=2)),
        "Sampler.prepare": Recipe(samplers.ddim(2).prepare, the(model=MODEL)),
        "PreparedSampler.sample": Recipe(samplers.ddim(2).prepare(MODEL).sample, the(num_samples=2)),
    }


def _calibration() -> dict[str, Any]:
    return {
        "sampler": samplers.ddim(2), "model": MODEL, "num_samples": 4, "sweeps": 1,
        "reference": samplers.ddim(4),
    }  # fmt: skip


def _parts() -> dict[str, Recipe]:
    """What samplers, processes and losses are made of."""
    return {
        "AnnealedLangevin": Recipe(sde.AnnealedLangevin, dict),
        "Langevin": Recipe(sde.Langevin, dict),
        "Restart": Recipe(sde.Restart, the(nsr_min=0.1, nsr_max=1.0)),
        "Karras": Recipe(samplers.grids.Karras, dict),
        "Arctan": Recipe(samplers.grids.Arctan, dict),
        "Leading": Recipe(samplers.grids.Leading, dict),
        "Explicit": Recipe(samplers.grids.Explicit, the(ts=[1.0, 0.5, 0.0])),
        "ClassifierFreeGuidance": Recipe(sde.ClassifierFreeGuidance, the(scale=1.0)),
        "DynamicThreshold": Recipe(sde.DynamicThreshold, dict),
        "StaticThreshold": Recipe(sde.StaticThreshold, dict),
        "Chain": Recipe(sde.Chain, the(alphas=CHAIN.alphas, sigmas=CHAIN.sigmas, times=CHAIN.times)),
        "Chain.from_betas": Recipe(sde.Chain.from_betas, the(betas=torch.full((5,), 0.1))),
        "Chain.first": Recipe(CHAIN.first, the(num_steps=3)),
        "Chain.q_sample": Recipe(CHAIN.q_sample, the(x0=X, i=3, z=X)),
        "ChainSDE": Recipe(sde.ChainSDE, the(chain=CHAIN)),
        "CosineBeta": Recipe(sde.CosineBeta, dict),
        "LinearBeta": Recipe(sde.LinearBeta, dict),
        "CustomSDE": Recipe(sde.CustomSDE, the(alpha=lambda t: 1 - t, sigma=lambda t: t, T=0.9)),
        "RectifiedFlow": Recipe(sde.RectifiedFlow, dict),
        "SubVPSDE": Recipe(sde.SubVPSDE, dict),
        "VESDE": Recipe(sde.VESDE, dict),
        "VPSDE": Recipe(sde.VPSDE, dict),
        "sde.alpha": Recipe(VP.alpha, the(t=HALF)),
        "sde.sigma": Recipe(VP.sigma, the(t=HALF)),
        "sde.nsr": Recipe(VP.nsr, the(t=HALF)),
        "sde.lam": Recipe(VP.lam, the(t=HALF)),
        "sde.inverse_nsr": Recipe(VP.inverse_nsr, the(nsr=HALF)),
        "sde.perturb": Recipe(VP.perturb, the(x0=X, t=HALF, z=X)),
        "sde.prior_sample": Recipe(VP.prior_sample, the(z=X)),
        "sde.prior_log_prob": Recipe(VP.prior_log_prob, the(x=X)),
        "sde.reverse": Recipe(VP.reverse, the(model=MODEL, eta=1.0)),
        "sde.discretize": Recipe(VP.discretize, the(num_steps=3)),
    }


def _models() -> dict[str, Recipe]:
    made = {
        "ExactModel": Recipe(sde.ExactModel, the(data=NORMAL, sde=VP)),
        "Gaussian": Recipe(sde.Gaussian, the(mean=[0.0, 1.0], covariance=[[1.0, 0.0], [0.0, 1.0]])),
        "GaussianMixture": Recipe(
            sde.GaussianMixture,
            the(weights=[0.5, 0.5], means=[[0.0], [1.0]], covariances=[0.1, 0.2]),
        ),
        "LowRank": Recipe(sde.LowRank, the(axes=[[1.0], [0.0]], variances=[1.0], rest=0.5)),
        "Moments": Recipe(sde.Moments, the(mean=[0.0, 1.0], covariance=[1.0, 2.0])),
        "NetworkModel": Recipe(
            sde.NetworkModel,
            lambda: {"network": network_model().network, "sde": VP, "predicts": "noise", "event_shape": (2,)},
        ),
        "IndexedModel": Recipe(
            sde.IndexedModel,
            lambda: {"network": network_model().network, "chain": CHAIN, "predicts": "noise",
                     "event_shape": (2,)},
        ),
        "MLP": Recipe(sde.MLP, the(event_shape=(2,), width=4, depth=1)),
        "UNet": Recipe(sde.UNet, the(event_shape=(1, 4, 4), channels=(8, 8))),
        "DiT": Recipe(sde.DiT, the(event_shape=(1, 4, 4), width=8, depth=1, num_heads=2)),
        "NCSNpp": Recipe(sde.NCSNpp, the(event_shape=(1, 4, 4), channels=(8, 8), layers_per_block=1)),
        "UNet1D": Recipe(sde.UNet1D, the(event_shape=(1, 4), channels=(8, 8))),
        "Gaussian.sample": Recipe(NORMAL.sample, the(num_samples=3, seed=0)),
        "Gaussian.log_prob": Recipe(NORMAL.log_prob, the(x=X)),
        "network.score": Recipe(network_model().score, the(x_t=X, t=HALF)),
        "network.raw": Recipe(network_model().raw, the(x_t=X, t=HALF)),
        "classes.score": Recipe(CLASSES.score, the(x_t=X, t=HALF, condition=LABELS)),
    }  # fmt: skip
    for name in ("score", "noise", "denoise", "velocity", "raw", "log_prob"):
        made[f"model.{name}"] = Recipe(getattr(MODEL, name), the(x_t=X, t=HALF))
    return made


def _likelihoods() -> dict[str, Recipe]:
    found = likelihood.classify(CLASSES, X, log_likelihood=_quick)
    flow = {"model": MODEL, "x": X}
    return {
        "BoundDraws": Recipe(sde.BoundDraws, the(num_draws=4)),
        "Classification": Recipe(sde.Classification, the(log_joint=found.log_joint)),
        "Endpoint": Recipe(sde.Endpoint, dict),
        "ExactDivergence": Recipe(sde.ExactDivergence, dict),
        "FlowSolver": Recipe(sde.FlowSolver, dict),
        "HutchPlusPlus": Recipe(sde.HutchPlusPlus, dict),
        "Hutchinson": Recipe(sde.Hutchinson, dict),
        "PlaceFlow": Recipe(likelihood.PlaceFlow, the(event_shape=(2,), width=4)),
        "TruncatedNormalDequantizer": Recipe(sde.TruncatedNormalDequantizer, the(scaling=GREY, sde=VP)),
        "UniformDequantizer": Recipe(sde.UniformDequantizer, the(scaling=GREY, sde=VP)),
        "VariationalDequantizer": Recipe(
            sde.VariationalDequantizer,
            lambda: {"flow": likelihood.PlaceFlow((2,), width=4), "scaling": GREY, "sde": VP},
        ),
        "classify": Recipe(likelihood.classify, the(model=CLASSES, x=X, log_likelihood=_quick)),
        "continuous_bound": Recipe(likelihood.continuous_bound, the(model=MODEL, x0=X, draws=DRAWS)),
        "decode": Recipe(sde.decode, the(model=MODEL, z=X, solver=SOLVER)),
        "differentiable_log_likelihood": Recipe(sde.differentiable_log_likelihood, the(**flow)),
        "discrete_bound": Recipe(
            sde.discrete_bound, the(model=MODEL, x0=X, chain=CHAIN, draws=DRAWS)
        ),
        "discrete_log_likelihood": Recipe(
            sde.discrete_log_likelihood,
            lambda: {"model": MODEL, "values": LEVELS, "log_likelihood": _quick,
                     "dequantizer": sde.UniformDequantizer(GREY, VP)},
        ),
        "encode": Recipe(sde.encode, the(**flow, solver=SOLVER)),
        "fit_temperature": Recipe(sde.fit_temperature, the(found=found, labels=LABELS)),
        "interpolate": Recipe(sde.interpolate, the(z_a=X, z_b=X + 1, weights=[0.0, 0.5, 1.0])),
        "interpolate_data": Recipe(
            sde.interpolate_data,
            the(model=MODEL, x_a=X, x_b=X + 1, weights=[0.5], solver=SOLVER, t_end=0.5),
        ),
        "judge": Recipe(likelihood.judge, the(found=found, labels=LABELS)),
        "chosen_divergence": Recipe(likelihood.chosen_divergence, the(divergence=2, num_features=2)),
        "LikelihoodCost": Recipe(
            likelihood.LikelihoodCost, the(num_samples=3, nfe=4, products=2, adds_probes=False)
        ),
        "likelihood_cost": Recipe(sde.likelihood_cost, the(**flow, solver=SOLVER)),
        "log_likelihood": Recipe(sde.log_likelihood, the(**flow, solver=SOLVER)),
        "tempered": Recipe(likelihood.tempered, the(found=found, temperature=2.0)),
        "train_dequantizer": Recipe(
            sde.train_dequantizer,
            lambda: {"dequantizer": dequantizer(), "model": MODEL, "values": LEVELS, "num_steps": 1,
                     "batch_size": 2},
        ),
    }  # fmt: skip


def _data(folder: Path) -> dict[str, Recipe]:
    few = {"num_train": 8, "num_test": 4}
    np.save(folder / "points.npy", X.numpy())
    return {
        "Dataset": Recipe(sde.Dataset, the(name="mine", train=X, test=X[:2])),
        "ImageOptions": Recipe(sde.ImageOptions, dict),
        "Scaling": Recipe(sde.Scaling, the(scale=torch.ones(()), shift=torch.zeros(()))),
        "Support": Recipe(data.Support, the(low=0.0)),
        "Support.of_text": Recipe(data.Support.of_text, the(text="0:1")),
        "Scaling.grey": Recipe(data.Scaling.grey, the(levels=8)),
        "checkerboard": Recipe(data.checkerboard, the(**few)),
        "digits": Recipe(sde.digits, dict),
        "estimate_moments": Recipe(sde.estimate_moments, the(x=X)),
        "from_array": Recipe(sde.from_array, the(x=X)),
        "gaussian_mixture": Recipe(data.gaussian_mixture, the(means=X[:2], std=0.1, **few)),
        "moons": Recipe(data.moons, the(**few)),
        "open_data": Recipe(sde.open_data, the(source=folder / "points.npy", held_out=0.5)),
        "ring": Recipe(data.ring, the(**few)),
        "swissroll": Recipe(data.swissroll, the(**few)),
    }


def _training(folder: Path) -> dict[str, Recipe]:
    model = sde.save_model(network_model(), folder / "model.safetensors")
    return {
        "ChainLoss": Recipe(sde.ChainLoss, the(chain=CHAIN)),
        "DenoisingLoss": Recipe(sde.DenoisingLoss, dict),
        "EDMWeight": Recipe(training.EDMWeight, dict),
        "LogNormal": Recipe(training.LogNormal, dict),
        "LogitNormalWeight": Recipe(training.LogitNormalWeight, dict),
        "MinSNR": Recipe(training.MinSNR, dict),
        "P2": Recipe(training.P2, dict),
        "SigmoidWeight": Recipe(training.SigmoidWeight, dict),
        "SoftMinSNR": Recipe(training.SoftMinSNR, dict),
        "logit_normal": Recipe(training.logit_normal, dict),
        "Optimization": Recipe(sde.Optimization, dict),
        "Parallel": Recipe(training.Parallel, dict),
        "TrainState": Recipe(sde.TrainState, lambda: {"model": network_model()}),
        "fit": Recipe(
            sde.fit,
            lambda: {"state": sde.TrainState(network_model()), "dataset": POINTS, "num_steps": 1,
                     "loss": sde.DenoisingLoss(), "batch_size": 4},
        ),
        "load_model": Recipe(sde.load_model, the(path=model)),
        "open_run": Recipe(sde.open_run, the(workdir=folder)),
        "open_shipped": Recipe(sde.open_shipped, dict),
        "save_model": Recipe(
            sde.save_model, lambda: {"model": network_model(), "path": folder / "other.safetensors"}
        ),
    }  # fmt: skip


def _metrics() -> dict[str, Recipe]:
    two, estimate = {"x": X, "y": X + 1}, metrics.Estimate.from_replicates([0.0] * 21)
    return {
        "ClassifierTest": Recipe(metrics.ClassifierTest, dict),
        "FlowError": Recipe(metrics.FlowError, dict),
        "KernelInceptionDistance": Recipe(metrics.KernelInceptionDistance, dict),
        "MMD": Recipe(metrics.MMD, dict),
        "ModeCoverage": Recipe(metrics.ModeCoverage, the(mixture=MIXTURE)),
        "ModuleFeatures": Recipe(metrics.ModuleFeatures, the(features=torch.tanh)),
        "NegativeLogLikelihood": Recipe(metrics.NegativeLogLikelihood, the(log_density=MIXTURE.log_prob)),
        "NeighbourMetric": Recipe(metrics.NeighbourMetric, the(measure="density")),
        "OnFeatures": Recipe(metrics.OnFeatures, the(features=torch.abs, distance=metrics.MMD())),
        "SlicedWasserstein": Recipe(metrics.SlicedWasserstein, dict),
        "Estimate.from_replicates": Recipe(metrics.Estimate.from_replicates, the(replicates=[0.0] * 21)),
        "Estimate.interval": Recipe(metrics.Estimate(0.0, 1.0, "by hand").interval, dict),
        "VendiScore": Recipe(metrics.VendiScore, dict),
        "Wasserstein": Recipe(metrics.Wasserstein, dict),
        "bootstrap": Recipe(
            metrics.bootstrap,
            the(
                distance=sde.energy_distance,
                x=torch.cat([X, X + 2]),
                y=torch.cat([X, X + 1]),
                num_resamples=20,
            ),
        ),
        "difference": Recipe(metrics.difference, the(a=estimate, b=estimate)),
        "energy_distance": Recipe(sde.energy_distance, the(**two)),
        "feature_extractor": Recipe(metrics.feature_extractor, the(features=torch.tanh)),
        "frechet_distance": Recipe(sde.frechet_distance, the(features_x=X, features_y=X + 1)),
        "gaussian_w2": Recipe(metrics.gaussian_w2, the(mean0=X[0], cov0=EYE, mean1=X[1], cov1=EYE)),
        "metric": Recipe(metrics.metric, the(name="energy")),
        "mmd": Recipe(sde.mmd, the(**two)),
        "over_seeds": Recipe(metrics.over_seeds, the(values=[1.0, 2.0])),
        "pooled": Recipe(metrics.pooled, the(estimates=[estimate, estimate])),
        "sliced_wasserstein": Recipe(sde.sliced_wasserstein, the(**two, num_projections=4)),
    }


def _lab(folder: Path) -> dict[str, Recipe]:
    """Those of the experiment."""
    estimate = metrics.Estimate(0.5, 0.1, "by hand")
    one = lab.Record("a", 1, 1.0, "m", 0.5, 0.1, 0.1, 10, (0,), {}, estimates=(estimate,))
    other = replace(one, sampler="b")
    store = lab.Store(folder / "records.sqlite")
    store.add([one])
    problem = lab.Problem("normal", MODEL, X)
    candidate = lab.Candidate.of("ddim", samplers.ddim(2))
    metric = lab.Metric("energy", metrics.EnergyDistance(), X.repeat(4, 1))
    group = lab.Group(problem, [candidate], [metric])
    experiment = lab.Experiment([group], 20)
    return {
        "Store": Recipe(lab.Store, the(path=folder / "new.sqlite")),
        "Store.merge": Recipe(store.merge, the(other=folder / "records.sqlite")),
        "lab.Experiment": Recipe(lab.Experiment, the(groups=[group], num_samples=20)),
        "lab.Experiment.cells": Recipe(experiment.cells, the(store=store)),
        "lab.Experiment.run": Recipe(experiment.run, dict),
        "lab.FlowEnds": Recipe(lab.FlowEnds, the(model=MODEL)),
        "lab.FlowMetric": Recipe(
            lab.FlowMetric,
            the(name="flow error", distance=metrics.FlowError(), ends=lab.FlowEnds(MODEL)),
        ),
        "lab.GaussianMetric": Recipe(
            lab.GaussianMetric, the(name="W2", distance=metrics.gaussian_w2, model=MODEL)
        ),
        "lab.gaussian_kl": Recipe(lab.gaussian_kl, the(mean0=X[0], cov0=EYE, mean1=X[1], cov1=EYE)),
        "lab.gaussian_output": Recipe(lab.gaussian_output, the(sampler=samplers.ddim(2), model=MODEL)),
        "lab.Group": Recipe(lab.Group, the(problem=problem, candidates=[candidate], metrics=[metric])),
        "lab.NamedCondition": Recipe(lab.NamedCondition, the(name="bright", value=X[0])),
        "lab.Metric": Recipe(lab.Metric, the(name="energy", distance=metrics.EnergyDistance(), real=X)),
        "lab.Problem": Recipe(lab.Problem, the(name="normal", model=MODEL, real=X)),
        "lab.exact_problem": Recipe(lab.exact_problem, the(name="gaussian", sde=VP, num_real=10)),
        "lab.export_records": Recipe(
            lab.export_records, the(path=folder / "records.csv", records=[one, other])
        ),
        "lab.Recorder": Recipe(lab.Recorder, the(num_frames=3, most_samples=4)),
        "lab.forward_trajectory": Recipe(lab.forward_trajectory, the(sde=VP, x0=X, times=[0.1, 0.5], seed=0)),
        "lab.write_animation": Recipe(
            lab.write_animation, the(path=folder / "a.gif", frames={"a": ((1.0,), np.zeros((1, 4, 2)))})
        ),
        "lab.write_papers": Recipe(
            lab.write_papers, the(directory=folder / "papers", records=[one, other], formats=["latex"])
        ),
        "lab.paired_difference": Recipe(lab.paired_difference, the(a=one, b=other)),
    }


def recipes(folder: Path) -> dict[str, Recipe]:
    """Recipes by name; files lie in ``folder``."""
    return (
        _presets()
        | _parts()
        | _models()
        | _likelihoods()
        | _data(folder)
        | {name: Recipe(*recipe) for name, recipe in data_sets().items()}
        | _training(folder)
        | _metrics()
        | _lab(folder)
        | methods(folder)
        | {name: Recipe(*recipe) for name, recipe in solving().items()}
        | {name: Recipe(*recipe) for name, recipe in objectives().items()}
        | {name: Recipe(*recipe) for name, recipe in more_objectives().items()}
        | {name: Recipe(*parts) for name, parts in recipes_guidance.guides().items()}
        | {name: Recipe(*parts) for name, parts in recipes_particles.particles().items()}
        | {name: Recipe(*parts) for name, parts in recipes_posteriors.posteriors().items()}
        | {name: Recipe(*parts) for name, parts in recipes_tables.tables().items()}
        | {name: Recipe(*parts) for name, parts in recipes_tasks.tasks().items()}
        | {name: Recipe(*parts) for name, parts in recipes_interop.interops().items()}
        | {name: Recipe(*parts) for name, parts in recipes_score_sde.score_sde(folder).items()}
        | {name: Recipe(*parts) for name, parts in recipes_pipelines.pipelines().items()}
    )
