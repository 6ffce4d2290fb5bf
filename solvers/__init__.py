"""Integration of batches of differential equations in torch."""

from solvers.terms import ODE, SDE, Recursion, expand_like

__all__ = ["ODE", "SDE", "Recursion", "expand_like"]
