"""The 8x8 digits of scikit-learn, a small U-Net under VP: about two minutes of training on two CPU cores."""

from ml_collections import ConfigDict

from sde_toolkit.config.base import base_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = base_config(data="digits", sde="vp", model="unet")
    config.model.channels = (16, 32)
    config.model.predicts = "velocity"
    config.model.max_angle = 10.0  # smooth in time, so that few steps suffice
    config.loss.weighting = "noise"  # for pictures rather than for densities
    config.loss.time_sampling = "stratified"
    config.optimization.learning_rate = 6e-3
    config.optimization.decay_steps = 1100
    config.training.num_steps = 1100
    config.training.batch_size = 256
    config.likelihood.divergence = "probes"  # one each: the spread of the examples is wider than theirs
    config.likelihood.method = "ab4"
    config.likelihood.num_steps = 24  # off by about .001 bits/dim, as the budget says
    config.comparison.samplers = (
        "euler_maruyama",
        "reverse_diffusion",
        "ancestral",
        "predictor_corrector",
        "euler",
        "heun",
        "ddim",
        "default",
        "dopri5",
        "scipy_rk45",
    )
    config.comparison.metrics = ("frechet", "sliced_wasserstein", "energy")
    # The Frechet distance falls with the number of samples, about as c (1/n + 1/m): the reference in the
    # tables is that of as many real examples.
    config.comparison.num_samples = 400
    return config
