"""Foreign solvers that do a whole run themselves; the adapters are in ``solvers.reference``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from solvers.brownian import NoiseSource
from solvers.control import Adaptive, FixedGrid
from solvers.saving import SaveAt
from solvers.solution import Solution
from solvers.terms import Term


class Integrator(ABC):
    """A foreign solver that does the whole run itself; ``solvers.solve`` hands the problem over."""

    name: str

    @abstractmethod
    def integrate(
        self, term: Term, y0: Tensor, control: FixedGrid | Adaptive, noise: NoiseSource | None, save: SaveAt
    ) -> Solution:
        """Solve the term from y0 with shape (B, *); raise ``SolverError`` with what there is if it breaks
        off."""
