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

import torch
from torch import Tensor, nn

from sde_toolkit.ddpm import Chain
from sde_toolkit.grids import Grid
from sde_toolkit.score import PREDICTIONS, Prediction, ScoreModel
from sde_toolkit.sde import ForwardSDE


class ChainSDE(ForwardSDE):
    """The forward process through the levels of a chain.

    Args:
        chain: its times must increase strictly from 0.

    Raises:
        ValueError: other times.
    """

    def __init__(self, chain: Chain) -> None:
        if float(chain.times[0]) != 0 or not bool((chain.times.diff() > 0).all()):
            raise ValueError(f"the times of the chain must increase strictly from 0, got {chain.times}")
        self.chain, self.T = chain, float(chain.times[-1])
        alpha, sigma = float(chain.alphas[-1]), float(chain.sigmas[-1])
        self.prior_std = sigma if alpha > 0.5 else (alpha**2 + sigma**2) ** 0.5
        self._times = chain.times
        self._log_alpha = chain.alphas.log()
        self._u = torch.log1p((chain.sigmas / chain.alphas).square())

    def __repr__(self) -> str:
        return f"ChainSDE(num_steps={self.chain.num_steps}, T={self.T})"

    def index(self, t: Tensor) -> Tensor:
        """The index, with a fraction between two of them, with the shape and dtype of t."""
        low, fraction = self._find(self._times, t)
        return low + fraction

    @staticmethod
    def _find(nodes: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The interval that holds each value, and where in it."""
        nodes = nodes.to(value.device)
        low = (torch.searchsorted(nodes, value.to(nodes.dtype), right=True) - 1).clamp(0, len(nodes) - 2)
        start, end = torch.take(nodes, low), torch.take(nodes, low + 1)
        return low, ((value - start) / (end - start)).to(value.dtype)

    def _at(self, table: Tensor, t: Tensor) -> Tensor:
        low, fraction = self._find(self._times, t)
        start, end = (torch.take(table.to(t.device), low + k) for k in (0, 1))
        return (start + fraction * (end - start)).to(t.dtype)

    def _slope(self, table: Tensor, t: Tensor) -> Tensor:
        low, _ = self._find(self._times, t)
        return torch.take((table.diff() / self._times.diff()).to(t.device), low).to(t.dtype)

    def log_alpha(self, t: Tensor) -> Tensor:
        """Linear between the indices, with the shape of t."""
        return self._at(self._log_alpha, t)

    def sigma(self, t: Tensor) -> Tensor:
        """nsr alpha, with the shape of t."""
        return self.nsr(t) * self.alpha(t)

    def f(self, t: Tensor) -> Tensor:
        """The slope of log alpha, with the shape of t."""
        return self._slope(self._log_alpha, t)

    def g_squared(self, t: Tensor) -> Tensor:
        """alpha^2 (nsr^2)' = alpha^2 e^u u', with the shape of t."""
        return (2 * self.log_alpha(t) + self._at(self._u, t)).exp() * self._slope(self._u, t)

    def nsr(self, t: Tensor) -> Tensor:
        """sqrt(e^u - 1), with the shape of t."""
        return torch.expm1(self._at(self._u, t)).sqrt()

    def inverse_nsr(self, nsr: Tensor) -> Tensor:
        """The time at which u = log(1 + nsr^2), any shape."""
        low, fraction = self._find(self._u, torch.log1p(nsr.square()))
        start, end = (torch.take(self._times.to(nsr.device), low + k) for k in (0, 1))
        return (start + fraction * (end - start)).to(nsr.dtype)


class IndexedModel(ScoreModel):
    """A score model whose network was trained at the N indices of a chain.

    Args:
        network: called as ``network(x, i)`` with x of shape (B, *) and i of shape (B,): int64 from 0 to N - 1
            or, with ``fractional``, real numbers in between; returns the shape of x.
        chain: the levels that it was trained at.
        predicts: what the network puts out.
        event_shape: the shape D of one sample.
        fractional: whether times between two indices are passed on as fractions.
        data_std: root-mean-square standard deviation of the data.

    Raises:
        ValueError: an unknown prediction.
    """

    def __init__(
        self,
        network: nn.Module,
        chain: Chain,
        predicts: Prediction,
        event_shape: tuple[int, ...],
        fractional: bool = False,
        data_std: float = 1.0,
    ) -> None:
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, got {predicts!r}")
        self.network, self.predicts, self.event_shape = network, predicts, tuple(event_shape)
        self.fractional, self.data_std = fractional, float(data_std)
        self.sde: ChainSDE = ChainSDE(chain)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Type of the network's parameters, and so of the states."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Device of the network's parameters."""
        return next(self.network.parameters()).device

    def raw(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's output at x_t with shape (B, *) and t with shape () or (B,)."""
        index = (self.sde.index(t) - 1).clamp(0, self.sde.chain.num_steps - 1)
        if not self.fractional:
            return self.network(x_t, index.round().long().to(x_t.device).expand(len(x_t)))
        return self.network(x_t, index.to(device=x_t.device, dtype=x_t.dtype).expand(len(x_t)))


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
