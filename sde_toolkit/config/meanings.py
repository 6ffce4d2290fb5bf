"""What every field of a configuration means, and the values that it may have.

    "section.field" -> About(meaning, least, most)

The defaults, and with them the types, stand in ``base.SCHEMA``.  The own fields of a sampler are explained by
the docstring of its preset.  A test holds that no field is missing here, and that none is here without being
a field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class About:
    """A field's meaning, and the range of its numbers, both ends included; None for no such end."""

    meaning: str
    least: float | None = None
    most: float | None = None


_COUNT, _NATURAL, _SEED = 1, 0, 0
_TOY_COUNT = "examples drawn for "
_MOST = 10**9
"""Of everything that is counted; more than any machine does."""

ABOUT: dict[str, About] = {
    "seed": About("of the training run and of the initial weights", _SEED),
    "device": About("where the network runs: auto (an accelerator if there is one), cpu, cuda, cuda:1, mps"),
    "dtype": About("number type of the weights and states"),
    "data.name": About("the data set"),
    "data.training": About("where grey levels lie inside their bins while training"),
    "data.validation": About("whether 450 of the images to train take the place of the held-out ones"),
    "data.factors": About(
        "factors of the covariance beside own variances, 0 for what the size asks for", 0, _MOST
    ),
    "data.num_train": About(_TOY_COUNT + "training", 2, _MOST),
    "data.num_test": About(_TOY_COUNT + "testing", 2, _MOST),
    "data.seed": About("of the draws", _SEED),
    "data.noise": About("standard deviation of the noise around the curve, in its own units", 0),
    "data.source": About("data of your own: a path, hf:NAME, or package.module:function"),
    "data.digest": About("SHA-256 of the values; filled in when a run starts, and checked from then on"),
    "data.layout": About("order of an array's dimensions; auto where one alone is possible"),
    "data.shape": About("shape of one example, where they are stored flat", _COUNT),
    "data.levels": About("number of grey levels, 0 for 256 with uint8 and for continuous floats", 0, 1 << 16),
    "data.key": About("of the examples in an .npz file, or their column in a Hugging Face data set"),
    "data.labels": About("key or column of the labels; empty for the usual names, none for no labels"),
    "data.columns": About("columns of a table, with commas between; empty for all"),
    "data.colour": About("of images; auto is grey if all of them are"),
    "data.alpha": About("what is done with transparent images: refuse them, or put them on white"),
    "data.conditions": About(
        "conditions of the examples that are no classes: columns of a table with commas between, a key of an "
        ".npz file, or an .npy file with a row for each example"
    ),
    "data.resize": About("shorter side of images in pixels, 0 for their own", 0, 1 << 16),
    "data.crop": About("side of the square from the middle of images in pixels, 0 for all", 0, 1 << 16),
    "data.on_error": About("what is done with images that cannot be read: refuse or leave them out"),
    "data.scaling": About(
        "of continuous data; auto is per_coordinate for tables, else common; whiten makes the covariance of "
        "vectors the identity"
    ),
    "data.bounds": About(
        "between which values continuous data lie, as 0:1, 0:,:,0:1 for three columns or age=0:,share=0:1; "
        "they are mapped onto the line"
    ),
    "data.angles": About(
        "columns of vectors that are angles, with their intervals, as direction=0:360,3=-3.1416:3.1416; they "
        "become points of planes"
    ),
    "data.missing": About(
        "what is done with missing entries, nan and empty cells: refuse them, or learn the law of complete "
        "vectors from what is observed"
    ),
    "data.held_out": About("share of the examples that is held out, or a source of its own"),
    "data.split_seed": About("of the choice of those examples", _SEED),
    "data.flip": About("mirror images at random while training"),
    "data.workers": About("processes that read batches ahead, 0 for none; they change no batch", 0, 256),
    "sde.name": About("the forward process, or a function that returns one, as in mine.py:process"),
    "sde.beta_min": About("rate of the noise at the data end"),
    "sde.beta_max": About("rate of the noise at the prior end"),
    "sde.s": About("offset of the cosine table near the data, a small positive number"),
    "sde.sigma_min": About("standard deviation of the noise at the data end"),
    "sde.sigma_max": About("standard deviation of the noise at the prior end"),
    "sde.num_steps": About("steps N of the chain, at whose indices 1 to N the network is trained", 2, 10**5),
    "sde.max_beta": About("the largest beta of the cosine table, below 1", 0, 1),
    "sde.T": About("end of the straight paths, below 1, where nothing of the data is left"),
    "model.name": About("the network"),
    "model.predicts": About("what the network puts out; diffusers' names are understood"),
    "model.num_classes": About("number of classes of a network with labels, 0 for none", _NATURAL, 10**6),
    "model.condition_shape": About(
        "shape of conditions that are no classes, as 3 for vectors or 8,16 for tokens; when empty, that of "
        "data.conditions",
        _COUNT,
    ),
    "model.self_conditioning": About(
        "whether the network sees its own first answer, for twice the evaluations"
    ),
    "model.max_angle": About("angle of the time features at the prior end; smaller is smoother in time"),
    "model.channels": About("channels of each level, divisible by num_groups", _COUNT, 10**5),
    "model.layers_per_block": About("residual layers per level on the way down", _COUNT, 1000),
    "model.attention_levels": About("the levels with self-attention, counted from 0", _NATURAL),
    "model.num_groups": About("groups of the group normalisation", _COUNT),
    "model.patch_size": About(
        "patches of this many pixels squared are folded into channels, or a token", _COUNT
    ),
    "model.dropout": About("probability that a unit is left out while training", 0, 1),
    "model.fourier": About("exponents k of the input features cos(2^k pi x) and sin(2^k pi x)", -64, 64),
    "model.width": About("hidden units, or features of a token of a transformer", _COUNT, 10**5),
    "model.depth": About("residual blocks of two layers each, or transformer blocks", _COUNT, 10**4),
    "model.num_frequencies": About("frequencies of the time features", _COUNT, 10**5),
    "model.num_heads": About("heads of the attention, which divide the width", _COUNT, 10**4),
    "model.mlp_ratio": About("hidden units of a transformer block per unit of width", 0, 1000),
    "model.time_embedding": About(
        "frequencies of the time features: drawn at random and fixed, or a geometric series"
    ),
    "loss.name": About(
        "the objective: denoising score matching, the discrete one of DDPM and SMLD at the indices of a "
        "chain, Improved DDPM's hybrid one with learned variances, or sliced score matching"
    ),
    "loss.stratified": About("whether the draws of a batch are spread evenly over the indices"),
    "loss.index_sampling": About(
        "law of the indices, uniform or by the size of their last losses; the loss is divided by it"
    ),
    "loss.vlb_weight": About("weight of the variational bound, in nats per dimension", 0),
    "loss.simple_weight": About("weight of the error of the noise; 0 trains on the bound alone", 0),
    "loss.fixed_mean": About("whether the bound trains the variances alone"),
    "loss.num_slices": About("random vectors for every state", _COUNT, 10**4),
    "loss.variance_reduced": About("|score|^2 in the place of its square along the random vector"),
    "loss.simulated_steps": About(
        "Euler-Maruyama steps that draw the states, 0 for the noise kernel itself", _NATURAL, 10**6
    ),
    "loss.weighting": About(
        "weight of the times, of which loss the name says, with options as in min_snr(gamma=3); residual is "
        "the residual's own error, learned(weighting='edm') divides by a learned size of the loss"
    ),
    "loss.time_sampling": About(
        "law of the times, with options as in log_normal(mean=-0.4); the loss is divided by its density; "
        "adaptive follows the loss"
    ),
    "loss.t_min": About("earliest time of the training", 0),
    "loss.antithetic_nsr": About(
        "noise-to-signal ratio below which rows come in pairs of opposite noise, 0 for none", 0
    ),
    "loss.second_order": About("weight of the second-order term, 0 for none", 0),
    "loss.levels": About("grey levels whose bins the loss knows, 0 for none", _NATURAL),
    "loss.offset_noise": About(
        "strength of one more normal per channel of an image or signal, 0 for none", 0
    ),
    "optimization.learning_rate": About("after the warm-up"),
    "optimization.warmup_steps": About("updates over which the learning rate rises, 0 for none", _NATURAL),
    "optimization.decay_steps": About("updates over which it falls to a hundredth, 0 for never", _NATURAL),
    "optimization.schedule": About(
        "how it falls over decay_steps; inverse_sqrt falls from then on, constant and decay_steps = 0 never"
    ),
    "optimization.betas": About(
        "decay of the optimiser's first and second moment, two numbers in [0, 1)", 0, 1
    ),
    "optimization.weight_decay": About("decoupled, per unit of learning rate", 0),
    "optimization.max_grad_norm": About("the gradient is scaled down to this Euclidean norm"),
    "optimization.ema_decay": About(
        "largest decay of the moving average of the weights, of the profiles warmup and constant", 0, 1
    ),
    "optimization.ema_profile": About(
        "what the average weighs: the last updates with a warm-up or without one, or by a power of the step"
    ),
    "optimization.ema_sigma_rel": About(
        "length of the average of the profile power, as a share of the run", 0
    ),
    "training.num_steps": About("updates from the beginning of the run to its end", _COUNT),
    "training.batch_size": About("examples per update", _COUNT, _MOST),
    "training.checkpoint_every": About("updates between checkpoints", _COUNT),
    "training.log_every": About("updates that a row of history.csv is the mean of", _COUNT),
    "training.keep": About("checkpoints that are kept", _COUNT),
    "training.snapshot_every": About(
        "updates between stored averages, from which `sde-toolkit ema` makes others; 0 for none", _NATURAL
    ),
    "training.snapshot_lengths": About(
        "lengths of the two or more averages that are stored, as shares of the run", 0
    ),
    "training.evaluate_every": About("updates between held-out losses, 0 for none", _NATURAL),
    "training.evaluate_examples": About(
        "test examples of these losses, the first so many; 0 for all", _NATURAL
    ),
    "training.evaluate_bins": About(
        "parts of the log-SNR in which they are shown, 0 for none", _NATURAL, 1000
    ),
    "training.keep_best": About("whether the average with the lowest held-out loss is kept"),
    "training.patience": About(
        "held-out losses without a lower one after which the run ends, 0 for never", 0
    ),
    "training.accumulate": About(
        "parts of a batch that a process takes one after the other, to need less memory", 1
    ),
    "training.shard": About("whether each of several processes keeps a part of every parameter only"),
    "training.autocast": About("type of the network's products in training, none for that of its parameters"),
    "training.compile": About("whether the network is compiled by torch.compile, minutes at first"),
    "training.checkpointing": About(
        "whether the network's blocks are evaluated again in the backward pass, to need less memory"
    ),
    "training.sample_every": About("updates between pictures of 16 samples, 0 for none", _NATURAL),
    "training.spike_factor": About(
        "batches whose loss is so many times the mean of those before are listed, 0 for none", 0
    ),
    "training.trackers": About(
        "where numbers go besides history.csv: tensorboard, functions as in mine.py:tracker, with commas"
    ),
    "training.changes": About("fields that were changed during the run, filled in by --allow"),
    "training.label_dropout": About("share of the examples that are trained without their condition", 0, 1),
    "sampling.sampler": About(
        "the sampler, or the dotted path of a function, with options as in ddim(eta=0.5)"
    ),
    "sampling.num_steps": About("steps of the time grid; without effect on adaptive samplers", _COUNT, 10**7),
    "sampling.num_samples": About("samples to draw", _COUNT),
    "sampling.seed": About("sample i of a seed is always the same", _SEED),
    "sampling.batch_size": About("samples computed at once", _COUNT),
    "sampling.t_min": About("end of the reverse run", 0),
    "sampling.denoise": About("whether the last state is replaced by its clean prediction"),
    "sampling.rtol": About("relative tolerance of samplers that choose their own steps", 0),
    "sampling.atol": About("absolute tolerance of samplers that choose their own steps", 0),
    "sampling.grid": About(
        "times of the steps; own: those of the sampler's paper; explicit: those of sampling.times; "
        "calibrated: found for the model"
    ),
    "sampling.times": About("of the grid explicit, from T to t_min", 0),
    "sampling.calibration_samples": About("starts on which the grid calibrated is found", _COUNT, _MOST),
    "sampling.calibration_cache": About("directory that keeps calibrated grids; empty for none"),
    "sampling.corrector": About("Langevin steps at every time, none, or those for few dimensions (annealed)"),
    "sampling.corrector_snr": About("length of the corrector's steps, as signal-to-noise ratio", 0),
    "sampling.last_draw": About("false leaves the draw of the last step out; for samplers with noise"),
    "sampling.start": About(
        "law at T: the process' prior, or the Gaussian with the data's moments; own: this for samplers that "
        "use them, else the prior"
    ),
    "sampling.corrector_first": About("correct where a step begins, not where it ends"),
    "sampling.corrector_num_steps": About("Langevin steps at every time", _COUNT, 10**6),
    "sampling.restart_min": About("noise-to-signal ratio at which the run restarts, 0 for never", 0),
    "sampling.restart_max": About("noise-to-signal ratio to which a restart goes back", 0),
    "sampling.restart_num_steps": About("steps of a restart", _COUNT, 10**6),
    "sampling.restart_repeats": About("how often it restarts", _COUNT, 10**6),
    "sampling.guidance_scale": About("of classifier-free guidance, given a class or condition; 1 is none"),
    "sampling.guidance_min": About("noise-to-signal ratio above which is guided", 0),
    "sampling.guidance_max": About("noise-to-signal ratio up to which is guided", 0),
    "sampling.guidance_rescale": About(
        "how far guided predictions are rescaled to the spread of those given the condition alone", 0, 1
    ),
    "sampling.threshold": About("how clean predictions are kept in range: not, clipped, or by a quantile"),
    "sampling.threshold_limit": About("the range is [-limit, limit]", 0),
    "sampling.threshold_quantile": About("of the absolute values, for the dynamic threshold", 0, 1),
    "likelihood.split": About("the examples"),
    "likelihood.num_examples": About("the first so many, 0 for all", _NATURAL),
    "likelihood.divergence": About("how the divergence of the flow is computed; auto goes by the size"),
    "likelihood.target_se": About(
        "with auto: standard error of every example, in bits/dim, up to which probes are added", 0
    ),
    "likelihood.num_probes": About("random vectors per example and divergence", _COUNT, _MOST),
    "likelihood.probe_kind": About("law of the probes"),
    "likelihood.orthogonal": About("whether the probes of one example are orthogonal"),
    "likelihood.method": About("solver of the flow"),
    "likelihood.num_steps": About("steps of the solver, 0 for adaptive ones", _NATURAL, 10**7),
    "likelihood.rtol": About("relative tolerance of adaptive steps", 0),
    "likelihood.atol": About("absolute tolerance of adaptive steps", 0),
    "likelihood.t_min": About("time of the data end", 0),
    "likelihood.prior": About("density at the prior end"),
    "likelihood.endpoint": About("what is done about the noise that is left at t_min"),
    "likelihood.dequantization": About("how grey levels become continuous"),
    "likelihood.num_importance": About("draws of the dequantisation per example", _COUNT, _MOST),
    "likelihood.bounds": About("variational bounds that are printed beside"),
    "likelihood.batch_size": About("examples computed at once", _COUNT),
    "likelihood.num_diagnostic_samples": About("examples of the error budget, 0 for none", _NATURAL),
    "likelihood.seed": About("of the probes and the dequantisation", _SEED),
    "comparison.problems": About(
        "what is sampled: model (that of the run), names of exact problems, workdirs, functions"
    ),
    "comparison.grids": About("time grids for the samplers that take one; own is the sampler's"),
    "comparison.labels": About("classes, each compared with the real data of this class; none for all", 0),
    "comparison.conditions": About(
        "conditions that are no classes, each compared for itself: the path of an array (K, *) or a dict of "
        "arrays, as in mine.py:conditions"
    ),
    "comparison.prompts": About(
        "texts for a latent diffusion model, each compared for itself, with | between them"
    ),
    "comparison.max_nfe": About("leave out samplers of more network evaluations; 0 for no limit", 0),
    "comparison.time_budget": About("seconds after which no further cell is begun; 0 for no limit", 0),
    "comparison.samplers": About("the samplers, with options as in ddim(eta=0.5)"),
    "comparison.num_steps": About("step counts; adaptive samplers run once", _COUNT, 10**7),
    "comparison.num_samples": About("samples for each sampler, step count and seed", 10),
    "comparison.seeds": About("of the samples", _SEED),
    "comparison.metrics": About("distances to the real data; the first is the headline"),
    "comparison.real": About("the real data that samples are compared with"),
}
"""Field -> what it means and which values it may have."""

LARGEST_INTEGER = 2**63 - 1


def check_range(path: str, value: Any) -> None:
    """Refuse a number, or a list with one, outside the range of its field; fields unknown here pass.

    Raises:
        ValueError: the sentence names the field, the end of the range and the value.
    """
    about = ABOUT.get(path)
    numbers: Iterable[Any] = value if isinstance(value, (tuple, list)) else (value,)
    for number in numbers:
        if isinstance(number, (bool, str)):
            continue
        if about is not None and about.least is not None and number < about.least:
            raise ValueError(f"config.{path} must be at least {about.least}, got {number}")
        most = about.most if about is not None else None
        if most is None and isinstance(number, int):
            most = LARGEST_INTEGER
        if most is not None and number > most:
            raise ValueError(f"config.{path} must be at most {most}, got {_short(number)}")


def check_distinct(path: str, values: Iterable[Any]) -> None:
    """Refuse a list in which an entry stands twice with a ValueError."""
    listed = [value.strip() if isinstance(value, str) else value for value in values]
    twice = [value for i, value in enumerate(listed) if value in listed[:i]]
    if twice:
        raise ValueError(f"config.{path} must differ from each other, got {twice[0]!r} twice")


def _short(number: object) -> str:
    text = str(number)
    return text if len(text) <= 40 else f"a number of {len(text)} digits"
