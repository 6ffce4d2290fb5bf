"""A discrete chain as a process in continuous time, for networks that were trained at N indices.

A ``Chain`` gives alpha and sigma at times t_0 < t_1 < ... < t_N, index 0 the data end.  Between two indices

    log alpha    and    u = log(1 + nsr^2)    are linear in t,        nsr = sigma / alpha.

For a variance-preserving chain, where u = -2 log alpha, that is a VP process with a piecewise constant rate;
DPM-Solver reads a discrete schedule in the same way.  f and g^2 jump at the indices; nsr and its inverse are
exact.

A network made for the chain knows its N indices 1 to N; index 1, the first noise level, is where a run ends
by default.  A chain that ends in noise alone, alpha_N = 0, has no finite nsr there; as a process it ends at

    alpha_N = min(alpha_{N-1} / 2, 1e-4 sigma_N)

which is noise alone to 1e-4 of the data's size.

Reference: Lu et al., "DPM-Solver" (2206.00927), section 3.4 and appendix D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_toolkit.sdes.chain import Chain
from sde_toolkit.sdes.sde import ForwardSDE
from sde_toolkit.utils import checked, takes_numbers

_LEAST_SIGNAL = 1e-4


class ChainSDE(ForwardSDE):
    """The forward process through the levels of a chain.

    Args:
        chain: its times must increase strictly from 0.

    Raises:
        ValueError: other times.
    """

    @checked
    def __init__(self, chain: Chain) -> None:
        if float(chain.times[0]) != 0 or not bool((chain.times.diff() > 0).all()):
            raise ValueError(f"the times of the chain must increase strictly from 0, got {chain.times}")
        self.chain, self.T, self.default_t_min = chain, float(chain.times[-1]), float(chain.times[1])
        alpha, sigma = float(chain.alphas[-1]), float(chain.sigmas[-1])
        self.prior_std = sigma if alpha > 0.5 else (alpha**2 + sigma**2) ** 0.5
        self._times = chain.times
        alphas = chain.alphas
        if chain.ends_in_noise:
            last = torch.minimum(alphas[-2] / 2, _LEAST_SIGNAL * chain.sigmas[-1])
            alphas = torch.cat([alphas[:-1], last[None]])
        self._log_alpha = alphas.log()
        self._u = torch.log1p((chain.sigmas / alphas).square())

    def __repr__(self) -> str:
        return f"ChainSDE(num_steps={self.chain.num_steps}, T={self.T})"

    def index(self, t: Tensor) -> Tensor:
        """The index as a real number, fractional between two indices, with the shape and dtype of t."""
        low, fraction = self._find(self._times, t)
        return low + fraction

    @takes_numbers
    def time(self, index: Tensor) -> Tensor:
        """The time of an index, which may be fractional, with the shape and dtype of ``index``."""
        low = index.floor().clamp(0, self.chain.num_steps - 1)
        nodes = self._times.to(index.device)
        start, end = (torch.take(nodes, low.long() + k) for k in (0, 1))
        return (start + (index - low) * (end - start)).to(index.dtype)

    @staticmethod
    def _find(nodes: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The interval that holds each value, and the fraction of it that lies before the value."""
        nodes = nodes.to(value.device)
        wide = value.to(nodes.dtype).contiguous()
        if torch.compiler.is_exporting():  # the same count, of operations that ONNX has
            before = (wide.unsqueeze(-1) >= nodes).sum(-1)
        else:
            before = torch.searchsorted(nodes, wide, right=True)
        low = (before - 1).clamp(0, len(nodes) - 2)
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
