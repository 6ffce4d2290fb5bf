"""diffusers' networks, called as ours are: network(x, tau [, condition]) -> tensor.

    UNet2DModel            class_labels            from 0 to K - 1; and one for none where it is named
    DiTTransformer2DModel  class_labels            from 0 to K, K for none
    UNet2DConditionModel   encoder_hidden_states   embeddings (L, d), that of the empty text for none
    any other module       a third argument

Outputs may be a tensor, the first of a tuple, or the field ``sample`` of a dataclass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.sdes import ForwardSDE
from solvers import expand_like

_REAL_TIMES = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")


class PipelineNetwork(nn.Module):
    """A network of a pipeline as one of ours.

    Args:
        network: the module.
        sign: by which its output is multiplied.
        channels: the first channels of the output that are kept; None for all.
        null_class: the label of an unconditional network in the place of "none"; None where there is none.
        null_condition: the condition in the place of none, with shape (L, d), or None.

    Raises:
        ValueError: a null class that is no label of the network.
    """

    null_condition: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        sign: float = 1.0,
        channels: int | None = None,
        null_class: int | None = None,
        null_condition: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network, self.sign, self.channels = network, sign, channels
        config, kind = getattr(network, "config", {}), type(network).__name__
        self.keyword = {"UNet2DModel": "class_labels", "DiTTransformer2DModel": "class_labels",
                        "UNet2DConditionModel": "encoder_hidden_states"}.get(kind)  # fmt: skip
        labels = int(_of(config, "num_class_embeds") or 0)
        if kind == "DiTTransformer2DModel":  # its table has a label more, for none
            labels = int(config["num_embeds_ada_norm"]) + 1
            null_class = labels - 1 if null_class is None else null_class
        if null_class is not None and null_class != labels - 1:
            raise ValueError(
                f"null_class must be the last of the network's {labels} labels, {labels - 1}, got "
                f"{null_class}; leave it out for a network that was trained with labels alone"
            )
        self.has_null = null_class is not None
        self.num_classes = labels - self.has_null if self.keyword != "encoder_hidden_states" else 0
        self.embeds_real_times = kind in _REAL_TIMES and _of(config, "time_embedding_type") in (
            None,
            "positional",
            "fourier",
        )
        self.register_buffer("null_condition", null_condition, persistent=False)

    def forward(self, x: Tensor, tau: Tensor, condition: Tensor | None = None) -> Tensor:
        """The output with the shape of x, or with twice its channels.

        Raises:
            ValueError: a network that must be given a condition, without one.
        """
        if condition is None:
            condition = self._none(x)
        elif self.num_classes and not self.has_null and bool((condition == self.num_classes).any()):
            self._none(x)
        if self.keyword is not None and condition is not None:
            out: Any = self.network(x, tau, **{self.keyword: condition})
        else:
            out = self.network(x, tau) if condition is None else self.network(x, tau, condition)
        out = first_output(out)
        if not isinstance(out, Tensor):
            return out  # refused by the model
        if self.channels is not None:
            out = out[:, : self.channels]
        return out if self.sign == 1 else self.sign * out

    def _none(self, x: Tensor) -> Tensor | None:
        if self.null_condition is not None:
            return self.null_condition.to(x.dtype).expand(len(x), *self.null_condition.shape)
        if self.has_null:
            return torch.full((len(x),), self.num_classes, device=x.device)
        if self.num_classes:
            raise ValueError(
                f"condition must be given for a network that was trained with its {self.num_classes} labels "
                "alone: sample(..., condition=3); or name its label for none, as in from_diffusers(..., "
                "null_class=9)"
            )
        if self.keyword == "encoder_hidden_states":
            raise ValueError("condition must be given for a network without an embedding of the empty text")
        return None


class BoundaryNetwork(nn.Module):
    """The F of a consistency model as its f(x, sigma) = c_skip x + c_out F, see ``schedules``.

    Args:
        network: called with x / (sigma^2 + data_std^2)^(1/2) and 250 log(sigma), or with a condition as well.
        sde: whose sigma(0) is sigma_min.
        data_std: sigma_data.
    """

    def __init__(self, network: nn.Module, sde: ForwardSDE, data_std: float) -> None:
        super().__init__()
        self.network, self.data_std = network, data_std
        self.sigma_min = float(sde.sigma(torch.zeros((), dtype=torch.float64)))
        self.num_classes = getattr(network, "num_classes", 0)
        self.embeds_real_times = True

    def forward(self, x: Tensor, tau: Tensor, condition: Tensor | None = None) -> Any:
        """f with the shape of x (B, *), for tau with shape (B,)."""
        out = self.network(x, tau) if condition is None else self.network(x, tau, condition)
        if not isinstance(out, Tensor):
            return out  # refused by the model
        sigma = expand_like((tau.double() / 250).exp(), x)
        size, excess, d = (sigma.square() + self.data_std**2).sqrt(), sigma - self.sigma_min, self.data_std
        skip, scale = d**2 / (excess.square() + d**2) * size, excess * d / size
        return skip.to(x.dtype) * x + scale.to(x.dtype) * out


def first_output(out: Any) -> Any:
    """The prediction in what a network of diffusers returns."""
    if isinstance(out, Tensor):
        return out
    if isinstance(getattr(out, "sample", None), Tensor):
        return out.sample
    return out[0] if isinstance(out, tuple) and out else out


def network_shape(network: nn.Module) -> tuple[tuple[int, ...], int]:
    """The shape (C, H, W) of one sample of a network of diffusers, and its output channels.

    Raises:
        ValueError: its configuration does not say.
    """
    config = getattr(network, "config", {})
    channels, size = _of(config, "in_channels"), _of(config, "sample_size")
    if not isinstance(channels, int) or not isinstance(size, (int, list, tuple)):
        raise ValueError(
            "source must be a network that says its in_channels and sample_size in its configuration, got "
            f"{type(network).__name__} without; give event_shape=(C, H, W)"
        )
    one = type(network).__name__ in ("UNet1DModel",)
    sides = (size,) * (1 if one else 2) if isinstance(size, int) else tuple(size)
    return (channels, *sides), int(_of(config, "out_channels") or channels)


def _of(config: Any, name: str) -> Any:
    return config.get(name) if hasattr(config, "get") else None
