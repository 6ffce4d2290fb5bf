"""What the rule of a scheme computes with: linear combinations, and the steps of a grid that are alike.

A rule is called once for N steps; coefficients are numbers, or float64 tensors with one entry per step.  See
``solvers.schemes`` for what becomes of it.
"""

from __future__ import annotations

from torch import Tensor

Coefficient = float | Tensor

STATE, DRAW = -2, -1


class Form:
    """A linear combination of the state, the draw and evaluations; coefficients are numbers or tensors (N,).

    Forms add and subtract, and are multiplied and divided by coefficients; nothing else.
    """

    __slots__ = ("coefficients",)

    def __init__(self, coefficients: dict[int, Coefficient]) -> None:
        self.coefficients = coefficients

    def __add__(self, other: Form) -> Form:
        if not isinstance(other, Form):
            return NotImplemented
        total = dict(self.coefficients)
        for key, c in other.coefficients.items():
            total[key] = total[key] + c if key in total else c
        return Form(total)

    def __mul__(self, factor: Coefficient) -> Form:
        return Form({key: factor * c for key, c in self.coefficients.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Form) -> Form:
        return self + other * -1.0

    def __neg__(self) -> Form:
        return self * -1.0

    def __truediv__(self, divisor: Coefficient) -> Form:
        return Form({key: c / divisor for key, c in self.coefficients.items()})


class Steps:
    """What a rule sees of N steps that are alike, the steps first, ..., first + N - 1 of a grid.

    Attributes:
        grid: all times of the grid, float64.
        t, s: where the steps start and end, with shape (N,).
        past: the same for the starts of the steps before, the latest first.
        y, z: the state at t and the draw, as forms.
        values: evaluations as forms, the newest first: at (t, y), then at the times ``past``.
        last: whether this is the last step of the run, set apart from the others.
    """

    def __init__(self, grid: Tensor, first: int, count: int, nodes: int) -> None:
        self.grid, self._first, self._end = grid, first, first + count
        self.last = count == 1 and self._end == len(grid) - 1
        self.t, self.s, *past = self.of(grid, max(nodes - 1, 0))
        self.past = tuple(past)
        self.y, self.z = Form({STATE: 1.0}), Form({DRAW: 1.0})
        self.values: tuple[Form, ...] = tuple(Form({j: 1.0}) for j in range(nodes))
        self.evaluations: list[tuple[Tensor, Form]] = []
        self.kept: int | None = None

    def of(self, table: Tensor, past: int) -> list[Tensor]:
        """Entries of a table with one value per time of the grid: at t, at s, at the ``past`` starts
        before."""
        first, end = self._first, self._end
        return [table[first - m : end - m] for m in (0, -1, *range(1, past + 1))]

    @property
    def order(self) -> int:
        """Number of evaluations at hand: how many nodes a formula may use."""
        return len(self.values)

    def evaluate(self, time: Tensor, form: Form) -> Form:
        """One more evaluation, at the times ``time`` (N,) and the state ``form``."""
        self.evaluations.append((time, form))
        return Form({len(self.values) + len(self.evaluations) - 1: 1.0})

    def evaluate_end(self, form: Form) -> Form:
        """An evaluation at the end of the step, which serves the next step as its first."""
        self.kept = len(self.values) + len(self.evaluations)
        return self.evaluate(self.s, form)
