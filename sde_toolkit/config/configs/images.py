"""Images of your own, from an array or a folder: a U-Net under VP, small enough for a CPU."""

from ml_collections import ConfigDict

from sde_toolkit.config.base import base_config


def get_config() -> ConfigDict:
    """Return the configuration; ``data.source`` is yours to give."""
    config = base_config(data="files", sde="vp", model="unet")
    config.model.channels = (32, 64)
    config.model.predicts = "velocity"
    config.model.max_angle = 10.0  # smooth in time, so that few steps suffice
    config.loss.weighting = "noise"  # for pictures rather than for densities
    config.loss.time_sampling = "stratified"
    config.optimization.learning_rate = 2e-3
    config.training.num_steps = 2000
    config.training.batch_size = 64
    config.sampling.num_samples = 64
    config.likelihood.method = "ab4"
    config.likelihood.num_steps = 24
    config.likelihood.num_examples = 64
    config.comparison.samplers = ("euler_maruyama", "ddim", "heun", "default")
    config.comparison.num_steps = (10, 20, 50)
    config.comparison.num_samples = 200
    config.comparison.metrics = ("energy", "sliced_wasserstein")
    return config
