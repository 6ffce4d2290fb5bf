"""The terms of a chain's variational bound, for reverse steps whose variance is a choice between two.

With n = sigma / alpha, and s = i - 1, t = i, the step from i has the mean of q(x_s | x_t, x0_hat) and, by
features, the variance

    log c^2 = v log large + (1 - v) log small        small = sigma_s^2 gain,  large = sigma_t^2 gain

with gain = 1 - n_s^2 / n_t^2 (2102.09672, eq. 15: small is beta~ and large is beta).  Its divergence from
q(x_s | x_t, x0) is, with h the squared error of the noise and log r = log small - log c^2,

    KL = (n_t^2 - n_s^2) / (2 n_s^2) r h + (r - 1 - log r) / 2

and v a number that a network may choose anew for every state.  Where index 0 is without noise, the step from
1 is the decoder N(x0; x0_hat, c^2): its "large" is sigma_1^2 / alpha_0^2, and for "small", which would be 0,
it has that of the step from 2, sigma_1^2 (1 - n_1^2 / n_2^2) / alpha_0^2, as code of 2102.09672 has it.

For data in bins of width 2 / L on [-1, 1] the decoder says the mass of the bin [l, u] that x0 is in, the
outermost bins being open (2006.11239, eq. 13):

    -log P = -log [ Phi((u - x0_hat) / c) - Phi((l - x0_hat) / c) ]

References: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239); Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models" (2102.09672), eq. 3 to 7 and 15.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_toolkit.sdes.chain import Chain
from sde_toolkit.utils import checked, integer
from solvers.terms import expand_like


class VariationalTerms:
    """Tables of a chain, and its terms at any of its indices.

    Args:
        chain: with at least two steps between noisy states.

    Attributes:
        first: the first index whose step ends in a noisy state: 2 where index 0 is without noise, else 1.
        nsr: with shape (N + 1,).
        mean_weight: (n_t^2 - n_s^2) / (2 n_s^2) with shape (N + 1,), 0 before ``first``.
        log_ratio: log small - log large with shape (N + 1,), 0 before ``first``.

    Raises:
        ValueError: fewer steps.
    """

    @checked
    def __init__(self, chain: Chain) -> None:
        self.chain, self.first = chain, 1 + int(chain.sigmas[0] == 0)
        if chain.num_steps <= self.first:
            raise ValueError(
                f"chain must have at least 2 steps between noisy states, got num_steps = {chain.num_steps}"
            )
        self.nsr = n = chain.sigmas / chain.alphas
        n_t, n_s = n[self.first :], n[self.first - 1 : -1]
        pad = n.new_zeros(self.first)
        self.mean_weight = torch.cat([pad, 0.5 * (n_t - n_s) * (n_t + n_s) / n_s.square()])
        ratio = chain.sigmas[self.first - 1 : -1] / chain.sigmas[self.first :]
        self.log_ratio = torch.cat([pad, 2 * ratio.log()])

    @checked
    def divergence(self, i: Tensor, error: Tensor, v: Tensor) -> Tensor:
        """KL with shape (B, *), for indices i >= ``first`` with shape (B,) (0 before), squared errors h of
        the noise and fractions v with shape (B, *), or broadcastable to it."""
        log_r = v * expand_like(self.log_ratio.to(i.device)[i], error)
        weight = expand_like(self.mean_weight.to(i.device)[i], error) * log_r.exp()
        return weight * error + 0.5 * (torch.expm1(log_r) - log_r)

    @checked
    def decoder_std(self, v: Tensor) -> Tensor:
        """The decoder's standard deviation with the shape of v; for chains without noise at index 0."""
        if not v.is_floating_point():
            raise TypeError(f"v must be a tensor of real numbers, got {v.dtype}; use v.double()")
        large = self.chain.sigmas[1].square() / self.chain.alphas[0].square()
        gain = 1 - (self.nsr[1] / self.nsr[2]).square()
        return (0.5 * (float(large.log()) + (1 - v) * float(gain.log()))).exp()

    @checked
    def decoder_loss(self, error: Tensor, v: Tensor) -> Tensor:
        """-log N(x0; x0_hat(x_1), c^2) with shape (B, *), for squared errors h of the noise in x_1."""
        std = self.decoder_std(v)
        square = float(self.nsr[1].square()) * error
        return 0.5 * square / std.square() + std.log() + 0.5 * math.log(2 * math.pi)

    @checked
    def decoder_bins(self, x0: Tensor, x0_hat: Tensor, v: Tensor, levels: int) -> Tensor:
        """-log of the mass that N(x0_hat, c^2) gives to the bins of x0, with shape (B, *), in float64.

        Args:
            x0: data in ``levels`` bins of equal width on [-1, 1], anywhere in their bins, with shape (B, *).
            x0_hat: the prediction at index 1, with that shape.
            v: fractions, with that shape.
            levels: L, at least 2.

        Raises:
            ValueError: fewer levels, or tensors of several shapes.
        """
        levels = integer("levels", levels, 2)
        if not x0.shape == x0_hat.shape == v.shape or x0.is_complex() or x0_hat.is_complex():
            got = ", ".join(str(tuple(part.shape)) for part in (x0, x0_hat, v))
            raise ValueError(f"x0, x0_hat and v must be real numbers of one shape (B, *), got {got}")
        x = x0.double()
        k = ((x + 1) * (levels / 2)).floor().clamp(0, levels - 1)
        std, mean = self.decoder_std(v.double()), x0_hat.double()
        low, high = (((k + j) * (2 / levels) - 1 - mean) / std for j in (0, 1))
        return -log_normal_mass(
            torch.where(k == 0, -math.inf, low), torch.where(k == levels - 1, math.inf, high)
        )


def log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """log [ Phi(high) - Phi(low) ] for low < high of one shape, on the side where both tails are small."""
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log(-torch.expm1(lower - upper))
