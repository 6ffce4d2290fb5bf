"""Vectors of your own, from an array or a table: an MLP under VP."""

from ml_collections import ConfigDict

from sde_toolkit.config.base import base_config


def get_config() -> ConfigDict:
    """Return the configuration; ``data.source`` is yours to give."""
    config = base_config(data="files", sde="vp", model="mlp")
    config.training.num_steps = 4000
    config.training.batch_size = 512
    config.training.checkpoint_every = 1000
    config.sampling.num_samples = 1000
    config.sampling.batch_size = 4096
    config.likelihood.divergence = "exact"
    config.likelihood.num_examples = 512
    config.likelihood.batch_size = 512
    config.comparison.samplers = ("euler_maruyama", "ddim", "heun", "default")
    config.comparison.num_samples = 2000
    config.comparison.real = "test"
    config.comparison.metrics = ("energy", "sliced_wasserstein")
    return config
