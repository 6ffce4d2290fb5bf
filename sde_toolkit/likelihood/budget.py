"""The error budget of log-likelihoods: each source of error measured on its own.

An entry is a correction in nats: what would have to be added to a reported value to remove this error.  It is
measured on a few diagnostic samples, the first ones, with the standard error of what is random in it:

    solver        the same run with a tenth of the tolerances (or four steps for one), less the reported value
    probes        0 +- the spread of the divergence's probes over the root of their number.  One probe has no
                  spread; the finer run then takes four, the same one first
    truncation    the value at noise zero less that at t_min, see ``sde_toolkit.likelihood.density``: with
                  "none" Tweedie's correction, with "tweedie" the size of the next order, with
                  "reconstruction" 0
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

import torch
from torch import Tensor

from sde_toolkit.likelihood.density import Columns, FlowDensity
from sde_toolkit.utils import Stream
from solvers import Normals

_LEAST_PROBES = 4
_NORMALIZER_DRAWS = 256


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


def measure(
    density: FlowDensity, x: Tensor, samples: Sequence[int], condition: Tensor | None, found: Columns
) -> Budget:
    """The budget of what ``density`` has found for x with shape (m, *).

    Args:
        density: as it was called.
        x: with shape (m, *).
        samples: the numbers of the rows.
        condition: with one row per sample, or None.
        found: the values of the density.
    """
    n, count = density.flow.num_features, found.nats.shape[1]
    finer = density.finer()
    if count == 1:
        finer = replace(finer, divergence=finer.divergence.at_least(_LEAST_PROBES, n))
    again = finer(x, samples, condition).nats
    zero = torch.zeros_like(again[:, 0])
    spread = again.std(1) if again.shape[1] > 1 else zero
    error = density.divergence.error_of_mean(spread, n)
    how = f"spread of {again.shape[1]} probes" if again.shape[1] > 1 else "exact divergence"
    return Budget(
        {
            "solver": Entry(again[:, :count].mean(1) - found.nats.mean(1), zero, "a finer run"),
            "probes": Entry(zero, error, how),
            "truncation": _truncation(finer, x, samples, condition),
            "prior": _prior(density, found.u, condition),
        }
    )


def _truncation(density: FlowDensity, x: Tensor, samples: Sequence[int], condition: Tensor | None) -> Entry:
    zero = x.new_zeros(len(x), dtype=torch.float64)
    if density.correction == "reconstruction":
        return Entry(zero, zero, "reconstruction minus entropy: a bound, nothing is left out")
    flow = density.flow
    alpha, nsr = flow.start.alpha, flow.start.nsr
    probes = density.probes(samples, x.device)
    if density.correction == "tweedie":
        _, higher = density.noise_correction(alpha * x.to(torch.float64), probes, condition)
        return Entry(zero, higher, "the size of the next order")
    x_t = x.to(torch.float64)
    blur, higher = density.noise_correction(x_t, probes, condition)
    u = flow.whiten(x_t, flow.start)
    z_hat, _ = flow.evaluate_with_divergence(u, flow.start, density.divergence, probes, condition)
    # from y = x / alpha to y = x, along the score -z_hat / n
    moved = (z_hat * flow.moments.project(x_t)).sum(1) * (1 / alpha - 1) / nsr
    shift = blur.mean(1) + moved + x[0].numel() * alpha.log()
    return Entry(shift, higher, "Tweedie's correction to noise zero")


def _prior(density: FlowDensity, u: Tensor, condition: Tensor | None) -> Entry:
    flow = density.flow
    normals = Normals(density.seed, _NORMALIZER_DRAWS, (flow.num_features,), u.dtype, u.device)
    draws = normals.draw(0, Stream.NORMALIZER)
    # samples with equal conditions share a density at T, and so its normaliser
    number, distinct = torch.zeros(len(u), dtype=torch.int64, device=u.device), [None]
    if condition is not None:
        rows, number = torch.unique(condition, dim=0, return_inverse=True)
        distinct = [row.expand(len(draws), *row.shape) for row in rows]
    weights = torch.stack([flow.log_ratio(draws, rows).exp() for rows in distinct])
    exact = replace(density, prior="gaussian").log_prior(u) + flow.log_ratio(u, condition)
    exact = exact - weights.mean(1).log()[number]
    error = weights.std(1) / weights.mean(1) / math.sqrt(_NORMALIZER_DRAWS)
    return Entry(exact - density.log_prior(u), error[number], "line integral of the score at T")
