"""Learned variances of other libraries' networks, as fractions between the two bounds of a chain's steps.

A network with 2 C channels says, beside its prediction, the variance c^2 of the chain's step from the index:

    "range"   u, with log c^2 = v log large + (1 - v) log small and v = (u + 1) / 2: diffusers' learned_range,
              guided-diffusion's LEARNED_RANGE
    "log"     log c^2: guided-diffusion's LEARNED
    "value"   c^2: diffusers' "learned"

Models here know "range" (2102.09672, eq. 15), and any c^2 is one: v = log(c^2 / small) / log(large / small),
below 0 or above 1 where the network says a variance outside of the bounds.  The step from index 1, whose
small variance would be 0, has the ends of the decoder in ``VariationalTerms``.

Steps that leave indices out have bounds of their own, and v is a fraction between these: on a chain with
fewer indices the variance is the longer step's, where diffusers' "learned" keeps the short step's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sde_toolkit.models import embeds_real_times
from sde_toolkit.sdes import Chain, VariationalTerms
from solvers import expand_like

VarianceKind = Literal["range", "log", "value"]
"""What the second half of 2 C channels is, see the module's head."""

_LEAST = 1e-20


class FractionNetwork(nn.Module):
    """A network whose second half is a variance, as one whose second half is u of the module's head.

    Args:
        network: called as ``network(x, i)``, i from 0 to N - 1, or with a condition; outputs (B, 2 C, *).
        chain: whose steps have the variances.
        kind: "log" or "value".
    """

    def __init__(self, network: nn.Module, chain: Chain, kind: VarianceKind) -> None:
        super().__init__()
        self.network, self.kind = network, kind
        self.num_classes = getattr(network, "num_classes", 0)
        self.condition_shape = getattr(network, "condition_shape", None)
        self.embeds_real_times = embeds_real_times(network)
        self.bounds = torch.stack(
            log_bounds(chain), 1
        )  # no buffer, whose type would be taken for the model's

    def forward(self, x: Tensor, index: Tensor, condition: Tensor | None = None) -> Any:
        """The prediction and u with shape (B, 2 C, *), for indices with shape (B,)."""
        out = self.network(x, index) if condition is None else self.network(x, index, condition)
        if not isinstance(out, Tensor) or out.shape[1] % 2:
            return out  # refused by the model
        prediction, second = out.chunk(2, dim=1)
        if self.kind == "value":
            second = second.clamp(min=_LEAST).log()
        table = self.bounds.to(x.device, x.dtype)
        low = index.floor().long().clamp(0, len(table) - 1)
        high, share = (low + 1).clamp(max=len(table) - 1), (index - low).to(x.dtype)
        here = torch.lerp(table[low], table[high], share[:, None])
        small, large = (expand_like(bound, x) for bound in here.unbind(1))
        return torch.cat([prediction, 2 * (second - small) / (large - small) - 1], dim=1)


def log_bounds(chain: Chain) -> tuple[Tensor, Tensor]:
    """log small and log large of the steps from indices 1 to N, each with shape (N,), in float64."""
    terms = VariationalTerms(chain)
    nsr, sigma = terms.nsr, chain.sigmas
    gain = (1 - (nsr[:-1] / nsr[1:]).square()).log()
    large = 2 * sigma[1:].log() + gain
    small = large + terms.log_ratio[1:]
    if terms.first == 2:
        ends = 2 * terms.decoder_std(torch.tensor([0.0, 1.0], dtype=torch.float64)).log()
        small, large = small.clone(), large.clone()
        small[0], large[0] = ends[0], ends[1]
    return small, large
