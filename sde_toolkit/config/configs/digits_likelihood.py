"""The 8x8 digits trained for likelihood: Fourier features of the state, the likelihood weighting."""

from ml_collections import ConfigDict

from sde_toolkit.config.configs import digits


def get_config() -> ConfigDict:
    """Return the configuration of digits with a loss that bounds the likelihood."""
    config = digits.get_config()
    # A bin of the 17 grey levels is .17 wide in the network's input: waves from 1 down to a tenth of a bin.
    config.model.fourier = (1, 2, 3, 4, 5, 6, 7)
    config.model.max_angle = 1000.0  # tells the noise levels next to the data apart, which weigh in densities
    config.model.dropout = 0.1  # 1500 images: this loss is the first to fit them too well
    config.loss.weighting = "likelihood"
    config.loss.time_sampling = "moments"
    config.loss.antithetic_nsr = 0.3
    config.loss.levels = 17
    config.likelihood.method = "dopri5"  # 24 steps of order 4 are off by .017 bits/dim here
    config.likelihood.num_steps = 0
    config.optimization.max_grad_norm = 25.0  # this loss is 24 times as large as the mean squared error
    return config
