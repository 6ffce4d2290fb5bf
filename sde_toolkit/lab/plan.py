"""The plan of an experiment: problems x conditions x samplers x step counts x seeds, within a budget.

A cell is one sampler with its steps on one problem under one condition.  Its time is estimated beforehand,

    seconds ~ seeds that are missing x network evaluations x batches x seconds of one evaluation of a batch

with the last factor measured once for every problem.  Samplers that choose their own steps count as
``ADAPTIVE_NFE`` evaluations.  The time of the solver and of the metrics is not in the estimate.

Under a budget of time, cells are run in the order of the plan as long as the estimate fits into what is left;
those left out are listed, and the same plan with the same store goes on with them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from sde_toolkit.lab.experiment import Candidate, Metric, blank_records, compare, known_records
from sde_toolkit.lab.problems import NamedCondition, Problem, condition_rows
from sde_toolkit.lab.records import Record
from sde_toolkit.lab.store import Store
from sde_toolkit.models import Condition
from sde_toolkit.samplers import Samples
from sde_toolkit.utils import check_fields, checked

ADAPTIVE_NFE = 100
"""Network evaluations that the estimate takes for a sampler which chooses its own steps."""


@dataclass(frozen=True, eq=False)
class Group:
    """Samplers that are compared with each other: one problem, one condition.

    Args:
        problem: what is sampled, and what the samples should be.
        candidates: samplers with their step counts.
        metrics: what judges them.
        condition: of all samples.
    """

    problem: Problem
    candidates: Sequence[Candidate]
    metrics: Sequence[Metric]
    condition: Condition | NamedCondition | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class Cell:
    """One sampler with its steps in one group, and what it will cost.

    Attributes:
        group, candidate: which.
        nfe: network evaluations of a sample; None where the sampler chooses its own steps.
        missing: seeds that are not in the store.
        seconds: estimated time in the network.
    """

    group: Group
    candidate: Candidate
    nfe: int | None
    missing: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a plan: a record for each cell and metric, the mean over the seeds; and what was left out.

    Attributes:
        records: in the order of the plan.
        left_out: cells that did not fit into the budget of time.
    """

    records: list[Record]
    left_out: list[Cell] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Experiment:
    """A plan.

    Args:
        groups: what is compared.
        num_samples: drawn for each cell and seed.
        seeds: of the draws.
        batch_size: samples computed at once; None for all.
        max_nfe: cells of more evaluations are no part of the plan; 0 for no limit.
        time_budget: seconds; 0 for no limit.
        share: (i, n) for every n-th cell from cell i on, counted from 0: the part of one process of n.
    """

    groups: Sequence[Group]
    num_samples: int
    seeds: Sequence[int] = (0,)
    batch_size: int | None = None
    max_nfe: int = 0
    time_budget: float = 0.0
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_fields(self)
        index, count = self.share
        if not 0 <= index < count:
            raise ValueError(f"share must be (i, n) with 0 <= i < n, got {self.share}")
        if not self.time_budget >= 0 or self.max_nfe < 0:
            raise ValueError(
                f"time_budget and max_nfe must be at least 0, got {self.time_budget} and {self.max_nfe}"
            )

    def candidates(self, group: Group) -> list[Candidate]:
        """Those of a group that ``max_nfe`` allows."""
        limit = self.max_nfe or math.inf
        return [c for c in group.candidates if (c.sampler.nfe or 0) <= limit]

    @checked
    def cells(self, store: Store | None = None) -> list[Cell]:
        """The cells of this share in their order, with what the store lacks and what it will cost."""
        found: list[Cell] = []
        (index, count), number = self.share, itertools.count()
        for group in self.groups:
            each: float | None = None
            for candidate in self.candidates(group):
                if next(number) % count != index:
                    continue
                missing = self._missing(group, candidate, store)
                if missing and each is None:
                    each = self._seconds_of_evaluation(group)
                nfe = candidate.sampler.nfe
                seconds = len(missing) * (nfe or ADAPTIVE_NFE) * (each or 0.0)
                found.append(Cell(group, candidate, nfe, missing, seconds))
        return found

    def _missing(self, group: Group, candidate: Candidate, store: Store | None) -> tuple[int, ...]:
        blanks = blank_records(
            candidate, group.metrics, self.num_samples, tuple(self.seeds), group.problem.fingerprint,
            group.problem.name, group.condition,
        )  # fmt: skip
        if store is None or len(known_records(blanks, {}, store)) == len(blanks):
            return tuple(self.seeds) if store is None else ()
        single = {seed: [replace(blank, seeds=(seed,)) for blank in blanks] for seed in self.seeds}
        return tuple(
            seed for seed, rows in single.items() if len(known_records(rows, {}, store)) < len(blanks)
        )

    def _seconds_of_evaluation(self, group: Group) -> float:
        """Time to evaluate the model once on all samples, from the faster of two evaluations of a batch."""
        model, rows = group.problem.model, min(self.batch_size or self.num_samples, self.num_samples)
        of_all = condition_rows(group.condition, self.num_samples)
        condition = model.conditions(of_all, self.num_samples)
        condition = None if condition is None else condition[:rows]
        x = torch.zeros(rows, *model.event_shape, dtype=model.dtype, device=model.device)
        t = torch.full((rows,), float(model.sde.T) / 2, dtype=model.dtype, device=model.device)
        found = []
        for _ in range(2):
            begin = time.perf_counter()
            with torch.no_grad():
                model.raw(x, t, condition).sum().item()
            found.append(time.perf_counter() - begin)
        return min(found) * math.ceil(self.num_samples / rows)

    @checked
    def run(
        self,
        store: Store | None = None,
        on_records: Callable[[Cell, list[Record], bool], None] | None = None,
        on_samples: Callable[[Cell, Samples], None] | None = None,
    ) -> Outcome:
        """Measure every cell that the store lacks and the budget allows.

        Args:
            store: where records are, and where new ones are written, each as soon as it is measured.
            on_records: called after each cell with its records and whether they were reused.
            on_samples: called with every set of samples drawn.

        Raises:
            ValueError: what ``compare`` refuses.
        """
        begin, outcome = time.perf_counter(), Outcome([])
        for cell in self.cells(store):
            spent = time.perf_counter() - begin
            if cell.missing and self.time_budget and spent + cell.seconds > self.time_budget:
                outcome.left_out.append(cell)
                continue
            outcome.records.extend(self._measure(cell, store, on_records, on_samples))
        return outcome

    def _measure(
        self,
        cell: Cell,
        store: Store | None,
        on_records: Callable[[Cell, list[Record], bool], None] | None,
        on_samples: Callable[[Cell, Samples], None] | None,
    ) -> list[Record]:
        group, problem = cell.group, cell.group.problem
        return compare(
            problem.model, [cell.candidate], group.metrics, num_samples=self.num_samples, seeds=self.seeds,
            batch_size=self.batch_size, condition=group.condition, fingerprint=problem.fingerprint,
            problem=problem.name, store=store,
            on_records=None if on_records is None else lambda _, rows, old: on_records(cell, rows, old),
            on_samples=None if on_samples is None else lambda _, samples: on_samples(cell, samples),
        )  # fmt: skip
