"""The Gaussian-residual sampler: its constants and grid, its steps in numbers, its method."""
