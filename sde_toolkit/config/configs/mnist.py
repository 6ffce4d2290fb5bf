"""5000 images of MNIST with their labels, a class-conditional U-Net under VP: 25 minutes on one core."""

from ml_collections import ConfigDict

from sde_toolkit.config.base import base_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = base_config(data="mnist", sde="vp", model="unet")
    config.model.channels = (32, 64)
    config.model.patch_size = 2
    config.model.num_classes = 10
    config.model.max_angle = 10.0  # smooth in time, so that few steps suffice
    config.loss.weighting = "edm"  # for pictures rather than for densities
    config.loss.time_sampling = "log_normal"
    config.optimization.learning_rate = 2e-3
    config.optimization.ema_decay = 0.999
    config.optimization.decay_steps = 6000
    config.training.num_steps = 6000
    config.training.batch_size = 32
    config.training.checkpoint_every = 200
    config.likelihood.method = "ab4"
    config.likelihood.num_steps = 24
    config.likelihood.num_examples = 64
    config.likelihood.batch_size = 32
    config.comparison.samplers = ("euler_maruyama", "ddim", "heun", "default")
    config.comparison.num_steps = (10, 20, 50)
    config.comparison.num_samples = 200
    config.comparison.metrics = ("energy", "sliced_wasserstein")
    return config
