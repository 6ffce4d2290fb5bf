"""The Gaussian-residual sampler: its constants and grid, its steps in numbers, its method."""

from sde_toolkit.samplers.gaussian.method import default, gaussian_residual

__all__ = ["default", "gaussian_residual"]
