"""Schemes: steps that are linear combinations of the state, of evaluations and of a draw, whatever their
weights.

Every multistep, singlestep and predictor-corrector formula of the diffusion literature has the form

    y^(i) = a_i y + sum_j b_ij m_j + c_i z,    m_i = P(u_i) y^(i) + Q(u_i) N(u_i, y^(i)),    y_s = y^(last)

with evaluations m_j of this step and of those before, one draw z ~ N(0, I) per step, and weights that depend
on the times alone.  A scheme's ``rule`` writes the formula down as it stands in the paper: it computes with
``Form`` objects, linear combinations whose coefficients are float64 tensors with one entry per step, and is
called once for all steps of a grid that have the same number of past evaluations at hand.  What remains for
the step are Python floats.

    def rule(steps):                                            # two-step Adams-Bashforth on any grid
        h, ratio = steps.s - steps.t, (steps.s - steps.t) / (steps.t - steps.past[0])
        m = steps.values
        return steps.y + h * ((1 + ratio / 2) * m[0] - ratio / 2 * m[1])

P and Q turn what the field puts out into what the rule calls an evaluation (a noise prediction, say, into a
prediction of the clean data).  They go into the coefficients, so that this costs one addition at most and no
function of time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.brownian import BrownianMotion
from solvers.control import BLOCK_STEPS, FixedGrid, InBlocks
from solvers.forms import DRAW, STATE, Form, Steps
from solvers.interval import Interval, Step
from solvers.methods import Method, increment
from solvers.terms import Scheme


class Combination(NamedTuple):
    """Coefficients of one form in one step: of the state, of evaluations with their positions, of the
    draw."""

    state: float
    values: tuple[tuple[int, float], ...]
    draw: float

    def __call__(self, y: Tensor, values: Sequence[Tensor], z: Tensor | None) -> Tensor:
        """The state with shape (B, *)."""
        state, pairs, draw = self
        out = y if state == 1 else state * y
        for position, c in pairs:  # the state itself is not written into
            out = torch.add(y, values[position], alpha=c) if out is y else out.add_(values[position], alpha=c)
        if draw:
            assert z is not None
            out = torch.add(y, z, alpha=draw) if out is y else out.add_(z, alpha=draw)
        return out


class Evaluation(NamedTuple):
    """One evaluation: when, where (None: at the state itself), and Q / P (None where P = 0).

    What is stored is y + Q / P N, or N where P = 0: the missing factor, P or Q, is in the coefficients.
    """

    time: Tensor
    at: Combination | None
    ratio: float | None


class Program(NamedTuple):
    """One step in numbers: how many past evaluations it uses, its own, its result, which one is kept."""

    past: int
    evaluations: tuple[Evaluation, ...]
    result: Combination
    kept: int | None
    noisy: bool


class JoinedStep(NamedTuple):
    """One step of a method that evaluates its end, from prediction to prediction: the correction of a step is
    part of the next one, and both are one combination.

    Attributes:
        past: how many past evaluations it uses.
        evaluation: the one at its start, which comes after them.
        onward: the prediction at its end from that at its start.
        moved: the same from a state that was replaced, with nothing to correct.
        corrected: the corrected state at its end from the prediction there, with the next evaluation; None
            in the last step.
    """

    past: int
    evaluation: Evaluation
    onward: Combination
    moved: Combination
    corrected: Combination | None


class Carry(NamedTuple):
    """From step to step: all programs and the past evaluations; where steps evaluate at their end also the
    prediction behind the state, None if the state was replaced, and the evaluation there, if it was made."""

    programs: Sequence[Program]
    joined: Sequence[JoinedStep]
    history: tuple[Tensor, ...] = ()
    prediction: Tensor | None = None
    pending: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SchemeMethod(Method):
    """Runs a ``Scheme`` on a fixed grid; its facts are those of the rule.

    Args:
        name, order, strong_order, weak_order: facts, see ``Method``; strong and weak orders None without
            noise.
        nodes: evaluations at hand once the run has started: the one at t and nodes - 1 of the past; 0 where
            the rule makes all evaluations itself.
        nfe_per_step: evaluations per step.
        nfe_extra: evaluations beyond those, of the start or, negative, saved in the last step.
        evaluates_end: whether steps evaluate their end, with ``Steps.evaluate_end``, and correct what they
            predicted.
        exposed: whether the states between the steps are handed out: only then are they corrected there.
        lower_final: whether the last steps use at most as many nodes as there are steps left, which steps to
            an infinite time in a logarithmic clock need; or the most nodes of the last steps, (2, 1) for two.
    """

    name: str
    order: int
    nodes: int = 1
    strong_order: float | None = None
    weak_order: float | None = None
    nfe_per_step: int = 1
    nfe_extra: int = 0
    evaluates_end: bool = False
    exposed: bool = False
    lower_final: bool | tuple[int, ...] = False
    terms = (Scheme,)

    def prepare(
        self, term: Scheme, grid: FixedGrid, like: Tensor
    ) -> tuple[Sequence[Program], Sequence[JoinedStep]]:
        """The programs of all steps."""
        programs = self._programs(term, grid.ts)
        if not self.evaluates_end:
            return programs, []
        joined = _Joined(programs, _evaluation_of_state(term, grid.ts[0]), self.nodes)
        if len(programs) <= BLOCK_STEPS:
            return programs, joined.steps(0, len(programs))
        return programs, InBlocks([(len(programs), joined.steps)])

    def start(
        self, term: Scheme, t: Tensor, y: Tensor, plan: tuple[Sequence[Program], Sequence[JoinedStep]]
    ) -> Carry:
        """The plan, no evaluations yet, and a first prediction that is the state itself."""
        return Carry(*plan, prediction=y)

    def replaced(self, carry: Carry) -> Carry:
        """Without the prediction behind the state: there is nothing to correct."""
        return carry._replace(prediction=None, pending=None)

    def _programs(self, term: Scheme, ts: Tensor) -> Sequence[Program]:
        """The rule in numbers, one program per step."""
        count = len(ts) - 1
        alone = int(
            self.evaluates_end
            or bool(self.lower_final)
            or (term.separate_end is not None and term.separate_end(ts[-1]))
        )
        falling = tuple(range(count, 0, -1)) if self.lower_final is True else self.lower_final or ()
        most = [*[self.nodes] * (count - len(falling)), *falling[-count:]]
        nodes = [min(self.nodes, i + 1, most[i]) for i in range(count)]
        traces: list[tuple[Steps, Form]] = []
        first = 0
        while first < count:
            end = first + 1
            while end < count - alone and nodes[end] == nodes[first]:
                end += 1
            steps = Steps(ts, first, end - first, nodes[first])
            result = term.rule(steps)
            traces.append((steps, result))
            first = end
        times = [time for steps, _ in traces for time in self._times(steps)]
        scales = _scales(term, torch.cat(times)) if times else ()
        parts: list[_Alike] = []
        for steps, result in traces:
            width = len(steps.t)
            taken = len(self._times(steps)) * width
            own, scales = [x[:taken].reshape(-1, width) for x in scales], [x[taken:] for x in scales]
            parts.append(self._numbers_of(steps, result, *own))
        programs = InBlocks([(part.table.shape[1], part.programs) for part in parts])
        return programs if count > BLOCK_STEPS else list(programs)

    @staticmethod
    def _times(steps: Steps) -> list[Tensor]:
        """When the values were evaluated, by their keys: those at hand, then the step's own evaluations."""
        at_hand = [steps.t, *steps.past] if steps.values else []
        return [*at_hand, *(time for time, _ in steps.evaluations)]

    def _numbers_of(self, steps: Steps, result: Form, *scales: Tensor) -> _Alike:
        """The numbers of steps that are alike; scales are P and Q, by keys."""
        known, count = len(steps.values), len(steps.t)
        own = int(bool(known) and not self.evaluates_end)
        # at run time: past evaluations, the newest first, then those of this step in the order they are made
        order = [*range(own, known), *range(own)]
        position = {key: i for i, key in enumerate(order)}
        position |= {known + i: known + i for i in range(len(steps.evaluations))}
        evaluations = [(steps.t, steps.y)] * own + steps.evaluations
        keys = [0] * own + [known + i for i in range(len(steps.evaluations))]
        factors, ratios = _factors(*scales) if scales else ([], torch.zeros(0, count))
        entries, table = _table([form for _, form in evaluations] + [result], factors, position, count)
        kept = known - 1 if own else steps.kept
        times = [time for time, _ in evaluations]
        return _Alike(known - own, entries, table, times, ratios[keys], kept)

    def step(
        self, term: Scheme, interval: Interval, y: Tensor, carry: Carry, noise: BrownianMotion | None
    ) -> Step:
        """The evaluations in turn, then their combination."""
        if self.evaluates_end:
            return self._joined_step(term, interval, y, carry, noise)
        programs, steps, history, prediction, pending = carry
        past, evaluations, result, kept, noisy = programs[interval.number]
        z = increment(noise, interval, y) if noisy else None
        values = list(history[:past])
        for evaluation in evaluations:
            at = y if evaluation.at is None else evaluation.at(y, values, z)
            values.append(_evaluate(term, evaluation, at))
        if kept is not None:
            history = (values[kept], *history)[: self.nodes - 1]
        return Step(result(y, values, z), None, Carry(programs, steps, history, prediction, pending))

    def _joined_step(
        self, term: Scheme, interval: Interval, y: Tensor, carry: Carry, noise: BrownianMotion | None
    ) -> Step:
        """From prediction to prediction; whoever is handed the state between steps gets the corrected one."""
        programs, steps, history, prediction, pending = carry
        number = interval.number
        past, evaluation, onward, moved, corrected = steps[number]
        z = increment(noise, interval, y) if programs[number].noisy else None
        if prediction is not None:
            y, combination = prediction, onward
            new = _evaluate(term, evaluation, y) if pending is None else pending
        else:
            combination, new = moved, _evaluate(term, evaluation, y)
        y = combination(y, [*history[:past], new], z)
        history = (new, *history)[: self.nodes]
        if not self.exposed or corrected is None:
            return Step(y, None, Carry(programs, steps, history, y))
        following = steps[number + 1]
        pending = _evaluate(term, following.evaluation, y)
        shown = corrected(y, [*history[: following.past], pending], None)
        return Step(shown, None, Carry(programs, steps, history, y, pending))


class _Joined:
    """The programs of a method that evaluates its end, rewritten, a block of steps at a time.

    Step i predicts p and corrects it to c, with values m_0, m_1, ... at hand and the evaluation at p,

        p = a y + sum b_j m_j + e z,        c = a' y + sum b'_j m_j + b' m + e' z,

    so that c = r p + sum (b'_j - r b_j) m_j + b' m, r = a' / a, if e' = r e.

    Raises:
        ValueError: a rule that evaluates otherwise, or corrects with another draw.
    """

    def __init__(self, programs: Sequence[Program], first: Evaluation, nodes: int) -> None:
        self._programs, self._nodes = programs, nodes
        self._first = 0, first, _UNMOVED  # a step, the evaluation at its start, and the correction there
        self._next = self._first

    def steps(self, first: int, end: int) -> list[JoinedStep]:
        """Those of the steps first, ..., end - 1."""
        known, evaluation, correction = self._next if first else self._first
        if known != first:
            evaluation, correction = self._corrected(first - 1)
        found = []
        for i in range(first, end):
            predicted, past = self._predicted(i), min(i, self._nodes)
            plain = {position - 1 if position else past: c for position, c in predicted.values}
            onward = {position: predicted.state * c for position, c in correction.values}
            for position, c in plain.items():
                onward[position] = onward.get(position, 0.0) + c
            moved = Combination(predicted.state, _pairs(plain), predicted.draw)
            joined = Combination(predicted.state * correction.state, _pairs(onward), predicted.draw)
            if not self._programs[i].evaluations:
                found.append(JoinedStep(past, evaluation, joined, moved, None))
                break
            own, (evaluation, correction) = evaluation, self._corrected(i)
            found.append(JoinedStep(past, own, joined, moved, correction))
        self._next = end, evaluation, correction
        return found

    def _predicted(self, i: int) -> Combination:
        """What step i predicts."""
        program = self._programs[i]
        if len(program.evaluations) != (i + 1 < len(self._programs)):
            raise ValueError(
                "a rule that evaluates the end evaluates once per step, at its end, and not in the last one"
            )
        return program.evaluations[0].at or _UNMOVED if program.evaluations else program.result

    def _corrected(self, i: int) -> tuple[Evaluation, Combination]:
        """The evaluation at the end of step i, and its correction from the prediction there."""
        program, predicted = self._programs[i], self._predicted(i)
        ratio = program.result.state / predicted.state
        if abs(program.result.draw - ratio * predicted.draw) > 1e-12 * abs(predicted.draw):
            raise ValueError(
                "a rule that evaluates the end must correct with the draw that it predicted with"
            )
        values = {position: -ratio * c for position, c in predicted.values}
        for position, c in program.result.values:
            at = min(i + 1, self._nodes) if position == program.past else position
            values[at] = values.get(at, 0.0) + c
        return program.evaluations[0]._replace(at=None), Combination(ratio, _pairs(values), 0.0)


def _pairs(values: dict[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple((position, c) for position, c in sorted(values.items()) if c != 0)


def _evaluate(term: Scheme, evaluation: Evaluation, at: Tensor) -> Tensor:
    """at + Q / P N(u, at), or N alone, with shape (B, *)."""
    raw = term.drift(evaluation.time, at)
    ratio = evaluation.ratio
    return raw if ratio is None else torch.add(at, raw, alpha=ratio)


def _scales(term: Scheme, time: Tensor) -> list[Tensor]:
    """P and Q at times with shape (N,)."""
    if term.scale is None:
        return [torch.zeros_like(time), torch.ones_like(time)]
    return list(term.scale(time))


def _factors(keep: Tensor, factor: Tensor) -> tuple[list[Tensor], Tensor]:
    """The factor that the coefficients take over, P or Q, and Q / P or nan, by keys and steps."""
    direct = keep == 0
    ratio = torch.where(direct, math.nan, factor / torch.where(direct, 1.0, keep))
    return list(torch.where(direct, factor, keep).unbind()), ratio


def _number(ratio: float) -> float | None:
    return None if math.isnan(ratio) else ratio


def _evaluation_of_state(term: Scheme, time: Tensor) -> Evaluation:
    """The evaluation of a state itself."""
    _, ratios = _factors(*(x[None] for x in _scales(term, time.reshape(1))))
    return Evaluation(time, None, _number(float(ratios[0, 0])))


def _table(
    forms: list[Form], factors: list[Tensor], position: dict[int, int], count: int
) -> tuple[list[list[int]], Tensor]:
    """The coefficients of forms, with the factors of the values in them, one row each.

    Returns:
        What the rows belong to, form by form: STATE, DRAW or the position of a value; and the rows, with
        shape (E, N).

    Raises:
        ValueError: a coefficient is not finite.
    """
    rows = [
        torch.as_tensor(c if key < 0 else c * factors[key], dtype=torch.float64).expand(count)
        for form in forms
        for key, c in form.coefficients.items()
    ]
    table = torch.stack(rows)
    if not bool(table.isfinite().all()):
        raise ValueError(
            "a step has infinite coefficients: it ends (or its nodes lie) where the clock of the method is "
            "infinite; end the run earlier, or lower the order of the last steps"
        )
    return [[key if key < 0 else position[key] for key in form.coefficients] for form in forms], table


@dataclass(frozen=True)
class _Alike:
    """Steps that are alike, in numbers: what becomes of them are programs.

    Attributes:
        past, kept: as in ``Program``.
        entries, table: the forms of the evaluations and of the result, see ``_table``.
        times: of the evaluations, each with shape (N,).
        ratios: Q / P of the evaluations, nan where P = 0, with shape (V, N).
    """

    past: int
    entries: list[list[int]]
    table: Tensor
    times: list[Tensor]
    ratios: Tensor
    kept: int | None

    def programs(self, first: int, end: int) -> list[Program]:
        """Those of the steps first, ..., end - 1 of them."""
        rows = iter(self.table[:, first:end].tolist())
        columns: list[list[Combination]] = []
        for keys in self.entries:
            form = {key: next(rows) for key in keys}
            nothing = [0.0] * (end - first)
            state, draw = form.pop(STATE, nothing), form.pop(DRAW, nothing)
            values = [tuple((at, w[n]) for at, w in form.items() if w[n] != 0) for n in range(end - first)]
            columns.append([Combination(*row) for row in zip(state, values, draw, strict=True)])
        times = [time[first:end].unbind() for time in self.times]
        ratios = self.ratios[:, first:end].tolist()
        programs = []
        for i in range(end - first):
            *at, combination = (column[i] for column in columns)
            made = tuple(
                Evaluation(when[i], None if form == _UNMOVED else form, _number(ratio[i]))
                for when, form, ratio in zip(times, at, ratios, strict=True)
            )
            noisy = bool(combination.draw) or any(form.draw for form in at)
            programs.append(Program(self.past, made, combination, self.kept, noisy))
        return programs


_UNMOVED = Combination(1.0, (), 0.0)
