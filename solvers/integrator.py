"""Solvers of other libraries, which integrate from t_0 to t_1 in one call.

    y(t_1) = y(t_0) + int f dt + int g dW,      with steps that the other library chooses

``solvers.solve`` passes the whole problem to an ``Integrator``; those that exist are in
``solvers.reference``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from solvers.brownian import NoiseSource
from solvers.control import Adaptive, FixedGrid
from solvers.saving import SaveAt
from solvers.solution import Solution
from solvers.terms import Term


class Integrator(ABC):
    """Another library's solver, which integrates a whole run by itself."""

    name: str

    @abstractmethod
    def integrate(
        self, term: Term, y0: Tensor, control: FixedGrid | Adaptive, noise: NoiseSource | None, save: SaveAt
    ) -> Solution:
        """Solve the term from y0 with shape (B, *).

        Raises:
            SolverError: the run did not reach its end; the error holds what was computed before.
        """
