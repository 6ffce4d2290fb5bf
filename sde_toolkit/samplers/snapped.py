"""Networks trained at N indices: a chain as a process in continuous time, and the indices as times.

A ``Chain`` gives alpha and sigma at times t_0 < t_1 < ... < t_N, index 0 the data end.  Between two indices

    log alpha    and    u = log(1 + nsr^2)    are linear in t,        nsr = sigma / alpha,

which is, for a variance-preserving chain (u = -2 log alpha), a VP process with a piecewise constant rate, and
DPM-Solver's reading of a discrete schedule.  f and g^2 jump at the indices; nsr and its inverse are exact.

A network made for the chain is asked at index i as ``network(x, i - 1)``: its own count starts at 0 with the
least noise, as in DDPM code.  Times between two indices go to the nearest one, or, for networks that embed
real numbers, to the fraction.  ``Snapped`` grids have all their times on indices.

Reference: Lu et al., "DPM-Solver" (2206.00927), section 3.4 and appendix D.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sde_toolkit.samplers.grids import Grid
from sde_toolkit.sdes import ChainSDE, ForwardSDE


@dataclass(frozen=True)
class Snapped:
    """Another grid with every time moved to the nearest index of a ``ChainSDE``.

    Args:
        grid: any grid.
    """

    grid: Grid

    def __call__(self, sde: ForwardSDE, num_steps: int, t_min: float, t_max: float | None = None) -> Tensor:
        """Times with shape (num_steps + 1,).

        Raises:
            TypeError: the process has no indices.
            ValueError: two times fall on one index.
        """
        if not isinstance(sde, ChainSDE):
            raise TypeError(f"a Snapped grid needs a ChainSDE, whose times are indices, got {sde!r}")
        index = sde.index(self.grid(sde, num_steps, t_min, t_max)).round().long()
        if not bool((index.diff() < 0).all()):
            raise ValueError(
                f"{num_steps} steps do not fit on the {sde.chain.num_steps} indices: two times fall on one; "
                "take fewer steps, or another grid"
            )
        return sde.chain.times[index]
