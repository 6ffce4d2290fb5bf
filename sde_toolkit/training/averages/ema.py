"""The moving average of a network's weights.

After update n, counted from 0, with the theta just updated, so that the average includes the last update,

    ema <- d_n ema + (1 - d_n) theta

    profile     d_n
    warmup      min(ema_decay, (1 + n) / (10 + n))     the last tenth of the run, then like "constant"
    constant    ema_decay                              the last 1 / (1 - ema_decay) updates
    power       (n / (n + 1))^(gamma + 1)              update k like k^gamma (``averages.power``)

"constant" keeps a share ema_decay^n of the initial weights.

The average of parameters of less than 32 bits is float32: in bfloat16, (1 - d_n)(theta - ema) is below half
a unit in the last place of ema as soon as d_n > 0.99, and the average would stand still.

Reference: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2312.02696).
"""

from __future__ import annotations

import copy
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

EmaProfile = Literal["warmup", "constant", "power"]
EMA_PROFILES: tuple[str, ...] = get_args(EmaProfile)
"""Rules of the moving average, see the module's text."""


def warmed_decay(step: int, ema_decay: float) -> float:
    """d_n of "warmup" at update ``step``, counted from 0."""
    return min(ema_decay, (1 + step) / (10 + step))


def averaged_copy(network: Network) -> Network:
    """A copy of ``network`` for the average, without gradients and in evaluation mode, float32 or wider."""
    average = copy.deepcopy(network).requires_grad_(False).eval()
    for tensor in (*average.parameters(), *average.buffers()):
        if is_narrow(tensor):
            tensor.data = tensor.data.float()
    return average


def is_narrow(tensor: Tensor) -> bool:
    """Whether the tensor holds floating-point numbers of less than 32 bits."""
    return tensor.is_floating_point() and tensor.element_size() < 4


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the parameters of ``average`` towards those of ``network``, in place; buffers are copied."""
    means: list[Tensor] = list(average.parameters())
    values = [value.detach() for value in network.parameters()]
    if all(mean.dtype == value.dtype for mean, value in zip(means, values, strict=True)):
        torch._foreach_lerp_(means, values, 1 - decay)
    else:
        for mean, value in zip(means, values, strict=True):
            mean.lerp_(value, 1 - decay)
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)
