"""The 8x8 digits with their labels, a class-conditional U-Net: one digit at a time, and Bayes' rule."""

from ml_collections import ConfigDict

from sde_toolkit.config.configs import digits


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = digits.get_config()
    config.model.num_classes = 10
    config.model.max_angle = 1000.0  # tells the noise levels next to the data apart, which weigh in densities
    return config
