"""The error budget of log-likelihoods: each source of error measured on its own.

An entry is a correction in nats: what would have to be added to a reported value to remove this error.  It is
measured on a few diagnostic samples, the first ones, with the standard error of what is random in it:

    solver        the same run with a tenth of the tolerances (or with finer steps), less the reported value.
                  With more than 16 features the two runs share one probe (two for an exact divergence), and
                  so many samples run again as cost little; the others have the mean of these, +- its size
    probes        0 +- the spread of the divergence's probes over the root of their number.  One probe has no
                  spread; the finer run then takes four, the same one first
    truncation    the value at noise zero less that at t_min, see ``sde_toolkit.likelihood.density``: with
                  "none" that of the Gaussian exactly and of what the model adds to it to first order +- the
                  size of the next and what the noise hides, with "tweedie" 0 +- that, with "reconstruction" 0
    prior         log p_T(x_T) less the prior's, with  log p_T = log Gaussian + D(u) - log E_N[exp D(u)],
                  D the line integral of the model's score at T less the Gaussian's from u = 0 to u.  With
                  conditions the expectation is estimated for every distinct one
    dequantization   the gap that more importance samples close, where the data are discrete

Corrections add up; their errors are independent and add in squares.  They are reported, not applied.

Not included: the misfit of the model.  That is what a likelihood measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.likelihood.density import FlowDensity, Values
from sde_toolkit.likelihood.divergence import Divergence, ExactDivergence, Hutchinson, HutchPlusPlus
from sde_toolkit.likelihood.whitened import WhitenedFlow
from sde_toolkit.utils import Stream, check_fields
from solvers import Normals

SHARE = 0.08
"""What the finer run may take of the time of the run, where derivatives are many."""

_FEW_FEATURES = 16
"""Up to so many all samples are run again with all derivatives; as many probes stand for more of them."""

_FINER = 1.7
"""Evaluations of a finer run per evaluation of the run, about."""

_LEAST_PROBES = 4
_NORMALIZER_DRAWS = 32, 256
_NEGLIGIBLE = 3e-4
"""Error of the prior's normaliser, in nats per feature, at which the first number of draws suffices."""


@dataclass(frozen=True)
class Entry:
    """One source of error, for m samples.

    Attributes:
        shift: correction of each sample, in nats, with shape (m,).
        error: standard error of each correction, with shape (m,).
        how: how it was found.
    """

    shift: Tensor
    error: Tensor
    how: str

    @property
    def mean(self) -> float:
        """Mean correction, in nats."""
        return float(self.shift.mean())

    @property
    def rms(self) -> float:
        """Root of the mean of shift^2 + error^2: how far off a single value is, in nats."""
        return math.sqrt(float((self.shift.square() + self.error.square()).mean()))


@dataclass(frozen=True)
class Budget(Mapping[str, Entry]):
    """Entries by name, for the same samples."""

    entries: Mapping[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def with_entry(self, name: str, entry: Entry) -> Budget:
        """A budget with one more entry, or another in its place."""
        return Budget({**self.entries, name: entry})

    @property
    def total(self) -> Entry:
        """The sum of the corrections, their errors added in squares."""
        shift = torch.stack([entry.shift for entry in self.values()]).sum(0)
        error = torch.stack([entry.error for entry in self.values()]).square().sum(0).sqrt()
        return Entry(shift, error, "sum of " + ", ".join(self))

    def lines(self, dims: int) -> list[str]:
        """A table: nats (mean correction, size) and bits per dimension, with ``dims`` dimensions."""
        rows = [*self.items(), ("total", self.total)]
        unit = dims * math.log(2)
        return [
            f"{name:<15}{e.mean:>+12.2e}{e.rms:>11.1e} nats{e.rms / unit:>11.1e} bits/dim   {e.how}"
            for name, e in rows
        ]


@dataclass(frozen=True)
class LikelihoodCost:
    """What a log-likelihood takes, in network evaluations.

    A product with the Jacobian costs about a forward pass.

    Attributes:
        num_samples: B.
        nfe: evaluations of a sample; with tolerances, those of the first sample without its divergence.
        products: with the Jacobian, at every evaluation.
        adds_probes: whether samples may run again with further probes.
    """

    num_samples: int
    nfe: int
    products: int
    adds_probes: bool

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def passes(self) -> int:
        """Forward passes of one sample that all of it is worth, without added probes and the budget."""
        return self.num_samples * self.nfe * (1 + self.products)

    @property
    def sentence(self) -> str:
        """The cost in one line."""
        more = ", and more probes where the standard error asks for them" if self.adds_probes else ""
        return (
            f"{self.num_samples} samples x {self.nfe} evaluations x (1 + {self.products} derivatives) = "
            f"{self.passes:,} passes of the network{more}"
        )


class _Plan(NamedTuple):
    """How the solver's error is measured.

    Attributes:
        rows: so many first samples.
        divergence: of the finer run.
        paired: whether the reported run is repeated with that divergence, for a difference.
    """

    rows: int
    divergence: Divergence
    paired: bool


def _plan(density: FlowDensity, few: int, total: int) -> _Plan:
    """All ``few`` samples and the run's own divergence where derivatives are few; else one probe, two for an
    exact divergence, and as many samples as ``SHARE`` of a run of ``total`` samples pays for, at least 1."""
    own, n = density.divergence, density.flow.num_features
    count, products = own.columns(n), own.products(n)
    enough = own.at_least(_LEAST_PROBES, n) if count == 1 else own
    if n <= _FEW_FEATURES:
        return _Plan(few, enough, False)
    paired = isinstance(own, ExactDivergence)
    fewer = Hutchinson(2, "walsh", control=own.control) if paired else enough
    if count > 1 and isinstance(own, (Hutchinson, HutchPlusPlus)):
        fewer = own.first()
    price = (_FINER + paired) * (1 + fewer.products(n))
    return _Plan(min(few, max(1, int(SHARE * total * (1 + products) / price))), fewer, paired)


def measure(
    density: FlowDensity,
    x: Tensor,
    samples: Sequence[int],
    condition: Tensor | None,
    found: Values,
    total: int | None = None,
) -> Budget:
    """The budget of what ``density`` has found for x with shape (m, *).

    Args:
        density: as it was called.
        x: with shape (m, *).
        samples: the numbers of the rows.
        condition: with one row per sample, or None.
        found: the values of the density.
        total: the number of samples that the run had; m when None.
    """
    zero = torch.zeros_like(found.nats)
    solver, spread = _solver(density, x, samples, condition, found, len(x) if total is None else total)
    known = found.num_columns > 1
    error = torch.where(known, _errors(density, found), spread)
    exact = isinstance(density.divergence, ExactDivergence)
    counts = sorted(set(found.num_columns.clamp(min=_LEAST_PROBES if not known.all() else 1).tolist()))
    how = f"spread of {' to '.join(map(str, (counts[0], counts[-1])[: len(counts)]))} probes"
    return Budget(
        {
            "solver": solver,
            "probes": Entry(zero, error, "exact divergence" if exact else how),
            "truncation": _truncation(density, x, samples, condition),
            "prior": _prior(density, found.u, condition),
        }
    )


def standard_errors(density: FlowDensity, found: Values) -> Tensor | None:
    """Of the values, in nats, with shape (B,); None for the exact divergence and for one probe."""
    if isinstance(density.divergence, ExactDivergence) or bool((found.num_columns < 2).any()):
        return None
    return _errors(density, found)


def _errors(density: FlowDensity, found: Values) -> Tensor:
    """Standard errors from the spread of the columns, with shape (B,)."""
    n, error = density.flow.num_features, torch.zeros_like(found.std)
    for count in found.num_columns.unique().tolist():
        mine = found.num_columns == count
        error[mine] = density.divergence.at_least(count, n).error_of_mean(found.std[mine], n)
    return error


def _solver(
    density: FlowDensity,
    x: Tensor,
    samples: Sequence[int],
    condition: Tensor | None,
    found: Values,
    total: int,
) -> tuple[Entry, Tensor]:
    """The entry, and the spread of the probes of the finer run over the root of the reported number."""
    n, (rows, divergence, paired) = density.flow.num_features, _plan(density, len(x), total)
    given = None if condition is None else condition[:rows]
    if rows < len(x):  # bits do not matter here
        flow = density.flow
        density = replace(density, flow=WhitenedFlow(flow.model, flow.t_min, flow.moments, fill=False))
    finer = replace(density.finer(), divergence=divergence)
    again = finer(x[:rows], samples[:rows], given).nats
    before = found.columns[:rows]
    if paired:
        before = replace(density, divergence=divergence)(x[:rows], samples[:rows], given).nats
    count = min(again.shape[1], before.shape[1])
    each = again[:, :count] - before[:, :count]
    shift, error = each.mean(1), torch.zeros_like(each[:, 0])
    if paired:
        error = divergence.error_of_mean(each.std(1), n)
    spread = torch.zeros_like(shift)
    if again.shape[1] > 1 and not paired:
        spread = density.divergence.error_of_mean(again.std(1), n)
    how, others = "a finer run", len(x) - rows
    if others:  # the mean of those measured, and their size
        how = f"a finer run of {rows} of {len(x)}"
        shift = torch.cat([shift, shift.mean().expand(others)])
        error = torch.cat([error, (shift[:rows].square() + error.square()).mean().sqrt().expand(others)])
        spread = torch.cat([spread, spread.square().mean().sqrt().expand(others)])
    return Entry(shift, error, how), spread


def _truncation(density: FlowDensity, x: Tensor, samples: Sequence[int], condition: Tensor | None) -> Entry:
    zero = x.new_zeros(len(x), dtype=torch.float64)
    if density.correction == "reconstruction":
        return Entry(zero, zero, "reconstruction minus entropy: a bound, nothing is left out")
    own = density.divergence
    if isinstance(own, ExactDivergence) and density.flow.num_features > _FEW_FEATURES:
        own = Hutchinson(_FEW_FEATURES, "walsh")
    if isinstance(own, (Hutchinson, HutchPlusPlus)):  # of what the model adds to the Gaussian
        density = replace(density, divergence=replace(own, control=1.0))
    shift, error = density.truncation(x.to(torch.float64), density.probes(samples, x.device), condition)
    if density.correction == "tweedie":
        return Entry(zero, error, "the size of what is left out")
    return Entry(shift, error, "the Gaussian's exactly, the rest to first order")


def _prior(density: FlowDensity, u: Tensor, condition: Tensor | None) -> Entry:
    flow = density.flow
    # samples with equal conditions share a density at T, and so its normaliser
    number, distinct = torch.zeros(len(u), dtype=torch.int64, device=u.device), [None]
    if condition is not None:
        distinct, number = torch.unique(condition, dim=0, return_inverse=True)
    found = [_normalizer(density, u, row) for row in distinct]
    logs, error = (torch.stack(column) for column in zip(*found, strict=True))
    exact = replace(density, prior="gaussian").log_prior(u) + flow.log_ratio(u, condition)
    exact = exact - logs[number]
    return Entry(exact - density.log_prior(u), error[number], "line integral of the score at T")


def _normalizer(density: FlowDensity, like: Tensor, row: Tensor | None) -> tuple[Tensor, Tensor]:
    """log E_N[exp D(u)] for one condition and its standard error, with shape (): few draws, or many where
    few leave an error that matters."""
    n = density.flow.num_features
    for count in _NORMALIZER_DRAWS:
        draws = Normals(density.seed, count, (n,), like.dtype, like.device).draw(0, Stream.NORMALIZER)
        given = None if row is None else row.expand(count, *row.shape)
        weights = density.flow.log_ratio(draws, given).exp()
        error = weights.std() / weights.mean() / math.sqrt(count)
        if float(error) <= _NEGLIGIBLE * n:
            break
    return weights.mean().log(), error
