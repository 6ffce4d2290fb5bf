"""The Gaussian-residual sampler: its constants and grid, its steps in numbers, its method."""

from sde_toolkit.samplers.gaussian.method import default, gaussian_residual
from sde_toolkit.samplers.gaussian.pilot import sampled_moments

__all__ = ["default", "gaussian_residual", "sampled_moments"]
