"""The 8x8 digits of scikit-learn, a small U-Net under VE with EDM's preconditioning."""

from ml_collections import ConfigDict

from sde_toolkit.config.base import base_config
from sde_toolkit.config.configs import digits


def get_config() -> ConfigDict:
    """Return the configuration of digits under another forward process."""
    config = digits.get_config()
    config.sde = base_config(sde="ve").sde
    config.model.predicts = "edm"
    return config
