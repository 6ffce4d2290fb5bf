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

import torch
from torch import Tensor, nn

from sde_toolkit.models.score import PREDICTIONS, Prediction, ScoreModel
from sde_toolkit.sdes import Chain, ChainSDE


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
