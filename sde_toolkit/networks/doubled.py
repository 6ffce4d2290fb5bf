"""A network of twice the channels, as one that puts out or takes in more than a state.

    network(x, c) -> (B, 2 C, *)             with ``outputs`` = 2, for learned variances (2102.09672)
    network((x, y), c) -> (B, C, *)          with 2 C channels given, for self-conditioning (2208.04202)

Any network for events with 2 C channels will do: channels that are not given are 0, and those that are not
asked for are left out.

Self-conditioning feeds y, the network's own answer at (x, c), back to it.  Samplers ask a model at a state
and a time and carry nothing else from step to step, so the answer is that to (x, 0) at the same state and
not the one of the step before: every call is two evaluations of the network, and NFE counts calls.  A
training step takes y = 0 for a random half of its rows and holds y fixed for the rest.  What is fed back is
the output as it is, the clean data for a network that predicts those; from any other prediction they follow
with x and c.

References: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672); Chen, Zhang
and Hinton, "Analog Bits" (2208.04202).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_toolkit.utils import checked, integer


class Doubled(nn.Module):
    """A network for events with 2 C channels (2 D features), called with C or 2 C of them.

    Args:
        network: one of this package for the event shape (2 C, *), or another one with the attributes
            ``event_shape``, ``num_classes`` and ``condition_shape``.
        outputs: 2 for outputs with shape (B, 2 C, *), 1 for the first C channels.

    Raises:
        ValueError: a network without ``event_shape``, or for an odd number of channels; or other ``outputs``.
    """

    @checked
    def __init__(self, network: nn.Module, outputs: int = 2) -> None:
        super().__init__()
        shape = tuple(getattr(network, "event_shape", ()))
        if not shape or shape[0] % 2:
            raise ValueError(
                "network must be one for events of twice the channels, such as MLP((2 * D,)) for vectors "
                f"with D features, got {type(network).__name__} for {shape or 'events that it does not name'}"
            )
        self.network, self.outputs = network, integer("outputs", outputs, 1, 2)
        self.event_shape = (shape[0] // 2, *shape[1:])
        self.num_classes = int(getattr(network, "num_classes", 0))
        self.condition_shape = tuple(getattr(network, "condition_shape", None) or ())
        self.embeds_real_times = bool(getattr(network, "embeds_real_times", False))

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """The first ``outputs`` C channels of the network's output, for x with shape (B, C, *) or
        (B, 2 C, *), c with shape (B,) and a condition with B rows."""
        channels = self.event_shape[0]
        if x.shape[1] == channels:
            x = torch.cat([x, torch.zeros_like(x)], 1)
        out = self.network(x, c) if condition is None else self.network(x, c, condition)
        return out if self.outputs == 2 else out[:, :channels]


class SelfConditioned(nn.Module):
    """A network that sees its own first answer (2208.04202, section 3.2); two evaluations for every call.

    Args:
        network: for events with 2 C channels, as for ``Doubled``.
        outputs: as for ``Doubled``; the first C channels are fed back.

    Raises:
        ValueError: as for ``Doubled``.
    """

    @checked
    def __init__(self, network: nn.Module, outputs: int = 1) -> None:
        super().__init__()
        self.doubled = Doubled(network, outputs)
        self.event_shape, self.num_classes = self.doubled.event_shape, self.doubled.num_classes
        self.condition_shape = self.doubled.condition_shape
        self.embeds_real_times = self.doubled.embeds_real_times
        self.coin = nn.Dropout(0.5)  # draws as dropout does

    def forward(self, x: Tensor, c: Tensor, condition: Tensor | None = None) -> Tensor:
        """The second answer with shape (B, outputs C, *), for x with shape (B, C, *), c with shape (B,) and a
        condition with B rows."""
        with torch.no_grad():
            first = self.doubled(x, c, condition)[:, : self.event_shape[0]]
            kept = self.coin(torch.ones_like(x[(slice(None),) + (slice(0, 1),) * (x.ndim - 1)])) > 0
        return self.doubled(torch.cat([x, torch.where(kept, first, 0.0)], 1), c, condition)
