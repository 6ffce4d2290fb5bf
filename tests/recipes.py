"""A small valid call of every public function and class: where tests of all arguments start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import recipes_tables
import torch
from recipes_data import data_sets
from recipes_training import objectives

import sde_toolkit as sde
import solvers
from sde_toolkit import data, lab, likelihood, metrics, samplers, training

VP = sde.VPSDE()
NORMAL = sde.Gaussian(torch.zeros(2), torch.eye(2))
MIXTURE = sde.GaussianMixture([0.5, 0.5], torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), [0.1, 0.2])
MODEL, CLASSES = sde.ExactModel(NORMAL, VP), sde.ExactModel(MIXTURE, VP)
CHAIN = VP.discretize(10)
X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
LEVELS, LABELS = torch.arange(12).reshape(6, 2) % 8, torch.tensor([0, 1, 0, 1, 0, 1])
EYE, HALF = torch.eye(2, dtype=torch.float64), torch.tensor(0.5)
GREY = data.Scaling.grey(8)
POINTS = sde.from_array(torch.arange(80.0).reshape(40, 2).sin(), dtype=torch.float64)
SOLVER = sde.FlowSolver(rtol=1e-2, atol=1e-2)
DRAWS = sde.BoundDraws(num_draws=2)

Maker = Callable[[], dict[str, Any]]


class Recipe(NamedTuple):
    """A call that works: what is called, and its arguments by name, made afresh for every call."""

    call: Callable[..., Any]
    arguments: Maker


def network_model() -> sde.NetworkModel:
    """A small network for vectors, in float64."""
    network = sde.MLP((2,), width=4, depth=1, num_frequencies=2).double()
    return sde.NetworkModel(network, VP, "noise", (2,))


def dequantizer() -> sde.VariationalDequantizer:
    """A small one."""
    return sde.VariationalDequantizer(likelihood.PlaceFlow((2,), width=4), GREY, VP)


def _quick(*args: Any, **options: Any) -> Any:
    return likelihood.values_only(*args, **{"solver": SOLVER, **options})


def _the(**arguments: Any) -> Maker:
    return lambda: dict(arguments)


def _presets() -> dict[str, Recipe]:
    first = {"fixed": _the(num_steps=3), "model": _the(model=MODEL, num_steps=3), "adaptive": dict}
    return {
        name: Recipe(preset.function, first[preset.kind]) for name, preset in samplers.PRESETS.items()
    } | {
        "adaptive": Recipe(sde.adaptive, _the(method=samplers.dopri5().method)),
        "gaussian_residual": Recipe(
            samplers.gaussian_residual, _the(model=MODEL, num_steps=3, moments=sde.Moments([0.0, 0.0], EYE))
        ),
        "without_last_draw": Recipe(sde.without_last_draw, _the(sampler=samplers.euler_maruyama(3))),
        "predictor_corrector": Recipe(sde.predictor_corrector, _the(predictor=samplers.euler_maruyama(3))),
        "guided": Recipe(sde.guided, _the(sampler=samplers.ddim(3), scale=1.0)),
        "thresholded": Recipe(
            sde.thresholded, _the(sampler=samplers.ddim(3), threshold=sde.StaticThreshold())
        ),
        "Sampler": Recipe(
            sde.Sampler,
            lambda: {f: getattr(samplers.ddim(3), f) for f in ("name", "equation", "method", "num_steps")},
        ),
        "calibrate": Recipe(samplers.calibrate, _calibration),
        "calibrated": Recipe(samplers.calibrated, _calibration),
        "sampled_moments": Recipe(samplers.sampled_moments, _the(model=MODEL, num_samples=8, num_steps=2)),
        "Sampler.sample": Recipe(samplers.ddim(2).sample, _the(model=MODEL, num_samples=2)),
        "Sampler.prepare": Recipe(samplers.ddim(2).prepare, _the(model=MODEL)),
        "PreparedSampler.sample": Recipe(samplers.ddim(2).prepare(MODEL).sample, _the(num_samples=2)),
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
        "Restart": Recipe(sde.Restart, _the(nsr_min=0.1, nsr_max=1.0)),
        "Karras": Recipe(samplers.grids.Karras, dict),
        "Arctan": Recipe(samplers.grids.Arctan, dict),
        "Leading": Recipe(samplers.grids.Leading, dict),
        "Explicit": Recipe(samplers.grids.Explicit, _the(ts=[1.0, 0.5, 0.0])),
        "ClassifierFreeGuidance": Recipe(sde.ClassifierFreeGuidance, _the(scale=1.0)),
        "DynamicThreshold": Recipe(sde.DynamicThreshold, dict),
        "StaticThreshold": Recipe(sde.StaticThreshold, dict),
        "Chain": Recipe(sde.Chain, _the(alphas=CHAIN.alphas, sigmas=CHAIN.sigmas, times=CHAIN.times)),
        "Chain.from_betas": Recipe(sde.Chain.from_betas, _the(betas=torch.full((5,), 0.1))),
        "Chain.first": Recipe(CHAIN.first, _the(num_steps=3)),
        "Chain.q_sample": Recipe(CHAIN.q_sample, _the(x0=X, i=3, z=X)),
        "ChainSDE": Recipe(sde.ChainSDE, _the(chain=CHAIN)),
        "CosineBeta": Recipe(sde.CosineBeta, dict),
        "LinearBeta": Recipe(sde.LinearBeta, dict),
        "CustomSDE": Recipe(sde.CustomSDE, _the(alpha=lambda t: 1 - t, sigma=lambda t: t, T=0.9)),
        "RectifiedFlow": Recipe(sde.RectifiedFlow, dict),
        "SubVPSDE": Recipe(sde.SubVPSDE, dict),
        "VESDE": Recipe(sde.VESDE, dict),
        "VPSDE": Recipe(sde.VPSDE, dict),
        "sde.alpha": Recipe(VP.alpha, _the(t=HALF)),
        "sde.sigma": Recipe(VP.sigma, _the(t=HALF)),
        "sde.nsr": Recipe(VP.nsr, _the(t=HALF)),
        "sde.lam": Recipe(VP.lam, _the(t=HALF)),
        "sde.inverse_nsr": Recipe(VP.inverse_nsr, _the(nsr=HALF)),
        "sde.perturb": Recipe(VP.perturb, _the(x0=X, t=HALF, z=X)),
        "sde.prior_sample": Recipe(VP.prior_sample, _the(z=X)),
        "sde.prior_log_prob": Recipe(VP.prior_log_prob, _the(x=X)),
        "sde.reverse": Recipe(VP.reverse, _the(model=MODEL, eta=1.0)),
        "sde.discretize": Recipe(VP.discretize, _the(num_steps=3)),
    }


def _models() -> dict[str, Recipe]:
    made = {
        "ExactModel": Recipe(sde.ExactModel, _the(data=NORMAL, sde=VP)),
        "Gaussian": Recipe(sde.Gaussian, _the(mean=[0.0, 1.0], covariance=[[1.0, 0.0], [0.0, 1.0]])),
        "GaussianMixture": Recipe(
            sde.GaussianMixture,
            _the(weights=[0.5, 0.5], means=[[0.0], [1.0]], covariances=[0.1, 0.2]),
        ),
        "LowRank": Recipe(sde.LowRank, _the(axes=[[1.0], [0.0]], variances=[1.0], rest=0.5)),
        "Moments": Recipe(sde.Moments, _the(mean=[0.0, 1.0], covariance=[1.0, 2.0])),
        "NetworkModel": Recipe(
            sde.NetworkModel,
            lambda: {"network": network_model().network, "sde": VP, "predicts": "noise", "event_shape": (2,)},
        ),
        "IndexedModel": Recipe(
            sde.IndexedModel,
            lambda: {"network": network_model().network, "chain": CHAIN, "predicts": "noise",
                     "event_shape": (2,)},
        ),
        "MLP": Recipe(sde.MLP, _the(event_shape=(2,), width=4, depth=1)),
        "UNet": Recipe(sde.UNet, _the(event_shape=(1, 4, 4), channels=(8, 8))),
        "DiT": Recipe(sde.DiT, _the(event_shape=(1, 4, 4), width=8, depth=1, num_heads=2)),
        "NCSNpp": Recipe(sde.NCSNpp, _the(event_shape=(1, 4, 4), channels=(8, 8), layers_per_block=1)),
        "UNet1D": Recipe(sde.UNet1D, _the(event_shape=(1, 4), channels=(8, 8))),
        "Gaussian.sample": Recipe(NORMAL.sample, _the(num_samples=3, seed=0)),
        "Gaussian.log_prob": Recipe(NORMAL.log_prob, _the(x=X)),
        "network.score": Recipe(network_model().score, _the(x_t=X, t=HALF)),
        "network.raw": Recipe(network_model().raw, _the(x_t=X, t=HALF)),
        "classes.score": Recipe(CLASSES.score, _the(x_t=X, t=HALF, condition=LABELS)),
    }  # fmt: skip
    for name in ("score", "noise", "denoise", "velocity", "raw", "log_prob"):
        made[f"model.{name}"] = Recipe(getattr(MODEL, name), _the(x_t=X, t=HALF))
    return made


def _likelihoods() -> dict[str, Recipe]:
    found = likelihood.classify(CLASSES, X, log_likelihood=_quick)
    flow = {"model": MODEL, "x": X}
    return {
        "BoundDraws": Recipe(sde.BoundDraws, _the(num_draws=4)),
        "Classification": Recipe(sde.Classification, _the(log_joint=found.log_joint)),
        "Endpoint": Recipe(sde.Endpoint, dict),
        "ExactDivergence": Recipe(sde.ExactDivergence, dict),
        "FlowSolver": Recipe(sde.FlowSolver, dict),
        "HutchPlusPlus": Recipe(sde.HutchPlusPlus, dict),
        "Hutchinson": Recipe(sde.Hutchinson, dict),
        "PlaceFlow": Recipe(likelihood.PlaceFlow, _the(event_shape=(2,), width=4)),
        "TruncatedNormalDequantizer": Recipe(sde.TruncatedNormalDequantizer, _the(scaling=GREY, sde=VP)),
        "UniformDequantizer": Recipe(sde.UniformDequantizer, _the(scaling=GREY, sde=VP)),
        "VariationalDequantizer": Recipe(
            sde.VariationalDequantizer,
            lambda: {"flow": likelihood.PlaceFlow((2,), width=4), "scaling": GREY, "sde": VP},
        ),
        "classify": Recipe(likelihood.classify, _the(model=CLASSES, x=X, log_likelihood=_quick)),
        "continuous_bound": Recipe(likelihood.continuous_bound, _the(model=MODEL, x0=X, draws=DRAWS)),
        "decode": Recipe(sde.decode, _the(model=MODEL, z=X, solver=SOLVER)),
        "differentiable_log_likelihood": Recipe(sde.differentiable_log_likelihood, _the(**flow)),
        "discrete_bound": Recipe(
            sde.discrete_bound, _the(model=MODEL, x0=X, chain=CHAIN, draws=DRAWS)
        ),
        "discrete_log_likelihood": Recipe(
            sde.discrete_log_likelihood,
            lambda: {"model": MODEL, "values": LEVELS, "log_likelihood": _quick,
                     "dequantizer": sde.UniformDequantizer(GREY, VP)},
        ),
        "encode": Recipe(sde.encode, _the(**flow, solver=SOLVER)),
        "fit_temperature": Recipe(sde.fit_temperature, _the(found=found, labels=LABELS)),
        "interpolate": Recipe(sde.interpolate, _the(z_a=X, z_b=X + 1, weights=[0.0, 0.5, 1.0])),
        "judge": Recipe(likelihood.judge, _the(found=found, labels=LABELS)),
        "chosen_divergence": Recipe(likelihood.chosen_divergence, _the(divergence=2, num_features=2)),
        "LikelihoodCost": Recipe(
            likelihood.LikelihoodCost, _the(num_samples=3, nfe=4, products=2, adds_probes=False)
        ),
        "likelihood_cost": Recipe(sde.likelihood_cost, _the(**flow, solver=SOLVER)),
        "log_likelihood": Recipe(sde.log_likelihood, _the(**flow, solver=SOLVER)),
        "tempered": Recipe(likelihood.tempered, _the(found=found, temperature=2.0)),
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
        "Dataset": Recipe(sde.Dataset, _the(name="mine", train=X, test=X[:2])),
        "ImageOptions": Recipe(sde.ImageOptions, dict),
        "Scaling": Recipe(sde.Scaling, _the(scale=torch.ones(()), shift=torch.zeros(()))),
        "Support": Recipe(data.Support, _the(low=0.0)),
        "Support.of_text": Recipe(data.Support.of_text, _the(text="0:1")),
        "Scaling.grey": Recipe(data.Scaling.grey, _the(levels=8)),
        "checkerboard": Recipe(data.checkerboard, _the(**few)),
        "digits": Recipe(sde.digits, dict),
        "estimate_moments": Recipe(sde.estimate_moments, _the(x=X)),
        "from_array": Recipe(sde.from_array, _the(x=X)),
        "gaussian_mixture": Recipe(data.gaussian_mixture, _the(means=X[:2], std=0.1, **few)),
        "moons": Recipe(data.moons, _the(**few)),
        "open_data": Recipe(sde.open_data, _the(source=folder / "points.npy", held_out=0.5)),
        "ring": Recipe(data.ring, _the(**few)),
        "swissroll": Recipe(data.swissroll, _the(**few)),
    }


def _with_snapshots(folder: Path) -> Path:
    """A run with two snapshots."""
    state = sde.TrainState(network_model(), sde.Optimization(ema_traces=(0.05, 0.1)))
    sde.fit(state, POINTS, sde.DenoisingLoss(), 2, 4, folder, snapshot_every=1)
    return folder


def _training(folder: Path) -> dict[str, Recipe]:
    model = sde.save_model(network_model(), folder / "model.safetensors")
    return {
        "ChainLoss": Recipe(sde.ChainLoss, _the(chain=CHAIN)),
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
        "load_model": Recipe(sde.load_model, _the(path=model)),
        "open_run": Recipe(sde.open_run, _the(workdir=folder)),
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
        "ModeCoverage": Recipe(metrics.ModeCoverage, _the(mixture=MIXTURE)),
        "ModuleFeatures": Recipe(metrics.ModuleFeatures, _the(features=torch.tanh)),
        "NegativeLogLikelihood": Recipe(metrics.NegativeLogLikelihood, _the(log_density=MIXTURE.log_prob)),
        "NeighbourMetric": Recipe(metrics.NeighbourMetric, _the(measure="density")),
        "OnFeatures": Recipe(metrics.OnFeatures, _the(features=torch.abs, distance=metrics.MMD())),
        "SlicedWasserstein": Recipe(metrics.SlicedWasserstein, dict),
        "Estimate.from_replicates": Recipe(metrics.Estimate.from_replicates, _the(replicates=[0.0] * 21)),
        "Estimate.interval": Recipe(metrics.Estimate(0.0, 1.0, "by hand").interval, dict),
        "VendiScore": Recipe(metrics.VendiScore, dict),
        "Wasserstein": Recipe(metrics.Wasserstein, dict),
        "bootstrap": Recipe(
            metrics.bootstrap,
            _the(
                distance=sde.energy_distance,
                x=torch.cat([X, X + 2]),
                y=torch.cat([X, X + 1]),
                num_resamples=20,
            ),
        ),
        "difference": Recipe(metrics.difference, _the(a=estimate, b=estimate)),
        "energy_distance": Recipe(sde.energy_distance, _the(**two)),
        "feature_extractor": Recipe(metrics.feature_extractor, _the(features=torch.tanh)),
        "frechet_distance": Recipe(sde.frechet_distance, _the(features_x=X, features_y=X + 1)),
        "gaussian_w2": Recipe(metrics.gaussian_w2, _the(mean0=X[0], cov0=EYE, mean1=X[1], cov1=EYE)),
        "metric": Recipe(metrics.metric, _the(name="energy")),
        "mmd": Recipe(sde.mmd, _the(**two)),
        "over_seeds": Recipe(metrics.over_seeds, _the(values=[1.0, 2.0])),
        "pooled": Recipe(metrics.pooled, _the(estimates=[estimate, estimate])),
        "sliced_wasserstein": Recipe(sde.sliced_wasserstein, _the(**two, num_projections=4)),
    }


def _solvers() -> dict[str, Recipe]:
    ode = solvers.ODE(lambda t, y, *args: -y)
    noisy = solvers.SDE(lambda t, y: -y, lambda t: torch.ones_like(t))
    grid = solvers.FixedGrid(torch.linspace(0, 1, 4, dtype=torch.float64))
    normals = solvers.Normals(0, 6, (2,))
    return {
        "Adams": Recipe(solvers.Adams, _the(nodes=2)),
        "Adaptive": Recipe(solvers.Adaptive, _the(t0=0.0, t1=1.0)),
        "BrownianTree": Recipe(solvers.BrownianTree, _the(t0=0.0, t1=1.0, normals=normals)),
        "FixedGrid": Recipe(solvers.FixedGrid, _the(ts=[0.0, 1.0])),
        "Normals": Recipe(solvers.Normals, _the(seed=0, samples=3, event_shape=(2,))),
        "Normals.draw": Recipe(normals.draw, _the(index=0)),
        "ODE": Recipe(solvers.ODE, _the(drift=lambda t, y: y)),
        "Recursion": Recipe(
            solvers.Recursion, _the(drift=lambda t, y: y, coefficients=lambda t, s: (t, s, t))
        ),
        "SDE": Recipe(solvers.SDE, _the(drift=lambda t, y: y, diffusion=lambda t: t)),
        "SaveAt": Recipe(solvers.SaveAt, dict),
        "Semilinear": Recipe(solvers.Semilinear, _the(drift=lambda t, y: y)),
        "StepNormals": Recipe(solvers.StepNormals, _the(source=normals)),
        "solve": Recipe(solvers.solve, _the(term=ode, y0=X, method=solvers.HEUN, control=grid)),
        "solve adaptively": Recipe(
            solvers.solve, _the(term=ode, y0=X, method=solvers.DOPRI5, control=solvers.Adaptive(0.0, 1.0))
        ),
        "solve with noise": Recipe(
            solvers.solve,
            _the(term=noisy, y0=X, method=solvers.EULER_MARUYAMA, control=grid, noise=normals),
        ),
    }


def _methods(folder: Path) -> dict[str, Recipe]:
    """Methods of the public classes."""
    labelled = sde.from_array(X, labels=LABELS)
    found = likelihood.values_only(MODEL, X, solver=SOLVER, divergence=2)
    moments, chain, loss = MODEL.moments, {"i": 3, "z": X}, sde.DenoisingLoss()
    model, generator = network_model(), torch.Generator()
    line = {"sde": VP, "num_steps": 3, "t_min": 0.01}
    return {
        "Chain.ancestral_step": Recipe(CHAIN.ancestral_step, _the(x0_hat=X, x_i=X, **chain)),
        "Chain.q_marginal": Recipe(CHAIN.q_marginal, _the(x0=X, i=3)),
        "Chain.q_posterior": Recipe(CHAIN.q_posterior, _the(x0=X, x_i=X, i=3)),
        "Dataset.batch": Recipe(labelled.batch, _the(step=0, batch_size=2, seed=0)),
        "Dataset.batch_labels": Recipe(labelled.batch_labels, _the(step=0, batch_size=2, seed=0)),
        "Dataset.scaled_test": Recipe(labelled.scaled_test, _the(seed=0)),
        "ExactModel.flow": Recipe(MODEL.flow, _the(x_t=X, t=HALF, s=torch.tensor(0.25))),
        "ExactModel.given": Recipe(CLASSES.given, _the(label=0)),
        "Gaussian.flow": Recipe(NORMAL.flow, _the(y=X, nsr_t=HALF, nsr_s=HALF)),
        "GaussianMixture.component": Recipe(MIXTURE.component, _the(label=0)),
        "LogLikelihood.interval": Recipe(found.interval, dict),
        "Moments.embed": Recipe(moments.embed, _the(r=X)),
        "Moments.low_rank": Recipe(moments.low_rank, _the(rank=1)),
        "Moments.marginal_sample": Recipe(
            moments.marginal_sample, _the(z=X, alpha_t=HALF, sigma_t=torch.tensor(0.5))
        ),
        "Moments.project": Recipe(moments.project, _the(y=X)),
        "NetworkModel.given": Recipe(
            sde.NetworkModel(sde.MLP((2,), width=4, depth=1, num_classes=2), VP, "noise", (2,)).given,
            _the(condition=1),
        ),
        "NetworkModel.set_moments": Recipe(model.set_moments, _the(moments=None)),
        "NetworkModel.with_network": Recipe(model.with_network, _the(network=model.network)),
        "Support": Recipe(data.Support, _the(low=0.0)),
        "Support.of_text": Recipe(data.Support.of_text, _the(text="0:1")),
        "Support.to_line": Recipe(data.Support().to_line, _the(w=X)),
        "Support.from_line": Recipe(data.Support().from_line, _the(y=X)),
        "Support.inside": Recipe(data.Support().inside, _the(w=X)),
        "Support.log_slope": Recipe(data.Support().log_slope, _the(y=X)),
        "Scaling.log_det": Recipe(GREY.log_det, _the(x=X)),
        "Scaling.dequantize": Recipe(GREY.dequantize, _the(v=LEVELS, u=torch.full((6, 2), 0.5))),
        "Scaling.from_model": Recipe(GREY.from_model, _the(x=X)),
        "Scaling.standard": Recipe(data.Scaling.standard, _the(w=X)),
        "Scaling.to_data": Recipe(GREY.to_data, _the(x=X)),
        "Scaling.to_levels": Recipe(GREY.to_levels, _the(x=X)),
        "Scaling.to_model": Recipe(GREY.to_model, _the(w=X)),
        "compare": Recipe(
            lab.compare,
            lambda: {"model": MODEL, "candidates": [lab.Candidate.of("ddim", samplers.ddim(2))],
                     "metrics": [lab.Metric("energy", metrics.EnergyDistance(), X.repeat(4, 1))],
                     "num_samples": 20},
        ),
        "grids.cosine": Recipe(samplers.grids.cosine, _the(**line)),
        "grids.karras": Recipe(samplers.grids.karras, _the(**line)),
        "grids.log_snr": Recipe(samplers.grids.log_snr, _the(**line)),
        "grids.trailing": Recipe(samplers.grids.trailing, _the(**line)),
        "grids.uniform": Recipe(samplers.grids.uniform, _the(**line)),
        "loss": Recipe(loss, _the(model=model, x0=X, generator=generator)),
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
            training.reconstruct, _the(workdir=_with_snapshots(folder / "snapshots"), sigma_rel=(0.05, 0.1))
        ),
        "training.latest_checkpoint": Recipe(training.latest_checkpoint, _the(workdir=folder)),
        "training.train_step": Recipe(
            training.train_step, lambda: {"state": sde.TrainState(network_model()), "x0": X, "loss": loss}
        ),
    }  # fmt: skip


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
        "Store": Recipe(lab.Store, _the(path=folder / "new.sqlite")),
        "Store.merge": Recipe(store.merge, _the(other=folder / "records.sqlite")),
        "lab.Experiment": Recipe(lab.Experiment, _the(groups=[group], num_samples=20)),
        "lab.Experiment.cells": Recipe(experiment.cells, _the(store=store)),
        "lab.Experiment.run": Recipe(experiment.run, dict),
        "lab.FlowEnds": Recipe(lab.FlowEnds, _the(model=MODEL)),
        "lab.FlowMetric": Recipe(
            lab.FlowMetric,
            _the(name="flow error", distance=metrics.FlowError(), ends=lab.FlowEnds(MODEL)),
        ),
        "lab.GaussianMetric": Recipe(
            lab.GaussianMetric, _the(name="W2", distance=metrics.gaussian_w2, model=MODEL)
        ),
        "lab.gaussian_kl": Recipe(lab.gaussian_kl, _the(mean0=X[0], cov0=EYE, mean1=X[1], cov1=EYE)),
        "lab.gaussian_output": Recipe(lab.gaussian_output, _the(sampler=samplers.ddim(2), model=MODEL)),
        "lab.Group": Recipe(lab.Group, _the(problem=problem, candidates=[candidate], metrics=[metric])),
        "lab.NamedCondition": Recipe(lab.NamedCondition, _the(name="bright", value=X[0])),
        "lab.Metric": Recipe(lab.Metric, _the(name="energy", distance=metrics.EnergyDistance(), real=X)),
        "lab.Problem": Recipe(lab.Problem, _the(name="normal", model=MODEL, real=X)),
        "lab.exact_problem": Recipe(lab.exact_problem, _the(name="gaussian", sde=VP, num_real=10)),
        "lab.export_records": Recipe(
            lab.export_records, _the(path=folder / "records.csv", records=[one, other])
        ),
        "lab.Recorder": Recipe(lab.Recorder, _the(num_frames=3, most_samples=4)),
        "lab.forward_trajectory": Recipe(
            lab.forward_trajectory, _the(sde=VP, x0=X, times=[0.1, 0.5], seed=0)
        ),
        "lab.write_animation": Recipe(
            lab.write_animation, _the(path=folder / "a.gif", frames={"a": ((1.0,), np.zeros((1, 4, 2)))})
        ),
        "lab.write_papers": Recipe(
            lab.write_papers, _the(directory=folder / "papers", records=[one, other], formats=["latex"])
        ),
        "lab.paired_difference": Recipe(lab.paired_difference, _the(a=one, b=other)),
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
        | _solvers()
        | {name: Recipe(*recipe) for name, recipe in objectives().items()}
        | {name: Recipe(*parts) for name, parts in recipes_tables.tables().items()}
    )
