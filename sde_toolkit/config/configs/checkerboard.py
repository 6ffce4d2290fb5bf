"""Uniform squares of a 4 x 4 board, an MLP under VP: trains in under a minute."""

from ml_collections import ConfigDict

from sde_toolkit.config.configs import ring


def get_config() -> ConfigDict:
    """Return the configuration of ring on other data."""
    config = ring.get_config()
    config.data.name = "checkerboard"
    return config
