"""The 8x8 digits by Improved DDPM: the cosine chain, its indices by importance, learned variances."""

from ml_collections import ConfigDict

from sde_toolkit.config.base import base_config
from sde_toolkit.config.configs import digits


def get_config() -> ConfigDict:
    """Return the configuration of digits on a chain of 1000 indices."""
    config = digits.get_config()
    chain = base_config(sde="ddpm_cosine", loss="hybrid")
    config.sde, config.loss = chain.sde, chain.loss
    config.loss.index_sampling = "importance"
    config.loss.levels = 17
    config.sampling.sampler = "ddpm"
    config.sampling.num_steps = 1000
    config.comparison.samplers = ("ddpm(variance='learned')", "ddpm", "ddim", "default")
    return config
