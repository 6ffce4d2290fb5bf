"""Adams methods: a polynomial through past evaluations of the field, integrated exactly.

For a semilinear equation dy = [A(t) y + B(t) N(t, y)] dt + C(t) dW with A diagonal, and Phi(s, t) = exp of
the integral of A from t to s, the step from t to s is

    y_s = Phi(s, t) y_t + sum_j w_j N_j + c z,     w_j = int_t^s Phi(s, u) B(u) l_j(v(u)) du,   z ~ N(0, I),

with N_j past evaluations, l_j the Lagrange polynomials of their nodes in a monotone variable v of the time
(t itself, the log of a ratio, an arctan, ...), and c^2 = int Phi(s, u)^2 C(u)^2 du.  An ODE is the case A = 0
and B = 1: with v = t these are the methods of Adams and Bashforth on any grid.

Predictor        the k nodes t, t_{-1}, ..., t_{1-k}                       order k, 1 evaluation per step
with corrector   predict through k - 1 nodes, evaluate at s, then step again through s, t, ..., t_{2-k}
    PECE         evaluate again at the corrected state                     order k, 2 evaluations per step
    PEC          keep the evaluation at the predicted state                order k, 1 evaluation per step

The first steps have too few past evaluations.  For a run of order k they must themselves be of order k - 1.
With ``start_with="runge_kutta"`` they are Runge-Kutta steps.  With ``start_with="euler"`` they use the nodes
there are, as the literature's samplers do, and the order of the run falls to 2 (predictor) or 3 (with
corrector).

Weights depend on the grid alone: float64, once per grid (``solvers.weights``).

References: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", section III.1; Hochbruck
and Ostermann, "Exponential Multistep Methods of Adams-Type" (2011); for v = log-SNR: Lu et al., DPM-Solver++
(2211.01095), Zhao et al., UniPC (2302.04867), Xue et al., SA-Solver (2305.14267); Zhang and Chen, DEIS
(2204.13902).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from solvers.arguments import check_fields
from solvers.brownian import NoiseSource
from solvers.control import FixedGrid
from solvers.exponential import Stages, runge_kutta, stages
from solvers.interval import Interval, Step
from solvers.methods import Method
from solvers.terms import ODE, Semilinear
from solvers.weights import Variable, Weight, Weights, columns, identity, per_step, update, variable_name

MOST_NODES = 4


class History(NamedTuple):
    """Past evaluations, the newest first.  ``push`` returns a new history and changes none."""

    values: tuple[Tensor, ...] = ()

    def push(self, value: Tensor, most: int) -> History:
        """The history with one more evaluation, with shape (B, *); the ``most`` newest are kept."""
        return History((value, *self.values[: most - 1]))


class AdamsStep(NamedTuple):
    """Coefficients of one step: Phi, the noise, and the weights of predictor and corrector.

    The corrector's first weight belongs to the node at the end of the step, the others run from the newest.
    """

    factor: Weight
    noise: Weight | None
    predictor: tuple[Weight, ...]
    corrector: tuple[Weight, ...]


class Carry(NamedTuple):
    """What one step passes to the next: the coefficients of all steps, and the history."""

    steps: list[AdamsStep | Stages]
    history: History


@dataclass(frozen=True)
class Adams(Method):
    """Adams methods for an ``ODE`` (Adams-Bashforth, Adams-Moulton) and a ``Semilinear`` term (exponential).

    Args:
        nodes: of the polynomial that makes the step, 1 to 4: the order.
        corrector: None, "PECE" or "PEC"; needs at least 2 nodes.
        variable: v(t), elementwise and strictly monotone on the grid, float64 tensors; t itself by default.
        start_with: "runge_kutta" keeps the order, "euler" uses the nodes there are.

    Raises:
        ValueError: nodes or options out of range.
    """

    nodes: int
    corrector: Literal["PECE", "PEC"] | None = None
    variable: Variable = identity
    start_with: Literal["runge_kutta", "euler"] = "runge_kutta"
    terms = (ODE, Semilinear)
    strong_order: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.nodes <= MOST_NODES:
            raise ValueError(f"nodes must lie in 1 to {MOST_NODES}, got {self.nodes}")
        if self.corrector not in (None, "PECE", "PEC"):
            raise ValueError(f"corrector must be None, 'PECE' or 'PEC', got {self.corrector!r}")
        if self.corrector is not None and self.nodes < 2:
            raise ValueError("a corrector needs at least 2 nodes, the step's end and its start; got 1")
        if self.start_with not in ("runge_kutta", "euler"):
            raise ValueError(f"start_with must be 'runge_kutta' or 'euler', got {self.start_with!r}")

    @property
    def name(self) -> str:  # type: ignore[override]
        """For messages and records."""
        parts = [f"adams{self.nodes}", self.corrector or "", variable_name(self.variable)]
        parts.append("euler" if self.start_with == "euler" else "")
        return "_".join(part.lower() for part in parts if part)

    @property
    def order(self) -> int:  # type: ignore[override]
        """The number of nodes, less where the start limits it."""
        return self.nodes if self.start_with == "runge_kutta" else min(self.nodes, 2 + bool(self.corrector))

    @property
    def weak_order(self) -> float:  # type: ignore[override]
        """1 with one node, else 2."""
        return min(self.order, 2)

    @property
    def nfe_per_step(self) -> int:  # type: ignore[override]
        """2 where the corrected state is evaluated again."""
        return 2 if self.corrector == "PECE" else 1

    @property
    def nfe_extra(self) -> int:  # type: ignore[override]
        """Evaluations of the Runge-Kutta steps at the start; with PEC also the very first one."""
        more = self.nodes - 1 - self.nfe_per_step
        return self._first_steps * more + (self.corrector == "PEC")

    @property
    def _first_steps(self) -> int:
        """How many steps are Runge-Kutta steps.

        Step i has i + 1 nodes, one more with a corrector; it is one of them if that is less than the order of
        the run minus 1.
        """
        if self.start_with == "euler":
            return 0
        return max(0, self.nodes - 2 - (self.corrector is not None))

    def prepare(self, term: ODE | Semilinear, grid: FixedGrid, like: Tensor) -> list[AdamsStep | Stages]:
        """The coefficients of all steps; for an ODE they are numbers, whatever the state."""
        return self._steps(term, torch.zeros(1, 1) if isinstance(term, ODE) else like, grid)

    def start(self, term: ODE | Semilinear, t: Tensor, y: Tensor, plan: list[AdamsStep | Stages]) -> Carry:
        """The plan; with PEC also the first evaluation."""
        history = History((term.drift(t, y),)) if self.corrector == "PEC" else History()
        return Carry(plan, history)

    def _steps(self, term: ODE | Semilinear, y: Tensor, grid: FixedGrid) -> list[AdamsStep | Stages]:
        weights, ts = Weights(term, self.variable), grid.ts
        first = min(self._first_steps, grid.num_steps)
        steps: list[AdamsStep | Stages] = []
        if first:
            steps += stages(self.nodes - 1, weights, ts[:first], ts[1 : first + 1], y)
        past = self.nodes - (self.corrector is not None)
        while len(steps) < grid.num_steps:
            number = len(steps)
            k = min(number + 1, past)
            steps += self._coefficients(
                weights, ts, number, grid.num_steps if k == past else number + 1, k, y
            )
        return steps

    def _coefficients(
        self, weights: Weights, ts: Tensor, first: int, last: int, k: int, y: Tensor
    ) -> list[AdamsStep]:
        """The coefficients of the steps ``first`` to ``last`` - 1, with k past nodes."""
        t, s = ts[first:last], ts[first + 1 : last + 1]
        nodes = torch.stack([ts[first - m : last - m] for m in range(k)], 1)
        predictor = columns(weights.weights(t, s, nodes), y)
        corrector: list[tuple[Weight, ...]] = [()] * len(t)
        if self.corrector is not None:
            corrector = columns(weights.weights(t, s, torch.cat([s[:, None], nodes], 1)), y)
        deviation = weights.noise(t, s)
        noise = [None] * len(t) if deviation is None else per_step(deviation, y)
        factor = per_step(weights.factor(t, s), y)
        return [AdamsStep(*row) for row in zip(factor, noise, predictor, corrector, strict=True)]

    def step(
        self, term: ODE | Semilinear, interval: Interval, y: Tensor, carry: Carry, noise: NoiseSource | None
    ) -> Step:
        """Predict; with a corrector evaluate and step again."""
        steps, history = carry
        number, t, s, _ = interval
        kept = self.corrector == "PEC"
        if not kept:
            history = history.push(term.drift(t, y), MOST_NODES)
        now = steps[number]
        if isinstance(now, Stages):
            y = runge_kutta(now, term, interval, y, history.values[0], noise)
            if kept:
                history = history.push(term.drift(s, y), MOST_NODES)
            return Step(y, None, Carry(steps, history))
        shift = None
        if now.noise is not None:
            assert noise is not None
            shift = now.noise * noise.draw(number)
        y_next = update(now.factor, y, now.predictor, history.values)
        if now.corrector:
            ahead = term.drift(s, y_next if shift is None else y_next + shift)
            y_next = update(now.factor, y, now.corrector, (ahead, *history.values))
            history = history.push(ahead, MOST_NODES) if kept else history
        return Step(y_next if shift is None else y_next + shift, None, Carry(steps, history))


AB2 = Adams(2)
AB3 = Adams(3)
AB4 = Adams(4)
ABM4 = Adams(4, "PECE")
