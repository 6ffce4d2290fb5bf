"""The error budget of log-likelihoods: each source of error measured by itself.

Entries are corrections in nats, what would have to be added to the reported values to mend them, found on the
first few samples, with the standard error of what is random in them:

    solver        the same run with a tenth of the tolerances (or four steps for one), less the reported value
    probes        0 +- the spread of the divergence's probes over the root of their number.  With one probe
                  the finer run takes more, the first among them, to have a spread at all
    truncation    the value at noise zero less that at t_min, see ``sde_toolkit.density``: with "none"
                  Tweedie's correction, with "tweedie" the size of the next order, with "reconstruction" 0
    prior         log p_T(x_T) less the prior's, with  log p_T = log Gaussian + D(u) - log E_N[exp D(u)],
                  D the line integral of the model's score at T less the Gaussian's from u = 0 to u
    dequantization   the gap that more importance samples close, where the data are discrete

Corrections add up; their errors, which are independent, add in squares.  They are not applied.

Not promised: what the model's own misfit costs.  That is what a likelihood measures.
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
    density: FlowDensity,
    x: Tensor,
    samples: Sequence[int],
    found: Columns,
    condition: Tensor | None = None,
) -> Budget:
    """The budget of what ``density`` has found for x with shape (m, *), of these samples and conditions."""
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
        _, higher = density.unblur(alpha * x.to(torch.float64), probes, condition)
        return Entry(zero, higher, "the size of the next order")
    x_t = x.to(torch.float64)
    blur, higher = density.unblur(x_t, probes, condition)
    z_hat, _ = flow.evaluate(flow.whiten(x_t, flow.start), flow.start, density.divergence, probes, condition)
    # from y = x / alpha to y = x, along the score -z_hat / n
    moved = (z_hat * flow.moments.project(x_t)).sum(1) * (1 / alpha - 1) / nsr
    shift = blur.mean(1) + moved + x[0].numel() * alpha.log()
    return Entry(shift, higher, "Tweedie's correction to noise zero")


def _prior(density: FlowDensity, u: Tensor, condition: Tensor | None) -> Entry:
    """Samples with equal conditions share the draws of the normaliser."""
    if condition is None:
        exact, error = _log_density_at_end(density, u, None)
    else:
        exact, error = torch.empty_like(u[:, 0]), torch.empty_like(u[:, 0])
        kinds, which = condition.unique(dim=0, return_inverse=True)
        for number in range(len(kinds)):
            mine = which == number
            exact[mine], error[mine] = _log_density_at_end(density, u[mine], condition[mine])
    return Entry(exact - density.log_prior(u), error, "line integral of the score at T")


def _log_density_at_end(density: FlowDensity, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p_T at u with shape (m, n), whose conditions are all equal, and its standard error; shape (m,)."""
    flow = density.flow
    normals = Normals(density.seed, _NORMALIZER_DRAWS, (flow.num_features,), u.dtype, u.device)
    shared = None if condition is None else condition[:1].expand(_NORMALIZER_DRAWS, *condition.shape[1:])
    weights = flow.log_ratio(normals.draw(0, Stream.NORMALIZER), shared).exp()
    gaussian = replace(density, prior="gaussian")
    exact = gaussian.log_prior(u) + flow.log_ratio(u, condition) - weights.mean().log()
    error = weights.std() / weights.mean() / math.sqrt(_NORMALIZER_DRAWS)
    return exact, error.expand(len(u))
